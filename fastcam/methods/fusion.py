"""From the low maps of a method's layers to its finished map: all that a method does after its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastcam import ops


def product(lows: Sequence[Tensor], size: Sequence[int], interpolation: str | None = None) -> Tensor:
    """min_max(prod_l map_l), map_l the finished map of a layer."""
    return ops.min_max(product_of_maps(lows, size, interpolation))


def product_of_maps(lows: Sequence[Tensor], size: Sequence[int], interpolation: str | None = None) -> Tensor:
    return torch.stack([ops.finish([low], size, interpolation) for low in lows]).prod(0)


def scaled_once(lows: Sequence[Tensor], size: Sequence[int], interpolation: str | None = None) -> Tensor:
    """min_max(resize(sum_p L_p)): a second scaling would blow up a map close to 0."""
    (low,) = lows
    return ops.min_max(resized(low.sum(1), size, interpolation))


def resized(maps: Tensor, size: Sequence[int], interpolation: str | None = None) -> Tensor:
    return maps if maps.shape[1:] == torch.Size(size) else ops.resize(maps, size, interpolation)


# Of the low maps `(B, P, *S)` of one or more layers, at a size and with an interpolation, a map `(B, *size)` in [0, 1].
Fusion = Callable[[Sequence[Tensor], Sequence[int], str | None], Tensor]
FUSIONS: dict[str, Fusion] = {"mean": ops.finish, "product": product, "scaled once": scaled_once}
