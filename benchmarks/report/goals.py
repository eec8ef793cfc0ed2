"""The goals of the benchmarks, and what the recorded rows say of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report.runs import Device, Row, Spread, capped, exactly, ratio

FAMILY = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam"),
    *("eigengradcam", "segeigencam", "shapleycam", "finercam"),
)
ALL_CLASSES = "1000 classes at layer resolution"
LINEAR = ("channel_reduce", "channel_sum", "finish", "masked_inputs", "overlay")  # bound by bandwidth
Wanted = Callable[[Row], bool]


class Figure(NamedTuple):
    """What is read from a row.

    name       as it is written: `fastcam / forward`
    side       whose figure it is: `fastcam`
    base       what it is held against: `forward`; "" where it stands alone
    read       its value, None where the row has none
    late       whether it could not be measured since a side was stopped at its cap
    failed     whether it could not be measured since a side broke
    percent    how it is written
    """

    name: str
    side: str
    base: str
    read: Callable[[Row], Spread | None]
    late: Callable[[Row], bool] = lambda row: False
    failed: Callable[[Row], bool] = lambda row: False
    percent: bool = False


def time(side: str, base: str) -> Figure:
    """Time of a side over another's."""

    def late(row: Row) -> bool:
        return capped(row, side) is not None and base in row.get("seconds", {})

    def failed(row: Row) -> bool:
        return "compiled" in (side, base) and "not_compiled" in row

    return Figure(f"{side} / {base}", side, base, lambda row: ratio(row, side, base), late, failed)


def memory(side: str, base: str) -> Figure:
    def read(row: Row) -> Spread | None:
        value = row.get("memory_ratios", {}).get(f"{side}/{base}")
        return None if value is None else exactly(value)

    return Figure(f"memory of {side} / {base}", side, base, read)


def _exact_rank(row: Row) -> Spread | None:
    found = row.get("rank_correlation", {}).get("fast bf16 compiled")
    return None if found is None else exactly(found)


COPY_SHARE = Figure(
    "share of copy bandwidth", "kernel", "copy", lambda row: row.get("copy_share", {}).get("kernel"), percent=True
)
OF_PLAIN_LOOP = Figure(
    "images/s, share of a plain loop's",
    *("fastcam", "plain loop", lambda row: ratio(row, "plain loop", "fastcam")),
    percent=True,
)
RANK = Figure(
    "rank correlation",
    *("fast bf16 compiled", "exact", _exact_rank),
)
GROWTH = Figure(
    "resident after all images / after 200",
    *("fastcam", "", lambda row: exactly(row["growth"]["process"]) if "growth" in row else None),
)
LAUNCHES = Figure("launches", "fastcam", "", lambda row: exactly(row["ours"]) if "ours" in row else None)


@dataclass(frozen=True)
class Goal:
    """What every wanted row of a device's is to keep to.

    on         "cpu", "cuda" or "any": where it is asked for
    most       the limit; None for a goal that has a least
    least      the limit of a goal that has one
    aside      what the row of the worst figure has to say beside it
    beside     rows that the goal is not asked of, whose figures are stated with it
    named      whether it is named where it is not measured
    """

    text: str
    on: str
    wanted: Wanted
    figure: Figure
    most: float | None = None
    least: float | None = None
    aside: Callable[[Row], str] = lambda row: ""
    beside: Wanted = lambda row: False
    named: bool = True

    @property
    def limit(self) -> str:
        sign, value = ("≥", self.least) if self.least is not None else ("≤", self.most)
        return f"{sign} {value:.0%}" if self.figure.percent else f"{sign} {value:g}"

    def kept(self, row: Row) -> bool:
        value = self._value(row)
        return value <= self.most if self.most is not None else value >= (self.least or 0)

    def excess(self, row: Row) -> float:
        """How bad a row is: 1 at the limit, more beyond it."""
        value = self._value(row)
        return value / self.most if self.most is not None else (self.least or 0) / value

    def _value(self, row: Row) -> float:
        found = self.figure.read(row)
        return float("inf") if found is None else found["median"]


class Outcome(NamedTuple):
    """A goal on a device, or None where there is none of this kind.

    rows      those that are measured, the worst first; one stopped at its cap misses a goal that has a most
    missed    those of them that miss it
    stopped   those of which it is not known how much better than its least they are
    failed    those that have no figure since a side broke
    beside    those that are stated beside it, the worst first
    """

    goal: Goal
    kind: str
    device: Device | None
    rows: list[Row]
    missed: list[Row]
    stopped: list[Row]
    failed: list[Row]
    beside: list[Row]

    @property
    def verdict(self) -> str:
        return "not measured yet" if not self.rows else "does not hold" if self.missed else "holds"


def outcomes(devices: Iterable[Device]) -> list[Outcome]:
    """Every goal on every device of the kinds that it is asked for on; one that is not measured for a kind without."""
    devices = list(devices)
    found = []
    for goal in GOALS:
        for kind in ("cpu", "cuda") if goal.on == "any" else (goal.on,):
            of_kind: list[Device | None] = [device for device in devices if device.kind == kind]
            of_goal = [_outcome(goal, kind, device) for device in of_kind or [None]]
            found += [outcome for outcome in of_goal if goal.named or outcome.rows]
    return found


def _outcome(goal: Goal, kind: str, device: Device | None) -> Outcome:
    known = device.rows if device else []
    wanted = [row for row in known if goal.wanted(row)]
    late = [row for row in wanted if goal.figure.late(row)]
    measured = [row for row in wanted if goal.figure.read(row) is not None] + (late if goal.least is None else [])
    rows = sorted(measured, key=goal.excess, reverse=True)
    missed = [row for row in rows if not goal.kept(row)]
    failed = [row for row in wanted if goal.figure.failed(row)]
    beside = sorted((row for row in known if goal.beside(row)), key=goal.excess, reverse=True)
    return Outcome(goal, kind, device, rows, missed, late if goal.least else [], failed, beside)


def calls(*methods: str, **wanted: object) -> Wanted:
    """Rows of timed calls of some methods, all without any, that have these values."""
    names = {plain(method) for method in methods}

    def chosen(row: Row) -> bool:
        if row["case"] not in ("methods", "perturbation", "toolbox", "inside"):
            return False
        return (not names or plain(row["method"]) in names) and all(row.get(k) == v for k, v in wanted.items())

    return chosen


def plain(method: str) -> str:
    """A method's name, however it is written: `FullGrad` and `fullgrad`, `1,000 classes` and `1000 classes` are one."""
    return re.sub(r"[ ,_-]", "", method.lower())


def operators(*names: str, least_batch: int = 1) -> Wanted:
    """Rows of some operators, all without any, in whatever weighting, for so many images or more."""

    def chosen(row: Row) -> bool:
        if row["case"] != "operators" or "operator" not in row:
            return False
        return row["shape"][0] >= least_batch and (not names or row["operator"].partition("[")[0] in names)

    return chosen


def launches(*methods: str) -> Wanted:
    return lambda row: row["case"] == "launches" and row["batch"] == 1 and row["method"] in methods


def fast_mode(**wanted: object) -> Wanted:
    """Rows of fast mode that have these values."""
    return lambda row: row["case"] == "optimize" and all(row.get(key) == value for key, value in wanted.items())


def data_sets(kind: str) -> Wanted:
    return lambda row: row["case"] == "dataset" and row["kind"] == kind


_OVER_FORWARD = time("fastcam", "forward")
GOALS = (
    Goal(
        "ResNet-50, batch 8: the Grad-CAM family",
        *("cpu", calls(*FAMILY, model="resnet50", batch=8), _OVER_FORWARD, 1.05),
    ),
    Goal("ResNet-50, batch 8: EigenCAM", "cpu", calls("eigencam", model="resnet50", batch=8), _OVER_FORWARD, 1.05),
    Goal("ResNet-50, batch 8: FullGrad", "cpu", calls("fullgrad", model="resnet50", batch=8), _OVER_FORWARD, 2.3),
    Goal(
        "ResNet-50, batch 8: the maps of all 1,000 classes",
        *("cpu", calls(ALL_CLASSES, model="resnet50", batch=8), _OVER_FORWARD, 1.1),
    ),
    Goal("batch 256: the Grad-CAM family", "cuda", calls(*FAMILY, batch=256), _OVER_FORWARD, 1.03),
    Goal("batch 256: EigenCAM", "cuda", calls("eigencam", batch=256), _OVER_FORWARD, 1.03),
    Goal(
        "batch 256: the Grad-CAM family and EigenCAM, faster than grad-cam",
        *("cuda", calls(*FAMILY, "eigencam", batch=256), time("grad-cam", "fastcam")),
        least=10,
    ),
    Goal(
        "batch 256: the Grad-CAM family and EigenCAM, peak memory",
        *("cuda", calls(*FAMILY, "eigencam", batch=256), memory("fastcam", "forward"), 1.1),
    ),
    Goal(
        "batch 256: channel reduction, finish, masking, overlay",
        *("cuda", operators(*LINEAR, least_batch=256), COPY_SHARE),
        least=0.9,
    ),
    Goal(
        "every size: channel reduction, finish, masking, overlay",
        *("cuda", operators(*LINEAR), time("kernel", "compiled"), 1.05),
    ),
    Goal(
        "batch 1: launches of ours after the backward pass",
        *("cuda", launches(*FAMILY), LAUNCHES, 2),
        beside=launches("eigencam"),  # no backward pass: what comes after the target layer
        aside=lambda row: f"{row['total']} launches in all, {row['forward']} of the forward pass",
    ),
    Goal(
        "ResNet-50, batch 4: Grad-CAM in fast mode",
        *("cpu", fast_mode(model="resnet50", batch=4), time("fast", "forward"), 0.9),
        aside=lambda row: f"largest difference {row['difference']:.0e}",
        named=False,
    ),
    Goal(
        "ResNet-50, batch 256: Grad-CAM in fast mode, bf16, compiled",
        *("cuda", fast_mode(model="resnet50", batch=256), time("fast bf16 compiled", "forward"), 0.5),
        aside=lambda row: f"rank correlation {row['rank_correlation'].get('fast bf16 compiled', 0):.3f}",
        named=False,
    ),
    Goal(
        "ResNet-50, batch 256: Grad-CAM in fast mode, bf16, compiled: rank correlation with the exact maps",
        *("cuda", fast_mode(model="resnet50", batch=256), RANK),
        least=0.99,
        named=False,
    ),
    Goal(
        "ResNet-50, batch 1: Grad-CAM in fast mode, CUDA graphs",
        *("cuda", fast_mode(model="resnet50", batch=1), time("fast graphed", "graphed forward"), 1.3),
        named=False,
    ),
    Goal(
        "a data set of JPEGs, files read and maps written",
        *("cpu", data_sets("throughput"), OF_PLAIN_LOOP),
        least=0.9,
        named=False,
    ),
    Goal("a data set in memory, maps written", "cuda", data_sets("throughput"), OF_PLAIN_LOOP, least=0.95, named=False),
    Goal(
        "a data set of 2,000 images: no memory is held on to",
        *("cpu", data_sets("resident memory"), GROWTH, 1.05),
        named=False,
    ),
    Goal("every row that torch-cam has", "any", calls(), time("fastcam", "torch-cam"), 1.05),
    Goal("every row that captum has", "any", calls(), time("fastcam", "captum"), 1.05),
)
