"""Figures to draw in: one of pyplot's where a user asked to see it, otherwise one that nothing else knows of."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure


class Layout(NamedTuple):
    """The axes of a figure: rows, columns, and its size in inches."""

    rows: int = 1
    columns: int = 1
    width: float = 5.0
    height: float = 5.0


def axes_in(layout: Layout, ax: Any = None, pyplot: bool = True) -> np.ndarray:
    """Axes `(rows, columns)`: the given ones, checked, or those of a new figure.

    ax       None, an Axes or an array of them
    pyplot   whether the new figure is shown by `plt.show()`
    Raises ValueError for another number of axes than the layout has.
    """
    shape = layout.rows, layout.columns
    if ax is not None:
        given = np.asarray(ax, dtype=object)
        if given.size != layout.rows * layout.columns or not all(isinstance(a, Axes) for a in given.flat):
            raise ValueError(f"ax must be {_described(shape)}, got {_kinds(given)}")
        return given.reshape(shape)
    options: dict[str, Any] = {"figsize": (layout.width, layout.height), "layout": "compressed"}
    if pyplot:
        import matplotlib.pyplot as plt

        figure: Figure = plt.figure(**options)
    else:
        figure = Figure(**options)
    return figure.subplots(*shape, squeeze=False)


@contextmanager
def discarded(axes: np.ndarray) -> Iterator[None]:
    """Close the figure of the axes if the block fails: pyplot keeps no half-drawn one."""
    try:
        yield
    except BaseException:
        import matplotlib.pyplot as plt

        plt.close(axes.flat[0].figure)
        raise


def write(figure: Callable[[], Figure], path: Path, dpi: int) -> None:
    """The figure, which is drawn here, as a file by its suffix; ValueError for one that names no format."""
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"path must end in .pt or .npz, which hold the tensor, or for the picture in .{', .'.join(formats)}: "
            f"got {path.name!r}"
        )
    figure().savefig(path, dpi=dpi)


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _described(shape: tuple[int, int]) -> str:
    return "an Axes" if shape == (1, 1) else f"an array of {shape[0]} x {shape[1]} Axes"


def _kinds(given: np.ndarray) -> str:
    kinds = sorted({type(a).__name__ for a in given.flat})
    return f"{' and '.join(kinds)} {given.shape if given.ndim else ''}".strip()
