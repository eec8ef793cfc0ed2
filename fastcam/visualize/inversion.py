"""Inversion: what of an image is left in a layer, by an image made anew from the layer's output alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import BatchSize, check_count, in_batches
from fastcam.inputs import Inputs
from fastcam.layers import Layers, find_layers, layer_name
from fastcam.record import unwrap
from fastcam.results import Images, shown
from fastcam.visualize.forward import Seen, differentiable
from fastcam.visualize.ranges import ValidRange, batch_of_images, door_of, in_full, input_gradient, valid_range

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_NOISE = 0.01  # around the grey that the pictures begin with
_MOMENTUM = 0.9
_TINY = 1e-8

Run = Callable[[Tensor | Inputs], Seen]


class Inversion(Images):
    """What `invert` gives: images `(B L, k, H, W)`, those of the first image first, a row a layer.

    score      `(B L,)` relative errors ||Phi(image) - Phi(x)|| / ||Phi(x)||
    layer      the names of the L layers; titles are the row's
    original   `Images`: the images given
    """

    def __init__(self, data: Tensor, *, original: Images, **about: Any) -> None:
        super().__init__(data, **about)
        self.original = original

    def _tensors(self) -> dict[str, Tensor | None]:
        return super()._tensors() | {"original": self.original.data}

    def of(self, layer: str) -> Tensor:
        """The images `(B, k, H, W)` of a layer, by its name; ValueError for another."""
        if layer not in (self.layer or []):
            raise ValueError(f"no layer {layer!r} among those inverted: {', '.join(self.layer or [])}")
        return self.data[self.titles.index(layer) :: len(self.data) // len(self.original)]

    def _layout(self, size: float = 1.6) -> Layout:  # type: ignore[override]
        """A row an image: it, and what is left of it layer by layer. size: a picture's width in inches."""
        from fastcam.figures.canvas import Layout

        rows, aspect = len(self.original), self.data.shape[-2] / self.data.shape[-1]
        columns = 1 + len(self.data) // rows
        return Layout(rows, columns, size * columns + 0.2, (size * aspect + 0.3) * rows + 0.1)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures.panels import show_picture

        assert self.score is not None
        for ax, picture in zip(axes[:, 0], self.original.pictures, strict=True):
            show_picture(ax, shown(picture), "input")
        cells = axes[:, 1:].flat
        for ax, picture, title, error in zip(cells, self.pictures, self.titles, self.score.tolist(), strict=True):
            show_picture(ax, shown(picture), f"{title}: error {error:.2f}")


@torch.inference_mode(False)
def invert(
    model: nn.Module,
    x: Tensor,
    layers: Layers,
    *,
    steps: int = 200,
    learning_rate: float = 0.005,
    alpha: float = 6.0,
    beta: float = 2.0,
    lambda_alpha: float = 1e-3,
    lambda_tv: float = 1.0,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> Inversion:
    """Images made anew from what layers give for an image (Mahendran and Vedaldi, CVPR 2015, arXiv:1412.0035).

    min over p of ||Phi(p) - Phi(x)||^2 / ||Phi(x)||^2 + lambda_alpha mean |2 p - 1|^alpha + lambda_tv TV(p)

    TV(p) = mean ((p[i + 1, j] - p[i, j])^2 + (p[i, j + 1] - p[i, j])^2)^(beta / 2)

    p is a picture in [0, 1], begun as grey with faint noise. In each step velocity = 0.9 velocity - rate g / rms(g),
    g the gradient, and p += velocity; the rate falls from `learning_rate` to 0 along a cosine. All layers of all images
    are rows of one batch, or of several of `batch_size`, that runs as far as the last of its layers; each row ends up
    as it does alone, but for rounding, which grows over the steps.

    x                        `(B, k, H, W)`, as the model takes it
    layers                   as for `GradCAM`, usually a list; a layer of any shape that has the batch first, `(B, C)`
                             of a linear one, too. Repeats are left out
    lambda_alpha, lambda_tv  weights of the two priors, in the unit of the relative error
    mean, std                of pictures in [0, 1], see `Images`. Without them pictures are in the range [0, 1] for an
                             image that lies in it, for another from its least to its greatest value
    learning_rate            the root mean square of a step's change before the momentum adds up, 1 from black to white
    seed                     of the noise, which is the same for all images and layers
    batch_size               rows at once; "auto" is halved where memory fails
    progress                 show a bar on stderr

    Returns an `Inversion`: inputs `(B L, k, H, W)` of x's type on the model's device, the images of one image side by
    side. The model, in evaluation mode here, is left as it was; in half precision it is run on pictures kept in fp32.
    Raises ValueError for unknown layers, for a layer whose output has not the batch first, for NaN in x and for numbers
    out of range; RuntimeError if no gradient can flow from the layers to the input.

    >>> model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    >>> inversion = invert(model, torch.rand(2, 1, 8, 8), ["1", "3"], steps=20)
    >>> inversion.data.shape, inversion.of("1").shape, inversion.titles
    (torch.Size([4, 1, 8, 8]), torch.Size([2, 1, 8, 8]), ['1', '3', '1', '3'])
    """
    from tqdm import tqdm

    settings: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "alpha": alpha, "beta": beta}
    settings |= {
        "lambda_alpha": lambda_alpha,
        "lambda_tv": lambda_tv,
        "mean": mean,
        "std": std,
        "seed": seed,
        "batch_size": batch_size,
    }
    net = unwrap(model)
    modules = list(dict.fromkeys(find_layers(net, layers)))
    check_count("steps", steps)
    for name, value in (("learning_rate", learning_rate), ("alpha", alpha), ("beta", beta)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")
    for name, value in (("lambda_alpha", lambda_alpha), ("lambda_tv", lambda_tv)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value!r}")
    given = batch_of_images(net, x)
    limits = valid_range(given, mean, std)
    prior = _Prior(alpha, beta, lambda_alpha, lambda_tv)
    noise = torch.randn(given.shape[1:], generator=torch.Generator().manual_seed(seed))
    start = (0.5 + _NOISE * noise.to(given)).clamp(0, 1)
    rows, size = len(given) * len(modules), BatchSize(batch_size, given.device, steady=True)
    with tqdm(total=rows * steps, desc="invert", disable=not progress, leave=False) as bar:
        descent = _Descent(net, modules, given, limits, prior, bar.update)
        pictures = in_batches(
            rows, lambda first, end: descent.run(start, range(first, end), steps, learning_rate), size
        )
    score = in_batches(rows, lambda first, end: descent.errors(pictures[first:end], range(first, end)), size)
    names = [layer_name(net, m) for m in modules]
    ranges = limits.of([row // len(modules) for row in range(rows)])
    return Inversion(
        ranges.inputs(pictures).to(x.dtype),
        original=Images(given.to(x.dtype), mean=mean, std=std, value_range=(limits.low, limits.high)),
        titles=names * len(given),
        score=score,
        layer=names,
        settings=settings,
        mean=mean,
        std=std,
        value_range=(ranges.low, ranges.high),
    )


class _Prior(NamedTuple):
    """What pictures are like, whatever the layer: of moderate values, and smooth."""

    alpha: float
    beta: float
    lambda_alpha: float
    lambda_tv: float

    def __call__(self, pictures: Tensor) -> Tensor:
        """`(N,)`"""
        value = self.lambda_alpha * (2 * pictures - 1).abs().pow(self.alpha).mean((1, 2, 3))
        return value + self.lambda_tv * total_variation(pictures, self.beta)


def total_variation(pictures: Tensor, beta: float = 2.0) -> Tensor:
    """mean ((p[i + 1, j] - p[i, j])^2 + (p[i, j + 1] - p[i, j])^2)^(beta / 2), `(N,)`; 0 across the borders."""
    down = nn.functional.pad(pictures.diff(dim=2), (0, 0, 0, 1))
    right = nn.functional.pad(pictures.diff(dim=3), (0, 1))
    squares = down.square() + right.square()
    if beta != 2:  # a power below 1 has no gradient at 0
        squares = (squares + _TINY).pow(beta / 2)
    return squares.mean((1, 2, 3))


class _Part(NamedTuple):
    """Those of some rows that are of one layer, and what they are to give: features `(m, n)` and their power `(m,)`."""

    module: nn.Module
    places: slice
    wanted: Tensor
    power: Tensor


class _Descent:
    """The optimisation of rows: row b L + l is image b at layer l."""

    def __init__(
        self,
        net: nn.Module,
        modules: Sequence[nn.Module],
        x: Tensor,
        limits: ValidRange,
        prior: _Prior,
        tick: Callable[[int], Any],
    ) -> None:
        self.net, self.modules, self.limits, self.prior, self.tick = net, modules, limits, prior, tick
        self.door = door_of(net)
        with differentiable(net, modules) as run, torch.no_grad():
            seen = run(self.door(x)).activations
            self.wanted = [self._features(m, seen[m], len(x)) for m in modules]

    def run(self, start: Tensor, rows: range, steps: int, learning_rate: float) -> Tensor:
        """The pictures of some rows, all from the start `(k, H, W)`."""
        limits, parts = self._of(rows)
        pictures = start.repeat(len(rows), 1, 1, 1)
        velocity = torch.zeros_like(pictures)
        with differentiable(self.net, [part.module for part in parts]) as run:
            for step in range(steps):
                gradient = self._gradient(run, pictures.detach().requires_grad_(), limits, parts)
                rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
                rate = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                velocity = _MOMENTUM * velocity - rate * gradient / torch.where(rms > 0, rms, 1)
                pictures = (pictures + velocity).clamp(0, 1)
                self.tick(len(rows))
        return pictures

    def errors(self, pictures: Tensor, rows: range) -> Tensor:
        """Relative errors `(N,)` of the rows' features."""
        limits, parts = self._of(rows)
        errors = pictures.new_zeros(len(rows))
        with differentiable(self.net, [part.module for part in parts]) as run, torch.no_grad():
            for part, squared in zip(parts, self._squared_errors(run, pictures, limits, parts), strict=True):
                errors[part.places] = squared.sqrt()
        return errors

    def _of(self, rows: range) -> tuple[ValidRange, list[_Part]]:
        """The range of some rows, and their parts."""
        count, parts = len(self.modules), []
        for layer, (module, wanted) in enumerate(zip(self.modules, self.wanted, strict=True)):
            place = (layer - rows.start) % count
            if place < len(rows):
                images = [row // count for row in rows[place::count]]
                parts.append(_Part(module, slice(place, None, count), wanted[images], wanted[images].square().sum(1)))
        return self.limits.of([row // count for row in rows]), parts

    def _gradient(self, run: Run, pictures: Tensor, limits: ValidRange, parts: Sequence[_Part]) -> Tensor:
        errors = self._squared_errors(run, pictures, limits, parts)
        # Times the number of features for the way back: a mean's gradient is too small for half precision.
        sizes = [part.wanted.shape[1] for part in parts]
        enlarged = torch.stack([n * error.sum() for n, error in zip(sizes, errors, strict=True)]).sum()
        gradient = input_gradient(self.net, enlarged, pictures)
        for part, n in zip(parts, sizes, strict=True):
            gradient[part.places] /= n
        return gradient + input_gradient(self.net, self.prior(pictures).sum(), pictures)

    def _squared_errors(self, run: Run, pictures: Tensor, limits: ValidRange, parts: Sequence[_Part]) -> list[Tensor]:
        """||Phi(p) - Phi(x)||^2 / ||Phi(x)||^2 for the rows of each part."""
        seen = run(self.door(limits.inputs(pictures))).activations
        errors = []
        for module, places, wanted, power in parts:
            found = self._features(module, seen[module], len(pictures))[places]
            errors.append((found - wanted).square().sum(1) / torch.where(power > 0, power, 1))
        return errors

    def _features(self, module: nn.Module, activation: Tensor, batch: int) -> Tensor:
        """`(batch, n)`, in at least fp32."""
        if activation.ndim < 2 or len(activation) != batch:
            shape, name = tuple(activation.shape), layer_name(self.net, module)
            raise ValueError(f"layer {name!r} has not the batch of {batch} first: its output is {shape}")
        return in_full(activation).flatten(1)
