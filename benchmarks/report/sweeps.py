"""The rows of the scale cases as curves, each with the line fitted to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import lines
from benchmarks.report.runs import Row
from benchmarks.report.wording import digits

_REASONS: dict[tuple[str, str], str] = getattr(lines, "REASONS", {})


@dataclass(frozen=True)
class Curve:
    """Time or memory of fastcam over the swept values, in milliseconds or MiB; quartiles where it was timed."""

    label: str
    unit: str
    xs: list[float]
    ys: list[float]
    quartiles: list[list[float]] | None
    reason: str | None = None

    @property
    def line(self) -> lines.Line | None:
        """None where there are too few points for one."""
        if len(set(self.xs)) < lines.FEWEST or min(self.ys) <= 0:
            return None
        return lines.fit(self.xs, self.ys, self.quartiles)

    @property
    def worst(self) -> str:
        return "–" if (line := self.line) is None else f"{line.worst:.0%}"

    @property
    def verdict(self) -> str:
        if (line := self.line) is None:
            return "too few points"
        return "straight" if line.straight else f"no: {self.reason or 'the reason is not known'}"

    @property
    def growth(self) -> str:
        """The line in words: `3.1 ms + 12.0 ms × x`, to be read beside what x is."""
        if (line := self.line) is None:
            return "–"
        return f"{_signed(line.intercept)} + {digits(line.slope)} x"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else ''}{digits(abs(value))}"


@dataclass(frozen=True)
class Sweep:
    """What one method takes as one thing grows; `forward` holds the times of the forward pass alone."""

    model: str
    name: str
    method: str
    curves: list[Curve]
    forward: list[float]


def sweeps(rows: Iterable[Row]) -> list[Sweep]:
    """The points of each model, sweep and method, by rising x."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.get("model", ""), row["sweep"], row["method"]), []).append(row)
    return [_sweep(*key, sorted(points, key=lambda row: row["x"])) for key, points in found.items()]


def _sweep(model: str, name: str, method: str, points: list[Row]) -> Sweep:
    curves = []
    timed = [row for row in points if "fastcam" in row.get("seconds", {})]
    if timed:
        times = [row["seconds"]["fastcam"] for row in timed]
        quartiles = [[1e3 * value for value in time["quartiles"]] for time in times]
        medians = [1e3 * time["median"] for time in times]
        curves.append(Curve("time", "ms", _x(timed), medians, quartiles, _REASONS.get((name, "time"))))
    weighed = [row for row in points if "fastcam" in row.get("memory", {})]
    if weighed:
        sizes = [row["memory"]["fastcam"] / 2**20 for row in weighed]
        curves.append(Curve("memory", "MiB", _x(weighed), sizes, None, _REASONS.get((name, "memory"))))
    forward = [1e3 * row["seconds"]["forward"]["median"] for row in timed if "forward" in row["seconds"]]
    return Sweep(model, name, method, curves, forward if len(forward) == len(timed) else [])


def _x(points: list[Row]) -> list[float]:
    return [row["x"] for row in points]
