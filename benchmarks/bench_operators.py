"""GPU only: each kernel against its PyTorch definition and against the bandwidth of a device copy."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import Call, SideBySide, spread, wall_clock
from fastcam import ops
from fastcam.figures.colours import table

ACTIVATIONS = ((256, 2048, 7, 7), (256, 1024, 14, 14), (256, 512, 28, 28), (64, 256, 56, 56))  # ResNet-50's stages
SMALL = ACTIVATIONS[:2]
IMAGE = (224, 224)
TYPES = ("float32", "bfloat16")
TOLERANCE = {  # ||out - ref|| / ||ref||, the reference in fp64
    "channel_reduce": 1e-5,
    "finish": 1e-5,
    "principal_component": 1e-3,
    "masked_inputs": 5e-3,  # written in bf16
    "overlay": 1e-3,  # here and there another level
}
COPY_BYTES = 2**28  # read, and as many written: ten times an H100's L2 cache


@dataclass(frozen=True)
class Operation:
    """An operator on inputs drawn afresh by `draw`.

    name     `operator` or `operator[weighting]`
    shape    of the activations it starts from
    define   the operator as its callers call it; on a CPU, or inside `definitions()`, its definition
    summed   whether it returns partial maps `(B, P, *S)`, whose sum over P is the result
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    draw: Callable[[], tuple[Tensor, ...]]
    define: Callable[..., Tensor]
    summed: bool

    @property
    def operator(self) -> str:
        return self.name.partition("[")[0]

    def result(self, *inputs: Tensor) -> Tensor:
        out = self.define(*inputs)
        return out.sum(1) if self.summed else out


def channel_reduce(shape: tuple[int, ...], dtype: str, weighting: str, device: str) -> Operation:
    def draw() -> tuple[Tensor, ...]:
        return activations(shape, dtype, device), torch.randn(shape, device=device).to(getattr(torch, dtype))

    define = partial(ops.channel_reduce, weighting=weighting)
    return Operation(f"channel_reduce[{weighting}]", shape, dtype, draw, define, True)


def finish(shape: tuple[int, ...], device: str, size: Sequence[int] = IMAGE) -> Operation:
    """On partial maps as `channel_reduce` leaves them for activations of this shape."""

    def draw() -> tuple[Tensor, ...]:
        A = activations(shape, "float32", device)
        return (ops.channel_reduce(A, torch.randn_like(A), "gradcam"),)

    return Operation("finish", shape, "float32", draw, lambda low: ops.finish([low], size), False)


def principal_component(shape: tuple[int, ...], dtype: str, device: str) -> Operation:
    def draw() -> tuple[Tensor, ...]:
        return (activations(shape, dtype, device),)

    return Operation("principal_component", shape, dtype, draw, ops.principal_component, True)


def masked_inputs(rows: int, low: int, dtype: str, device: str) -> Operation:
    """A batch for the model of one image seen through the masks of its channels."""

    def draw() -> tuple[Tensor, ...]:
        x = torch.randn(1, 3, *IMAGE, device=device).to(getattr(torch, dtype))
        return x, activations((1, rows, low, low), dtype, device)[0]

    def define(x: Tensor, masks: Tensor) -> Tensor:
        return ops.masked_inputs(x, masks, torch.zeros(rows, dtype=torch.long, device=x.device))

    return Operation("masked_inputs", (rows, 3, *IMAGE), dtype, draw, define, False)


def overlay(images: int, dtype: str, device: str, size: Sequence[int] = IMAGE) -> Operation:
    """Maps in fp32, as `finish` leaves them, over pictures."""
    colours = torch.from_numpy(table("jet")).to(device)

    def draw() -> tuple[Tensor, ...]:
        pictures = torch.rand(images, 3, *size, device=device).to(getattr(torch, dtype))
        return pictures, torch.rand(images, *size, device=device)

    def define(pictures: Tensor, maps: Tensor) -> Tensor:
        return ops.overlay(pictures, maps, colours)

    return Operation("overlay", (images, 3, *size), dtype, draw, define, False)


def activations(shape: tuple[int, ...], dtype: str, device: str) -> Tensor:
    """Random activations after a ReLU, with one pattern that stands out, so that a leading component exists."""
    B, C, *S = shape
    pattern = torch.randn(B, 1, *S, device=device) * torch.randn(B, C, *[1] * len(S), device=device)
    return (pattern + torch.randn(shape, device=device)).relu().to(getattr(torch, dtype))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    metafunc.parametrize(
        "operation", chosen(settings), ids=lambda o: f"{o.name}-{'x'.join(map(str, o.shape))}-{o.dtype}"
    )


def chosen(settings: Settings, device: str = "cuda") -> Iterator[Operation]:
    """The operations that the wanted methods need; `finish` and `overlay` serve them all."""
    for shape, dtype in itertools.product(ACTIVATIONS, TYPES):
        for weighting in settings.chosen(ops.WEIGHTINGS):
            yield channel_reduce(shape, dtype, weighting, device)
    for shape in SMALL:
        yield finish(shape, device)
    for images, dtype in itertools.product((8, 256), TYPES):
        yield overlay(images, dtype, device)
    if settings.chosen(["scorecam"]):
        for (rows, low), dtype in itertools.product([(64, 7), (256, 7), (256, 14)], TYPES):
            yield masked_inputs(rows, low, dtype, device)
    if settings.chosen(["eigencam", "eigengradcam"]):
        for shape, dtype in itertools.product(SMALL, TYPES):
            yield principal_component(shape, dtype, device)


def bench_operator(benchmark: Any, row: dict[str, Any], settings: Settings, operation: Operation) -> None:
    sets = input_sets(operation, 4 * torch.cuda.get_device_properties(0).L2_cache_size)
    difference = check(operation, sets[0])
    clock = KernelClock()
    copies = (torch.randn(COPY_BYTES // 4, device="cuda"), torch.empty(COPY_BYTES // 4, device="cuda"))
    comparison = SideBySide({"copy": lambda: copies[1].copy_(copies[0]), **sides(operation, sets)}, clock)
    comparison.warm_up()
    summary = comparison.run(benchmark, settings.repetitions)
    row.update(summary)
    calls = SideBySide(sides(operation, sets), wall_clock("cuda"))
    calls.warm_up()
    for _ in range(settings.repetitions):
        calls.repetition()
    moved = floor_bytes(operation, sets[0])
    row.update(
        operator=operation.name,
        shape=operation.shape,
        dtype=operation.dtype,
        difference=difference,
        bytes=moved,
        gigabytes_per_second=moved / summary["seconds"]["kernel"]["median"] / 1e9,
        copy_gigabytes_per_second=2 * COPY_BYTES / summary["seconds"]["copy"]["median"] / 1e9,
        copy_share=spread([r * moved / (2 * COPY_BYTES) for r in comparison.ratio("copy", "kernel")]),
        call_seconds=calls.summary()["seconds"],
        timer="events" if clock.fell_back else "graph",
    )


def sides(operation: Operation, sets: Sequence[tuple[Tensor, ...]]) -> dict[str, Call]:
    def defined(*inputs: Tensor) -> Tensor:
        with definitions():
            return operation.define(*inputs)

    return {"kernel": rotating(operation.define, sets), "definition": rotating(defined, sets)}


@contextmanager
def definitions() -> Iterator[None]:
    """In the block every operator is its PyTorch definition, on a GPU too."""
    decide = ops._on_kernel
    ops._on_kernel = lambda t: False
    try:
        yield
    finally:
        ops._on_kernel = decide


def rotating(function: Callable[..., Tensor], sets: Sequence[tuple[Tensor, ...]]) -> Call:
    """Calls of the function on one set of inputs after the other; as many outputs stay alive, so they rotate too."""
    inputs = itertools.cycle(sets)
    kept: deque[Tensor] = deque(maxlen=len(sets))
    return lambda: kept.append(function(*next(inputs)))


def input_sets(operation: Operation, least_bytes: int) -> list[tuple[Tensor, ...]]:
    """Enough different inputs that they and their outputs take `least_bytes` together, two at least."""
    first = operation.draw()
    count = max(2, -(-least_bytes // floor_bytes(operation, first)))
    return [first, *(operation.draw() for _ in range(count - 1))]


def floor_bytes(operation: Operation, inputs: Sequence[Tensor]) -> int:
    """The fewest bytes to move: each input read once, the result `(B, *S)` written once, fp32 or as it comes."""
    with definitions():
        result = operation.result(*inputs)
    return sum(t.numel() * t.element_size() for t in (*inputs, result))


def check(operation: Operation, inputs: Sequence[Tensor]) -> float:
    """||out - reference|| / ||reference||, the reference being the definition in fp64; an error above the tolerance."""
    result = operation.result(*inputs)
    with definitions():
        reference = operation.result(*(t.double() for t in inputs)).double()
    difference = float((result.double() - reference).norm() / reference.norm())
    if not difference <= TOLERANCE[operation.operator]:
        raise AssertionError(f"{operation.name} is off its fp64 definition by {difference:.2e}")
    return difference


class KernelClock:
    """Seconds of GPU time of a call, by replays of a CUDA graph of it; by events where it cannot be captured."""

    def __init__(self) -> None:
        self.fell_back = False

    def __call__(self, call: Call) -> float:
        from triton.testing import do_bench, do_bench_cudagraph

        try:
            return do_bench_cudagraph(call, rep=10, return_mode="median") / 1e3
        except RuntimeError:
            self.fell_back = True
            return do_bench(call, warmup=5, rep=50, return_mode="median") / 1e3
