"""How little of an image a neuron needs: the part that it sees, cut out so that the model does there the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastcam.visualize.evaluation import Site
from fastcam.visualize.fields import interval, support
from fastcam.visualize.forward import differentiable
from fastcam.visualize.objectives import Objective

_MARGIN = 0.1  # of what the neurons see, on each side: room for moves of the picture
_SAME = 1e-3  # of the values' spread

Place = tuple[nn.Module, tuple[int, ...]]  # a layer, and where in its map


class Crop(NamedTuple):
    """A part of an image: its size, where it begins for each objective, and the objectives with places in theirs."""

    size: tuple[int, int]
    origins: list[tuple[int, int]]
    objectives: list[Objective]


def crop_for(
    net: nn.Module, objectives: Sequence[Objective], sites: Mapping[nn.Module, Site], noise: Tensor
) -> Crop | None:
    """The part of images like `noise` `(n, k, H, W)` that objectives of one neuron each see, with some room.

    What the neurons see is measured. Parts begin at multiples of the layers' strides, and the layers' values there are
    compared with those in the whole image. None where it saves nothing, where they differ, and for other objectives.
    """
    if any(len(o.terms) != 1 or o.terms[0][1].kind != "neuron" for o in objectives):
        return None
    wanted: list[Place] = [(term.layer, term.at) for o in objectives for _, term in o.terms]  # type: ignore[misc]
    places = list(dict.fromkeys(wanted))
    if any(len(at) != 2 for _, at in places):
        return None
    values, boxes = _seen(net, places, sites, noise)
    lengths, starts, steps = [], [], []
    for axis, size in enumerate(noise.shape[2:]):
        steps.append([max(1, round(size / sites[layer].shape[1 + axis])) for layer, _ in places])
        length, begins = _placed([box[axis] for box in boxes], size, math.lcm(*steps[-1]))
        lengths.append(length)
        starts.append(begins)
    if lengths == list(noise.shape[2:]):
        return None
    parts: dict[Place, tuple[tuple[int, int], tuple[int, int]]] = {}  # where a part begins, the place in it
    for n, (layer, at) in enumerate(places):
        begin = starts[0][n], starts[1][n]
        parts[layer, at] = begin, (at[0] - begin[0] // steps[0][n], at[1] - begin[1] // steps[1][n])
    for place, value in zip(places, values, strict=True):
        (top, left), inside = parts[place]
        part = noise[:, :, top : top + lengths[0], left : left + lengths[1]]
        if min(inside) < 0 or not _alike(value, _seen(net, [(place[0], inside)], sites, part)[0][0]):
            return None
    moved = [o.at(parts[place][1]) for o, place in zip(objectives, wanted, strict=True)]
    return Crop((lengths[0], lengths[1]), [parts[place][0] for place in wanted], moved)


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and float((a - b).abs().max()) <= _SAME * float(a.std())


def _placed(ends: Sequence[tuple[int, int]], size: int, step: int) -> tuple[int, list[int]]:
    """The length that holds each [low, high) with room, and where each part begins: multiples of the step.

    What is left out is a multiple of the step, too, so that a part at the far edge ends with the image.
    """
    need = max(high - low for low, high in ends)
    room = math.ceil(_MARGIN * need)
    left_out = max(0, size - need - 2 * room - step) // step * step
    return size - left_out, [min(max(0, low - room) // step * step, left_out) for low, _ in ends]


def _seen(
    net: nn.Module, places: Sequence[Place], sites: Mapping[nn.Module, Site], noise: Tensor
) -> tuple[list[Tensor | None], list[list[tuple[int, int]]]]:
    """The channels' values at each place, None where there is no such place, and the pixels they depend on."""
    values: list[Tensor | None] = []
    boxes = []
    with differentiable(net, [layer for layer, _ in places]) as run:
        x = noise.clone().requires_grad_()
        seen = run(x)
        for layer, (row, column) in places:
            maps = sites[layer].read(seen.activations[layer])
            if row >= maps.shape[2] or column >= maps.shape[3]:
                values.append(None)
                continue
            here = maps[:, :, row, column]
            values.append(here.detach().float())
            touched = support(here.sum(), x)
            boxes.append([interval(touched.any(1)), interval(touched.any(0))])
    return values, boxes
