"""Clocks for calls that are too short to be timed one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

import torch

from benchmarks.side_by_side import Call

_AT_LEAST = 2e-3  # seconds in one measurement
_MOST_CALLS = 1000


class CallClock:
    """Seconds of wall clock of a call on a CPU: the mean of as many, one after the other, as take two milliseconds."""

    timer = "wall clock"

    def __init__(self) -> None:
        self._counts: dict[Call, int] = {}

    def __call__(self, call: Call) -> float:
        if call not in self._counts:
            self._counts[call] = _count(self._mean(call, 1), 1)
        return self._mean(call, self._counts[call])

    @staticmethod
    def _mean(call: Call, count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count


class KernelClock:
    """Seconds of GPU time of a call, by replays of a CUDA graph of it; by events, of all, where one has no graph.

    A graph takes about two milliseconds, or holds as many calls as `least` has for a call that takes turns at so many
    inputs: it sees each of them. It is captured once; a measurement replays it twice and times the second, which starts
    while the GPU is busy with the first, so that nothing of the launch is timed.
    """

    def __init__(self, least: Mapping[Call, int] | None = None) -> None:
        self._least = least or {}
        self._graphs: dict[Call, tuple[torch.cuda.CUDAGraph, int]] = {}
        self.fell_back = False

    @property
    def timer(self) -> str:
        """What the seconds come from."""
        return "events" if self.fell_back else "graph"

    def capture(self, calls: Iterable[Call]) -> None:
        """To be called with all that is compared, before any is timed: what two clocks say is not compared."""
        try:
            self._graphs |= {call: self._captured(call) for call in calls if call not in self._graphs}
        except RuntimeError:  # a call waits for the GPU, say
            self._graphs, self.fell_back = {}, True

    def __call__(self, call: Call) -> float:
        if not self.fell_back:
            self.capture([call])
        if not self.fell_back:
            graph, count = self._graphs[call]
            return _replayed(graph) / count
        from triton.testing import do_bench

        return do_bench(call, warmup=5, rep=50, return_mode="median") / 1e3

    def _captured(self, call: Call) -> tuple[torch.cuda.CUDAGraph, int]:
        least = self._least.get(call, 1)
        graph = _capture(call, least)
        count = _count(_replayed(graph) / least, least)
        return (_capture(call, count), count) if count > least else (graph, count)


def _count(seconds: float, least: int) -> int:
    return max(least, min(_MOST_CALLS, math.ceil(_AT_LEAST / max(seconds, 1e-9))))


def _capture(call: Call, count: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
