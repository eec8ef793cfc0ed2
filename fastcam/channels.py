"""Whether a layer's channels are first or last, by the width of its own norm or linear map, never by its size alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fastcam.inputs import Inputs
from fastcam.observe import Sight, observe

_ADVICE = (
    "pass reshape_transform=lambda t: t for (B, C, h, w) or lambda t: t.movedim(-1, 1) for (B, h, w, C), or one that "
    "lays it out"
)
_CHANNELS_FIRST = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm)


def channels_last(net: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int]) -> bool:
    """Whether an output of the input's rank is `(B, ..., C)`; LookupError if that can't be told."""
    last = by_width(layer, shape)
    if last is not None:
        return last
    if not _works_on_last(net) and shape[-1] not in _feature_widths(net):
        return False  # a convolutional network
    sights = observe(net, x[:1])
    last = by_neighbours(layer, sights)
    if last is None and not any(_gives_features_last(s) for s in sights):
        last = False
    if last is None:
        last = by_width(layer, shape, alone=True)
    if last is None:
        raise LookupError(f"whether its channels are first or last can't be told, {_ADVICE}")
    return last


def check_map(net: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int], last: bool) -> None:
    """LookupError if an output has not the batch first, or if its positions are no grid of the image.

    Networks of convolutions, and what follows from one in others, are not asked.
    """
    if isinstance(layer, _CHANNELS_FIRST) or not last and not _works_on_last(net):
        return
    seen = next((s.shape for s in observe(net, x[:1]) if s.module is layer and s.returned), None)
    if seen is not None and (len(seen) != len(shape) or seen[0] != 1):
        raise LookupError(f"the batch is not its first dimension: it is {tuple(seen)} for one image, {_ADVICE}")
    _check_grid(shape[1:-1] if last else shape[2:], x.image.shape[2:])


def _works_on_last(net: nn.Module) -> bool:
    """Whether a network has what works on tokens: norms of a last dimension, attention by whatever name."""
    return any(hasattr(m, "normalized_shape") or "attention" in type(m).__name__.lower() for m in net.modules())


def _feature_widths(net: nn.Module) -> set[int]:
    """How many features linear and recurrent modules give; an output of another size is none of theirs."""
    linear = {m.out_features for m in net.modules() if isinstance(m, nn.Linear)}
    return linear | {m.hidden_size * (1 + m.bidirectional) for m in net.modules() if isinstance(m, nn.RNNBase)}


def _gives_features_last(sight: Sight) -> bool:
    """Whether a module that works on the last dimension gave more than a vector an image."""
    return sight.returned and isinstance(sight.module, nn.Linear | nn.RNNBase) and len(sight.shape) > 2


def _check_grid(positions: Sequence[int], image: Sequence[int]) -> None:
    """LookupError where positions are much finer along one dimension of the image than along another."""
    steps = [n / max(1, p) for n, p in zip(image, positions, strict=False)]
    if len(positions) == len(image) > 1 and max(steps) > 2.5 * min(steps):
        raise LookupError(
            f"its {' x '.join(map(str, positions))} positions are no grid of an image {' x '.join(map(str, image))}, "
            f"{_ADVICE}"
        )


def by_width(layer: nn.Module, shape: Sequence[int], incoming: bool = False, alone: bool = False) -> bool | None:
    """Whether channels are last, by the width of the layer's last norm, convolution or linear map; None: no telling.

    incoming   of what the layer, a module without children then, is given
    alone      where nothing else tells: a linear map inside the layer whose width is found in the channels' place
    """
    ends = [m for m in layer.modules() if hasattr(m, "weight") and not isinstance(m, nn.Embedding)]
    if isinstance(layer, nn.RNNBase):
        return True if layer.batch_first else None
    if not ends:
        return False if "Pool" in type(layer).__name__ and incoming else None
    end = ends[-1]
    if isinstance(end, _CHANNELS_FIRST) or type(end).__name__.endswith("2d"):
        width = getattr(end, "out_channels", getattr(end, "num_features", getattr(end, "num_channels", None)))
        swapped = end is not layer and width is not None and shape[1] != width and shape[-1] == width
        return swapped  # by a permutation behind it
    if end is layer and isinstance(end, nn.Linear) or type(end) in (nn.LayerNorm, nn.RMSNorm) and end is layer:
        return True
    width = _width(end, incoming)
    first, last = shape[1] == width, shape[-1] == width
    if isinstance(end, nn.Linear) and first and not last and not alone:  # it works on the last: something is between
        return None
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
