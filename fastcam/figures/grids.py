"""The figure of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fastcam.figures.overlays import gradient_picture, overlay, pixels_of


def method_grid(
    images: Sequence[Tensor],
    maps: Mapping[str, Sequence[Tensor]],
    titles: Sequence[str],
    colormap: str = "jet",
    panels: int = 2,
) -> Figure:
    """A figure with a row a method: its map of each image, a column an image `(k, H, W)`; the images on top.

    maps     for each method's name, a map `(H, W)` per image, laid over it, or a signed gradient `(k, H, W)`
    titles   a line per image, above its column
    panels   the methods are spread over as many panels, side by side
    """
    names, count = list(maps), len(images)
    rows = 1 + -(-len(names) // panels)
    figure = Figure(figsize=(panels * (1.0 * count + 1.1), 1.0 * rows + 0.3), layout="constrained", dpi=130)
    for p, panel in enumerate(figure.subfigures(1, panels, squeeze=False)[0]):
        axes = panel.subplots(rows, count, squeeze=False)
        shown = ["image", *names[p * (rows - 1) : (p + 1) * (rows - 1)]]
        for row, column in np.ndindex(rows, count):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if row >= len(shown):
                axis.set_axis_off()
                continue
            axis.imshow(_cell(images[column], maps.get(shown[row]), column, colormap), interpolation="nearest")
            if row == 0:
                axis.set_title(titles[column], fontsize=8)
            if column == 0:
                axis.set_ylabel(shown[row], fontsize=6)
    return figure


def _cell(image: Tensor, maps: Sequence[Tensor] | None, column: int, colormap: str) -> np.ndarray:
    """The image itself, its map laid over it, or its gradient."""
    if maps is None:
        return (255 * pixels_of(image)).astype(np.uint8)
    return overlay(image, maps[column], colormap) if maps[column].ndim == 2 else gradient_picture(maps[column])
