"""What comes out of layers, or goes into them, for given images: their feature maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from fastcam.images import check_contrast
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import find_layers, layer_name
from fastcam.record import unwrap
from fastcam.results import _DPI, Result, write
from fastcam.visualize.capture import captured, in_space
from fastcam.visualize.selection import check_one_of, indices_of, selected

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout
    from fastcam.figures.mosaics import Mosaic

_KEYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max": lambda flat: flat.max(1),
    "mean": lambda flat: flat.mean(1),
    "variance": lambda flat: flat.var(1),
}


class FeatureMaps(Result):
    """What a layer gave for a batch of images, or was given, from `feature_maps`.

    data    as the layer has it: `(B, C, *S)`, tokens `(B, N, C)`, features `(B, C)`; on the model's device
    layer   its dotted name
    maps    the same as `(B, C, *S)`

    It refers to the model and its input: how tokens lie in space is asked of them where it is needed, in runs of their
    own.
    """

    def __init__(self, data: Tensor, lay_out: Callable[[Tensor], Tensor], **about: Any) -> None:
        super().__init__(data, **about)
        self._lay_out = lay_out

    @property
    def maps(self) -> Tensor:
        """`(B, C, *S)`, of tokens and of channels that are last, too; ValueError where that can't be told."""
        return self._lay_out(self.data)

    def plot(  # type: ignore[override]
        self,
        ax: Any = None,
        *,
        image: int = 0,
        channels: Any = None,
        sort: str | None = None,
        scale: str = "shared",
        limit: int | None = None,
        clip: float | None = 99.0,
        colormap: str | None = None,
    ) -> Any:
        """Draw the maps of an image as one mosaic, and give its Axes back.

        Sequential colours from 0 for maps that are nowhere below it, symmetric ones for others. Maps that are 0
        everywhere are counted in the title, and hatched. Signals are lines, volumes slices side by side.

        ax         the Axes to draw in; a new figure's by default
        image      which of the batch
        channels   a number, several, or a slice; all by default
        sort       "max", "mean" or "variance" over space: the largest first
        scale      "shared", or "each": every map is divided by its own largest absolute value (or percentile)
        limit      at most as many maps; the title says what share they are
        clip       the percentile of the absolute values that the colours end at; None: the largest
        colormap   a name that matplotlib knows
        Raises ValueError for an unknown option, an image or a channel that is not there, and as `maps` does.
        """
        options = {"image": image, "channels": channels, "sort": sort, "scale": scale}
        return super().plot(ax, **options, limit=limit, clip=clip, colormap=colormap)

    def _layout(self, **options: Any) -> Layout:
        from fastcam.figures import mosaics

        return mosaics.layout_of(self._mosaic(**options))

    def _draw(self, axes: np.ndarray, *_: Any, **options: Any) -> None:
        from fastcam.figures import mosaics

        mosaics.draw(axes.item(), self._mosaic(**options))

    def _mosaic(
        self,
        image: int = 0,
        channels: Any = None,
        sort: str | None = None,
        scale: str = "shared",
        limit: int | None = None,
        clip: float | None = 99.0,
        colormap: str | None = None,
    ) -> Mosaic:
        from fastcam.figures.mosaics import Mosaic, columns_of, magnification, planes
        from fastcam.figures.panels import scale_of

        check_one_of("sort", sort, (None, *_KEYS))
        check_one_of("scale", scale, ("shared", "each"))
        maps = self.maps
        (place,) = indices_of([image], len(maps), "image", "images")
        values = maps[place].detach().float().cpu().numpy()  # (C, *S)
        flat, dims = values.reshape(len(values), -1), values.ndim - 1
        if dims > 3:
            raise ValueError(f"maps are drawn with up to 3 dimensions in space, those of {self.layer!r} have {dims}")
        zero = np.abs(flat).max(1) == 0
        keys = None if sort is None else _KEYS[sort](flat)
        numbers, share = selected(channels, len(values), "channels", f"maps of layer {self.layer!r}", keys, limit)
        values, flat = values[numbers], flat[numbers]
        if scale == "each":
            values = values / _sizes(flat, clip).reshape(-1, *[1] * dims)
        found = scale_of(values, clip, colormap)
        if scale == "each":
            found = found._replace(low=-1.0 if found.low < 0 else 0.0, high=1.0)
        tiles = planes(values, dims, 1 if dims == 1 else magnification(values, dims))
        single = flat.shape[1] == 1
        return Mosaic(
            tiles,
            columns=1 if dims == 1 else columns_of(len(tiles), *tiles.shape[1:]),
            title=self._title(share, values.shape[1:], image=place, sort=sort, scale=scale, zero=int(zero.sum())),
            numbers=numbers,
            across=() if dims == 1 else None,
            sides=("channel", ""),
            dead=np.flatnonzero(zero[numbers]).tolist(),
            scale=found,
            colorbar=scale == "shared",
            gap=0 if single or dims == 1 else 2 if dims == 3 else 1,
        )

    def _title(self, share: str, size: tuple[int, ...], *, image: int, sort: str | None, scale: str, zero: int) -> str:
        """What is drawn, and of all the image's maps how many are zero."""
        of = share.rpartition(" ")[2]
        place = "input of " * (self.settings.get("which") == "input") + str(self.layer)
        text = f"{place}: {share} map{'s' * (share != '1')} "
        text += f"of length {size[0]}" if len(size) == 1 else " x ".join(map(str, size))
        notes = [] if len(self.data) == 1 else [f"image {image}"]
        notes += [] if sort is None else [f"sorted by {sort}"]
        if zero:
            notes.append(f"{zero} {'' if share == of else f'of the {of} '}{'is' if zero == 1 else 'are'} zero")
        notes += ["each in its own scale"] * (scale == "each")
        return ", ".join([text, *notes])


class LayerMaps(dict[str, FeatureMaps]):
    """The feature maps of several layers, by dotted name: each by itself, or all in one figure, one below the other."""

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw all, and give the Axes back as an array, one a layer; options as for `FeatureMaps.plot`."""
        axes = self._axes(ax, **options)
        return axes.item() if axes.size == 1 else axes[:, 0]

    def save(self, path: str | os.PathLike[str], *, dpi: int = _DPI, **options: Any) -> None:
        """Write them: `.pt` holds a dictionary of tensors, `.npz` an array a layer, other suffixes the figure.

        `torch.load(path)` and `np.load(path)` give them by the layers' names. ValueError for a suffix that names no
        format.
        """
        tensors = {name: found.data for name, found in self.items()}
        write(Path(path), tensors, lambda: self._axes(pyplot=False, **options)[0, 0].figure, dpi)

    def _repr_png_(self) -> bytes:
        from fastcam.figures import canvas

        return canvas.png(self._axes(pyplot=False)[0, 0].figure, _DPI)

    def _axes(self, ax: Any = None, pyplot: bool = True, **options: Any) -> np.ndarray:
        """Axes `(layers, 1)` with the mosaics drawn."""
        from fastcam.figures import canvas

        for found in self.values():
            found._check_options(options, type(self).__name__)
        layouts = [found._layout(**options) for found in self.values()]
        width, height = max(one.width for one in layouts), max(one.height for one in layouts)
        axes = canvas.axes_in(canvas.Layout(len(self), 1, width, height * len(self)), ax, pyplot)
        with canvas.discarded(axes) if ax is None and pyplot else nullcontext():
            for row, found in zip(axes, self.values(), strict=True):
                found._draw(row, **options)
        return axes


def feature_maps(
    model: nn.Module,
    x: Any,
    layers: Any,
    *,
    which: str = "output",
    call: int = 0,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """What layers give for images, or are given: a `FeatureMaps` for a module or a name, or a dict by dotted name.

    The model runs once, in evaluation mode and without gradients, up to the last of the layers; it is left exactly as
    it was. The maps are copies: an operation in place behind a layer does not change what is here.

    x                   `(B, k, *S)`, as the model takes it; several inputs as for a method
    layers              a module or a name for one; a list or a glob such as `"layer4.*.conv2"` for several
    which               "output", or "input": the first floating-point tensor that goes into a layer. Of a tuple or
                        dictionary of outputs likewise the first
    call                which call of a module that is called several times, from 0
    reshape_transform   what `plot` and `.maps` make `(B, C, *S)` with, where tokens can't be laid out without
    forward_kwargs      as for a method
    Raises ValueError for an unknown layer, one that does not run or not that often; TypeError for a layer without a
    tensor. A layer's maps are drawn only where it has some: `.plot()` of a linear layer's `(B, C)` is a ValueError.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3))
    >>> feature_maps(model, torch.rand(2, 1, 8, 8), "0")
    FeatureMaps of 0: float32 (2, 4, 6, 6)
    >>> list(feature_maps(model, torch.rand(2, 1, 8, 8), ["0", "2"]))
    ['0', '2']
    """
    check_one_of("which", which, ("output", "input"))
    if not isinstance(call, int) or isinstance(call, bool) or call < 0:
        raise ValueError(f"call must be a whole number of 0 or more, got {call!r}")
    net, inputs = unwrap(model), inputs_of(x, forward_kwargs)
    check_contrast(inputs.image, name="x", stacklevel=3)
    modules = list(dict.fromkeys(find_layers(net, layers)))
    found = LayerMaps()
    for module, data in zip(modules, captured(net, modules, inputs, which, call), strict=True):
        lay_out = reshape_transform or _layout_by(net, module, inputs, which)
        name = layer_name(net, module) or type(module).__name__
        found[name] = FeatureMaps(data, lay_out, layer=name, settings={"which": which, "call": call})
    several = isinstance(layers, list | tuple | nn.ModuleList) or isinstance(layers, str) and set(layers) & set("*?")
    return found if several else next(iter(found.values()))


def _layout_by(net: nn.Module, module: nn.Module, inputs: Inputs, which: str) -> Callable[[Tensor], Tensor]:
    return lambda t: in_space(net, module, inputs, t, which)


def _sizes(flat: np.ndarray, clip: float | None) -> np.ndarray:
    """The percentile of each row's absolute values; the largest where it is 0, and 1 where that is."""
    largest = np.abs(flat).max(1)
    sizes = largest if clip is None else np.percentile(np.abs(flat), clip, axis=1)
    return np.where(sizes > 0, sizes, np.where(largest > 0, largest, 1))
