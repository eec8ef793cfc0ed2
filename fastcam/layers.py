"""Target layers: from names, index paths, globs, modules or None to modules, and the table of a model's layers."""

from __future__ import annotations

import difflib
import fnmatch
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.inputs import inputs_of
from fastcam.receptive_field import measured
from fastcam.record import call, evaluation, first_convolution, hooked, owned, unwrap

Layers = Any  # None | nn.Module | str | list of nn.Module and str

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_suggested: weakref.WeakKeyDictionary[nn.Module, dict[Any, weakref.ref[nn.Module]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Layer:
    """A module of a model, as one forward pass saw it.

    shape   of its first call's output, or of the first tensor in it; None if it gave no tensor or did not run
    order   its place among the calls as they ended; -1 if it did not run
    receptive_field   how many pixels of the input, `(h, w)`, the centre of its output depends on; "global" for all of
                      them; None if it was not asked for, or the output is no map
    """

    name: str
    module: nn.Module = field(repr=False)
    shape: tuple[int, ...] | None
    order: int
    receptive_field: tuple[int, ...] | str | None = None


def find_layers(model: nn.Module, layers: Layers) -> list[nn.Module]:
    """The modules meant: a module of the model, `"layer4.1"`, `"layer4[-1]"`, a glob, or a list of these."""
    net = unwrap(model)
    if isinstance(layers, list | tuple | nn.ModuleList):
        found = [module for item in layers for module in find_layers(net, item)]
        if not found:
            raise ValueError("the list of target layers is empty: give at least one")
        return found
    if isinstance(layers, nn.Module):
        module = unwrap(layers)
        if all(module is not m for m in net.modules()):
            raise ValueError(f"target layer {_short(module)} is not in the model {type(net).__name__}")
        return [module]
    if not isinstance(layers, str):
        raise TypeError(f"a target layer is a module or a name, got {type(layers).__name__}")
    return _by_name(net, layers)


def _by_name(net: nn.Module, path: str) -> list[nn.Module]:
    named = dict(net.named_modules())
    if any(sign in path for sign in "*?"):
        if found := [module for name, module in named.items() if name and _matches(name, path)]:
            return found
    elif (module := _walk(net, path)) is not None:
        return [module]
    nearest = difflib.get_close_matches(path, [n for n in named if n], n=5, cutoff=0.3)
    hint = f"; the nearest names: {', '.join(nearest)}" if nearest else ""
    raise ValueError(f"no layer {path!r} in the model {type(net).__name__}{hint}")


def _matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a glob, part by part: `*` does not cross a dot, `layer*` finds no `layer1.0`."""
    parts, globs = name.split("."), pattern.replace("[", "[[]").split(".")
    return len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))


def _walk(net: nn.Module, path: str) -> nn.Module | None:
    """Follow names and [indices]: `features[-1].conv`; None where there is no such module."""
    module: Any = net
    for name, index in re.findall(r"([^.\[\]]+)|\[(-?\d+)\]", path):
        children = dict(unwrap(module)._modules.items())  # of a scripted module, too
        if name:
            module = children.get(name)
        else:
            ordered = [child for child in children.values() if child is not None]
            module = ordered[int(index)] if -len(ordered) <= int(index) < len(ordered) else None
        if module is None:
            return None
    return module if re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[-?\d+\])*", path) else None


def layer_name(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of a module in the model."""
    return next((n for n, m in unwrap(model).named_modules() if m is module), type(module).__name__)


def layer_table(model: nn.Module, x: Any, *, receptive_fields: bool = False) -> list[Layer]:
    """Every module of the model as one forward pass of `x` (B, k, H, W) sees it, in the model's order.

    x may be several inputs, as for a method.
    Rows have `.name`, `.module`, `.shape` of the output (None without a tensor) and `.order` of the call (-1: not run).
    receptive_fields   measure `.receptive_field` too: a backward pass a layer
    """
    net = unwrap(model)
    x = inputs_of(x)
    seen: dict[nn.Module, tuple[tuple[int, ...] | None, int]] = {}

    def note(module: nn.Module, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else _first(output)
        seen.setdefault(module, (None if tensor is None else tuple(tensor.shape), len(seen)))

    with evaluation(net), hooked(net.modules(), note):
        call(net, owned(net, x))
    table = [Layer(n, m, *seen.get(m, (None, -1))) for n, m in net.named_modules() if n]
    if not receptive_fields:
        return table
    found = measured(net, [row.module for row in table if _is_spatial(row, x.image.ndim)], x)
    return [replace(row, receptive_field=found.get(row.module)) for row in table]


def default_layer(model: nn.Module, x: Any) -> nn.Module:
    """The last convolutional stage before global pooling; with class tokens the last block's first norm.

    One shape-finding run with a single image, remembered for the model and this shape of input.
    """
    net, x = unwrap(model), inputs_of(x)
    known = _suggested.setdefault(net, {})
    module = known[x.shapes]() if x.shapes in known else None
    if module is None or all(module is not m for m in net.modules()):
        module = suggest(layer_table(net, x[:1]), x.image.ndim).module
        known[x.shapes] = weakref.ref(module)
    return module


def suggest(table: Sequence[Layer], rank: int) -> Layer:
    """The layer to explain among the rows of a table, for inputs with `rank` dimensions; ValueError if none is."""
    stages: list[Layer] = []
    images = min((row.shape[0] for row in table if row.shape and _is_spatial(row, rank)), default=0)
    for row in table:  # a parent comes before its children
        inside = any(row.name.startswith(stage.name + ".") for stage in stages)
        whole = row.shape and _is_spatial(row, rank) and row.shape[0] == images  # no windows, no heads
        if not inside and whole and any(isinstance(m, _CONVOLUTIONS) for m in row.module.modules()):
            stages.append(row)
    last = max(stages, key=lambda row: row.order, default=None)
    norms = _token_norms(table, rank)
    token = max(norms, key=lambda row: row.order, default=None)
    if token is not None and (last is None or token.order > last.order):
        return token
    if last is None:
        raise ValueError(
            "no convolutional stage with a spatial output was found in the model: pass target_layers "
            "(`fastcam layers` lists them), and a reshape_transform if the output is not (B, C, h, w)"
        )
    return last


def _token_norms(table: Sequence[Layer], rank: int) -> list[Layer]:
    """What goes into the last attention of each stack of blocks that work on tokens `(B, N, D)`: a norm, usually.

    Likewise for attention on maps; in a network without attention, the first norm of the last block on tokens.
    """
    by_attention: list[Layer] = []
    others: list[Layer] = []
    for stack in table:
        blocks = list(stack.module.children())
        if not isinstance(stack.module, nn.Sequential | nn.ModuleList) or not blocks:
            continue
        inside = {id(m) for m in blocks[-1].modules()}
        rows = [r for r in table if id(r.module) in inside and r.order >= 0 and r.shape is not None]
        attention = [r.order for r in rows if _is_attention(r)]
        tokens = [r for r in rows if _has_tokens(r, rank) or attention and _is_spatial(r, rank)]
        found = [r for r in tokens if _is_norm(r) and r.order < min(attention, default=len(table))]
        if not found and attention and len(blocks) > 1:  # norms behind it: its input is the output of the block before
            found = [r for r in table if r.module is blocks[-2] and r.shape is not None]
        if found:
            (by_attention if attention else others).append(min(found, key=lambda r: r.order))
    return by_attention or [row for row in others if row.name.count(".") > 1]


def _has_tokens(row: Layer, rank: int) -> bool:
    return row.shape is not None and len(row.shape) == rank - 1


def _is_attention(row: Layer) -> bool:
    return any(word in type(row.module).__name__.lower() for word in ("attention", "attn"))


def _is_norm(row: Layer) -> bool:
    named = "norm" in type(row.module).__name__.lower() or row.name.rpartition(".")[2].startswith("norm")
    return named and not any(isinstance(m, nn.Linear) for m in row.module.modules())


def image_channel_dim(net: nn.Module, image: Tensor) -> int:
    """Which dimension of an image the channels are: 1, or 2 in a video `(B, T, C, H, W)`.

    A video is told from a volume `(B, C, D, H, W)` by the model's first convolution and how many channels it takes;
    where both sizes fit, a two-dimensional one takes frames.
    """
    first = first_convolution(net)
    if image.ndim != 5 or first is None:
        return 1
    dims = (1, 2) if first.weight.ndim == 5 else (2, 1)
    return next((d for d in dims if image.shape[d] == first.in_channels), 1)


def _is_spatial(row: Layer, rank: int) -> bool:
    return row.shape is not None and len(row.shape) == rank and torch.Size(row.shape[2:]).numel() > 1


def _first(output: Any) -> Tensor | None:
    items = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((t for t in items if isinstance(t, Tensor)), None)


def _short(module: nn.Module) -> str:
    text = repr(module)
    return text if "\n" not in text and len(text) < 80 else type(module).__name__
