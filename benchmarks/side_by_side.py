"""Times several ways of doing one thing alternately, so that a drift of the machine falls on all of them alike."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import combinations
from typing import Any, ClassVar

import torch

Call = Callable[[], Any]
Clock = Callable[[Call], float]  # runs a call and says how many seconds it took

_LOOK = 5e-3  # seconds for which this process is watched
_AT_MOST = 1.0  # seconds to wait for its threads
_BRIEFLY = 0.05  # where some have not slept in that time twice: as long as OpenBLAS's spin
_COMPILED = ("forward", "fastcam")
_COMPILING = 60.0  # seconds more than the cap for the call that compiles


class OverCap(BaseException):
    """A call took longer than its cap. No Exception, so that nothing in the call swallows it."""


class SideBySide:
    """Sides `name -> call` in one interleaved run, from the baseline to the slowest, say.

    Each repetition times every side once: the sides take turns at being first, the others follow in an order of its
    own, the same in every run, so that none always comes behind the same other. None begins before the threads of the
    one before it sleep (`settle`); `unsettled` counts those that did in spite of it. What counts is the median over the
    repetitions of the ratio of two sides within one repetition. A side of which one call takes longer than `cap`
    seconds is stopped there and left out: it is in `over_cap`. One of `may_fail` that raises an error is left out too:
    `not_supported` has the error. With a `meter` (see `benchmarks.memory`), `peaks` has the bytes of each call of
    `warm_up`. On a `device` "cuda" a call ends when the GPU is done, and the forward pass and fastcam are called once
    before that, which compiles kernels and loads libraries.
    """

    _never_slept: ClassVar[int] = 0  # how often in this process

    def __init__(
        self,
        sides: Mapping[str, Call],
        clock: Clock,
        cap: float | None = None,
        may_fail: Container[str] = (),
        meter: Callable[[], AbstractContextManager[list[int]]] | None = None,
        device: str = "cpu",
    ) -> None:
        self.sides = dict(sides)
        self.clock = clock
        self.cap = cap
        self.may_fail = may_fail
        self.meter = meter
        self.on_gpu = device == "cuda"
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in sides}
        self.over_cap: list[str] = []
        self.not_supported: dict[str, str] = {}
        self.unsettled = 0

    def warm_up(self) -> dict[str, Any]:
        """One untimed call of each side; what they return, to be checked before anything is timed."""
        outputs = {}
        for name in list(self.sides):
            try:
                if self.on_gpu and name in _COMPILED:
                    self._called(name, None if self.cap is None else self.cap + _COMPILING)
                # The meter's own work, around the call, is not under the cap.
                with self.meter() if self.meter else nullcontext([]) as peak:
                    outputs[name] = self._called(name, self.cap)
                self.peaks.update(zip([name], peak, strict=False))
            except OverCap:
                self.over_cap.append(name)
            except Exception as error:
                if name not in self.may_fail:
                    raise
                self.not_supported[name] = f"{type(error).__name__}: {error}"
            if name not in outputs:
                del self.sides[name], self.seconds[name]
        return outputs

    def _called(self, name: str, cap: float | None) -> Any:
        with capped(cap):
            output = self.sides[name]()
            if self.on_gpu:
                torch.cuda.synchronize()
        return output

    def repetition(self) -> None:
        for name in order(list(self.sides), min(map(len, self.seconds.values()), default=0)):
            if not settle(_AT_MOST if SideBySide._never_slept < 2 else _BRIEFLY):
                SideBySide._never_slept += 1
                self.unsettled += 1
            self.seconds[name].append(self.clock(self.sides[name]))

    def run(self, benchmark: Any, repetitions: int) -> dict[str, Any]:
        """The repetitions as rounds of the pytest-benchmark fixture; the summary."""
        benchmark.pedantic(self.repetition, rounds=repetitions, iterations=1)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Seconds of each side, and ratios `"later/earlier"` of each two: medians with their quartiles."""
        return {
            "repetitions": min(map(len, self.seconds.values()), default=0),
            "seconds": {name: spread(s) for name, s in self.seconds.items()},
            "ratios": {f"{b}/{a}": spread(self.ratio(b, a)) for a, b in combinations(self.sides, 2)},
            "over_cap": {name: self.cap for name in self.over_cap},
            "unsettled": self.unsettled,
            "not_supported": self.not_supported,
        }

    def ratio(self, side: str, base: str) -> list[float]:
        """Seconds of one side over those of another, repetition by repetition."""
        return [s / b for s, b in zip(self.seconds[side], self.seconds[base], strict=True)]


def order(names: Sequence[str], repetition: int) -> list[str]:
    """The names in the order of a repetition, each as often first as any other, what follows drawn anew."""
    if not names:
        return []
    first = names[repetition % len(names)]
    others = [name for name in names if name != first]
    random.Random(repetition).shuffle(others)
    return [first, *others]


def settle(at_most: float) -> bool:
    """Wait until no thread of this process computes, so many seconds at most; whether that came about.

    Thread pools spin for a while before they sleep: OpenBLAS's for 2^26 cycles by default, some 30 ms, in which they
    take a processor from what is timed next.
    """
    begin = time.perf_counter()
    computing = True
    while computing and time.perf_counter() - begin < at_most:
        computed = time.process_time()
        time.sleep(_LOOK)
        computing = time.process_time() - computed > _LOOK / 4
    return not computing


@contextmanager
def capped(seconds: float | None) -> Iterator[None]:
    """Raises `OverCap` in the block after so many seconds, as soon as Python code runs again."""

    def stop(*_: Any) -> None:
        raise OverCap

    if seconds is None:
        yield
        return
    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median and the quartiles of at least two values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


def wall_clock(device: str) -> Clock:
    """Seconds from the call to its end, on a GPU to the end of all it left queued there."""

    def on_cpu(call: Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def on_gpu(call: Call) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return on_gpu if device == "cuda" else on_cpu
