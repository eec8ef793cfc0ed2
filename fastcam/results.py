"""What the calls that look inside a network give back: a tensor, how it came about, and its figure on demand."""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastcam.batches import check_count
from fastcam.images import denormalize, save_png

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_DPI = 120
_WIDEST = 16.0  # inches of a figure, up to which a grid shows every pixel
_CHARACTERS = 12  # of a title, an inch


class Result:
    """A tensor and how it came about.

    data       the tensor, the batch first, on the model's device
    target     what was explained or optimised: class indices `(B,)` or `(B, T)`, channels, text; None without one
    score      its value: `(B,)` or `(B, T)` scores, activations `(N,)`; None without one
    layer      the dotted name of the layer, or of several; None for the output or the input
    settings   the arguments that led to it, by name
    """

    def __init__(
        self,
        data: Tensor,
        *,
        target: Any = None,
        score: Tensor | None = None,
        layer: str | list[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.target, self.score, self.layer = data, target, score, layer
        self.settings = dict(settings or {})

    def numpy(self) -> np.ndarray:
        """The tensor as an array, floating point as at least fp32."""
        return _array(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array.astype(dtype, copy=bool(copy)) if dtype is not None or copy else array

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> torch.Size:
        """That of the tensor."""
        return self.data.shape

    def __repr__(self) -> str:
        where = f" of {self.layer}" if self.layer is not None else ""
        return f"{type(self).__name__}{where}: {str(self.data.dtype)[6:]} {tuple(self.data.shape)}"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw it, and give the Axes back, or an array of them; never shown here: `plt.show()` does, or a notebook.

        ax   the Axes to draw in, as many as the figure has; by default those of a new figure of pyplot's
        """
        from fastcam.figures.canvas import axes_in, discarded

        self._check_options(options)
        axes = axes_in(self._layout(**options), ax)
        with discarded(axes) if ax is None else nullcontext():
            self._draw(axes, **options)
        return axes.item() if axes.size == 1 else axes

    def save(self, path: str | os.PathLike[str], *, dpi: int = _DPI, **options: Any) -> None:
        """Write it: the tensor and how it came about as `.pt` or `.npz`, otherwise the figure, as `.png`, `.pdf` ...

        `torch.load(path)` gives a dictionary: `data`, `score`, the result's other tensors, all on the CPU, `target`,
        `layer` and `settings`. `np.load(path)` gives the tensors as arrays, and as `about` a JSON text of the others:
        `json.loads(str(np.load(path)["about"]))`. Settings that are no plain values, functions say, are there as text.
        Options as for `plot`. Raises ValueError for a suffix that names no format.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Result(torch.ones(2, 3), layer="conv1").save(f"{folder}/ones.pt")
        ...     torch.load(f"{folder}/ones.pt")["layer"]
        'conv1'
        """
        about = {"target": self.target, "layer": self.layer, "settings": self.settings}
        write(Path(path), self._tensors(), lambda: self._figure(**options), dpi, about)

    def _repr_png_(self) -> bytes:
        from fastcam.figures import canvas

        return canvas.png(self._figure(), _DPI)

    def _tensors(self) -> dict[str, Tensor | None]:
        """What a file of it holds."""
        return {"data": self.data, "score": self.score}

    def _figure(self, **options: Any) -> Any:
        from fastcam.figures.canvas import axes_in

        self._check_options(options)
        axes = axes_in(self._layout(**options), pyplot=False)
        self._draw(axes, **options)
        return axes.flat[0].figure

    def _check_options(self, options: Mapping[str, Any], name: str | None = None) -> None:
        """TypeError for an option that `plot` has not, in the name of this class or another."""
        signatures = [inspect.signature(f).parameters.values() for f in (self.plot, self._layout, self._draw)]
        variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        named = [p.name for parameters in signatures for p in parameters if p.kind not in variable]
        known = [n for n in dict.fromkeys(named) if n not in ("ax", "axes")]
        if wrong := [n for n in options if n not in known]:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise TypeError(f"{name or type(self).__name__}.plot has no option {wrong[0]!r}: {has}")

    def _layout(self, *args: Any, **options: Any) -> Layout:
        """The axes that `_draw` needs for these options."""
        raise NotImplementedError

    def _draw(self, axes: np.ndarray, *args: Any, **options: Any) -> None:
        """Draw into axes `(rows, columns)`."""
        raise NotImplementedError


def _array(t: Tensor) -> np.ndarray:
    t = t.detach().cpu()
    return (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t).numpy()


def write(
    path: Path,
    tensors: Mapping[str, Tensor | None],
    figure: Callable[[], Any],
    dpi: int = _DPI,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Tensors and what is said about them as `.pt` or `.npz`, otherwise a figure."""
    if path.suffix == ".pt":
        torch.save(_plain({**tensors, **(about or {})}), path)
    elif path.suffix == ".npz":
        arrays: dict[str, Any] = {name: _array(t) for name, t in tensors.items() if t is not None}
        if about is not None:
            arrays["about"] = json.dumps(_plain(about), default=Tensor.tolist)
        np.savez_compressed(path, **arrays)
    else:
        from fastcam.figures import canvas

        canvas.write(figure, path, dpi)


def _plain(value: Any) -> Any:
    """What `torch.load` reads without running code: numbers, text, tensors; lists, tuples, dictionaries of these."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # a part of a tensor would bring all of it along
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return value.tolist()
    if isinstance(value, Mapping):
        return {k if type(k) in (int, str) else str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        kind: Callable[[Any], Any] = tuple if isinstance(value, tuple) else list
        return kind(_plain(v) for v in value)
    return str(value)


class Images(Result):
    """Images `(N, k, H, W)` as the model takes them, which are pictures, too.

    pictures = data std + mean, where mean and std are given, otherwise (data - low) / (high - low); cut to [0, 1]

    value_range   low and high, numbers or, a range an image, `(N, 1, 1, 1)`
    titles   a line of text for each image
    """

    def __init__(
        self,
        data: Tensor,
        *,
        mean: Any = None,
        std: Any = None,
        value_range: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        titles: list[str] | None = None,
        **about: Any,
    ) -> None:
        super().__init__(data, **about)
        self._mean, self._std, self._range = mean, std, value_range
        self.titles = titles or [""] * len(data)

    @property
    def pictures(self) -> Tensor:
        """`(N, k, H, W)` in [0, 1]."""
        x = self.data.detach().float()
        if self._mean is None and self._std is None:
            low, high = (torch.as_tensor(v, device=x.device, dtype=x.dtype) for v in self._range)
            return ((x - low) / (high - low)).clamp(0, 1)
        return denormalize(x, self._mean, self._std, clamp=True)

    def save_images(self, folder: str | os.PathLike[str], names: str = "{index}.png") -> list[Path]:
        """Each picture as a PNG file of its own size; `names` may hold {index}, {title} and {layer}."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for index, (picture, title) in enumerate(zip(self.pictures, self.titles, strict=True)):
            path = Path(folder) / names.format(index=index, title=title, layer=self.layer)
            save_png((255 * shown(picture)).round().astype(np.uint8), path)
            paths.append(path)
        return paths

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the pictures with their titles in a grid, and give its Axes back as an array.

        ax        as many Axes as the grid has; by default those of a new figure
        columns   at most so many pictures in a row, 8; rows are filled evenly: 10 pictures are two rows of 5
        size      a picture's width in inches; None for one inch for 120 pixels, so that none is lost where a figure is
                  saved, within bounds: 1.6 at least, all columns together 16
        Other kinds of images have other defaults and options: TypeError for an unknown option says which there are.
        ValueError for columns or a size that are not above 0.
        """
        return super().plot(ax, **options)

    def _check_options(self, options: Mapping[str, Any], name: str | None = None) -> None:
        super()._check_options(options, name)
        if options.get("columns") is not None:
            check_count("columns", options["columns"])
        size = options.get("size")
        if size is not None and not (isinstance(size, int | float) and 0 < size < float("inf")):
            raise ValueError(f"size must be a width in inches above 0, got {size!r}")

    def _layout(self, columns: int = 8, size: Any = None) -> Layout:
        from fastcam.figures.canvas import Layout

        rows = -(-len(self.data) // columns)
        columns = -(-len(self.data) // rows)
        height, width = self.data.shape[-2:]
        size = size or max(1.6, min(width / _DPI, _WIDEST / columns))
        lines = max(len(_in_lines(title, size)) for title in self.titles)
        return Layout(rows, columns, (size + 0.1) * columns, (size * height / width + 0.2 + 0.14 * lines) * rows)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures.panels import room_of, show_picture

        for ax in axes.flat[len(self.data) :]:
            ax.set_axis_off()
        for ax, picture, title in zip(axes.flat, self.pictures, self.titles, strict=False):
            show_picture(ax, shown(picture), "\n".join(_in_lines(title, room_of(ax))))


def _in_lines(title: str, width: float) -> list[str]:
    """A title in up to three lines of a width in inches."""
    return textwrap.wrap(title, max(8, int(_CHARACTERS * width)), max_lines=3, placeholder=" ...")


def shown(picture: Tensor) -> np.ndarray:
    """A picture `(k, H, W)` as `(H, W, 3)` or, for other numbers of channels, their mean in grey `(H, W)`."""
    pixels = picture.detach().float().cpu()
    return (pixels.movedim(0, -1) if len(pixels) == 3 else pixels.mean(0)).numpy()
