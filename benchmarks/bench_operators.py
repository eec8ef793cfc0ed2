"""Each operator beside its PyTorch definition, that definition compiled by `torch.compile`, and a copy on the device.

On a GPU a kernel too, timed by graph replays, and inputs take turns through four times the L2 cache. On a CPU two sets
of inputs take turns: the layer before has just written them, so they come from the cache where they fit in it.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import explanations
from benchmarks.clocks import CallClock, KernelClock
from benchmarks.explanations import Explanation
from benchmarks.operations import Operation, check, chosen, definitions, floor_bytes, input_sets
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import Call, SideBySide, spread, wall_clock

COPY_BYTES = 2**28  # read, and as many written: ten times an H100's L2 cache, twice a large server's last-level cache
MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
OWN_COPY = "copy of its bytes"  # what launch and latency leave of the bandwidth at an operator's size


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    if "operation" in metafunc.fixturenames:
        metafunc.parametrize("operation", chosen(settings), ids=str)
    elif "explanation" in metafunc.fixturenames:
        metafunc.parametrize("explanation", explanations.chosen(settings), ids=str)


def bench_peak(benchmark: Any, row: dict[str, Any], settings: Settings) -> None:
    """The other roof: operations a second of a large product of fp32 matrices, without TF32."""
    device = str(settings.device)
    n = MATRIX[device]
    a, b = torch.randn(2, n, n, device=device)
    expected = a[:4].double() @ b.double()
    difference = float(((a @ b)[:4] - expected).norm() / expected.norm())
    if not difference < 1e-5:
        raise AssertionError(f"the product of matrices is off by {difference:.2e}")
    clock = KernelClock() if device == "cuda" else CallClock()
    comparison = SideBySide({"product": lambda: a @ b}, clock)
    if isinstance(clock, KernelClock):
        clock.capture(comparison.sides.values())
    row.update(kind="peak", method="product of matrices", dtype="float32", shape=(n, n, n), difference=difference)
    row.update(comparison.run(benchmark, settings.repetitions), timer=clock.timer)
    row["flops_per_second"] = 2 * n**3 / row["seconds"]["product"]["median"]


def bench_explanation(benchmark: Any, row: dict[str, Any], settings: Settings, explanation: Explanation) -> None:
    device = str(settings.device)
    compared = explanations.Sides(explanation, device)
    comparison = SideBySide(compared.calls, compared.clock, settings.cap)
    outputs = comparison.warm_up()
    row.update(kind="explanation", **vars(explanation), dtype="float32", difference=compared.check(outputs))
    gc.collect()
    row["timer"] = compared.capture()
    row.update(comparison.run(benchmark, settings.repetitions))


def bench_operator(benchmark: Any, row: dict[str, Any], settings: Settings, operation: Operation) -> None:
    device = str(settings.device)
    on_gpu = device == "cuda"
    cached = torch.cuda.get_device_properties(0).L2_cache_size if on_gpu else 0
    sets = input_sets(operation, 4 * cached)
    row.update(kind="operator", operator=operation.name, shape=operation.shape, dtype=operation.dtype)
    row["difference"] = check(operation, sets[0])
    functions = variants(operation, sets[0], row)
    moved = floor_bytes(operation, sets[0])
    calls = {name: rotating(decided(name, function, on_gpu), sets) for name, function in functions.items()}
    copied = copies(moved, 4 * cached, device)
    turning = [copied[OWN_COPY], *calls.values()]  # the copy is too large for the cache to matter
    clock = KernelClock(dict.fromkeys(turning, len(sets))) if on_gpu else CallClock()
    comparison = SideBySide({**copied, **calls}, clock, settings.cap)
    comparison.warm_up()
    if isinstance(clock, KernelClock):
        clock.capture(comparison.sides.values())
    row.update(comparison.run(benchmark, settings.repetitions))
    row.update(bytes=moved, flops=operation.flops, **bandwidths(comparison, moved))
    row["timer"] = clock.timer
    named = {name: function for name, function in functions.items() if name in comparison.sides}
    row["call_seconds"] = call_seconds(named, sets, settings) if on_gpu else ours_of(row["seconds"])


def variants(operation: Operation, inputs: Sequence[Tensor], row: dict[str, Any]) -> dict[str, Callable[..., Tensor]]:
    """The sides that compute the operator, to be called as `decided` does. Where one is missing, the row says why."""
    functions: dict[str, Callable[..., Tensor]] = {}
    if inputs[0].is_cuda:
        functions["kernel"] = whole(operation, inputs)
    functions["definition"] = operation.define
    begin = time.perf_counter()
    try:
        functions["compiled"] = compiled(operation, inputs)
    except Exception as error:  # whatever the compiler stumbles over
        row["not_compiled"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    row["compile_seconds"] = time.perf_counter() - begin
    row["graph_breaks"] = sum(torch._dynamo.utils.counters["graph_break"].values())
    return functions


def whole(operation: Operation, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The operator to its result: where it leaves several partial maps, as no definition does, with their sum."""
    if not operation.summed or operation.define(*inputs).shape[1] == 1:
        return operation.define
    return lambda *inputs: operation.define(*inputs).sum(1, keepdim=True)


def decided(side: str, function: Callable[..., Any], on_gpu: bool) -> Callable[..., Any]:
    """The function, every operator in it as its definition unless it is the kernel's side; on a CPU it is anyway."""

    def call(*inputs: Any) -> Any:
        with definitions():
            return function(*inputs)

    return call if on_gpu and side != "kernel" else function


def compiled(operation: Operation, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` of the definition for just these shapes, checked; one that is wrong is an error too."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(compile_threads=1):  # no idle worker processes beside what is timed
        function = torch.compile(operation.define, dynamic=False)
        check(operation, inputs, decided("compiled", function, inputs[0].is_cuda))
    return function


def copies(moved: int, rotated: int, device: str) -> dict[str, Call]:
    """A copy that tells the bandwidth of the device, and one that moves as many bytes as the operator, at least 2."""
    source, target = buffers(device)
    half = max(1, moved // 2)
    pairs = max(2, math.ceil(rotated / (2 * half)))
    small = [torch.zeros(2, half, dtype=torch.uint8, device=device) for _ in range(pairs)]
    return {
        "copy": lambda: target.copy_(source),
        OWN_COPY: rotating(lambda pair: pair[1].copy_(pair[0]), [(pair,) for pair in small]),
    }


@cache
def buffers(device: str) -> tuple[Tensor, Tensor]:
    return torch.ones(COPY_BYTES // 4, device=device), torch.ones(COPY_BYTES // 4, device=device)


def rotating(function: Callable[..., Tensor], sets: Sequence[tuple[Tensor, ...]]) -> Call:
    """Calls of the function on one set of inputs after the other; as many outputs stay alive, so they rotate too."""
    inputs = itertools.cycle(sets)
    kept: deque[Tensor] = deque(maxlen=len(sets))
    return lambda: kept.append(function(*next(inputs)))


def bandwidths(comparison: SideBySide, moved: int) -> dict[str, Any]:
    """Bytes a second, and what share that is of the copy's, both repetition by repetition."""
    names = list(ours_of(comparison.seconds))
    seconds = {name: spread(comparison.seconds[name])["median"] for name in comparison.sides}
    found: dict[str, Any] = {"gigabytes_per_second": {name: moved / seconds[name] / 1e9 for name in names}}
    if "copy" in seconds:
        share = moved / (2 * COPY_BYTES)
        found["copy_gigabytes_per_second"] = 2 * COPY_BYTES / seconds["copy"] / 1e9
        found["copy_share"] = {n: spread([share * r for r in comparison.ratio("copy", n)]) for n in names}
    return found


def ours_of(by_side: dict[str, Any]) -> dict[str, Any]:
    """The entries of those sides that compute the operator."""
    return {name: value for name, value in by_side.items() if name not in ("copy", OWN_COPY)}


def call_seconds(
    functions: dict[str, Callable[..., Tensor]], sets: Sequence[tuple[Tensor, ...]], settings: Settings
) -> dict[str, Any]:
    """On a GPU: from the call to the end of what it left queued there, one call at a time.

    What makes a side its definition is around the clock, so that it is not timed.
    """
    calls = {name: rotating(function, sets) for name, function in functions.items()}
    clock = wall_clock(sets[0][0].device.type)
    clocks = {call: decided(name, clock, True) for name, call in calls.items()}
    for call in calls.values():
        clocks[call](call)  # warm
    alone = SideBySide(calls, lambda call: clocks[call](call))
    for _ in range(settings.repetitions):
        alone.repetition()
    return alone.summary()["seconds"]
