"""What is slower than something else, or misses a goal: every such row, with its figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.report.goals import Figure, Outcome, time
from benchmarks.report.runs import Device, Row
from benchmarks.report.wording import PEERS

_COMPARED = (
    *(time("fastcam", peer) for peer in PEERS),
    *(time("kernel", other) for other in ("definition", "compiled")),
)


class Loss(NamedTuple):
    """A row's figure that is worse than its limit, which is a goal's, or a peer's own time.

    excess   how bad it is: 1 at the limit, more beyond it
    """

    row: Row
    figure: Figure
    limit: str
    excess: float


def losses(device: Device, outcomes: list[Outcome]) -> list[Loss]:
    """The losses on a device, the worst first. A row that misses a goal for a figure is named once for it."""
    found: dict[tuple[int, str], Loss] = {}
    for loss in (*_missed(device, outcomes), *_behind(device)):
        found.setdefault((id(loss.row), loss.figure.name), loss)
    return sorted(found.values(), key=lambda loss: loss.excess, reverse=True)


def _missed(device: Device, outcomes: list[Outcome]) -> Iterator[Loss]:
    for outcome in outcomes:
        if outcome.device is device:
            goal = outcome.goal
            yield from (Loss(row, goal.figure, f"{goal.limit}, a goal", goal.excess(row)) for row in outcome.missed)


def _behind(device: Device) -> Iterator[Loss]:
    for row in device.rows:
        for figure in _COMPARED:
            found = figure.read(row)
            if found is not None and found["median"] > 1:
                yield Loss(row, figure, "1", found["median"])
            elif figure.late(row):
                yield Loss(row, figure, "1", float("inf"))
