"""The goals of the benchmarks, and what the recorded rows say of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report.figures import (
    COPY_SHARE,
    GROWTH,
    LAUNCHES,
    OF_PLAIN_LOOP,
    ON_DEVICE,
    RANK,
    Figure,
    Wanted,
    calls,
    data_sets,
    fast_mode,
    launches,
    memory,
    operators,
    time,
)
from benchmarks.report.runs import Device, Row, capped
from benchmarks.report.wanting import failed, method, never_asked, not_measured
from benchmarks.report.wording import spread

FAMILY = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam"),
    *("eigengradcam", "segeigencam", "shapleycam", "finercam"),
)
ALL_CLASSES = "1000 classes at layer resolution"
LINEAR = ("channel_reduce", "channel_sum", "finish", "masked_inputs", "overlay")  # bound by bandwidth


@dataclass(frozen=True)
class Goal:
    """What every wanted row of a device's is to keep to.

    on         "cpu", "cuda" or "any": where it is asked for
    most       the limit; None for a goal that has a least
    least      the limit of a goal that has one
    members    the methods or operators of which each is to have a row, where any has
    aside      what the row of the worst figure has to say beside it
    beside     rows that the goal is not asked of, whose figures are stated with it
    """

    text: str
    on: str
    wanted: Wanted
    figure: Figure
    most: float | None = None
    least: float | None = None
    members: Sequence[str] = ()
    aside: Callable[[Row], str] = lambda row: ""
    beside: Wanted = lambda row: False

    @property
    def limit(self) -> str:
        sign, value = ("≥", self.least) if self.least is not None else ("≤", self.most)
        return f"{sign} {value:.0%}" if self.figure.percent else f"{sign} {value:g}"

    def kept(self, row: Row) -> bool:
        """Whether its median keeps to the limit."""
        value = self._value(row)
        return value <= self.most if self.most is not None else value >= (self.least or 0)

    def excess(self, row: Row) -> float:
        """How bad a row is: 1 at the limit, more beyond it."""
        value = self._value(row)
        return value / self.most if self.most is not None else (self.least or 0) / value

    def within_noise(self, row: Row) -> bool:
        """Whether the limit lies between the quartiles."""
        found, limit = self.figure.read(row), self.least if self.least is not None else self.most
        if found is None or found["quartiles"] is None or limit is None:
            return False
        low, high = found["quartiles"]
        return low <= limit <= high and low < high

    def decided(self, row: Row) -> bool:
        """Whether a row has a figure, or one is not needed: a side was stopped that was too slow already, or enough."""
        at_least = self.figure.least(row)
        return self.figure.read(row) is not None or at_least is not None and (self.least is None or self.kept(row))

    def asked_of(self, case: Row, known: Iterable[Row]) -> bool:
        """Whether a case without a row is one that the goal is asked of: of a method without the peer it is not."""
        if not self.wanted(case):
            return False
        alike = [row for row in known if self.wanted(row) and method(row) == method(case)]
        has = any(self.figure.read(row) is not None or capped(row, self.figure.base) is not None for row in alike)
        return bool(self.members) or not alike or has

    def _value(self, row: Row) -> float:
        if (found := self.figure.read(row)) is not None:
            return found["median"]
        return (self.figure.least(row) or 0) if self.least is not None else float("inf")


class Outcome(NamedTuple):
    """A goal on a device, or None where there is none of this kind.

    rows      those that are measured, the worst first; one stopped at its cap misses a goal that has a most, and keeps
              to one that has a least if the cap is enough
    missed    those of them that miss it
    stopped   those of which it is not known how much better than its least they are
    failed    those that have no figure since a side broke
    broken    cases that failed
    absent    cases that were not measured, or not asked for beside others
    beside    those that are stated beside it, the worst first
    """

    goal: Goal
    kind: str
    device: Device | None
    rows: list[Row]
    missed: list[Row]
    stopped: list[Row]
    failed: list[Row]
    broken: list[Row]
    absent: list[Row]
    beside: list[Row]

    @property
    def wanting(self) -> bool:
        return bool(self.stopped or self.failed or self.broken or self.absent)

    @property
    def verdict(self) -> str:
        """By the medians. None holds while a figure is wanting."""
        if not self.rows:
            return "not measured yet"
        return "does not hold" if self.missed else "not all measured" if self.wanting else "holds"

    @property
    def within_noise(self) -> bool:
        """Whether the quartiles of the rows that decide leave it open."""
        if self.missed:
            return all(map(self.goal.within_noise, self.missed))
        return any(map(self.goal.within_noise, self.rows))


def outcomes(devices: Iterable[Device]) -> list[Outcome]:
    """Every goal on every device of the kinds that it is asked for on; one that is not measured for a kind without."""
    devices = list(devices)
    found = []
    for goal in GOALS:
        for kind in ("cpu", "cuda") if goal.on == "any" else (goal.on,):
            of_kind: list[Device | None] = [device for device in devices if device.kind == kind]
            found += [_outcome(goal, kind, device) for device in of_kind or [None]]
    return found


def _outcome(goal: Goal, kind: str, device: Device | None) -> Outcome:
    known = device.rows if device else []
    wanted = [row for row in known if goal.wanted(row)]
    broken = [case for case in failed(device) if goal.asked_of(case, known)] if device else []
    absent = [case for case in not_measured(device) if goal.asked_of(case, known)] if device else []
    absent += never_asked(goal.members, [*wanted, *broken, *absent])
    rows = sorted(filter(goal.decided, wanted), key=goal.excess, reverse=True)
    missed = [row for row in rows if not goal.kept(row)]
    open_ = [row for row in wanted if not goal.decided(row)]
    stopped = [row for row in open_ if _of_a_stopped_side(goal, row)]
    without = [row for row in open_ if goal.figure.failed(row)]
    if goal.members:
        absent += [row for row in open_ if row not in stopped and row not in without and not _refused(goal, row)]
    beside = sorted((row for row in known if goal.beside(row)), key=goal.excess, reverse=True)
    return Outcome(goal, kind, device, rows, missed, stopped, without, broken, absent, beside)


def _of_a_stopped_side(goal: Goal, row: Row) -> bool:
    """Whether a side was stopped, and that leaves open what the row says: the base of a most is slower still."""
    timed = {*row.get("seconds", {}), *row.get("over_cap", {})}
    if not {goal.figure.side, goal.figure.base} <= timed:
        return False
    return capped(row, goal.figure.side) is not None or goal.least is not None


def _refused(goal: Goal, row: Row) -> bool:
    return bool({goal.figure.side, goal.figure.base} & row.get("not_supported", {}).keys())


def _with_copy(row: Row) -> str:
    found = _OVER_FORWARD.read(row)
    return "" if found is None else f"with the copy to the host {spread(found, more=1)}"


_OVER_FORWARD = time("fastcam", "forward")
_LEFT_ON_DEVICE = time(ON_DEVICE, "forward")  # where the forward pass leaves its output
GOALS = (
    Goal(
        "ResNet-50, batch 8: the Grad-CAM family",
        *("cpu", calls(*FAMILY, model="resnet50", batch=8), _OVER_FORWARD, 1.05),
        members=FAMILY,
    ),
    Goal("ResNet-50, batch 8: EigenCAM", "cpu", calls("eigencam", model="resnet50", batch=8), _OVER_FORWARD, 1.05),
    Goal("ResNet-50, batch 8: FullGrad", "cpu", calls("fullgrad", model="resnet50", batch=8), _OVER_FORWARD, 2.3),
    Goal(
        "ResNet-50, batch 8: the maps of all 1,000 classes",
        *("cpu", calls(ALL_CLASSES, model="resnet50", batch=8), _OVER_FORWARD, 1.1),
    ),
    Goal(
        "batch 256: the Grad-CAM family, maps left on the device",
        *("cuda", calls(*FAMILY, batch=256), _LEFT_ON_DEVICE, 1.03),
        members=FAMILY,
        aside=_with_copy,
    ),
    Goal(
        "batch 256: EigenCAM, maps left on the device",
        *("cuda", calls("eigencam", batch=256), _LEFT_ON_DEVICE, 1.03),
        aside=_with_copy,
    ),
    Goal(
        "batch 256: the Grad-CAM family and EigenCAM, faster than grad-cam",
        *("cuda", calls(*FAMILY, "eigencam", batch=256), time("grad-cam", "fastcam")),
        least=10,
        members=(*FAMILY, "eigencam"),
    ),
    Goal(
        "batch 256: the Grad-CAM family and EigenCAM, peak memory",
        *("cuda", calls(*FAMILY, "eigencam", batch=256), memory("fastcam", "forward"), 1.1),
        members=(*FAMILY, "eigencam"),
    ),
    Goal(
        "batch 256: channel reduction, finish, masking, overlay",
        *("cuda", operators(*LINEAR, least_batch=256), COPY_SHARE),
        least=0.9,
        members=LINEAR,
    ),
    Goal(
        "every size: channel reduction, finish, masking, overlay",
        *("cuda", operators(*LINEAR), time("kernel", "compiled"), 1.05),
        members=LINEAR,
    ),
    Goal(
        "batch 1: launches of ours after the backward pass",
        *("cuda", launches(*FAMILY), LAUNCHES, 2),
        members=FAMILY[:7],
        beside=launches("eigencam"),  # no backward pass: what comes after the target layer
        aside=lambda row: f"{row['total']} launches in all, {row['forward']} of the forward pass",
    ),
    Goal(
        "ResNet-50, batch 4: Grad-CAM in fast mode",
        *("cpu", fast_mode(model="resnet50", batch=4), time("fast", "forward"), 0.9),
        aside=lambda row: f"largest difference {row['difference']:.0e}",
    ),
    Goal(
        "ResNet-50, batch 256: Grad-CAM in fast mode, bf16, compiled",
        *("cuda", fast_mode(model="resnet50", batch=256), time("fast bf16 compiled", "forward"), 0.5),
        aside=lambda row: f"rank correlation {row['rank_correlation'].get('fast bf16 compiled', 0):.3f}",
    ),
    Goal(
        "ResNet-50, batch 256: Grad-CAM in fast mode, bf16, compiled: rank correlation with the exact maps",
        *("cuda", fast_mode(model="resnet50", batch=256), RANK),
        least=0.99,
    ),
    Goal(
        "ResNet-50, batch 1: Grad-CAM in fast mode, CUDA graphs",
        *("cuda", fast_mode(model="resnet50", batch=1), time("fast graphed", "graphed forward"), 1.3),
    ),
    Goal(
        "a data set of JPEGs, files read and maps written",
        *("cpu", data_sets("throughput"), OF_PLAIN_LOOP),
        least=0.9,
    ),
    Goal("a data set in memory, maps written", "cuda", data_sets("throughput"), OF_PLAIN_LOOP, least=0.95),
    Goal(
        "a data set of 2,000 images: no memory is held on to",
        *("cpu", data_sets("resident memory"), GROWTH, 1.05),
    ),
    Goal("every row that torch-cam has", "any", calls(), time("fastcam", "torch-cam"), 1.05),
    Goal("every row that captum has", "any", calls(), time("fastcam", "captum"), 1.05),
)
