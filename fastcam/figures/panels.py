"""What is drawn into one Axes: a picture, a map in colours, a mosaic of tiles.

One rule for colours: values are clipped at the 99th percentile of their absolute value. Values that are nowhere below 0
run from 0 in a sequential map, others from -limit to limit in a diverging one, 0 in its neutral colour.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
SMOOTH = "antialiased"  # smooth where shrunk, hard pixels where enlarged: matplotlib's "auto", by its older name


class Scale(NamedTuple):
    """The ends of a colour scale and the colour map."""

    low: float
    high: float
    colormap: str


def scale_of(values: np.ndarray, clip: float | None = 99.0, colormap: str | None = None) -> Scale:
    """The scale by the rule above; finite values count.

    clip       a percentile in (0, 100]; None takes the largest value
    colormap   instead of the rule's own
    """
    if clip is not None and not 0 < clip <= 100:
        raise ValueError(f"clip must be a percentile in (0, 100] or None, got {clip!r}")
    finite = values[np.isfinite(values)]
    sizes = np.abs(finite)
    limit = float(np.percentile(sizes, clip)) if clip is not None and sizes.size else 0.0
    limit = limit or float(sizes.max(initial=0.0)) or 1.0  # nearly everything 0: the few others show
    if finite.size and finite.min() < 0:
        return Scale(-limit, limit, colormap or DIVERGING)
    return Scale(0.0, limit, colormap or SEQUENTIAL)


def show_picture(ax: Axes, picture: np.ndarray, title: str = "", interpolation: str = "nearest") -> AxesImage:
    """A picture `(H, W)`, grey, or `(H, W, 3)`, in [0, 1] or uint8, each pixel a square.

    interpolation   matplotlib's; SMOOTH where there may be more pixels than are shown
    """
    top = 255 if picture.dtype == np.uint8 else 1
    shown = ax.imshow(picture, cmap="gray", vmin=0, vmax=top, interpolation=interpolation)
    _bare(ax, title)
    return shown


def show_map(
    ax: Axes,
    values: np.ndarray,
    title: str = "",
    scale: Scale | None = None,
    colorbar: bool = True,
    interpolation: str = "nearest",
) -> AxesImage:
    """A map `(H, W)` in the colours of the scale, by default its own; interpolation as for a picture."""
    low, high, colormap = scale or scale_of(values)
    shown = ax.imshow(values, cmap=colormap, vmin=low, vmax=high, interpolation=interpolation)
    _bare(ax, title)
    if colorbar:
        add_colorbar(ax, shown)
    return shown


def add_colorbar(ax: Axes, shown: AxesImage) -> Any:
    """A bar beside the axes with the limits and 0 written on it."""
    low, high = shown.get_clim()
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.04, pad=0.02)
    bar.set_ticks(sorted({low, 0.0, high}), labels=[f"{v:.3g}" for v in sorted({low, 0.0, high})])
    return bar


def mosaic(tiles: np.ndarray, columns: int | None = None, gap: int = 1, fill: float = np.nan) -> np.ndarray:
    """Tiles `(N, h, w)` or `(N, h, w, 3)` as one array, row by row, `gap` pixels of `fill` between them.

    columns   None for about as many as rows, by the tiles' shape
    """
    n, h, w = tiles.shape[:3]
    columns = min(n, columns or max(1, round(math.sqrt(n * h / w)))) if n else 1
    rows = -(-n // columns)
    whole = np.full((rows * columns, h + gap, w + gap, *tiles.shape[3:]), fill, tiles.dtype)
    whole[:n, :h, :w] = tiles
    whole = whole.reshape(rows, columns, *whole.shape[1:]).swapaxes(1, 2)  # (rows, h + gap, columns, w + gap, ...)
    whole = whole.reshape(rows * (h + gap), columns * (w + gap), *tiles.shape[3:])
    return whole[: len(whole) - gap, : whole.shape[1] - gap]


def room_of(ax: Axes) -> float:
    """The width in inches that a title has."""
    place = ax.get_subplotspec()
    if place is None or ax.figure.get_layout_engine() is None:
        return ax.bbox.width / ax.figure.dpi
    return ax.figure.bbox.width / ax.figure.dpi / place.get_gridspec().ncols  # axes have no size yet


def _bare(ax: Axes, title: str) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title, fontsize=9)
