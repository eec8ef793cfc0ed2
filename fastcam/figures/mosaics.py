"""A mosaic of numbered tiles: one picture in one Axes, however many tiles there are."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from fastcam.figures.canvas import Layout
from fastcam.figures.panels import SMOOTH, Scale, add_colorbar, mosaic, show_map, show_picture

_WRITTEN = 64  # as many tiles have their number on them, if it is not one more than that of the tile before
_CHARACTERS = 15  # of a title, an inch


@dataclass(frozen=True)
class Mosaic:
    """Tiles, in rows of `columns`, and what is written beside them.

    tiles     `(N, h, w)` values, or `(N, h, w, 3)` colours in [0, 1]
    numbers   of the tiles, or of the rows of tiles where `across` has those of the columns
    sides     what the numbers are, of the rows and of the columns
    dead      places in `numbers` that are hatched
    scale     the colours of values
    gap       pixels between tiles; with none, tiles of one row need not be square pixels
    """

    tiles: np.ndarray
    columns: int
    title: str
    numbers: Sequence[int]
    across: Sequence[int] | None = None
    sides: tuple[str, str] = ("", "")
    dead: Sequence[int] = ()
    scale: Scale | None = None
    colorbar: bool = True
    gap: int = 1

    @property
    def rows(self) -> int:
        return -(-len(self.tiles) // self.columns)

    @property
    def step(self) -> tuple[int, int]:
        """From a tile to the next, in pixels: down and to the right."""
        return self.tiles.shape[1] + self.gap, self.tiles.shape[2] + self.gap

    @property
    def stretched(self) -> bool:
        """Whether it is a table of numbers, whose cells may be of any shape."""
        return self.gap == 0 and self.tiles.shape[1] == 1


def columns_of(count: int, height: int, width: int) -> int:
    """How many tiles in a row make about a square: of square tiles the root of their count, rounded up."""
    return max(1, min(count, math.ceil(math.sqrt(count * height / width))))


def planes(values: np.ndarray, dims: int, times: int = 1) -> np.ndarray:
    """Values `(..., *S)` with as many dimensions in space as tiles `(..., h, w)`: slices of three stand side by side.

    times   each value as a square of so many pixels
    """
    values = values[..., None, None] if dims == 0 else values[..., None, :] if dims == 1 else values
    values = values if times == 1 else values.repeat(times, -1).repeat(times, -2)
    if dims < 3:
        return values
    spaced = np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, 1)], constant_values=np.nan)  # (..., D, h, w + 1)
    rows = np.moveaxis(spaced, -3, -2)
    return rows.reshape(*rows.shape[:-2], -1)[..., :-1]


def magnification(values: np.ndarray, dims: int) -> int:
    """How many times small tiles are enlarged, that the lines between them are thin: 3 at most, to a million pixels."""
    space = values.shape[values.ndim - dims :]
    if set(space) <= {1}:
        return 1
    smallest = 1 if dims == 1 else min(space[-2:])
    return max(1, min(3, 12 // smallest, int(math.sqrt(1e6 / values.size))))


def layout_of(drawn: Mosaic) -> Layout:
    """A figure in which its pixels are large enough to be seen, and room for what is written."""
    (down, right), gap = drawn.step, drawn.gap
    height, width = drawn.rows * down - gap, drawn.columns * right - gap
    side = min(max(max(height, width) / 30, 4.0), 7.5)
    tall, wide = (side * n / max(height, width) for n in (height, width))
    least = max(1.2, min(5.0, 0.1 * drawn.rows)) if drawn.stretched else 0.4
    return Layout(1, 1, max(wide, 2.5) + 1.5, max(tall, least) + 0.8)


def draw(ax: Axes, drawn: Mosaic) -> None:
    """The tiles with their numbers, the dead ones hatched."""
    title = _in_lines(drawn.title, max(30, int(_CHARACTERS * ax.bbox.width / ax.figure.dpi)))
    if drawn.scale is None:
        show_picture(ax, mosaic(drawn.tiles, drawn.columns, drawn.gap, fill=1.0), title, SMOOTH)
    else:
        whole = mosaic(drawn.tiles, drawn.columns, drawn.gap)
        shown = show_map(ax, whole, title, drawn.scale, colorbar=False, interpolation=SMOOTH)
        ax.set_facecolor("0.65")  # seen where there is no tile
        if drawn.colorbar:
            add_colorbar(ax, shown).ax.tick_params(labelsize=7)
    if drawn.stretched:
        ax.set_aspect("auto")
    if drawn.across is None:
        _number_tiles(ax, drawn)
    else:
        _number_sides(ax, drawn, drawn.across)
    ax.set_ylabel(drawn.sides[0], fontsize=7)
    ax.set_xlabel(drawn.sides[1], fontsize=7)
    ax.tick_params(labelsize=6, length=2, pad=1.5)
    if drawn.dead:
        _hatch(ax, drawn)


def _in_lines(text: str, width: int) -> str:
    """The text in lines, "3 x 3" in one of them."""
    together = re.sub(r"(?<=\d) x (?=\d)", "\xa0x\xa0", text)
    return textwrap.fill(together, width, break_long_words=False, break_on_hyphens=False).replace("\xa0", " ")


def _number_sides(ax: Axes, drawn: Mosaic, across: Sequence[int]) -> None:
    (down, right), (h, w) = drawn.step, drawn.tiles.shape[1:3]
    rows, columns = _every_eighth(drawn.rows), _every_eighth(len(across))
    ax.set_yticks([r * down + (h - 1) / 2 for r in rows], labels=[str(drawn.numbers[r]) for r in rows])
    ax.set_xticks([c * right + (w - 1) / 2 for c in columns], labels=[str(across[c]) for c in columns])


def _number_tiles(ax: Axes, drawn: Mosaic) -> None:
    """Numbers on the tiles if they do not just count up, otherwise at each row that of its first, and what to add."""
    (down, right), (h, w), numbers = drawn.step, drawn.tiles.shape[1:3], drawn.numbers
    counting = list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
    if not counting and len(numbers) <= _WRITTEN:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
        for place, number in enumerate(numbers):
            row, column = divmod(place, drawn.columns)
            at = column * right - 0.4, row * down - 0.4
            ax.text(*at, str(number), fontsize=6, ha="left", va="top", bbox=box, clip_on=True)
        return
    rows = range(0, drawn.rows, -(-drawn.rows // 16))
    ax.set_yticks([r * down + (h - 1) / 2 for r in rows], labels=[str(numbers[r * drawn.columns]) for r in rows])
    if counting and drawn.columns > 1:
        columns = _every_eighth(drawn.columns)
        ax.set_xticks([c * right + (w - 1) / 2 for c in columns], labels=[f"+{c}" for c in columns])


def _every_eighth(count: int) -> range:
    """Every one of up to 8, otherwise every 8th, or of many every 16th, 24th ..."""
    return range(0, count, 1 if count <= 8 else 8 * -(-count // 128))


def _hatch(ax: Axes, drawn: Mosaic) -> None:
    """One patch for all dead tiles, or rows of tiles."""
    (down, right), gap = drawn.step, drawn.gap
    whole = drawn.across is not None
    boxes = []
    for place in drawn.dead:
        row, column = (place, 0) if whole else divmod(place, drawn.columns)
        width = (drawn.columns if whole else 1) * right - gap
        left, top = column * right - 0.5, row * down - 0.5
        bottom, end = top + down - gap, left + width
        boxes.append(Path(np.array([(left, top), (end, top), (end, bottom), (left, bottom), (left, top)]), closed=True))
    path = Path.make_compound_path(*boxes)
    ax.add_patch(PathPatch(path, facecolor="none", edgecolor="0.55", hatch="//////", linewidth=0, label="dead"))
