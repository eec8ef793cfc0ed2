"""The pictures of a report: found, made small and encoded so that the page stays within its size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fastcam.dataset.sources import ImageFiles
from fastcam.images import Preprocess, as_image, encoded, shrunk
from fastcam.report.columns import Row
from fastcam.report.table import Table, shown

_FILE = 58e6  # bytes of a page of up to 10,000 images, beside what is said of them
_TILES = ((400, 256), (2_000, 160))  # up to so many images, pixels a side; beyond 96
_LEAST_TILE = 96
_FEWEST = 1_500  # bytes that a tile may take however many there are
_QUALITIES = (85, 78, 68, 56, 42, 30, 20)
_SAID = 160  # bytes of an image's path, classes and scores, about
_LOOKED_AT = 64  # images, to find out where they all lie
_ROUNDING = 0.003  # outside of [0, 1]: less than a level of 8 bits
Missing = Callable[[str], None]


def tile_side(images: int) -> int:
    """Pixels of a tile's longer side."""
    return next((side for most, side in _TILES if images <= most), _LEAST_TILE)


def map_side(images: int, tile: int) -> int:
    """Values of a map's longer side: the browser makes up the rest."""
    return min(tile, 128) if images <= _TILES[0][0] else 48 if images <= _TILES[1][0] else 24


def small_map(values: np.ndarray, side: int) -> np.ndarray:
    """A map in [0, 1] in 8 bits, no side longer than `side`. ValueError for what is not in two dimensions."""
    if values.ndim != 2:
        raise ValueError(f"a report shows maps of images, (h, w): these are {values.shape}")
    longest = max(values.shape)
    if longest > side:
        size = [max(1, round(n * side / longest)) for n in values.shape]
        values = F.interpolate(torch.from_numpy(values)[None, None].float(), size, mode="area")[0, 0].numpy()
    return (255 * values.clip(0, 1)).round().astype(np.uint8)


def budget(images: int, maps: int) -> int:
    """Bytes of a tile, where `maps` are those of its maps; base64 makes four of three."""
    return max(_FEWEST, int(0.75 * (_FILE / images - _SAID)) - maps)


def tile(picture: Any, side: int, most: int) -> bytes:
    """A JPEG file of a picture, no side longer than `side`, in at most `most` bytes as far as that can be done."""
    small = shrunk(as_image(picture), side)
    made = b""
    for quality in _QUALITIES:
        made = encoded(small, "JPEG", quality)
        if len(made) <= most:
            break
    return made


class Pictures:
    """What an image of a table looks like, as the model saw it.

    images   a folder below which the recorded paths lie; or the pictures themselves, by their place in the data set;
             None for paths as they are, from here or from the folder that holds the maps
    lost     called with what is wrong with a picture that is not there; it is left out
    ValueError if none is there.
    """

    def __init__(self, table: Table, images: Any, lost: Missing) -> None:
        self.lost = lost
        self.given: Any = None
        self.root: Path | None = None
        self.place: _Place | None = None
        self.preprocess = table.columns[0].preprocess
        if images is not None and not isinstance(images, str | os.PathLike):
            self.given = images
            return
        first = table.columns[0].out
        if self.preprocess is None:
            raise ValueError(_not_recorded(table))
        if images is not None:
            self.root = Path(images)
        self.folders = [Path(), first.parent] if self.root is None else [self.root]
        paths = [path for key in table.keys if (path := table.first(key).path) is not None]
        self.place = self._most_found(paths)
        if self.place is None:
            where = f"below {images}" if images is not None else "here"
            one = shown(paths[0])
            raise ValueError(f"the images of {first}, {one} say, are not {where}: give their folder, --images")

    def label(self, table: Table, named: bool) -> None:
        """Label a table by the sub-folders of the images' folder, as `ImageFiles` counts them.

        named   name the classes after them
        ValueError without a folder, or if no image lies in one below it.
        """
        if self.root is None:
            raise ValueError("labels of `explain` are the sub-folders of its images' folder: give that, --images")
        files, root = ImageFiles(self.root, skip=table.columns[0].out), Path(os.path.abspath(self.root))
        known = dict(zip(files.names, files.labels, strict=True))
        for key in table.keys:
            path = Path(os.path.abspath(self._found(str(key)) or root))
            label = known.get(path.relative_to(root).as_posix(), -1) if path.is_relative_to(root) else -1
            if label >= 0:
                table.labels[key] = label
        if not table.labels:
            raise ValueError(f"labels are the sub-folders of {self.root}, and the images lie in none")
        if named:
            folders = {label: name.partition("/")[0] for name, label in known.items() if label >= 0}
            table.classes = folders | table.classes

    def of(self, row: Row) -> Any:
        """A picture as `as_image` takes it, or None; ValueError for one whose numbers are not in [0, 1]."""
        try:
            if self.given is None:
                path = self._found(row.path or "")
                if path is None:
                    raise FileNotFoundError("no such file")
                return (self.preprocess or Preprocess()).pixels(path)
            picture = self._given(row.index)
        except (ValueError, OSError, IndexError, KeyError) as error:
            self.lost(shown(f"{row.path or row.index}: no picture: {error}"))
            return None
        _check_range(picture, row.index)
        return picture

    def _given(self, index: int) -> Any:
        item = self.given[index]
        return item[0] if isinstance(item, tuple | list) else item

    def _most_found(self, paths: Sequence[str]) -> _Place | None:
        """Where most of the paths are found, of some that are spread over all.

        One place for all: another for each image might find its namesake.
        """
        folders = [PurePath(path).parent.parts for path in paths]
        common = () if self.root is None else _common(folders)
        deepest = max(map(len, folders), default=-1)
        places = [_Place(folder, begin, common) for folder in self.folders for begin in range(deepest + 1)]
        some = paths[:: -(-len(paths) // _LOOKED_AT) or 1]
        counts = [sum(place.file(path) is not None for path in some) for place in places]
        return places[counts.index(max(counts))] if any(counts) else None

    def _found(self, path: str) -> Path | None:
        return None if self.place is None else self.place.file(path)


@dataclass(frozen=True)
class _Place:
    """Where the files of recorded paths are: below a folder, by the parts of a path from `begin` on.

    The parts before it must be those that are `common` to all recorded paths, or what the folder's own path ends in
    after them: `photos/a.png` and `cats/b.png` below `photos/cats`. So no path leads to the file of another.
    """

    folder: Path
    begin: int
    common: tuple[str, ...]

    def file(self, path: str) -> Path | None:
        parts = PurePath(path).parts
        left_out, rest = parts[len(self.common) : self.begin], parts[self.begin :]
        ends = Path(os.path.abspath(self.folder)).parts[-len(left_out) :]
        if not rest or left_out and left_out != ends:
            return None
        file = self.folder.joinpath(*rest)
        return file if file.is_file() else None


def _common(folders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first parts of paths that all of them share."""
    pairs = zip(min(folders, default=()), max(folders, default=()), strict=False)
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _not_recorded(table: Table) -> str:
    """Why files, if there are any, do not give the pictures."""
    first = table.columns[0].out
    if all(isinstance(key, int) for key in table.keys):
        return f"{first} is of no image files: pass the data set's pictures, images=, from Python"
    return (
        f"{first} does not say how its files are cropped, or not one way for all: pass the data set itself or its "
        "pictures before normalisation, images=, from Python"
    )


def _check_range(picture: Any, index: int) -> None:
    """ValueError for a picture of floating-point numbers that are not in [0, 1], but for rounding."""
    if isinstance(picture, torch.Tensor) and picture.is_floating_point():
        low, high = (float(v) for v in picture.aminmax())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"picture {index} of images= has values in [{low:.3g}, {high:.3g}]: pass pictures in [0, 1], "
                "as they are before normalisation, or uint8"
            )
