"""The lines through the recorded points of the part on scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lines import FEWEST, Line, fit
from benchmarks.sweeps import reason

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """A curve of a recorded sweep.

    quantity   "time" in seconds or "memory" in bytes
    side       "forward" or "fastcam"
    line       None where there are too few points
    reason     why fastcam's is not straight; "" where it is, or where there is no line
    """

    model: str
    sweep: str
    method: str
    quantity: str
    side: str
    line: Line | None
    reason: str


def summaries(rows: Iterable[Point], device: str) -> list[Summary]:
    """The lines through the rows of case "scale", in the rows' order; a point over its cap is left out.

    device   "cpu" or "cuda", on which they were measured: reasons are of one or the other
    """
    curves: dict[tuple[str, str, str], list[Point]] = {}
    for row in rows:
        if row["case"] == "scale":
            curves.setdefault((row["model"], row["sweep"], row["method"]), []).append(row)
    return [
        _summary(key, points, quantity, side, device)
        for key, points in curves.items()
        for quantity in ("time", "memory")
        for side in ("forward", "fastcam")
    ]


def _summary(key: tuple[str, str, str], points: Sequence[Point], quantity: str, side: str, device: str) -> Summary:
    there = [p for p in points if side in p["seconds" if quantity == "time" else "memory"]]
    xs = [p["x"] for p in there]
    if len(set(xs)) < FEWEST:
        return Summary(*key, quantity, side, None, "")
    if quantity == "memory":
        line = fit(xs, [p["memory"][side] for p in there])
    else:
        spreads = [p["seconds"][side] for p in there]
        line = fit(xs, [s["median"] for s in spreads], [s["quartiles"] for s in spreads])
    due = side == "fastcam" and not line.straight
    return Summary(*key, quantity, side, line, reason(device, *key[1:], quantity) if due else "")
