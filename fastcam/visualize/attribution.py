"""What the methods of saliency give back: the share of each value of an image in a score, as maps and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastcam.results import Images, Result, shown

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max": lambda g, c: g.abs().amax(c),
    "sum": lambda g, c: g.sum(c),
    "norm": lambda g, c: torch.linalg.vector_norm(g, dim=c),
    "positive": lambda g, c: g.clamp(min=0).sum(c),
    "negative": lambda g, c: g.clamp(max=0).sum(c).neg(),
}
ClassNames = Sequence[str] | Mapping[int, str] | None


class Attribution(Result):
    """The signed share of every value of an image in a score: `data` `(B, k, *S)`, `(B, T, k, *S)` for T targets.

    target    the classes that were explained, `(B,)` or `(B, T)`; None for callables
    score     their scores, likewise
    image     the input `(B, k, *S)`, detached
    outputs   the logits, detached; None if the model gives none

    >>> g = torch.tensor([[[[1.0]], [[-3.0]]]])  # (1, 2, 1, 1)
    >>> result = Attribution(g, image=torch.zeros(1, 2, 1, 1))
    >>> [result.map(reduce).item() for reduce in ("max", "sum", "positive", "negative")]
    [3.0, -2.0, 1.0, 3.0]
    """

    def __init__(
        self, data: Tensor, *, image: Tensor, channel: int = 1, outputs: Tensor | None = None, **about: Any
    ) -> None:
        super().__init__(data, **about)
        self.image, self.outputs = image, outputs
        self._channel = channel - image.ndim  # from the end

    def map(self, reduce: str = "max") -> Tensor:
        """One value a pixel, `(B, *S)` or `(B, T, *S)`, from those g_c of its channels.

        reduce   "max"        max_c |g_c|, as Simonyan et al. have it
                 "sum"        sum_c g_c, signed
                 "norm"       sqrt(sum_c g_c²)
                 "positive"   sum_c max(g_c, 0)
                 "negative"   sum_c max(-g_c, 0)
        """
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
        return REDUCTIONS[reduce](self.data, self._channel)

    def plot(  # type: ignore[override]
        self,
        ax: Any = None,
        *,
        image: int | Sequence[int] | None = None,
        reduce: str = "max",
        clip: float | None = 99.0,
        colormap: str | None = None,
        picture: Any = None,
        mean: Any = None,
        std: Any = None,
        class_names: ClassNames = None,
    ) -> Any:
        """A row an image and target: the image, its signed values, their map, the map laid over the image.

        Three channels show their signed values in colour, 0.5 + g / (2 limit); otherwise their sum over channels is
        drawn from -limit to limit; images of one channel have no map of their own beside it.

        ax            three or four Axes a row; by default those of a new figure
        image         which of the batch: an index, several, or None for all of them
        reduce        how channels become a map, as in `map`
        clip          the limit is this percentile of the absolute values; None for the largest
        colormap      of the maps, instead of the rule's own
        picture       the images as they are shown, in [0, 1] or uint8, `(k, H, W)` tensors, `(H, W, k)` arrays or
                      PIL's: one for each image of the batch, or, where one image is drawn, that one
        mean, std     of pictures in [0, 1], from which the inputs were made; without these and pictures the input is
                      scaled from its least to its largest value
        class_names   by class index
        Returns Axes `(rows, panels)`. Raises ValueError for what is no image in two dimensions.
        """
        options = {"image": image, "reduce": reduce, "clip": clip, "colormap": colormap, "picture": picture}
        return super().plot(ax, **options, mean=mean, std=std, class_names=class_names)

    def _repr_html_(self) -> str | None:
        """Its maps over the images, with a slider; of what is no image in two dimensions nothing."""
        if self.image.ndim != 4:
            return None
        from fastcam.figures.panels import SEQUENTIAL, Scale, scale_of
        from fastcam.report.notebook import slider_of

        T, shape = self._per_image, self.data.shape[-2:]
        maps = self.map().detach().float().cpu().reshape(-1, *shape).numpy()
        maps = np.stack([m / scale_of(m).high for m in maps])  # each image on its own scale, as in the figure
        titles = {str(self.settings.get("method", "attribution")): (maps, Scale(0.0, 1.0, SEQUENTIAL), None)}
        pictures = [p for p in pictures_of(self.image) for _ in range(T)]
        said = [captions(self.outputs, self.target, self.score, n, t) for n in range(len(self.image)) for t in range(T)]
        return slider_of(pictures, titles, said)

    def _repr_png_(self) -> bytes | None:  # type: ignore[override]
        return super()._repr_png_() if self.image.ndim == 4 else None

    def _tensors(self) -> dict[str, Tensor | None]:
        return super()._tensors() | {"image": self.image, "outputs": self.outputs}

    def _layout(self, image: int | Sequence[int] | None = None, **_: Any) -> Layout:
        from fastcam.figures.canvas import Layout

        if self.image.ndim != 4:
            raise ValueError(f"plot draws images (B, k, H, W), these are {tuple(self.image.shape)}: take .map()")
        rows = len(self._chosen(image)) * self._per_image
        panels, aspect = (3 if self.data.shape[-3] == 1 else 4), self.data.shape[-2] / self.data.shape[-1]
        return Layout(rows, panels, 2.5 * panels, 2.0 * min(aspect, 3) * rows + 0.5)

    def _draw(
        self,
        axes: np.ndarray,
        image: int | Sequence[int] | None = None,
        reduce: str = "max",
        clip: float | None = 99.0,
        colormap: str | None = None,
        picture: Any = None,
        mean: Any = None,
        std: Any = None,
        class_names: ClassNames = None,
    ) -> None:
        from fastcam.figures.attributions import attribution_row, label_rows

        T, chosen = self._per_image, self._chosen(image)
        shape = (-1, T, *self.data.shape[-3:])
        values, maps = self.data.reshape(shape), self.map(reduce).reshape(-1, T, *self.data.shape[-2:])
        pictures = dict(zip(chosen, pictures_of(self.image, picture, mean, std, chosen), strict=True))
        titles = "input", str(self.settings.get("method", "attribution")), _MAP_TITLES[reduce], "overlay"
        places = [(n, t) for n in chosen for t in range(T)]
        for row, (n, t) in zip(axes, places, strict=True):
            g, m = (v[n, t].detach().float().cpu().numpy() for v in (values, maps))
            attribution_row(row, pictures[n], g, m, titles, clip, colormap)
            titles = "", "", "", ""
        label_rows(axes, [captions(self.outputs, self.target, self.score, n, t, class_names) for n, t in places])

    @property
    def _per_image(self) -> int:
        """T, or 1."""
        return self.data.shape[1] if self.data.ndim > self.image.ndim else 1

    def _chosen(self, image: int | Sequence[int] | None) -> list[int]:
        B = len(self.image)
        given = range(B) if image is None else np.atleast_1d(np.asarray(image)).tolist()
        for n in given:
            if not isinstance(n, int) or isinstance(n, bool) or not -B <= n < B:
                raise ValueError(f"image must be among the {B} of the batch, got {n!r}")
        if not len(given):
            raise ValueError("image is empty: give at least one index, or None for all")
        return [n % B for n in given]


_MAP_TITLES = {
    "max": "max |g| over channels",
    "sum": "sum over channels",
    "norm": "norm over channels",
    "positive": "positive part",
    "negative": "negative part",
}


def pictures_of(
    x: Tensor, picture: Any = None, mean: Any = None, std: Any = None, chosen: Sequence[int] | None = None
) -> list[np.ndarray]:
    """What an input `(B, k, H, W)` is shown as: for each image `(H, W)` in grey or `(H, W, 3)`, in [0, 1].

    picture, mean, std   as in `Attribution.plot`
    chosen               which images of the batch; None for all
    """
    places = list(range(len(x)) if chosen is None else chosen)
    if picture is not None:
        from fastcam.figures.overlays import pixels_of

        single = _is_single(picture, tuple(x.shape[-2:]))
        given = [picture] if single else list(picture)
        if single and len(places) == 1:
            places = [0]
        elif len(given) != len(x):
            some = "one picture, or " if len(places) == 1 else ""
            raise ValueError(
                f"picture must be {some}one for each of the {len(x)} images of the batch, got {len(given)}"
            )
        pixels = [pixels_of(_as_array(given[n])) for n in places]
        for p in pixels:
            if p.shape[:2] != tuple(x.shape[-2:]):
                raise ValueError(f"picture must be of the input's size {tuple(x.shape[-2:])}, got {p.shape[:2]}")
        return pixels
    x = x[places]
    if mean is not None or std is not None:
        return [shown(p) for p in Images(x, mean=mean, std=std).pictures]
    wide = x.detach().float()
    low, high = wide.amin((1, 2, 3), keepdim=True), wide.amax((1, 2, 3), keepdim=True)
    return [shown(p) for p in (wide - low) / (high - low).clamp(min=1e-30)]


def _as_array(picture: Any) -> Any:
    """A picture of PIL's as an array; others as they are."""
    return np.asarray(picture.convert("RGB")) if hasattr(picture, "convert") else picture


def _is_single(picture: Any, size: tuple[int, ...]) -> bool:
    """Whether it is one picture, and not one for each of several images."""
    if hasattr(picture, "convert"):
        return True
    shape = tuple(getattr(picture, "shape", ()))
    if len(shape) != 3:
        return len(shape) == 2
    k = shape[0] if isinstance(picture, Tensor) else shape[2]
    return k in (1, 3) and (shape[1:] if isinstance(picture, Tensor) else shape[:2]) == size


def captions(
    outputs: Tensor | None, target: Any, score: Tensor | None, image: int, t: int = 0, names: ClassNames = None
) -> list[str]:
    """What is said of an image and its t-th target: the target, its probability or score, and the predicted class."""
    value = None if score is None else float(score.reshape(len(score), -1)[image, t])
    if not isinstance(target, Tensor):
        return [] if value is None else [f"score {value:.3g}"]
    explained = int(target.reshape(len(target), -1)[image, t])
    if outputs is None or outputs.ndim != 2 or outputs.shape[1] < 2:
        return [f"target {_named(explained, names)}", *([] if value is None else [f"score {value:.3g}"])]
    logits = outputs[image].detach().float()
    predicted = int(logits.argmax())
    same = "same" if predicted == explained else _named(predicted, names)
    return [f"target {_named(explained, names)}", f"p={logits.softmax(0)[explained]:.2f}", f"(predicted: {same})"]


def _named(index: int, names: ClassNames) -> str:
    if names is None:
        return str(index)
    name = names.get(index) if isinstance(names, Mapping) else names[index] if index < len(names) else None
    return str(index) if name is None else f"{index} {name}"
