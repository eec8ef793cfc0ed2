"""Whether a layer's channels are first or last, by the width of its own norm or linear map, never by its size alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fastcam.inputs import Inputs
from fastcam.observe import Sight, observe

_CHANNELS_FIRST = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm)


def channels_last(net: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int]) -> bool:
    """Whether an output of the input's rank is `(B, ..., C)`; LookupError if that can't be told."""
    last = by_width(layer, shape)
    if last is None and not any(hasattr(m, "normalized_shape") for m in net.modules()):
        return False  # a convolutional network
    if last is None:
        last = by_neighbours(layer, observe(net, x[:1]))
    if last is None:
        raise LookupError(
            "whether its channels are first or last can't be told, pass reshape_transform=lambda t: t for (B, C, h, w) "
            "or lambda t: t.movedim(-1, 1) for (B, h, w, C)"
        )
    return last


def by_width(layer: nn.Module, shape: Sequence[int], incoming: bool = False) -> bool | None:
    """Whether channels are last, by the width of the layer's last norm, convolution or linear map; None: no telling.

    incoming   of what the layer, a module without children then, is given
    """
    ends = [m for m in layer.modules() if hasattr(m, "weight") and not isinstance(m, nn.Embedding)]
    if not ends:
        return False if "Pool" in type(layer).__name__ and incoming else None
    end = ends[-1]
    if isinstance(end, _CHANNELS_FIRST) or type(end).__name__.endswith("2d"):
        return False
    if end is layer and isinstance(end, nn.Linear) or type(end) in (nn.LayerNorm, nn.RMSNorm) and end is layer:
        return True
    width = _width(end, incoming)
    first, last = shape[1] == width, shape[-1] == width
    return last if first != last else None


def _width(end: nn.Module, incoming: bool) -> int | None:
    if isinstance(end, nn.Linear):
        return end.in_features if incoming else end.out_features
    if isinstance(normalized := getattr(end, "normalized_shape", None), Sequence):
        return int(normalized[-1])
    weight = end.weight
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 1 else None


def by_neighbours(layer: nn.Module, sights: Sequence[Sight]) -> bool | None:
    """The same by the modules that made the layer's output, that take it, or that made what it passes on."""
    place = next((i for i, s in enumerate(sights) if s.module is layer and s.returned), None)
    if place is None:
        return None
    output = sights[place]
    made = [s for s in sights[:place] if s.returned and s.number == output.number]
    taken = [s for s in sights[place:] if not s.returned and s.number == output.number]
    given = next((s for s in sights[:place] if s.module is layer), output)
    before = [s for s in sights[:place] if s.returned and s.number == given.number and given.shape == output.shape]
    for near, incoming in ((made, False), (taken, True), (before, False)):
        for s in near:
            told = None if any(s.module.children()) else by_width(s.module, s.shape, incoming)
            if told is not None:
                return told
    return None
