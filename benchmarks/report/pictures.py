"""Which pictures there are, and the data that each shows. What draws them is imported only to draw."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.curves import summaries
from benchmarks.report.runs import Device, Row, ratio
from benchmarks.report.tables import CALLS, UNITS, curve
from benchmarks.report.wording import PEERS, short_type

_KEY = "fastcam data"  # of the text in a PNG file that says which data it shows
_SIDES = ("definition", "compiled", "kernel")
COLOURS = 96  # of a picture's palette
Data = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture of nothing but its data.

    name         of the file
    kind         the function of `plots` that draws it
    in_summary   whether the README shows it
    """

    name: str
    kind: str
    title: str
    caption: str
    data: Data
    in_summary: bool = False

    @property
    def digest(self) -> str:
        """A hash of what is shown: bytes of a picture differ between versions of what draws it, this does not."""
        return hashlib.sha256(json.dumps([self.kind, self.data], sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        from benchmarks.report import plots

        draw: Callable[[Data], Any] = getattr(plots, self.kind)
        drawn = io.BytesIO()
        draw(self.data).savefig(drawn, format="png")
        said = PngInfo()
        said.add_text(_KEY, self.digest)
        with Image.open(drawn) as image:  # few colours: a palette takes a third of the bytes
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
                folder / self.name, pnginfo=said, optimize=True
            )


def shown_by(file: Path) -> str | None:
    """The hash of the data that a picture shows; None if it is not one of ours."""
    from PIL import Image

    with Image.open(file) as image:
        return image.info.get(_KEY)


def pictures(device: Device) -> list[Picture]:
    """Those for which there is data."""
    calls = [row for case in CALLS for row in device.of(case)]
    found: list[Picture] = []
    for kind in dict.fromkeys(short_type(row) for row in calls):
        of_kind = [row for row in calls if short_type(row) == kind]
        found += _speed_ups(device, kind, of_kind)
        found += _costs(device, kind, of_kind)
    return [*found, *_roofline(device), *_scale(device)]


def _speed_ups(device: Device, kind: str, rows: list[Row]) -> list[Picture]:
    points = [
        {"model": row["model"], "method": row["method"], "batch": row["batch"], "peer": peer, "ratio": found["median"]}
        for row in rows
        for peer in PEERS
        if (found := ratio(row, peer, "fastcam")) is not None
    ]
    if not points:
        return []
    caption = (
        f"Each peer's time over fastcam's, {device.name}, {kind}: right of the line fastcam is faster. "
        "Larger marks are larger batches."
    )
    data = {"points": points, "peers": [p for p in PEERS if any(point["peer"] == p for point in points)]}
    name, title = f"{device.slug}-speed-up-{kind}.png", f"Speed-up over the peers, {device.name}, {kind}"
    return [Picture(name, "speed_ups", title, caption, data, kind == "fp32")]


def _costs(device: Device, kind: str, rows: list[Row]) -> list[Picture]:
    points = [
        {"model": row["model"], "method": row["method"], "batch": row["batch"], "ratio": found["median"]}
        for row in rows
        if row["case"] in ("methods", "perturbation") and (found := ratio(row, "fastcam", "forward")) is not None
    ]
    if not points:
        return []
    caption = f"Time of a whole call over the model's own forward pass, {device.name}, {kind}."
    name, title = f"{device.slug}-cost-{kind}.png", f"Time over the forward pass, {device.name}, {kind}"
    return [Picture(name, "costs", title, caption, {"points": points})]


def _roofline(device: Device) -> list[Picture]:
    rows = [row for row in device.of("operators", kind="operator") if row.get("flops") and row.get("bytes")]
    points = [
        {
            **{"operator": row["operator"], "type": short_type(row), "side": side, "bytes": row["bytes"]},
            **{"intensity": row["flops"] / row["bytes"], "rate": row["flops"] / row["seconds"][side]["median"] / 1e9},
        }
        for row in rows
        for side in _SIDES
        if side in row["seconds"]
    ]
    copies = sorted(row["copy_gigabytes_per_second"] for row in rows if "copy_gigabytes_per_second" in row)
    peaks = [row["flops_per_second"] / 1e9 for row in device.of("operators", kind="peak")]
    if not points or not copies:
        return []
    caption = (
        f"Operators, {device.name}: operations a second over operations a byte, of both the fewest. The sloped roof is "
        "the bandwidth of a copy that fits no cache, which smaller data may exceed"
        + (", the flat one the rate of a large product of fp32 matrices" if peaks else "")
        + ". Larger marks are more bytes."
    )
    data = {"points": points, "copy": copies[len(copies) // 2], "peak": peaks[0] if peaks else None}
    return [Picture(f"{device.slug}-roofline.png", "roofline", f"Roofline, {device.name}", caption, data)]


def _scale(device: Device) -> list[Picture]:
    rows = device.of("scale")
    panels: dict[tuple[str, str, str], Data] = {}
    for summary in summaries(rows, device.kind):
        unit, factor = UNITS[summary.quantity]
        points = curve(rows, summary.model, summary.sweep, summary.method, summary.quantity, summary.side)
        if not points:
            continue
        line = summary.line
        of_panel = panels.setdefault(
            (summary.model, summary.sweep, summary.quantity),
            {
                **{"model": summary.model, "sweep": summary.sweep, "quantity": summary.quantity, "unit": unit},
                **{"of": _unit(rows, summary.sweep), "curves": []},
            },
        )
        of_panel["curves"].append(
            {
                **{"method": summary.method, "side": summary.side, "points": [[x, factor * y] for x, y in points]},
                "line": None if line is None else [factor * line.intercept, factor * line.slope],
                "straight": line is not None and line.straight,
            }
        )
    if not panels:
        return []
    caption = (
        f"Time and peak memory of a call as one thing grows, {device.name}: the lines are fitted, dotted where the "
        "points leave them. The forward pass in grey."
    )
    data = {"panels": list(panels.values())}
    return [Picture(f"{device.slug}-scale.png", "scale", f"Scale, {device.name}", caption, data)]


def _unit(rows: Iterable[Row], sweep: str) -> str:
    """What the values of a sweep count."""
    return next((row["unit"] for row in rows if row["sweep"] == sweep and "unit" in row), sweep)
