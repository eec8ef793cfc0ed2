"""What goals and losses are read from: one figure of a row, and which rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report.runs import Row, Spread, capped, exactly, plain, ratio

ON_DEVICE = "fastcam, on the device"  # the side whose maps stay tensors
Wanted = Callable[[Row], bool]


class Figure(NamedTuple):
    """What is read from a row.

    name       as it is written: `fastcam / forward`
    side       whose figure it is: `fastcam`
    base       what it is held against: `forward`; "" where it stands alone
    read       its value, None where the row has none
    least      what it is at least, of a side that was stopped at its cap; None where that is not known
    failed     whether it could not be measured since a side broke
    percent    how it is written
    """

    name: str
    side: str
    base: str
    read: Callable[[Row], Spread | None]
    least: Callable[[Row], float | None] = lambda row: None
    failed: Callable[[Row], bool] = lambda row: False
    percent: bool = False


def time(side: str, base: str) -> Figure:
    """Time of a side over another's."""

    def least(row: Row) -> float | None:
        cap, known = capped(row, side), row.get("seconds", {}).get(base)
        return None if cap is None or known is None else cap / known["median"]

    def failed(row: Row) -> bool:
        return "compiled" in (side, base) and "not_compiled" in row

    return Figure(f"{side} / {base}", side, base, lambda row: ratio(row, side, base), least, failed)


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


def calls(*methods: str, **wanted: object) -> Wanted:
    """Rows of timed calls of some methods, all without any, that have these values."""
    names = {plain(method) for method in methods}

    def chosen(row: Row) -> bool:
        if row["case"] not in ("methods", "perturbation", "toolbox", "inside"):
            return False
        return (not names or plain(row["method"]) in names) and all(row.get(k, v) == v for k, v in wanted.items())

    return chosen


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
