"""Does a map depend on what the model has learned? Its parameters are randomised, and the maps should change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.layers import find_layers, layer_name
from fastcam.metrics.arcc import pearson
from fastcam.record import unwrap


class Randomised(NamedTuple):
    """A stage of `model_randomisation`.

    layer      the name of the layer that was randomised last
    spearman   the rank correlation of the maps with the original ones, `(B,)`
    pearson    their correlation, `(B,)`
    maps       the maps `(B, H, W)`
    """

    layer: str
    spearman: Tensor
    pearson: Tensor
    maps: Tensor


def model_randomisation(
    model: nn.Module,
    explain: Callable[[nn.Module], Any],
    layers: Sequence[Any] | None = None,
    *,
    cascade: bool = True,
    seed: int = 0,
) -> list[Randomised]:
    """Maps as the model's layers become random, from the head down (Adebayo et al., NeurIPS 2018, arXiv:1810.03292).

    explain   gives the maps `(B, H, W)` of the model that it is handed, the same images and targets each time
    layers    modules or names in the order to randomise, each with all that is in it; None is every layer with
              weights, the last registered first, and the normalisation that follows it
    cascade   False randomises one layer at a time, the others as they were learned
    seed      of the random parameters
    A stage for each layer. Maps that stay alike (correlations near 1) do not show what the model has learned.
    A layer is randomised by its own `reset_parameters`, or by normal numbers of the same mean and variance. This
    happens on a copy: the model stays as it was, as do torch's generators.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> x = torch.rand(2, 1, 8, 8)
    >>> stages = model_randomisation(model, lambda net: net[0](x).sum(1))
    >>> [stage.layer for stage in stages]
    ['2', '0']
    """
    source = unwrap(model)
    stages = _default_stages(source) if layers is None else [_stage(source, layer) for layer in layers]
    # Not seed, seed + 1, ...: a model built after manual_seed(3) would get its first layer back.
    seeds = torch.randint(2**31, (len(stages),), generator=torch.Generator().manual_seed(seed)).tolist()
    with torch.random.fork_rng(devices=[]):  # nothing is drawn on a GPU
        net = copy.deepcopy(source)
        original = _maps(explain(net))
        results = []
        for (name, parts), number in zip(stages, seeds, strict=True):
            net = net if cascade else copy.deepcopy(source)
            torch.default_generator.manual_seed(number)  # explain may draw numbers in between
            modules = dict(net.named_modules())
            for part in parts:
                _randomise(modules[part])
            maps = _maps(explain(net))
            if maps.shape != original.shape:
                raise ValueError(f"explain gives maps {tuple(maps.shape)}, {tuple(original.shape)} before")
            results.append(Randomised(name, spearman(original, maps), pearson(original, maps), maps))
    return results


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The rank correlation of maps `(B, *S)`: `(B,)` in [-1, 1], 0 where one is constant; ties get their mean rank."""
    return pearson(_mean_ranks(a), _mean_ranks(b))


def _mean_ranks(maps: Tensor) -> Tensor:
    values = maps.flatten(1).contiguous()
    ascending = values.sort(1).values
    first = torch.searchsorted(ascending, values)
    behind = torch.searchsorted(ascending, values, right=True)
    return (first + behind).float() / 2


Stage = tuple[str, list[str]]  # the name of a layer, and of the modules whose own parameters are randomised


def _default_stages(net: nn.Module) -> list[Stage]:
    """Every module with weights of its own, last first, with the modules behind it that have vectors only."""
    stages: list[Stage] = []
    waiting: list[str] = []
    for name, module in reversed(list(net.named_modules())):
        own = list(module.parameters(recurse=False))
        if own:
            waiting.append(name)
        if any(p.ndim > 1 for p in own):
            stages.append((name or type(net).__name__, waiting))
            waiting = []
    if not stages:
        raise ValueError(f"{type(net).__name__} has no layer with weights")
    stages[-1][1].extend(waiting)
    return stages


def _stage(net: nn.Module, layer: Any) -> Stage:
    """A layer that was asked for, with all that is in it."""
    inside = {m for found in find_layers(net, layer) for m in found.modules()}
    name = layer if isinstance(layer, str) else layer_name(net, layer)
    return name, [n for n, m in net.named_modules() if m in inside]


def _randomise(module: nn.Module) -> None:
    """New parameters for a module, not for those inside it; drawn on the CPU, so the same wherever it is."""
    own = list(module.parameters(recurse=False))
    reset = getattr(module, "reset_parameters", None)
    if own and callable(reset):
        device = own[0].device
        module.cpu()
        reset()
        module.to(device)
        return
    for p in own:
        noise = torch.randn(p.shape).to(p)
        spread = p.detach().std() if p.numel() > 1 else p.detach().abs().mean()
        p.data = p.detach().mean() + spread * noise


def _maps(maps: Any) -> Tensor:
    """What a method gave, as a tensor `(B, *S)`."""
    if isinstance(maps, np.ndarray):
        maps = torch.from_numpy(np.ascontiguousarray(maps))
    if not isinstance(maps, Tensor) or maps.ndim < 2:
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"explain must give maps (B, H, W), a tensor or an array, got {given}")
    return ops.wide(maps.detach()).clone()
