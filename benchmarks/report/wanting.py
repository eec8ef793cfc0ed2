"""Cases that should have given a row and have none: failed, left out as time was up, or never begun."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from benchmarks.report.runs import Device, Row, dtype, plain
from benchmarks.settings import TIME_IS_UP

_CALL = re.compile(
    r"bench_(?P<case>method|perturbation)\[(?P<model>\w+)-(?P<batch>\d+)-(?P<method>.+)-(?P<dtype>\w+)\]"
)
_NAMED = re.compile(r"bench_(?P<case>toolbox|inside|launches)\[(?P<model>\w+)-(?P<method>.+)\]")
_OPERATOR = re.compile(r"bench_(?P<case>operator)\[(?P<operator>.+)-(?P<shape>[\dx]+)-(?P<dtype>\w+)-\w+\]")
_FAST = re.compile(r"bench_(?P<case>optimize)\[(?P<model>\w+)-(?P<batch>\d+)\]")
_DATA_SET = re.compile(r"bench_(?P<kind>throughput|resident_memory)\[(?P<model>\w+)-(?P<method>\w+)-(?P<batch>\d+)\]")
_CASES = {"method": "methods", "operator": "operators"}


def row_of(name: str) -> Row | None:
    """What the row of a case would be told by, from the case's name; None of a case that no goal is about."""
    found = next((m for p in (_CALL, _NAMED, _OPERATOR, _FAST, _DATA_SET) if (m := p.fullmatch(name))), None)
    if found is None:
        return None
    row: Row = {"case": "dataset", **found.groupdict()}
    row["case"] = _CASES.get(row["case"], row["case"])
    if "batch" in row or row["case"] == "launches":
        row["batch"] = int(row.get("batch", 1))
    if row["case"] == "optimize":
        row["method"] = "gradcam"
    if "shape" in row:
        row |= {"shape": [int(n) for n in row["shape"].split("x")], "kind": "operator"}
    if row["case"] == "dataset":
        row["kind"] = row["kind"].replace("_", " ")
    return row


def failed(device: Device) -> list[Row]:
    """The cases that failed, as rows without figures."""
    return _unmeasured(device, (name for result in device.results for name in result["failed"]))


def not_measured(device: Device) -> list[Row]:
    """Those that were left out as time was up, or that the run did not come to."""
    late = [e["case"] for result in device.results for e in result["left_out"] if TIME_IS_UP in e["reason"]]
    return _unmeasured(device, [*late, *(name for result in device.results for name in result.get("not_begun", []))])


def _unmeasured(device: Device, names: Iterable[str]) -> list[Row]:
    """Those of the cases that no run on record has measured."""
    rows = [row for name in dict.fromkeys(names) if (row := row_of(name)) is not None]
    return [row for row in rows if not any(_same(row, measured) for measured in device.rows)]


def _same(case: Row, row: Row) -> bool:
    return all(method(row) == method(case) if key == "method" else row.get(key) == value for key, value in case.items())


def never_asked(members: Sequence[str], rows: Iterable[Row]) -> list[Row]:
    """The members, methods or operators, that have no row where others have one: of that model, batch and type."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kind = "" if "operator" in row else dtype(row)  # not every operator has every type
        groups.setdefault((row["case"], row.get("model", ""), str(row.get("batch")), kind), []).append(row)
    absent = []
    for of_group in groups.values():
        there = {method(row) for row in of_group}
        keys = ("case", "model", "batch", *(() if "operator" in of_group[0] else ("dtype",)))
        known = {key: of_group[0][key] for key in keys if key in of_group[0]}
        absent += [{**known, "method": name} for name in members if plain(name) not in there]
    return absent


def method(row: Row) -> str:
    """The name of a row's method or operator, without options and weightings."""
    name = row.get("operator", "").partition("[")[0] or row.get("method", "").partition(",")[0]
    return plain(name)


def described(rows: Sequence[Row], named: Callable[[Row], str]) -> str:
    """How many, and which, but not more than a few."""
    names = [named(row) for row in rows]
    few = names[:4] + ([f"{len(names) - 4} more"] if len(names) > 4 else [])
    return f"{len(names)}: {'; '.join(few)}"
