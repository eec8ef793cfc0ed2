"""The recorded runs, gathered by the device they were made on; what their rows are read by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.settings import MODELS

Row = dict[str, Any]
Result = dict[str, Any]  # a results file
Spread = dict[str, Any]  # {"median": value, "quartiles": [low, high]}

# What tells two rows apart; absent keys are absent in both.
_IDENTITY = (
    *("case", "kind", "model", "batch", "method", "dtype", "operator", "shape", "network"),
    *("kernel", "variant", "arch", "sweep", "x"),
)


@dataclass(frozen=True)
class Device:
    """All that is on record of a device.

    slug       its name in file names
    results    the files, each with those of its rows that no other file has of newer date
    """

    slug: str
    results: list[Result]

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return str(self.results[0]["device"])

    @property
    def name(self) -> str:
        return self.results[0]["hardware"].get("gpu") or "CPU"

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, those of a model together."""
        return sorted((row for result in self.results for row in result["rows"]), key=_rank)

    def of(self, case: str, **wanted: Any) -> list[Row]:
        """The rows of a case that have these values."""
        found = (row for row in self.rows if row["case"] == case)
        return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]


def read(folder: Path) -> list[Result]:
    """The results files below a folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json"))]


def devices(results: Iterable[Result]) -> list[Device]:
    """The results by device, CPUs first.

    Of a row that was measured twice the newer counts, one of a whole run rather than of a named set.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(_slug(result), []).append(result)
    gathered = [Device(slug, list(_without_repeats(of_one))) for slug, of_one in found.items()]
    return sorted(gathered, key=lambda device: (device.kind, device.slug))


def _without_repeats(results: list[Result]) -> Iterator[Result]:
    best: dict[str, int] = {}
    order = sorted(range(len(results)), key=lambda i: (results[i]["set"] is None, results[i]["date"]))
    for i in order:
        best |= {_identity(row): i for row in results[i]["rows"]}
    for i, result in enumerate(results):
        rows = [row for row in result["rows"] if best[_identity(row)] == i]
        if rows or not result["rows"]:
            yield {**result, "rows": rows}


def _identity(row: Row) -> str:
    known = {key: row[key] for key in _IDENTITY if key in row}
    return json.dumps({"dtype": "float32", **known})


def _rank(row: Row) -> tuple[int, str]:
    """The place of a row's model: the benchmarks' own, then any other, then rows without."""
    model = row.get("model")
    return MODELS.index(model) if model in MODELS else len(MODELS) + (model is None), model or ""


def _slug(result: Result) -> str:
    return re.sub(r"[^a-z0-9]+", "-", result["hardware"].get("gpu", "cpu").lower()).strip("-")


def dtype(row: Row) -> str:
    return str(row.get("dtype", "float32"))


def capped(row: Row, side: str) -> float | None:
    """The seconds at which a side was stopped; None if it was not."""
    return row.get("over_cap", {}).get(side)


def ratio(row: Row, side: str, base: str) -> Spread | None:
    """Time of a side over that of another, from either of the two ratios that a row may hold; None without both."""
    ratios = row.get("ratios", {})
    if (known := ratios.get(f"{side}/{base}")) is not None:
        return known
    return None if (turned := ratios.get(f"{base}/{side}")) is None else inverse(turned)


def inverse(spread: Spread) -> Spread:
    low, high = spread["quartiles"]
    return {"median": 1 / spread["median"], "quartiles": [1 / high, 1 / low]}


def exactly(value: float) -> Spread:
    """A figure that was not measured several times."""
    return {"median": value, "quartiles": None}


def plain(method: str) -> str:
    """A method's name, however it is written: `FullGrad` and `fullgrad`, `1,000 classes` and `1000 classes` are one."""
    return re.sub(r"[ ,_-]", "", method.lower())
