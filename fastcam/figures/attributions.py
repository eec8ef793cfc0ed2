"""Attributions beside and over their images: a row of panels for each, or a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from fastcam.figures.panels import Scale, add_colorbar, scale_of, show_map, show_picture

Titles = tuple[str, str, str, str]


def attribution_row(
    axes: Sequence[Axes],
    picture: np.ndarray,
    values: np.ndarray,
    reduced: np.ndarray,
    titles: Titles = ("", "", "", ""),
    clip: float | None = 99.0,
    colormap: str | None = None,
) -> None:
    """The picture, its signed values, their map (not for one channel), the map over the picture.

    values    `(k, H, W)`
    reduced   `(H, W)`
    """
    show_picture(axes[0], picture, titles[0])
    scale = scale_of(reduced, clip, colormap)
    if len(values) == 3:
        limit = scale_of(values, clip).high
        show_picture(axes[1], np.clip(0.5 + np.moveaxis(values, 0, -1) / (2 * limit), 0, 1), titles[1])
    else:
        signed = values.sum(0)
        _bar_beside(axes[1], show_map(axes[1], signed, titles[1], scale_of(signed, clip), colorbar=False))
    if len(values) > 1:
        _bar_beside(axes[2], show_map(axes[2], reduced, titles[2], scale, colorbar=False))
    _bar_beside(axes[-1], show_overlay(axes[-1], picture, reduced, scale, titles[3]))


def show_overlay(
    ax: Axes, picture: np.ndarray, values: np.ndarray, scale: Scale, title: str = "", alpha: float | None = None
) -> AxesImage:
    """A map `(H, W)` over a picture, which is shown in grey, so that colour means the map.

    alpha   how much of the map shows; None for the more, the larger the value, nothing of it at 0
    """
    show_picture(ax, picture if picture.ndim == 2 else picture.mean(2), title)
    strength = np.clip(np.abs(values) / scale.high, 0, 1) ** 0.5 if alpha is None else alpha
    low, high, colormap = scale
    return ax.imshow(values, cmap=colormap, vmin=low, vmax=high, alpha=strength, interpolation="nearest")


def comparison_grid(
    axes: np.ndarray,
    pictures: Sequence[np.ndarray],
    columns: Mapping[str, tuple[np.ndarray, Scale, float | None]],
    overlay: bool = True,
) -> None:
    """A row a picture, and behind it a column a method: its maps `(rows, H, W)`, their one scale, and how they overlie.

    The last is the `alpha` of `show_overlay`.
    """
    for row, picture in zip(axes, pictures, strict=True):
        show_picture(row[0], picture)
    axes[0, 0].set_title("input", fontsize=9)
    for place, (name, (maps, scale, alpha)) in enumerate(columns.items(), 1):
        for ax, picture, values in zip(axes[:, place], pictures, maps, strict=True):
            if overlay:
                drawn = show_overlay(ax, picture, values, scale, alpha=alpha)
            else:
                drawn = show_map(ax, values, "", scale, colorbar=False)
        axes[0, place].set_title(name, fontsize=9)
        _bar_below(axes[-1, place], drawn)


def label_rows(axes: np.ndarray, labels: Sequence[Sequence[str]]) -> None:
    """What is said of each row: of the only row of a figure above it, otherwise on the left."""
    figure = axes[0, 0].figure
    others = [ax for ax in figure.axes if ax not in axes.flat and ax.get_label() != "<colorbar>"]
    if len(axes) == 1 and not others and not figure.get_suptitle():
        figure.suptitle(" ".join(labels[0]), fontsize=10)
        return
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel("\n".join(label), fontsize=8)


def _opaque(bar: Any) -> None:
    """A bar in the map's own colours, whatever shows through the map."""
    bar.solids.set_alpha(1)


def _bar_beside(ax: Axes, drawn: AxesImage) -> None:
    bar = add_colorbar(ax, drawn)
    _opaque(bar)
    bar.ax.tick_params(labelsize=8)


def _bar_below(ax: Axes, drawn: AxesImage) -> None:
    """A bar in an inset, which takes no room from the axes: all columns stay aligned."""
    low, high = drawn.get_clim()
    inset = ax.inset_axes((0, -0.1, 1, 0.05), label="<colorbar>")
    bar = ax.figure.colorbar(drawn, cax=inset, orientation="horizontal")
    _opaque(bar)
    ticks = sorted({low, 0.0, high})
    bar.set_ticks(ticks, labels=[f"{v:.2g}" for v in ticks])
    bar.ax.tick_params(labelsize=7)
