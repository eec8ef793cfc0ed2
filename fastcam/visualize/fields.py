"""Which rectangle of the input a position of a layer's map depends on, and the crop of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.record import owned
from fastcam.visualize.forward import differentiable

_PATHS = 256  # so many random values, channels times inputs, decide what a ReLU or a pooling passes on
_MOST = 32


class Fields(NamedTuple):
    """Of rows and columns of a map, by their number: from which to before which row or column of the input they see."""

    rows: dict[int, tuple[int, int]]
    columns: dict[int, tuple[int, int]]

    def extent(self) -> tuple[int, int]:
        """The largest height and width."""
        height, width = (max(stop - start for start, stop in seen.values()) for seen in self)
        return height, width


def fields_of(
    net: nn.Module,
    layer: nn.Module,
    image: Tensor,
    positions: Iterable[tuple[int, int]],
    arranged: Callable[[Tensor, Tensor], Tensor] = lambda images, output: output,
) -> Fields:
    """The fields of positions (row, column) of a layer's maps, for inputs of the image's shape.

    Where d (map at the position) / d (input) is not 0 for some of random inputs; all of the input for a position
    without a gradient. Height and width are independent of each other, so that a backward pass finds a row's and a
    column's. Those in the middle of the map, which are least cut at the borders, are found, too; where they see all of
    the input, the others count as if they did.

    image      `(k, H, W)`
    arranged   makes maps `(B, C, h, w)` of images and the layer's output
    """
    wanted = list(positions)
    with differentiable(net, [layer]) as run:
        generator = torch.Generator().manual_seed(0)
        x = owned(net, Inputs(torch.randn(1, *image.shape, generator=generator).to(image))).image
        _, channels, *size = arranged(x, run(x).activations[layer]).shape
        count = min(_MOST, max(2, _PATHS // channels))
        x = torch.randn(count, *image.shape, generator=generator).to(x).requires_grad_()
        maps = arranged(x, run(x).activations[layer])
        weights = torch.randn(maps.shape[:2], generator=generator).to(maps)
        found = Fields({}, {})

        def measure(rows: list[int], columns: list[int]) -> None:
            for n in range(max(len(rows), len(columns))):
                row, column = rows[min(n, len(rows) - 1)], columns[min(n, len(columns) - 1)]
                seen = support((maps[:, :, row, column] * weights).sum(), x)
                found.rows[row], found.columns[column] = (interval(seen.any(1 - d)) for d in range(2))

        middle = [sorted({(n - 1) // 2, n // 2}) for n in size]
        measure(*middle)
        others = []
        for d, seen in enumerate(found):
            everything = (0, image.shape[1 + d])
            if everything in seen.values():
                seen.update({n: everything for n in range(size[d])})
            others.append(sorted({p[d] for p in wanted} - seen.keys()))
        if any(others):
            measure(*(places or middle[d][:1] for d, places in enumerate(others)))
        return found


def support(value: Tensor, x: Tensor) -> Tensor:
    """The pixels `(H, W)` that the value depends on, in any of the images x; all without a gradient."""
    everything = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)
    if not value.requires_grad:
        return everything
    gradient = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)[0]
    return everything if gradient is None else (gradient != 0).flatten(0, 1).any(0)


def interval(seen: Tensor) -> tuple[int, int]:
    """From the first that is seen to behind the last; everything if none is."""
    places = seen.nonzero().flatten().tolist()
    return (places[0], places[-1] + 1) if places else (0, len(seen))


def cropped(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int], fill: Tensor) -> Tensor:
    """The box (top, left, bottom, right) of an image `(k, H, W)` as `(k, h, w)`, where it would be had it not been cut.

    What a border of the image cut off is filled with `fill` `(k, 1, 1)`.
    """
    top, left, bottom, right = box
    patch = fill.expand(-1, *size).clone()
    row = _offset(top, bottom, image.shape[1], size[0])
    column = _offset(left, right, image.shape[2], size[1])
    patch[:, row : row + bottom - top, column : column + right - left] = image[:, top:bottom, left:right]
    return patch


def _offset(start: int, stop: int, whole: int, size: int) -> int:
    """Where in `size` begins what is left of a field: it was cut at the nearer border.

    Of which it may end a little short, where the last pixels are in no window.
    """
    missing, before, behind = size - (stop - start), start, whole - stop
    return missing if before < behind else 0 if behind < before else missing // 2
