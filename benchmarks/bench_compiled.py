"""Every kernel compiled ahead of time for GPUs that are not here: what it needs, and the bytes that it moves. Not run.

Registers, shared memory, spills and the widths of loads and stores are the compiler's; bytes moved are counted by
Triton's interpreter, in a process of its own (`traffic`), and do not depend on the GPU.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from benchmarks import traffic
from benchmarks.operations import (
    IMAGE,
    Operation,
    channel_reduce,
    channel_sum,
    channels_last,
    finish,
    kernels,
    masked_inputs,
    overlay,
    principal_component,
)
from benchmarks.session import SETTINGS
from fastcam.ops import WEIGHTINGS

ARCHITECTURES = (80, 90, 100)
REDUCE, WEIGHTS, FINISH, MASK = "_reduce_kernel", "_weights_kernel", "_finish_kernel", "_masked_kernel"
COMPONENT, OVERLAY = ("_gram_kernel", "_solve_kernel"), ("_largest_kernel", "_picture_kernel")


@dataclass(frozen=True)
class Case:
    """An operation and the kernels that it launches, in order; `element` says of what there are `elements`."""

    operation: Operation
    kernels: tuple[str, ...]
    element: str
    elements: int


def _of_activations(operation: Operation, *names: str) -> Case:
    return Case(operation, names, "activation", math.prod(operation.shape))


def _cases(device: str) -> list[Case]:
    """Few images, since what moves for each is alike and the interpreter is slow."""
    small, tall, wide = (2, 2048, 7, 7), (2, 1024, 14, 14), (1, 256, 56, 56)
    half = "bfloat16"
    cases = [_of_activations(channel_reduce(small, "float32", w, device), REDUCE) for w in WEIGHTINGS]
    for shape, dtype in ((small, half), (tall, "float32"), (tall, half), (wide, "float32"), (wide, half)):
        cases.append(_of_activations(channel_reduce(shape, dtype, "gradcam", device), REDUCE))
    for dtype in ("float32", half):
        cases.append(_of_activations(channels_last(channel_reduce(small, dtype, "gradcam", device)), REDUCE))
    cases.append(_of_activations(channel_reduce((1, 64, 112, 112), "float32", "gradcam++", device), WEIGHTS, REDUCE))
    cases.append(_of_activations(channel_sum(small, "float32", device), REDUCE))
    for shape, dtype in ((small, "float32"), (small, half), ((2, 768, 8, 8), "float32")):
        cases.append(_of_activations(principal_component(shape, dtype, device), *COMPONENT))
    pixels = math.prod(IMAGE)
    cases += [Case(finish((1, C, n, n), device), (FINISH,), "pixel", pixels) for C, n in ((2048, 7), (1024, 14))]
    masked = [masked_inputs(2, 7, dtype, device) for dtype in ("float32", half)]
    cases += [Case(o, (MASK,), "value", 2 * 3 * pixels) for o in (*masked, channels_last(masked[1]))]
    laid = [overlay(1, dtype, device) for dtype in ("float32", half)]
    cases += [Case(o, OVERLAY, "pixel", pixels) for o in (*laid, channels_last(laid[0]))]
    return cases


CASES = _cases("cpu")
HERE = {str(case.operation): case for case in _cases("meta")}  # shape, strides and type, all that a compiler sees


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On a GPU there is nothing to be said in advance."""
    asked = CASES if metafunc.config.stash[SETTINGS].device == "cpu" else []
    cases = [(case, launch, arch) for arch in ARCHITECTURES for case in asked for launch in range(len(case.kernels))]
    ids = [f"{case.operation}{case.kernels[launch]}-sm_{arch}" for case, launch, arch in cases]
    metafunc.parametrize(("case", "launch", "arch"), cases, ids=ids)


def bench_compiled(row: dict[str, Any], case: Case, launch: int, arch: int) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("nothing is compiled with TRITON_INTERPRET=1")
    row.update(described(case, launch, arch, moved()[str(case.operation)]))


@cache
def moved() -> dict[str, dict[str, Any]]:
    return traffic.interpreted()


@cache
def compiled(name: str, arch: int) -> list[Any]:
    """The kernels that the operation of this name launches, for sm_<arch>."""
    from benchmarks.offline import compile_only

    operation = HERE[name].operation
    with kernels(), compile_only(arch) as launched:
        inputs = operation.draw()
        launched.clear()  # what drawing took
        operation.define(*inputs)
    return launched


def described(case: Case, launch: int, arch: int, moved: dict[str, Any]) -> dict[str, Any]:
    """What is known of a kernel that was never run. Bytes and their floor are of an element of the operation."""
    from benchmarks.offline import global_bytes, registers_and_spills

    operation, launched = case.operation, compiled(str(case.operation), arch)
    names = tuple(kernel.metadata.name for kernel in launched)
    if names != case.kernels or len(moved["launches"]) != len(names):
        raise AssertionError(
            f"{operation} launches {names}, {len(moved['launches'])} when interpreted, not {case.kernels}"
        )
    kernel = launched[launch]
    registers, spilled = registers_and_spills(kernel)
    shape = " × ".join(map(str, operation.shape))
    return {
        "kernel": kernel.metadata.name.strip("_"),
        "variant": f"{operation.name} {shape} {operation.dtype} {operation.layout}",
        "arch": arch,
        "run": False,
        "launch": f"{launch + 1} of {len(names)}",
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "shared_bytes": kernel.metadata.shared,
        "spilled_bytes": spilled,
        "loads": by_width(global_bytes(kernel)),
        "stores": by_width(global_bytes(kernel, "st")),
        "bytes_per_element": moved["launches"][launch]["bytes"] / case.elements,
        "distinct_bytes_per_element": moved["launches"][launch]["distinct"] / case.elements,
        "floor_bytes_per_element": moved["floor"] / case.elements,
        "element": case.element,
    }


def by_width(widths: Sequence[int]) -> dict[str, int]:
    """How many instructions in the code move so many bytes a thread, from the widest."""
    found = Counter(widths)
    return {str(width): found[width] for width in sorted({16, 8, 4, 2, 1} | set(found), reverse=True)}
