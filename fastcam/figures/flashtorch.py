"""The figures that FlashTorch draws: of gradients beside their image, and of filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

_COLUMNS = 4


def draw_gradients(
    rows: Sequence[Sequence[np.ndarray]],
    figsize: tuple[float, float],
    cmap: str,
    alpha: float,
) -> None:
    """A row for each image, its gradient `(H, W, 3)` or `(H, W)` and their largest `(H, W)`: a new figure of pyplot's.

    figsize   of one row, in inches
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(figsize[0], figsize[1] * len(rows)))
    axes = figure.subplots(len(rows), 4, squeeze=False)
    colours = "RGB channels" if rows[0][1].ndim == 3 else "channels"
    titles = ("Input image", f"Gradients across {colours}", "Max gradients", "Overlay")
    for line, (image, gradient, largest) in zip(axes, rows, strict=True):
        for ax, title in zip(line, titles, strict=True):
            ax.set_axis_off()
            ax.set_title(title)
        for ax in (line[0], line[3]):
            ax.imshow(image if image.ndim == 2 else image.clip(0, 1), cmap="gray")
        line[1].imshow(gradient, cmap=cmap)
        line[2].imshow(largest, cmap=cmap)
        line[3].imshow(largest, cmap=cmap, alpha=alpha)


def draw_image(picture: np.ndarray, figsize: tuple[float, float], title: str) -> None:
    """One picture with a title, in a new figure of pyplot's."""
    import matplotlib.pyplot as plt

    ax = plt.figure(figsize=figsize).add_subplot()
    ax.set_axis_off()
    ax.set_title(title)
    _show(ax, picture)


def draw_filters(pictures: Sequence[np.ndarray], filters: Sequence[int], title: str) -> None:
    """A picture for each filter, four in a row, below one title, in a new figure of pyplot's."""
    import matplotlib.pyplot as plt

    rows = -(-len(pictures) // _COLUMNS)
    figure = plt.figure(figsize=(16, rows * 5))
    whole = figure.add_subplot()
    whole.set_title(title)
    whole.set_axis_off()
    for place, (picture, index) in enumerate(zip(pictures, filters, strict=True), 1):
        ax = figure.add_subplot(rows, _COLUMNS, place)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"filter {index}")
        _show(ax, picture)
    figure.subplots_adjust(wspace=0, hspace=0)


def _show(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
