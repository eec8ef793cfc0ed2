"""Columns side by side: the images of all of them, each once, with labels and names as far as they are known."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastcam.report import settings
from fastcam.report.columns import Column, Row

ClassNames = Sequence[str] | Mapping[int, str] | str | os.PathLike[str] | None

_NO_MAP = -2  # in place of a predicted class; -1 is none
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass
class Table:
    """keys of the images in the data set's order, the rows of each column by key, labels by key."""

    columns: list[Column]
    keys: list[str | int]
    rows: list[dict[str | int, Row]]
    labels: dict[str | int, int]
    classes: dict[int, str]

    def first(self, key: str | int) -> Row:
        """What a column knows of an image."""
        return next(rows[key] for rows in self.rows if key in rows)

    def described(self) -> dict[str, Any]:
        """What the page knows of every image but its picture and its maps."""
        found = [self.first(key) for key in self.keys]
        return {
            "names": [f"image {row.index}" if row.path is None else shown(str(row.path)) for row in found],
            "labels": [self.labels.get(key, -1) for key in self.keys] if self.labels else None,
            "classes": {str(index): name for index, name in self.classes.items()},
            "methods": [self._described(*numbered) for numbered in enumerate(settings.titles(self.columns))],
            "failed": self._failed(),
        }

    def _described(self, place: int, title: str) -> dict[str, Any]:
        column, rows = self.columns[place], [self.rows[place].get(key) for key in self.keys]
        return {
            "name": column.method,
            "title": title,
            "settings": [settings.said(name, value) for name, value in column.settings.items()],
            "layers": column.layers,
            "explained": column.explained,
            "unfinished": column.unfinished,
            "target": [-1 if row is None else row.target for row in rows],
            "predicted": [_NO_MAP if row is None else row.predicted for row in rows],
            "score": [None if row is None or not math.isfinite(row.score) else round(row.score, 6) for row in rows],
        }

    def _failed(self) -> list[dict[str, str]]:
        """Each sample once, however many methods it failed with."""
        found = {(f["path"], f["reason"]) for column in self.columns for f in column.failed}
        return [{"name": shown(name), "reason": shown(reason)} for name, reason in sorted(found)]


def table_of(columns: list[Column], labels: bool, classes: ClassNames) -> Table:
    """The columns of the same images; `labels` takes the sub-folders of a run for them.

    ValueError if the columns are of other images, or none of them has one.
    """
    _check_same(columns)
    rows = [{row.key: row for row in column.rows} for column in columns]
    by_index = sorted({row.key: row.index for column in reversed(columns) for row in column.rows}.items(), key=_second)
    keys = [key for key, _ in by_index]
    if not keys:
        raise ValueError(f"no image of {columns[0].out} could be explained")
    labelled = [row for column in columns if column.labelled for row in column.rows if row.target >= 0]
    known = {row.key: row.target for row in labelled}
    names = {index: name for column in columns for index, name in column.classes.items()}
    if labels and columns[0].dataset is not None:
        folders = _folders(columns)
        known = {key: folders.index(_folder(key)) for key in keys if _folder(key)}
        names = {**dict(enumerate(folders)), **names}
    if classes is not None:
        given = _listed(classes) if isinstance(classes, str | os.PathLike) else classes
        names = dict(given if isinstance(given, Mapping) else enumerate(given))
    return Table(columns, keys, rows, known, names)


def shown(text: str) -> str:
    """A name as it can be shown: what would break a line, turn its direction or not be seen is escaped."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _listed(file: str | os.PathLike[str]) -> list[str]:
    """Names of classes, one a line."""
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as names, one a line: {error}") from error


def _second(pair: tuple[str | int, int]) -> int:
    return pair[1]


def _folder(key: str | int | None) -> str:
    """The first folder of a path below the data set's, which is the class where folders are classes."""
    parts = PurePosixPath(key).parts if isinstance(key, str) else ()
    return parts[0] if len(parts) > 1 else ""


def _folders(columns: Sequence[Column]) -> list[str]:
    """The classes as `ImageFiles` counts them: sorted, with those of which nothing could be explained."""
    if all(len(c.rows) + len(c.failed) < c.dataset["samples"] for c in columns):
        raise ValueError(f"labels are known when a run is complete, and {columns[0].out} is not")
    paths = [row.path for column in columns for row in column.rows]
    paths += [failure["path"] for column in columns for failure in column.failed]
    if not (found := sorted({_folder(path) for path in paths} - {""})):
        raise ValueError(f"labels are sub-folders, and the images of {columns[0].out} lie in none")
    return found


def _check_same(columns: Sequence[Column]) -> None:
    first = columns[0]
    for column in columns[1:]:
        if (column.dataset is None) != (first.dataset is None):
            ways = sorted([(column.dataset is None, str(column.out)), (first.dataset is None, str(first.out))])
            run, explained = (out for _, out in ways)
            raise ValueError(f"{run} is of `run` and {explained} of `explain`, which do not stand side by side")
        other = _pictures(column) != _pictures(first)
        apart = column.dataset is None and not {r.key for r in column.rows} & {r.key for r in first.rows}
        if (other or apart) and column.out == first.out:
            made = "; ".join(settings.differences(first, column))
            raise ValueError(f"{first.out} holds maps made in two ways: {made}: give each a folder of its own")
        if other:
            raise ValueError(f"{column.out} is of other images than {first.out}, or of images cropped otherwise")
        if apart:
            raise ValueError(f"{column.out} and {first.out} have no image in common")


def _pictures(column: Column) -> str:
    """What two columns of the same pictures agree in; normalisation is the model's affair."""
    seen = {} if column.preprocess is None else asdict(column.preprocess)
    kept = {name: value for name, value in seen.items() if name not in ("mean", "std")}
    return repr((kept, _which(column.dataset or {})))


def _which(dataset: Mapping[str, Any]) -> list[Any]:
    """What tells a data set's samples from others, and those that it is a part of, or a sequence of."""
    of = dataset.get("of", [])
    told = [dataset.get(name) for name in ("samples", "fingerprint", "indices")]
    return told + [_which(part) for part in (of if isinstance(of, list) else [of])]
