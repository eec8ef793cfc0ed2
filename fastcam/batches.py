"""A long queue of rows through a model in full batches: how many at once, what happens when memory is short."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FIRST = {"cpu": 8}  # elsewhere 32
_LARGEST = {"cpu": 64}  # elsewhere 1024
_GAIN = 1.05  # a larger batch must be faster by this factor


def check_count(name: str, given: Any, otherwise: str = "") -> int:
    """The given number, or a ValueError unless it is whole and 1 or more."""
    if not isinstance(given, int | np.integer) or isinstance(given, bool) or given < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more{otherwise}, got {given!r}")
    return int(given)


def check_batch_size(given: Any) -> int:
    """The given size, or a ValueError."""
    return check_count("batch_size", given, ', or "auto"')


class BatchSize:
    """How many rows to run at once: a given number, or "auto", which grows while it gets faster and memory suffices.

    Each size is tried twice, the better time counts. What was found is kept for the next queue.
    steady   "auto" stays at its first size, so that no time decides on how numbers are rounded
    """

    def __init__(self, given: int | str, device: torch.device, steady: bool = False) -> None:
        self.automatic = given == "auto"
        self.current = _FIRST.get(device.type, 32) if self.automatic else check_batch_size(given)
        self._largest = _LARGEST.get(device.type, 1024)
        self._device = device
        self._growing = self.automatic and not steady
        self._times: list[float] = []
        self._best = (0.0, self.current)  # rows a second, size

    def timed(self, run: Callable[[], Tensor], rows: int) -> Tensor:
        """`run()`, on `rows` rows, timed as long as the best size is not known."""
        if not self._growing or rows != self.current:
            return run()
        self._wait()
        begin = time.perf_counter()
        result = run()
        self._wait()
        self._times.append(time.perf_counter() - begin)
        if len(self._times) >= 2:
            self._decide(self.current / min(self._times))
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _decide(self, rate: float) -> None:
        self._times.clear()
        if rate > _GAIN * self._best[0]:
            self._best = rate, self.current
            if 2 * self.current <= self._largest:
                self.current *= 2
                return
        self._growing, self.current = False, self._best[1]

    def halve(self, rows: int) -> bool:
        """After `rows` rows did not fit: whether a smaller automatic size can be tried."""
        if not self.automatic or rows == 1:
            return False
        self._growing, self.current = False, max(1, min(rows, self.current) // 2)
        return True


def in_batches(
    rows: int, run: Callable[[int, int], Tensor], size: BatchSize, progress: bool = False, name: str = ""
) -> Tensor:
    """`run(start, stop)` over consecutive ranges of 0 to `rows`; what it gives, `(stop - start, ...)`, concatenated.

    A range that does not fit into memory is run again in smaller ones, if the size is automatic.
    progress   show a bar with this name on stderr
    """
    from tqdm import tqdm

    parts: list[Tensor] = []
    start = 0
    with tqdm(total=rows, desc=name, disable=not progress, leave=False, unit="row") as bar:
        while start < rows:
            stop = min(rows, start + size.current)
            part = _unless_out_of_memory(partial(run, start, stop), size, stop - start)
            if part is None:
                continue
            parts.append(part)
            bar.update(stop - start)
            start = stop
    return torch.cat(parts)


def _unless_out_of_memory(run: Callable[[], Tensor], size: BatchSize, rows: int) -> Tensor | None:
    try:
        return size.timed(run, rows)
    except RuntimeError as error:
        if not is_out_of_memory(error) or not size.halve(rows):
            raise
    free_memory()
    return None


def free_memory() -> None:
    """Give back the fragments that a failed batch left."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    signs = ("can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
