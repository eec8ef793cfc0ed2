"""The weights of a layer, by themselves and as a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastcam.layers import find_layers, layer_name
from fastcam.record import evaluation, first_convolution, unwrap
from fastcam.visualize.filters import KernelFigure, Options


def layer_weights(model: nn.Module, layer: Any, *, batch_norm: Any = None) -> Tensor:
    """The weights that a layer multiplies by, `(out, in, *S)`, a copy on the model's device, without a graph.

    Of a linear layer `(out, in)`; of a grouped convolution `(out, in / groups, *S)`; of a transposed one, too, which
    stores them the other way round: `[o, i]` is what a value of input channel i adds around its place to output
    channel o. Of a parametrized, normalised or pruned layer those that a forward pass in evaluation mode uses.

    layer        a module of the model, `"layer1.0.conv1"`, `"layer1[0].conv1"`, or a glob that fits one module
    batch_norm   the batch norm that follows it, if its factors shall be part of the weights: w gamma / sqrt(var + eps)
                 for its running variance. That it does follow is not checked
    Raises ValueError for a layer without such weights, naming others; if there is no such layer, or several; if the
    batch norm does not fit.

    >>> layer_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), "0").shape
    torch.Size([4, 1, 3, 3])
    """
    net = unwrap(model)
    module = _one(net, layer)
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters(recurse=False)):
        raise ValueError(f"{type(module).__name__} has no weights yet: run the model once")
    if not _has_kernels(module):
        raise _without_weights(net, module)
    with evaluation(net):  # in training mode, reading a spectrally normalised weight would change it
        weights = _effective(module).detach().clone()
        if getattr(module, "transposed", False):
            groups = int(getattr(module, "groups", 1))
            weights = weights.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return weights if batch_norm is None else _folded(net, weights, _one(net, batch_norm))


def plot_kernels(
    model: nn.Module,
    layer: Any,
    ax: Any = None,
    *,
    channels: Any = None,
    inputs: Any = None,
    sort: str | None = None,
    limit: int | None = None,
    reduce: str | None = None,
    rgb: bool | None = None,
    scale: str = "shared",
    clip: float | None = 99.0,
    colormap: str | None = None,
    batch_norm: Any = None,
) -> Any:
    """Draw the kernels of a layer as one mosaic, and give its Axes back.

    A row an output channel, a column an input channel; a filter that has only one channel, or few while there are many
    filters, is one tile in a square of them. A signal's kernels are lines, a volume's their slices side by side, a
    linear layer's weights a table. The scale is symmetric, and its limits are on the colour bar. Filters with a norm of
    less than a millionth of the median are dead, and hatched.

    layer, batch_norm   as for `layer_weights`
    ax         the Axes to draw in; a new figure's by default
    channels   output channels: a number, several, or a slice
    inputs     input channels, of each group's
    sort       "norm": filters with the largest L2 norm first
    limit      at most as many output channels, and as many input channels; by default 64, 512 of a linear layer or of
               1 x 1 kernels, and 1024 filters in a square. The title says what share is shown
    reduce     "norm", "sum" or "mean" over the input channels chosen: a tile a filter
    rgb        whether three input channels are red, green and blue, 0.5 + w / (2 max |w|); None: if the layer is the
               model's first convolution
    scale      "shared", or "each": each filter is divided by its largest absolute weight
    clip       the percentile of the absolute weights that the colours end at; None: the largest
    colormap   a name that matplotlib knows, instead of red and blue
    Raises ValueError as `layer_weights` does, for a channel that is not there and for an unknown option.

    >>> ax = plot_kernels(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), "0")
    >>> ax.get_title(), len(ax.images)
    ('0: 4 filters x 2 channels, 3 x 3', 1)
    """
    options = {
        **{"channels": channels, "inputs": inputs, "sort": sort, "limit": limit, "reduce": reduce},
        **{"rgb": rgb, "scale": scale, "clip": clip, "colormap": colormap, "batch_norm": batch_norm},
    }
    return kernel_figure(model, layer, **options).plot(ax)


def kernel_figure(model: nn.Module, layer: Any, *, batch_norm: Any = None, **options: Any) -> KernelFigure:
    """What `plot_kernels` draws, with the same options, as a result: `.data`, `.plot(ax)`, `.save(path)`.

    >>> kernel_figure(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), "0", sort="norm")
    KernelFigure of 0: float32 (4, 2, 3, 3)
    """
    net = unwrap(model)
    module = _one(net, layer)
    weights = layer_weights(net, module, batch_norm=batch_norm)
    return KernelFigure(
        weights,
        Options(**options),
        layer=layer_name(net, module) or type(module).__name__,
        first=first_convolution(net) is module,
        groups=int(getattr(module, "groups", 1)),
        transposed=bool(getattr(module, "transposed", False)),
    )


def _one(net: nn.Module, layer: Any) -> nn.Module:
    found = list(dict.fromkeys(find_layers(net, layer)))
    if len(found) > 1:
        names = [layer_name(net, m) for m in found]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(f"layer must be one layer, {layer!r} is {len(names)}: {listed}")
    return found[0]


def _has_kernels(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module, "weight"):
        return True
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight", vars(module).get("weight"))
    if not isinstance(weight, Tensor) or isinstance(weight, nn.UninitializedParameter):
        return False
    return weight.ndim >= 2 and weight.is_floating_point()


def _without_weights(net: nn.Module, module: nn.Module) -> ValueError:
    names = [(n, m) for n, m in net.named_modules() if n]
    inside = set(module.modules())
    place = next((i for i, (_, m) in enumerate(names) if m is module), 0)
    known = [(abs(i - place), n, m in inside) for i, (n, m) in enumerate(names) if _has_kernels(m)]
    within = [n for _, n, is_inside in known if is_inside]
    near = within or [n for _, n, _ in sorted(known)]
    hint = "" if not near else f"; layers {'inside it' if within else 'near it'} that have: {', '.join(near[:5])}"
    name = layer_name(net, module)
    return ValueError(f"layer {name!r} ({type(module).__name__}) has no weights between channels{hint}")


def _effective(module: Any) -> Tensor:
    """The weight of the next forward pass: the hooks of the older normalisations and of pruning would set it then."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == "weight":
            return hook.compute_weight(module, *[False] * isinstance(hook, SpectralNorm))
    return module.weight


def _folded(net: nn.Module, weights: Tensor, norm: nn.Module) -> Tensor:
    if not isinstance(norm, _BatchNorm) or norm.running_var is None or norm.num_features != len(weights):
        raise ValueError(
            f"batch_norm must be a batch norm of {len(weights)} channels with running statistics, "
            f"got layer {layer_name(net, norm)!r}, {norm}"
        )
    factors = torch.rsqrt(norm.running_var + norm.eps)
    factors = factors if norm.weight is None else factors * norm.weight
    return (weights * factors.detach().view(-1, *[1] * (weights.ndim - 1))).to(weights.dtype)
