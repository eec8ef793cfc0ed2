"""What fastcam is slower than: every such row."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.report.figures import Figure, time
from benchmarks.report.runs import Device, Row
from benchmarks.report.wording import PEERS

_COMPARED = (
    *(time("fastcam", peer) for peer in PEERS),
    *(time("kernel", other) for other in ("definition", "compiled")),
)
_WITHOUT_KERNEL = (time("definition", "compiled"),)  # where the definition is what fastcam runs


class Loss(NamedTuple):
    """A row in which fastcam takes more time than something else. `median` is infinite where it was stopped."""

    row: Row
    figure: Figure
    median: float


def losses(device: Device) -> list[Loss]:
    """Every row and peer that is faster there, the worst first."""
    found = []
    for row in device.rows:
        kernel = "kernel" in row.get("seconds", {}) or "kernel" in row.get("over_cap", {})
        for figure in _COMPARED if kernel else (*_COMPARED, *_WITHOUT_KERNEL):
            ratio = figure.read(row)
            median = ratio["median"] if ratio else float("inf") if figure.least(row) else 0.0
            if median > 1:
                found.append(Loss(row, figure, median))
    return sorted(found, key=lambda loss: loss.median, reverse=True)
