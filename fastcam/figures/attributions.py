"""Attributions beside and over their images: a row of panels for each, or a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from fastcam.figures.panels import Scale, add_colorbar, scale_of, show_map, show_picture


def attribution_row(
    axes: Sequence[Axes],
    picture: np.ndarray,
    values: np.ndarray,
    reduced: np.ndarray,
    names: tuple[str, str],
    clip: float | None = 99.0,
    colormap: str | None = None,
) -> None:
    """The picture, its signed values, their map (not for one channel), the map over the picture.

    values    `(k, H, W)`
    reduced   `(H, W)`
    names     titles of values and map
    """
    show_picture(axes[0], picture, "input")
    scale = scale_of(reduced, clip, colormap)
    if len(values) == 3:
        limit = scale_of(values, clip).high
        show_picture(axes[1], np.clip(0.5 + np.moveaxis(values, 0, -1) / (2 * limit), 0, 1), names[0])
    else:
        signed = values.sum(0)
        show_map(axes[1], signed, names[0], scale_of(signed, clip))
    if len(values) > 1:
        show_map(axes[2], reduced, names[1], scale)
    add_colorbar(axes[-1], show_overlay(axes[-1], picture, reduced, scale, "overlay"))


def show_overlay(
    ax: Axes, picture: np.ndarray, values: np.ndarray, scale: Scale, title: str = "", alpha: float = 0.5
) -> AxesImage:
    """A map `(H, W)` over a picture, whose own colours are dimmed to grey so that colour means the map."""
    grey = picture if picture.ndim == 2 else picture.mean(2)
    show_picture(ax, grey, title)
    return ax.imshow(values, cmap=scale.colormap, vmin=scale.low, vmax=scale.high, alpha=alpha, interpolation="nearest")


def comparison_grid(
    axes: np.ndarray,
    pictures: Sequence[np.ndarray],
    columns: Mapping[str, tuple[Sequence[np.ndarray], Scale]],
    overlay: bool = True,
) -> None:
    """A row a picture, and behind it a column a method: its maps and the one scale that all of them have."""
    for row, picture in zip(axes, pictures, strict=True):
        show_picture(row[0], picture)
    axes[0, 0].set_title("input", fontsize=9)
    for place, (name, (maps, scale)) in enumerate(columns.items(), 1):
        for ax, picture, values in zip(axes[:, place], pictures, maps, strict=True):
            if overlay:
                drawn = show_overlay(ax, picture, values, scale)
            else:
                drawn = show_map(ax, values, "", scale, colorbar=False)
        axes[0, place].set_title(name, fontsize=9)
        _bar_below(axes[:, place], drawn)


def label_rows(axes: np.ndarray, labels: Sequence[Sequence[str]]) -> None:
    """What is said of each row: of a single one above the figure, if it has no other axes, else on the left."""
    figure = axes[0, 0].figure
    alone = len(axes) == 1 and axes.shape[1] > 1 and {*axes.flat} <= {*figure.axes} and figure.get_suptitle() == ""
    if alone and all(ax in axes or ax.get_label() == "<colorbar>" for ax in figure.axes):
        if labels[0]:
            figure.suptitle(" ".join(labels[0]), fontsize=10)
        return
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel("\n".join(label), fontsize=8)


def _bar_below(column: np.ndarray, drawn: AxesImage) -> None:
    low, high = drawn.get_clim()
    bar = column[-1].figure.colorbar(drawn, ax=list(column), location="bottom", fraction=0.05, pad=0.02, aspect=14)
    ticks = sorted({low, 0.0, high})
    bar.set_ticks(ticks, labels=[f"{v:.2g}" for v in ticks])
    bar.ax.tick_params(labelsize=7)
