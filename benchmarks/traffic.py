"""The bytes that kernels move, counted by Triton's interpreter while it runs them on a CPU.

    TRITON_INTERPRET=1 python -m benchmarks.traffic

prints it for each operation of `bench_compiled`, launch by launch. Masks and loops count as they are run, so
a lane that is masked off moves nothing. What is loaded and not used counts, though a compiler leaves it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.operations import Operation, floor_bytes, kernels


class Launch:
    """What the programs of a launch have moved so far.

    bytes      of all loads and stores, however often one address is among them and whichever cache it comes from
    distinct   of the addresses that each program reads, and of those that it writes, each once a program
    """

    def __init__(self) -> None:
        self.bytes = self.distinct = 0
        self._program: dict[tuple[str, int], list[np.ndarray]] = {}

    def access(self, kind: str, addresses: np.ndarray, size: int) -> None:
        self.bytes += addresses.size * size
        self._program.setdefault((kind, size), []).append(addresses)

    def end_of_program(self) -> None:
        for (_, size), addresses in self._program.items():
            self.distinct += np.unique(np.concatenate(addresses)).size * size
        self._program = {}


@contextmanager
def counted() -> Iterator[list[Launch]]:
    """In the block kernels are interpreted; yields the list of launches, which grows with each."""
    from triton.runtime.interpreter import interpreter_builder as builder

    launches: list[Launch] = []
    load, store, begin, program = (
        getattr(builder, name) for name in ("create_masked_load", "create_masked_store", "set_grid_dim", "set_grid_idx")
    )

    def counting_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].access("load", ptrs.data[mask.data], ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(ptrs, mask, *rest)

    def counting_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].access("store", ptrs.data[mask.data], ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(ptrs, value, mask, *rest)

    def new_launch(*grid: int) -> None:
        launches.append(Launch())
        begin(*grid)

    def new_program(*index: int) -> None:
        launches[-1].end_of_program()
        program(*index)

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    builder.set_grid_dim, builder.set_grid_idx = new_launch, new_program
    try:
        yield launches
    finally:
        for name in ("create_masked_load", "create_masked_store", "set_grid_dim", "set_grid_idx"):
            delattr(builder, name)  # the method of the class is seen again
        for launch in launches:
            launch.end_of_program()


def traffic_of(operation: Operation) -> dict[str, Any]:
    """The fewest bytes that the operation has to move, and what each of its launches moves."""
    with kernels():
        inputs = operation.draw()
        with counted() as launches:
            operation.define(*inputs)
    moved = [{"bytes": launch.bytes, "distinct": launch.distinct} for launch in launches]
    return {"floor": floor_bytes(operation, inputs), "launches": moved}


def interpreted() -> dict[str, dict[str, Any]]:
    """`traffic_of` each operation of `bench_compiled`, from a process whose Triton interprets."""
    command = [sys.executable, "-m", "benchmarks.traffic"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the interpreter failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def main(operations: Sequence[Operation]) -> None:
    torch.manual_seed(0)
    print(json.dumps({str(operation): traffic_of(operation) for operation in operations}))


if __name__ == "__main__":
    from benchmarks.bench_compiled import CASES

    main([case.operation for case in CASES])
