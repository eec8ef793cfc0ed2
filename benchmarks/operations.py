"""The operators as cases: on which inputs, at which sizes, and the least that each has to move and to compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.settings import Settings
from fastcam import ops
from fastcam.figures.colours import table

IMAGE = (224, 224)
TOLERANCE = {  # ||out - ref|| / ||ref||, the reference in fp64
    "channel_reduce": 1e-5,
    "channel_sum": 1e-5,
    "finish": 1e-5,
    "principal_component": 1e-3,
    "masked_inputs": 1e-5,
    "overlay": 1e-3,  # here and there another level
}
WRITTEN_IN_BFLOAT16 = 5e-3
FLOPS = {  # an element of the activations: weights, product, and sum over channels
    **{"gradcam": 3, "gradcam++": 13, "xgradcam": 5, "hirescam": 2, "gradcamelementwise": 3, "layercam": 3}
}
STAGES = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))  # channels and side, of ResNet-50


@dataclass(frozen=True)
class Operation:
    """An operator on inputs drawn afresh by `draw`.

    name     `operator` or `operator[weighting]`
    shape    of the activations it starts from, or of the images
    define   the operator as its callers call it; on a CPU, or inside `definitions()`, its definition
    flops    the fewest operations, a comparison counted as one
    summed   whether it returns partial maps `(B, P, *S)`, whose sum over P is the result
    layout   of the inputs in memory: "contiguous", or "channels_last"
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    draw: Callable[[], tuple[Tensor, ...]]
    define: Callable[..., Tensor]
    flops: int
    summed: bool = False
    layout: str = "contiguous"

    @property
    def operator(self) -> str:
        return self.name.partition("[")[0]

    @property
    def tolerance(self) -> float:
        rounded = self.operator == "masked_inputs" and self.dtype == "bfloat16"
        return WRITTEN_IN_BFLOAT16 if rounded else TOLERANCE[self.operator]

    def __str__(self) -> str:
        return "-".join([self.name, "x".join(map(str, self.shape)), self.dtype, self.layout])


def channel_reduce(shape: tuple[int, ...], dtype: str, weighting: str, device: str) -> Operation:
    def draw() -> tuple[Tensor, ...]:
        return activations(shape, dtype, device), torch.randn(shape, device=device).to(getattr(torch, dtype))

    define = partial(ops.channel_reduce, weighting=weighting)
    flops = FLOPS[weighting] * math.prod(shape)
    return Operation(f"channel_reduce[{weighting}]", shape, dtype, draw, define, flops, summed=True)


def channel_sum(shape: tuple[int, ...], dtype: str, device: str) -> Operation:
    def draw() -> tuple[Tensor, ...]:
        return activations(shape, dtype, device), torch.randn(shape[:2], device=device)

    return Operation("channel_sum", shape, dtype, draw, ops.channel_sum, 2 * math.prod(shape), summed=True)


def finish(shape: tuple[int, ...], device: str, size: Sequence[int] = IMAGE) -> Operation:
    """On partial maps as `channel_reduce` leaves them for activations of this shape.

    Operations: relu and scaling of a low position 6, mixing along a row 3, along a column 3, scaling 4.
    """

    def draw() -> tuple[Tensor, ...]:
        A = activations(shape, "float32", device)
        return (ops.channel_reduce(A, torch.randn_like(A), "gradcam"),)

    (B, _, h, w), (H, W) = shape, size
    flops = B * (6 * h * w + 3 * h * W + 7 * H * W)
    name = "finish" if tuple(size) == IMAGE else f"finish[{H}x{W}]"
    return Operation(name, shape, "float32", draw, lambda low: ops.finish([low], size), flops)


def principal_component(shape: tuple[int, ...], dtype: str, device: str) -> Operation:
    """Operations: centring 2 an element, half of the smaller Gram matrix, one product with it; no squarings."""

    def draw() -> tuple[Tensor, ...]:
        return (activations(shape, dtype, device),)

    B, C, *S = shape
    smaller = min(C, math.prod(S))
    flops = B * (C * math.prod(S) * (smaller + 3) + 2 * smaller**2)
    return Operation("principal_component", shape, dtype, draw, ops.principal_component, flops, summed=True)


def masked_inputs(rows: int, low: int, dtype: str, device: str, size: Sequence[int] = IMAGE) -> Operation:
    """A batch for the model of one image seen through the masks of its channels.

    Operations: mixing and scaling of the mask as in `finish`, and one product a channel.
    """

    def draw() -> tuple[Tensor, ...]:
        x = torch.randn(1, 3, *size, device=device).to(getattr(torch, dtype))
        images = torch.zeros(rows, dtype=torch.long, device=device)
        return x, activations((1, rows, low, low), dtype, device)[0], images

    H, W = size
    flops = rows * (3 * low * W + (7 + 3) * H * W)
    return Operation(f"masked_inputs[{low}x{low}]", (rows, 3, *size), dtype, draw, ops.masked_inputs, flops)


def overlay(images: int, dtype: str, device: str, size: Sequence[int] = IMAGE) -> Operation:
    """Maps in fp32, as `finish` leaves them, over pictures.

    Operations: the level 1 a pixel; product, sum, largest, division, and level 5 a byte.
    """

    def draw() -> tuple[Tensor, ...]:
        pictures = torch.rand(images, 3, *size, device=device).to(getattr(torch, dtype))
        return pictures, torch.rand(images, *size, device=device), torch.from_numpy(table("jet")).to(device)

    return Operation("overlay", (images, 3, *size), dtype, draw, ops.overlay, 16 * images * math.prod(size))


def channels_last(operation: Operation) -> Operation:
    """The same on inputs whose channels lie together."""

    def draw() -> tuple[Tensor, ...]:
        return tuple(t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in operation.draw())

    return replace(operation, draw=draw, layout="channels_last")


def activations(shape: tuple[int, ...], dtype: str, device: str) -> Tensor:
    """Random activations after a ReLU, with one pattern that stands out, so that a leading component exists."""
    B, C, *S = shape
    pattern = torch.randn(B, 1, *S, device=device) * torch.randn(B, C, *[1] * len(S), device=device)
    return (pattern + torch.randn(shape, device=device)).relu().to(getattr(torch, dtype))


def chosen(settings: Settings) -> Iterator[Operation]:
    """The operations that the wanted methods need; `channel_sum`, `finish` and `overlay` serve many."""
    device = str(settings.device)
    found = _on_cpu if device != "cuda" else _short if settings.set_name == "gpu-short" else _on_gpu
    return (operation for operation in found(settings) if operation.dtype in settings.dtypes_on(device))


def _on_gpu(settings: Settings, device: str = "cuda") -> Iterator[Operation]:
    """Batch by batch: where time runs out, what was asked for first is there with every operator."""
    for dtype, B in itertools.product(("float32", "bfloat16"), settings.batches or (1, 16, 256)):
        for (C, n), side in itertools.product(STAGES[1:], (224, 448) if dtype == "float32" else ()):
            yield finish((B, C, n, n), device, (side, side))
        for side in (224, 448):
            yield overlay(B, dtype, device, (side, side))
        for low, side in itertools.product((7, 14), (224, 448) if settings.chosen(["scorecam"]) else ()):
            yield masked_inputs(B, low, dtype, device, (side, side))
        for C, n in ((2048, 7), (768, 8), (1024, 14)) if settings.chosen(["eigencam", "eigengradcam"]) else ():
            yield principal_component((B, C, n, n), dtype, device)
        for C, n in reversed(STAGES):
            for weighting in settings.chosen(ops.WEIGHTINGS):
                yield channel_reduce((B, C, n, n), dtype, weighting, device)
            yield channel_sum((B, C, n, n), dtype, device)


def _short(settings: Settings, device: str = "cuda") -> Iterator[Operation]:
    """What matters most, in about two minutes, in the order of weight: the last stage of ResNet-50, batches of 256."""
    for dtype in ("float32", "bfloat16"):
        for weighting in settings.chosen(ops.WEIGHTINGS):
            yield channel_reduce((256, 2048, 7, 7), dtype, weighting, device)
    yield finish((256, 2048, 7, 7), device)
    for dtype in ("float32", "bfloat16"):
        yield masked_inputs(256, 7, dtype, device)
    yield overlay(256, "float32", device)
    yield principal_component((256, 2048, 7, 7), "float32", device)
    yield channel_reduce((1, 2048, 7, 7), "float32", "gradcam", device)
    yield finish((1, 2048, 7, 7), device)
    for C, n in STAGES[1:4]:
        yield channel_reduce((256, C, n, n), "float32", "gradcam", device)
    yield channel_sum((256, 2048, 7, 7), "float32", device)


def _on_cpu(settings: Settings, device: str = "cpu") -> Iterator[Operation]:
    shapes = ((1, 512, 7, 7), (8, 2048, 7, 7), (8, 1024, 14, 14), (8, 256, 56, 56))
    for shape in shapes:
        for weighting in settings.chosen(ops.WEIGHTINGS):
            yield channel_reduce(shape, "float32", weighting, device)
        yield channel_sum(shape, "float32", device)
    for B, n, side in ((1, 7, 224), (8, 7, 224), (8, 14, 448)):
        yield finish((B, 512, n, n), device, (side, side))
    for B, side in ((1, 224), (8, 224), (1, 1024)):
        yield overlay(B, "float32", device, (side, side))
    if settings.chosen(["scorecam"]):
        for rows, low, side in ((1, 7, 224), (32, 7, 224), (32, 14, 224)):
            yield masked_inputs(rows, low, "float32", device, (side, side))
    if settings.chosen(["eigencam", "eigengradcam"]):
        for shape in ((1, 512, 7, 7), (8, 2048, 7, 7), (8, 256, 14, 14)):
            yield principal_component(shape, "float32", device)


@contextmanager
def definitions() -> Iterator[None]:
    """In the block every operator is its PyTorch definition, on a GPU too."""
    with _decided(_never):
        yield


@contextmanager
def kernels() -> Iterator[None]:
    """In the block every operator is its kernel, where it has one, whatever the inputs are on."""
    with _decided(_always):
        yield


@contextmanager
def _decided(on_kernel: Callable[[Tensor], bool]) -> Iterator[None]:
    with patch.object(ops, "_on_kernel", on_kernel):
        yield


def _never(t: Tensor) -> bool:  # one function for all time: what torch.compile has compiled holds on to it
    return False


def _always(t: Tensor) -> bool:
    return True


def input_sets(operation: Operation, least_bytes: int) -> list[tuple[Tensor, ...]]:
    """Enough different inputs that they and their outputs take `least_bytes` together, two at least."""
    first = operation.draw()
    count = max(2, -(-least_bytes // floor_bytes(operation, first)))
    return [first, *(operation.draw() for _ in range(count - 1))]


def floor_bytes(operation: Operation, inputs: Sequence[Tensor]) -> int:
    """The fewest bytes to move: each input read once, the result `(B, *S)` written once, fp32 or as it comes."""
    with definitions():
        result = result_of(operation, operation.define, inputs)
    return sum(t.numel() * t.element_size() for t in (*inputs, result))


def check(operation: Operation, inputs: Sequence[Tensor], call: Callable[..., Tensor] | None = None) -> float:
    """||out - reference|| / ||reference||, the reference being the definition in fp64; an error above the tolerance.

    What is checked is `call`, or the operator as its callers call it.
    """
    result = result_of(operation, call or operation.define, inputs)
    with definitions():
        exact = [t.double() if t.is_floating_point() else t for t in inputs]
        reference = result_of(operation, operation.define, exact).double()
    difference = float((result.double() - reference).norm() / reference.norm())
    if not difference <= operation.tolerance:
        raise AssertionError(f"{operation.name} is off its fp64 definition by {difference:.2e}")
    return difference


def result_of(operation: Operation, call: Callable[..., Any], inputs: Sequence[Tensor]) -> Tensor:
    out = call(*inputs)
    return out.sum(1) if operation.summed else out
