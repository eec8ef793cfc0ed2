"""What the calls that look inside a network give back: a tensor, how it came about, and its figure on demand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastcam.images import denormalize, save_png

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_DPI = 120


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

        axes = axes_in(self._layout(**options), ax)
        with discarded(axes) if ax is None else nullcontext():
            self._draw(axes, **options)
        return axes.item() if axes.size == 1 else axes

    def save(self, path: str | os.PathLike[str], *, dpi: int = _DPI, **options: Any) -> None:
        """Write it: the tensor and how it came about as `.pt` or `.npz`, otherwise the figure, as `.png`, `.pdf` ...

        A `.npz` holds `data`, `score`, the result's other tensors and a JSON text `about`. Options as for `plot`.
        Raises ValueError for a suffix that names no format.
        """
        from fastcam.figures import canvas

        path = Path(path)
        about = {"target": self.target, "layer": self.layer, "settings": self.settings}
        if path.suffix == ".pt":
            torch.save({**self._tensors(), **about}, path)
        elif path.suffix == ".npz":
            arrays: dict[str, Any] = {name: _array(t) for name, t in self._tensors().items() if t is not None}
            np.savez_compressed(path, about=json.dumps(about, default=_plain), **arrays)
        else:
            canvas.write(self._figure(**options), path, dpi)

    def _repr_png_(self) -> bytes:
        from fastcam.figures import canvas

        return canvas.png(self._figure(), _DPI)

    def _tensors(self) -> dict[str, Tensor | None]:
        """What a file of it holds."""
        return {"data": self.data, "score": self.score}

    def _figure(self, **options: Any) -> Any:
        from fastcam.figures.canvas import axes_in

        axes = axes_in(self._layout(**options), pyplot=False)
        self._draw(axes, **options)
        return axes.flat[0].figure

    def _layout(self, *args: Any, **options: Any) -> Layout:
        """The axes that `_draw` needs for these options."""
        raise NotImplementedError

    def _draw(self, axes: np.ndarray, *args: Any, **options: Any) -> None:
        """Draw into axes `(rows, columns)`."""
        raise NotImplementedError


def _array(t: Tensor) -> np.ndarray:
    t = t.detach().cpu()
    return (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t).numpy()


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else str(value)


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

    def _layout(self, columns: int = 8, size: float = 1.6) -> Layout:
        from fastcam.figures.canvas import Layout

        columns = min(columns, len(self.data))
        rows, aspect = -(-len(self.data) // columns), self.data.shape[-2] / self.data.shape[-1]
        return Layout(rows, columns, size * columns + 0.2, (size * aspect + 0.3) * rows + 0.2)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures.panels import show_picture

        for ax in axes.flat[len(self.data) :]:
            ax.set_axis_off()
        for ax, picture, title in zip(axes.flat, self.pictures, self.titles, strict=False):
            show_picture(ax, shown(picture), title)


def shown(picture: Tensor) -> np.ndarray:
    """A picture `(k, H, W)` as `(H, W, 3)` or, for other numbers of channels, their mean in grey `(H, W)`."""
    pixels = picture.detach().float().cpu()
    return (pixels.movedim(0, -1) if len(pixels) == 3 else pixels.mean(0)).numpy()
