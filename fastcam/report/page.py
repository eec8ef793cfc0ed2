"""The report: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastcam.batches import check_count
from fastcam.dataset.whole_files import write_whole
from fastcam.figures.colours import table as colours
from fastcam.report.columns import columns_of
from fastcam.report.pictures import Pictures, budget, map_side, small_map, tile, tile_side
from fastcam.report.table import ClassNames, Table, table_of

_CHUNK = 200  # images in a part of the page, which is looked into when one of them is seen
_SCRIPTS = ("data.js", "maps.js", "grid.js", "large.js", "page.js")
_SCHEMES = ("jet", "viridis", "inferno")
Folder = str | os.PathLike[str]


def write_report(
    out: Folder | Sequence[Folder],
    file: str | os.PathLike[str] | None = None,
    *,
    images: Any = None,
    labels: bool = False,
    classes: ClassNames = None,
    tile: int | None = None,
    title: str | None = None,
    progress: bool = False,
    lost: Callable[[str], None] | None = None,
) -> Path:
    """A page to look at, from what `attribute_dataset`, `fastcam run` or `fastcam explain` wrote: one HTML file.

    It holds every image, small, with its maps, and needs no network: a grid with a slider for the maps' opacity, a
    choice of method and class, sorting by score, a filter on wrong predictions where labels are known, and the samples
    that failed. 10,000 images by up to three methods are at most 60 MB, without a `tile`.

    out        a folder, or several of the same images, each a method of the page
    file       where it is written; None for report.html in the (first) folder
    images     the folder that the recorded paths are relative to; None if they are found without: from the current
               folder, or from the one that holds `out`. Or the pictures, by their place in the data set, or on the page
               for what `fastcam explain` wrote: a list, a tensor `(N, k, H, W)` in [0, 1], or a data set of such, the
               one that was explained if its images are not normalised; of one that reads no files they must be given
    labels     take the sub-folders of the images, sorted, for their classes; for what `fastcam explain` wrote, those of
               the folder `images`. Without, labels are known where they were what was explained
    classes    names by index, or a text file of them, one a line
    tile       pixels a side of an image; None for 256, 160 above 400 images and 96 above 2,000
    title      of the page
    progress   show a bar on stderr
    lost       called with a line for each image whose picture is not there, which the page shows without it; None for
               one warning of them all
    Returns the file's path. Warns of a run that is not complete.
    Raises ValueError if a folder holds no maps, no finished shard or shards of another run, if the folders are of
    different images, if no picture is found or one given is not in [0, 1], or if `file` cannot be one.

    >>> import tempfile, torch, fastcam
    >>> data = torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    >>> cam, folder = fastcam.GradCAM(model, "0"), tempfile.mkdtemp()
    >>> maps = fastcam.attribute_dataset(cam, data, folder, "label", workers=0)
    >>> fastcam.write_report(folder, images=data, classes=["cat", "dog", "owl"]).name
    'report.html'
    """
    folders = [Path(out)] if isinstance(out, str | os.PathLike) else [Path(folder) for folder in out]
    if not folders:
        raise ValueError("out is empty: give at least one folder")
    path = folders[0] / "report.html" if file is None else Path(file)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file's name")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent}")
    table = table_of([column for folder in folders for column in columns_of(folder)], labels, classes)
    side = tile_side(len(table.keys)) if tile is None else check_count("tile", tile)
    gone: list[str] = []
    pictures = Pictures(table, images, lost or gone.append)
    if labels and table.columns[0].dataset is None:
        pictures.label(table, classes is None)
    heading = title or _heading(table)

    def write(page: BinaryIO) -> None:
        before, after = _frame(heading, {**table.described(), "title": heading, "tile": side, "chunk": _CHUNK})
        page.write(before)
        for number, lines in enumerate(_chunks(table, pictures, side, progress)):
            text = "\n".join(lines)
            page.write(f'<script type="text/plain" id="part-{number}">{text}</script>\n'.encode())
        page.write(after)

    write_whole(path, write, secrets.token_hex(4))
    for column in table.columns:
        if column.unfinished:
            warnings.warn(f"{column.out}: {column.unfinished}", stacklevel=2)
    if gone:
        count = f"{len(gone)} of {len(table.keys)} images are shown without their picture"
        warnings.warn(f"{count}; {gone[0]}", stacklevel=2)
    return path


def _heading(table: Table) -> str:
    methods = list(dict.fromkeys(column.method for column in table.columns))
    return f"{', '.join(methods)}: {len(table.keys):,} images"


def _frame(title: str, data: dict[str, Any]) -> tuple[bytes, bytes]:
    """What comes before the pictures and after them; only the page's own script and style may run or load anything."""
    text = {name: _template(f"page.{name}") for name in ("html", "css")}
    text["js"] = "\n".join(map(_template, _SCRIPTS))
    data["schemes"] = {name: base64.b64encode(colours(name).tobytes()).decode() for name in _SCHEMES}
    fields = {
        "policy": f"default-src 'none'; img-src data:; script-src {_hash(text['js'])}; style-src {_hash(text['css'])}",
        "title": escape(title),
        "style": text["css"],
        "data": _in_script(data),
        "script": text["js"],
    }
    page = text["html"]
    before, after = page.split("{{parts}}")
    return tuple(_filled(part, fields).encode(errors="replace") for part in (before, after))  # type: ignore[return-value]


def _template(name: str) -> str:
    return (files("fastcam.report") / name).read_text(encoding="utf-8")


def _filled(template: str, fields: dict[str, str]) -> str:
    """A template with its fields; what is put in is not looked at again."""
    parts = template.split("{{")
    filled = (part.partition("}}") for part in parts[1:])
    return parts[0] + "".join(fields[name] + rest for name, _, rest in filled)


def _hash(text: str) -> str:
    """A script or style as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_script(data: Any) -> str:
    """JSON that no name in it can end or open a tag in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _chunks(table: Table, pictures: Pictures, side: int, progress: bool) -> Iterator[list[str]]:
    """A line an image, of its picture and each method's map, in base64 with tabs between; empty where there is none."""
    from tqdm import tqdm

    count = len(table.keys)
    smallest = map_side(count, side)

    def made(maps_and_key: tuple[list[np.ndarray | None], str | int]) -> str:
        maps, key = maps_and_key
        picture = pictures.of(table.first(key))
        parts = [b"" if m is None else bytes([*m.shape]) + m.tobytes() for m in maps]
        most = budget(count, sum(map(len, parts)))
        parts.insert(0, b"" if picture is None else tile(picture, side, most))
        return "\t".join(base64.b64encode(part).decode() for part in parts)

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=count, unit="image", disable=not progress) as bar,
    ):
        for start in range(0, count, _CHUNK):
            keys = table.keys[start : start + _CHUNK]
            read = [[small_map(r[k].map(), smallest) if k in r else None for r in table.rows] for k in keys]
            yield list(pool.map(made, zip(read, keys, strict=True)))
            bar.update(len(keys))
