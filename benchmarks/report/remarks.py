"""What the tables do not show: what failed or was left out and why, and where a peer does something else."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.report.curves import summaries
from benchmarks.report.runs import Device
from benchmarks.report.wording import named
from benchmarks.sweeps import UNKNOWN

Remark = tuple[str, str]  # what is said, and of which case or row


def missing(device: Device) -> str:
    """Cases that failed, were left out or still to come, sides that could not be asked, as a list with the reasons."""
    failed = [("failed", f"`{case}`") for result in device.results for case in result["failed"]]
    left_out = [
        (f"left out, {entry['reason']}", f"`{entry['case']}`")
        for result in device.results
        for entry in result["left_out"]
    ]
    not_begun = [
        ("not begun, the run ended before", f"`{case}`")
        for result in device.results
        for case in result.get("not_begun", [])
    ]
    rows = device.rows
    refused = [(f"{side}, {why}", named(row)) for row in rows for side, why in row.get("not_supported", {}).items()]
    not_compiled = [(f"torch.compile, {row['not_compiled']}", named(row)) for row in rows if "not_compiled" in row]
    return _listed([*failed, *left_out, *not_begun, *refused, *not_compiled])


def differing(device: Device) -> str:
    """Rows in which a peer's way is another than fastcam's, as a list."""
    return _listed((f"{side}, {why}", named(row)) for row in device.rows for side, why in row.get("notes", {}).items())


def unexplained(device: Device) -> str:
    """How many curves of fastcam's are no straight lines and have no reason on record, and which; "" if none."""
    ours = [curve for curve in summaries(device.rows, device.kind) if curve.side == "fastcam" and curve.line]
    found = [f"{c.method}, {c.model}, {c.sweep}, {c.quantity}" for c in ours if c.reason == UNKNOWN]
    if not found:
        return ""
    return f"{len(found)} of {len(ours)} curves are no straight lines, with {UNKNOWN}: {'; '.join(found)}.\n"


def _listed(remarks: Iterable[Remark]) -> str:
    """A line for each thing that is said, with all of which it is said."""
    found: dict[str, list[str]] = {}
    for said, of in remarks:
        found.setdefault(" ".join(said.split()).rstrip("."), []).append(of)
    return "".join(f"- {said}: {'; '.join(of)}.\n" for said, of in found.items())
