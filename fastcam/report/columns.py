"""What the folders of `fastcam run` and `fastcam explain` hold, in one shape: a column a method, a row an image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fastcam.dataset import manifest
from fastcam.dataset.maps import Maps, open_maps
from fastcam.images import Preprocess
from fastcam.report import settings


@dataclass
class Row:
    """An explained image; classes are -1 where there is none, `map` reads the map `(h, w)` in [0, 1]."""

    path: str | None
    index: int
    target: int
    predicted: int
    score: float
    map: Callable[[], np.ndarray]

    @property
    def key(self) -> str | int:
        """What it is known by in every column."""
        return self.index if self.path is None else self.path


@dataclass
class Column:
    """A method's maps of some images.

    layers      that it looked at
    explained   which classes, in words
    labelled    whether those were the data set's own
    dataset     of what: columns that agree in it can stand side by side
    preprocess  how image files became pictures; None if that is not known
    failed      path and reason of each sample without a map
    classes     names by index
    settings    what else the maps were made with, by name
    unfinished  of a run that is not complete, how far it is, in words
    """

    out: Path
    method: str
    layers: list[str]
    explained: str
    rows: list[Row]
    dataset: Any
    preprocess: Preprocess | None
    labelled: bool = False
    failed: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    unfinished: str = ""


_EXPLAINED = {"predicted": "predicted class", "label": "true class"}


def columns_of(out: Path) -> list[Column]:
    """Those of a folder: one of `fastcam run`, as many as methods were asked of `fastcam explain`.

    ValueError if it holds no maps, no finished shard, or shards of another run than its manifest's.
    """
    if (out / manifest.NAME).exists():
        return [column_of(open_maps(out))]
    if not out.is_dir():
        raise ValueError(f"no folder {out}")
    if not (found := list(_of_records(out))):
        raise ValueError(f"{out} holds no maps: neither {manifest.NAME} of `fastcam run` nor records of `explain`")
    return found


def column_of(maps: Maps, most: int | None = None) -> Column:
    """That of a run, or of its first maps."""
    about, targets = maps.manifest, maps.manifest["targets"]
    numbers = zip(maps.indices, maps.target, maps.predicted, maps.score, strict=True)
    names = _names(maps)
    rows = [
        Row(names[i], int(index), int(target), int(predicted), float(score), partial(maps.read, i, None))
        for i, (index, target, predicted, score) in enumerate(islice(numbers, most))
    ]
    explained = _EXPLAINED[targets] if targets in ("predicted", "label") else _class(targets)
    return Column(
        maps.out,
        about["method"]["class"],
        about["method"]["layers"] or [],
        "no class" if explained.endswith(" class") and (maps.target < 0).all() else explained,
        rows,
        about["dataset"],
        _preprocess(about["dataset"]),
        targets == "label",
        [{"path": f["path"] or f"sample {f['index']}", "reason": f["reason"]} for f in maps.failed],
        settings=settings.of_manifest(about),
        unfinished="" if maps.complete else _how_far(maps),
    )


def _names(maps: Maps) -> list[str | None]:
    """The paths; of several data sets, which have folders of their own, those that recur with their place."""
    if len(_parts(maps.manifest["dataset"])) == 1:
        return maps.paths
    counts = Counter(maps.paths)
    named = zip(maps.paths, maps.indices, strict=True)
    return [f"{path} (image {index})" if path and counts[path] > 1 else path for path, index in named]


def _parts(dataset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The data sets that a manifest's one is a part of, or a sequence of."""
    of = dataset.get("of", [])
    return [one for part in (of if isinstance(of, list) else [of]) for one in _parts(part)] or [dataset]


def _preprocess(dataset: Mapping[str, Any]) -> Preprocess | None:
    """How image files became pictures, if all parts of the data set agree in it."""
    first, *others = (part.get("preprocess") for part in _parts(dataset))
    return None if first is None or any(other != first for other in others) else Preprocess(**first)


def _how_far(maps: Maps) -> str:
    samples = maps.manifest["dataset"]["samples"]
    return f"{len(maps) + len(maps.failed):,} of {samples:,} images: the run is not complete"


def _class(targets: Any) -> str:
    """An index, or a callable by its name."""
    targets = settings.name_of(targets)
    return f"class {targets}" if isinstance(targets, int) else str(targets).rpartition(".")[2]


def _of_records(out: Path) -> Iterator[Column]:
    """A column for the records that agree in how the map was made, whatever the version and the device.

    Its images are in the order of their paths: the records' names tell less.
    """
    groups: dict[str, Column] = {}
    for file in sorted(out.glob("*.json")):
        record = _record(file)
        if record is None:
            continue
        column = _column_of_record(out, record)
        made = [column.method, column.layers, column.settings, record["preprocess"]]
        column = groups.setdefault(json.dumps(made, sort_keys=True), column)
        classes = [record[name] or {"class": -1, "score": None} for name in ("explained", "predicted")]
        column.classes |= {c["class"]: c["name"] for c in classes if "name" in c}
        explained, predicted = classes
        score = explained["score"] if explained["score"] is not None else predicted["score"]
        read = partial(_stored_map, file.with_suffix(".npy"))
        row = Row(record["image"], len(column.rows), explained["class"], predicted["class"], score, read)
        column.rows.append(row)
    for column in groups.values():
        column.rows.sort(key=lambda row: _natural(str(row.path)))
        for index, row in enumerate(column.rows):
            row.index = index
        targets = {row.target for row in column.rows}
        if -1 in targets:
            column.explained = "no class"
        elif any(row.target != row.predicted for row in column.rows) and len(targets) == 1:
            column.explained = f"class {targets.pop()}"
        yield column


def _natural(path: str) -> list[Any]:
    """A key to sort by: folder by folder, and numbers in names by their value."""
    parts = [re.split(r"([0-9]+)", part) for part in PurePath(path).parts]
    return [[int(text) if n % 2 else text for n, text in enumerate(part)] for part in parts]


def _record(file: Path) -> dict[str, Any] | None:
    """What `fastcam explain` wrote beside a map; None if it is something else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    wanted = {"image", "method", "predicted", "explained", "preprocess"}
    whole = isinstance(record, Mapping) and wanted <= record.keys() and file.with_suffix(".npy").exists()
    return dict(record) if whole else None


def _column_of_record(out: Path, record: Mapping[str, Any]) -> Column:
    layers = record.get("layer") or []
    seen = Preprocess(**record["preprocess"])
    made = settings.of_record(record)
    return Column(out, record["method"], layers, "predicted class", [], None, seen, settings=made)


def _stored_map(file: Path) -> np.ndarray:
    """A map, or of a gradient `(k, H, W)` its largest absolute value over channels, cut at its 99th percentile."""
    values = np.load(file)
    if values.ndim != 3:
        return values
    sizes = np.abs(values).max(0)
    return (sizes / max(float(np.percentile(sizes, 99)), 1e-30)).clip(0, 1)
