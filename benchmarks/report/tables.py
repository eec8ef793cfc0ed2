"""Every recorded row in a table: the body of `docs/benchmarks.md`, and what a run prints at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from benchmarks.report.curves import Summary, summaries
from benchmarks.report.figures import ON_DEVICE
from benchmarks.report.remarks import differing, missing, unexplained
from benchmarks.report.runs import Device, Result, Row, devices, ratio
from benchmarks.report.wording import (
    ABSENT,
    LEGENDS,
    PEERS,
    digits,
    gain,
    measured_on,
    over_cap,
    shape,
    short_type,
    spread,
    table,
)


class Column(NamedTuple):
    head: str
    cell: Callable[[Row], str]


def of_runs(results: Iterable[Result]) -> str:
    """All the tables of some runs, by device."""
    return "\n".join(f"## {device.name}\n\n{measured_on(device)}\n{of_device(device)}" for device in devices(results))


def of_device(device: Device) -> str:
    """A table for each kind of row there is, then what is missing from them."""
    parts = []
    for case, title in CALLS.items():
        legend = f"{LEGENDS[case]}\n\n"
        for model, rows in groupby(device.of(case), key=lambda row: row["model"]):
            parts.append(_section(f"{title}, {model}", legend, _of_columns(_CALL_COLUMNS, rows)))
            legend = ""  # once is enough
    for kind, (title, columns) in _OPERATORS.items():
        of_kind = device.of("operators", kind=kind)
        parts.append(_section(title, f"{LEGENDS[kind]}\n\n", _of_columns(columns, of_kind)))
    for case, (title, columns) in _OTHERS.items():
        parts.append(_section(title, f"{LEGENDS[case]}\n\n", _of_columns(columns, device.of(case))))
    for kind, (title, columns) in _DATA_SETS.items():
        parts.append(_section(title, f"{LEGENDS[kind]}\n\n", _of_columns(columns, device.of("dataset", kind=kind))))
    parts.append(_section("Scale", f"{LEGENDS['scale']}\n\n", _of_scale(device)))
    parts.append(_section("Where a peer does something else", "", differing(device)))
    parts.append(_section("Not measured", "", missing(device)))
    return "\n".join(part for part in parts if part)


def _section(title: str, legend: str, shown: str) -> str:
    return f"### {title}\n\n{legend}{shown}" if shown else ""


def _of_columns(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """The rows as a table of those columns in which any of them has something; nothing without rows."""
    rows = list(rows)
    cells = {column.head: [column.cell(row) for row in rows] for column in columns}
    used = {head: column for head, column in cells.items() if set(column) - {ABSENT}}
    return table(list(used), zip(*used.values(), strict=True)) if used else ""


def plain(key: str, row: Row) -> str:
    value = row.get(key, ABSENT)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def time_over(side: str, base: str, row: Row) -> str:
    """Where fastcam is this much slower than a base, `> 30 s` where it was stopped."""
    return over_cap(row, side) or spread(ratio(row, side, base))


def faster_than(peer: str, side: str, row: Row) -> str:
    """A peer's time over that of a side of ours."""
    return over_cap(row, peer) or gain(ratio(row, peer, side))


def seconds(side: str, unit: float, row: Row) -> str:
    figure = row.get("seconds", {}).get(side)
    return over_cap(row, side) or (ABSENT if figure is None else digits(unit * figure["median"]))


def _memory(side: str, row: Row) -> str:
    """Memory of full batches only: one image of AblationCAM or Recipro-CAM does not fill one."""
    unfilled = row.get("memory_images", 1) == 1 and row["method"] in ("ablationcam", "reciprocam")
    value = row.get("memory_ratios", {}).get(f"{side}/forward")
    return ABSENT if value is None or (row["case"] == "perturbation" and unfilled) else digits(value)


def _images(side: str, row: Row) -> str:
    value = row.get("images_per_second", {}).get(side)
    return ABSENT if value is None else digits(value)


def _of_fastest_peer(row: Row) -> str:
    rates = row.get("images_per_second", {})
    best = max((peer for peer in PEERS if peer in rates), key=rates.__getitem__, default=None)
    return ABSENT if best is None else f"{digits(rates[best])} ({best})"


def _megabytes(row: Row) -> str:
    """Peak memory of fastcam's call."""
    value = row.get("memory", {}).get("fastcam")
    return ABSENT if value is None or _memory("fastcam", row) == ABSENT else digits(value / 1e6)


_RATE, _SHARE, _CALL = "gigabytes_per_second", "copy_share", "call_seconds"


def _of_side(key: str, row: Row) -> str:
    """GB/s, copy share or call time of the kernel, or of the definition where there is none."""
    found = row.get(key, {})
    value = found.get("kernel", found.get("definition"))
    if value is None:
        return ABSENT
    if key == _RATE:
        return f"{value:.0f}" if value > 9.95 else digits(value)
    return spread(value, percent=True) if key == _SHARE else digits(1e6 * value["median"])


def _without_kernel(row: Row) -> str:
    """What `torch.compile` makes of the definition, where it is the definition that fastcam runs."""
    return ABSENT if "kernel" in row["seconds"] else faster_than("compiled", "definition", row)


def _instructions(key: str, row: Row) -> str:
    """Counts by bytes a thread, the widest first: `12 of 16, 1 of 4`."""
    widths = sorted(((int(width), n) for width, n in row.get(key, {}).items() if n), reverse=True)
    return ", ".join(f"{n} of {width}" for width, n in widths) or ABSENT


def _of_scale(device: Device) -> str:
    rows = device.of("scale")
    lines = [summary for summary in summaries(rows, device.kind) if summary.side == "fastcam"]
    if not lines:
        return ""
    shown = table(_SCALE_HEADS, (_line(summary, rows) for summary in lines))
    return f"{shown}\n{said}" if (said := unexplained(device)) else shown


_SCALE_HEADS = (
    *("model", "sweep", "method", "figure", "from", "to", "measured there", "and there", "line", "worst"),
    "a straight line?",
)


def _line(summary: Summary, rows: Sequence[Row]) -> list[str]:
    """A curve: its ends as measured, its line, how far off that is."""
    points = curve(rows, summary.model, summary.sweep, summary.method, summary.quantity)
    head = [summary.model, summary.sweep, summary.method, summary.quantity]
    if not points:
        return [*head, *[ABSENT] * 6, "not measured"]
    unit, scale = UNITS[summary.quantity]
    ends = [str(points[0][0]), str(points[-1][0]), *(f"{digits(scale * points[i][1])} {unit}" for i in (0, -1))]
    if (line := summary.line) is None:
        return [*head, *ends, ABSENT, ABSENT, "too few points"]
    fitted = f"{scale * line.intercept:.3g} + {scale * line.slope:.3g} x"
    return [*head, *ends, fitted, f"{line.worst:.0%}", "straight" if line.straight else f"no: {summary.reason}"]


def _resident(process: str, row: Row) -> str:
    """MB at first and at the end, and after how many images."""
    found = list(zip(row["resident"][process], row["resident"]["images"], strict=True))
    return " to ".join(f"{size / 1e6:.0f} ({images})" for size, images in (found[0], found[-1]))


UNITS = {"time": ("ms", 1e3), "memory": ("MiB", 2.0**-20)}


def curve(
    rows: Iterable[Row], model: str, sweep: str, method: str, quantity: str, side: str = "fastcam"
) -> list[tuple[float, float]]:
    """The points of a curve, x with seconds or bytes, by rising x."""
    key = "seconds" if quantity == "time" else "memory"
    found = [
        (row["x"], row[key][side]["median"] if quantity == "time" else row[key][side])
        for row in rows
        if (row["model"], row["sweep"], row["method"]) == (model, sweep, method) and side in row.get(key, {})
    ]
    return sorted(found)


FAST_SIDES = ("fast", "fast compiled", "fast bf16", "fast bf16 compiled")


def _rank_in_bf16(row: Row) -> str:
    found = row["rank_correlation"].get("fast bf16")
    return ABSENT if found is None else f"{found:.3f}"


CALLS = {
    "methods": "Methods",
    "perturbation": "Methods of many passes",
    "toolbox": "Toolbox",
    "inside": "Looking inside",
}
_CALL_COLUMNS = (
    Column("batch", partial(plain, "batch")),
    Column("type", short_type),
    Column("method", partial(plain, "method")),
    Column("forward ms", partial(seconds, "forward", 1e3)),
    Column("fastcam ms", partial(seconds, "fastcam", 1e3)),
    Column("fastcam / forward", partial(time_over, "fastcam", "forward")),
    Column(f"{ON_DEVICE} / forward", partial(time_over, ON_DEVICE, "forward")),
    Column("fastcam / masked forward passes", partial(time_over, "fastcam", "masked forward passes")),
    Column("fastcam / one class", partial(time_over, "fastcam", "one class")),
    *(Column(f"{peer} / fastcam", partial(faster_than, peer, "fastcam")) for peer in (*PEERS, "one at a time")),
    Column("fastcam images/s", partial(_images, "fastcam")),
    Column("images/s of the fastest peer", _of_fastest_peer),
    Column("fastcam MB", _megabytes),
    *(Column(f"memory: {side}", partial(_memory, side)) for side in ("fastcam", *PEERS)),
)
_OPERATORS = {
    "operator": (
        "Operators",
        (
            Column("operator", partial(plain, "operator")),
            Column("shape", shape),
            Column("type", short_type),
            *(Column(f"{side} µs", partial(seconds, side, 1e6)) for side in ("kernel", "definition", "compiled")),
            Column("GB/s", partial(_of_side, _RATE)),
            Column("of copy", partial(_of_side, _SHARE)),
            Column("definition / kernel", partial(faster_than, "definition", "kernel")),
            Column("compiled / kernel", partial(faster_than, "compiled", "kernel")),
            Column("compiled / definition", _without_kernel),
            Column("call µs", partial(_of_side, _CALL)),
            Column("clock", partial(plain, "timer")),
        ),
    ),
    "peak": (
        "Peak",
        (
            Column("of", partial(plain, "method")),
            Column("shape", shape),
            Column("type", short_type),
            Column("GFLOP/s", lambda row: digits(row["flops_per_second"] / 1e9)),
        ),
    ),
    "explanation": (
        "Kernel, call and whole explanation",
        (
            Column("network", partial(plain, "network")),
            Column("batch", partial(plain, "batch")),
            Column("type", short_type),
            Column("method", partial(plain, "method")),
            Column("kernels µs", partial(seconds, "kernel", 1e6)),
            Column("calls µs", partial(seconds, "call", 1e6)),
            Column("whole explanation µs", partial(seconds, "fastcam", 1e6)),
            Column("forward µs", partial(seconds, "forward", 1e6)),
            Column("fastcam / forward", partial(time_over, "fastcam", "forward")),
        ),
    ),
}
_OTHERS = {
    "compiled": (
        "Kernels, compiled ahead of time, not run",
        (
            Column("kernel", partial(plain, "kernel")),
            Column("variant", partial(plain, "variant")),
            Column("launch", partial(plain, "launch")),
            Column("for", lambda row: f"sm_{row['arch']}"),
            Column("registers", partial(plain, "registers")),
            Column("shared bytes", partial(plain, "shared_bytes")),
            Column("spilled bytes", partial(plain, "spilled_bytes")),
            Column("loads", partial(_instructions, "loads")),
            Column("stores", partial(_instructions, "stores")),
            Column("bytes moved an element", partial(plain, "bytes_per_element")),
            Column("floor of the whole operator", partial(plain, "floor_bytes_per_element")),
            Column("an element", partial(plain, "element")),
        ),
    ),
    "optimize": (
        "Fast mode",
        (
            *(Column(key, partial(plain, key)) for key in ("model", "batch")),
            Column("forward ms", partial(seconds, "forward", 1e3)),
            Column("fast ms", partial(seconds, "fast", 1e3)),
            *(Column(f"{side} / forward", partial(time_over, side, "forward")) for side in ("exact", *FAST_SIDES)),
            Column("fast graphed / graphed forward", partial(time_over, "fast graphed", "graphed forward")),
            Column("largest difference", lambda row: f"{row['difference']:.1e}"),
            Column("rank correlation in bf16", _rank_in_bf16),
        ),
    ),
    "launches": (
        "Launches",
        (
            *(Column(key, partial(plain, key)) for key in ("model", "batch", "method")),
            Column("ours, after the backward pass", partial(plain, "ours")),
            Column("why more than two", partial(plain, "reason")),
            Column("all", partial(plain, "total")),
            Column("of the forward pass alone", partial(plain, "forward")),
        ),
    ),
}
_LOADED = tuple(Column(key, partial(plain, key)) for key in ("model", "method", "batch", "workers", "data", "images"))
_DATA_SETS = {
    "throughput": (
        "Data sets",
        (
            *_LOADED,
            *(Column(f"{side} images/s", partial(_images, side)) for side in ("plain loop", "fastcam")),
            Column("share", lambda row: spread(ratio(row, "plain loop", "fastcam"), percent=True)),
            Column("difference", partial(plain, "difference")),
        ),
    ),
    "resident memory": (
        "Data sets, memory",
        (
            *_LOADED,
            *(Column(f"{of}, MB (images)", partial(_resident, of)) for of in ("process", "workers")),
        ),
    ),
}
