"""The figure of a layer's kernels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastcam.results import Result
from fastcam.visualize.selection import check_one_of, selected

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout
    from fastcam.figures.mosaics import Mosaic
    from fastcam.figures.panels import Scale

_SIDE, _SIDE_OF_SINGLE, _FILTERS = 64, 512, 1024  # what is drawn where no limit is given
_AT_ONCE = 2**20  # values


@dataclass(frozen=True)
class Options:
    """How kernels are drawn, as `plot_kernels` describes it."""

    channels: Any = None
    inputs: Any = None
    sort: str | None = None
    limit: int | None = None
    reduce: str | None = None
    rgb: bool | None = None
    scale: str = "shared"
    clip: float | None = 99.0
    colormap: str | None = None

    def __post_init__(self) -> None:
        check_one_of("sort", self.sort, (None, "norm"))
        check_one_of("reduce", self.reduce, (None, "norm", "sum", "mean"))
        check_one_of("rgb", self.rgb, (None, True, False))
        check_one_of("scale", self.scale, ("shared", "each"))


class KernelFigure(Result):
    """The kernels `(out, in, *S)` of a layer and their mosaic, from `kernel_figure`.

    options      how they are drawn
    first        whether the layer is the model's first convolution
    groups       of the layer's channels
    transposed   whether it is a transposed convolution
    """

    def __init__(
        self, data: Tensor, options: Options, *, layer: str, first: bool, groups: int = 1, transposed: bool = False
    ) -> None:
        super().__init__(data, layer=layer, settings=asdict(options))
        self._options, self._groups, self._transposed = options, groups, transposed
        if data.ndim > 5:
            raise ValueError(
                f"kernels have up to 3 dimensions in space, those of layer {layer!r} are {tuple(data.shape)}"
            )
        may_be_rgb = data.ndim == 4 and data.shape[1] == 3 and groups == 1
        if options.rgb and not may_be_rgb:
            raise ValueError(f"rgb needs kernels (out, 3, h, w), those of layer {layer!r} are {tuple(data.shape)}")
        of_all = options.inputs is None and options.reduce is None
        if options.rgb and not of_all:
            raise ValueError("rgb shows all three input channels: leave out inputs and reduce, or pass rgb=False")
        self._rgb = may_be_rgb and of_all and (first if options.rgb is None else options.rgb)
        self._single = data[0, 0].numel() == 1
        self._norms = _norms(data.detach().flatten(1)).cpu().numpy()
        self._dead = self._norms <= 1e-6 * np.median(self._norms)
        self._chosen()  # here, so that a channel that is not there is found before a figure is made

    def _layout(self) -> Layout:
        from fastcam.figures import mosaics

        return mosaics.layout_of(self._mosaic)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures import mosaics

        mosaics.draw(axes.item(), self._mosaic)

    @cached_property
    def _mosaic(self) -> Mosaic:
        from fastcam.figures.mosaics import Mosaic, columns_of, magnification, planes

        rows, columns, shares = self._chosen()
        kernels = self.numpy()[np.ix_(rows, columns)]  # (out, in, *S)
        if self._options.reduce is not None:
            kernels = _reduced(kernels, self._options.reduce)[:, None]
        kernels, scale, colorbar = self._scaled(kernels)
        dims, dead = kernels.ndim - 2, np.flatnonzero(self._dead[rows]).tolist()
        common: dict[str, Any] = {"numbers": rows, "dead": dead, "scale": scale, "colorbar": colorbar}
        common |= {"title": self._title(shares), "gap": 0 if self._single else 2 if dims == 3 else 1}
        tiles = planes(kernels, dims, magnification(kernels, dims))  # (out, in, h, w)
        if self._rgb:
            tiles = np.moveaxis(tiles, 1, -1)
            return Mosaic(tiles, columns_of(len(tiles), *tiles.shape[1:3]), sides=("filter", ""), **common)
        if self._in_square(len(rows), len(columns)):
            common["gap"] = 2 if tiles.shape[1] > 1 else common["gap"]
            tiles = planes(tiles, 3)  # (out, h, in w)
            return Mosaic(tiles, columns_of(len(tiles), *tiles.shape[1:]), sides=("filter", ""), **common)
        sides = ("output", "input") if dims == 0 else ("output channel", "input channel")
        tiles = tiles.reshape(-1, *tiles.shape[2:])
        return Mosaic(tiles, len(columns), across=columns, sides=sides, **common)

    def _in_square(self, outputs: int, inputs: int) -> bool:
        """Whether a filter is one tile, its channels side by side: a table of them would be a thin line."""
        thin = inputs == 1 or not self._single and inputs <= 8 and outputs >= 8 * inputs
        return thin or self._rgb or self._options.reduce is not None

    def _chosen(self) -> tuple[list[int], list[int], tuple[str, str]]:
        """Output channels, input channels, and which shares they are."""
        o, (outputs, inputs) = self._options, self.data.shape[:2]
        side = _SIDE_OF_SINGLE if self._single else _SIDE
        group = "in each group " if self._groups > 1 else ""
        what = f"input channels {group}of layer {self.layer!r}"
        whole = self._rgb or o.reduce is not None
        most = None if whole else side if o.limit is None else o.limit
        columns = selected(o.inputs, inputs, "inputs", what, limit=most)
        what, keys = f"output channels of layer {self.layer!r}", self._norms if o.sort else None
        rows = selected(o.channels, outputs, "channels", what, keys)
        most = _FILTERS if self._in_square(len(rows[0]), len(columns[0])) else side
        rows = selected(o.channels, outputs, "channels", what, keys, most if o.limit is None else o.limit)
        return rows[0], columns[0], (rows[1], columns[1])

    def _scaled(self, kernels: np.ndarray) -> tuple[np.ndarray, Scale | None, bool]:
        """What is drawn of kernels `(out, in, *S)`, its scale, and whether there is a bar for it."""
        from fastcam.figures.panels import DIVERGING, Scale, scale_of

        o, each = self._options, self._options.scale == "each"
        if each:
            largest = np.abs(kernels).reshape(len(kernels), -1).max(1)
            kernels = kernels / np.where(largest > 0, largest, 1).reshape(-1, *[1] * (kernels.ndim - 1))
        if self._rgb:
            return 0.5 + kernels / (2 * (float(np.abs(kernels).max()) or 1.0)), None, False
        found = scale_of(kernels, None if each else o.clip, o.colormap)
        if o.reduce != "norm":
            found = Scale(-found.high, found.high, o.colormap or DIVERGING)
        return kernels, found, not each

    def _title(self, shares: tuple[str, str]) -> str:
        o, size = self._options, " x ".join(map(str, self.data.shape[2:]))
        down, right = ("outputs", "inputs") if self.data.ndim == 2 else ("filters", "channels")
        down, right = (n[:-1] if share == "1" else n for n, share in zip((down, right), shares, strict=True))
        text = f"{self.layer}: {shares[0]} {down}"
        if self._groups > 1 and self.data.shape[1] == 1:
            text += ", depthwise"
        else:
            text += f" x {shares[1]} {right}" + (f" of each of {self._groups} groups" if self._groups > 1 else "")
        notes = [f"length {size}" if self.data.ndim == 3 else size] if size else []
        notes += ["transposed"] * self._transposed
        notes += [f"{o.reduce} over the {right}"] if o.reduce else []
        notes += ["sorted by norm"] if o.sort else []
        if self._dead.any():
            notes.append(f"{self._dead.sum()} dead")
        if o.scale == "each":
            notes.append("each filter in its own scale")
        elif self._rgb:
            notes.append(f"grey is 0, max |w| {float(self.data.abs().max()):.3g}")
        return ", ".join([text, *notes])


def _norms(rows: Tensor) -> Tensor:
    """Those of rows `(out, n)`, in float64, a few rows at once: all of the weights in it would be twice their size."""
    step = max(1, _AT_ONCE // max(1, rows.shape[1]))
    norms = rows.new_empty(len(rows), dtype=torch.float64)
    wide = rows.new_empty(min(step, len(rows)), rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        norms[start : start + step] = torch.linalg.vector_norm(wide[: len(part)].copy_(part), dim=1)
    return norms


def _reduced(kernels: np.ndarray, how: str) -> np.ndarray:
    """`(out, *S)` of kernels `(out, in, *S)`."""
    return np.sqrt((kernels**2).sum(1)) if how == "norm" else kernels.sum(1) if how == "sum" else kernels.mean(1)
