"""Deep dream: a photograph in which a layer finds more and more of what it looks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam.batches import check_count, is_out_of_memory
from fastcam.channels import channels_last
from fastcam.inputs import Inputs
from fastcam.layers import Layers, find_layers, layer_name
from fastcam.record import unwrap
from fastcam.results import Images, shown
from fastcam.visualize.forward import Seen, differentiable
from fastcam.visualize.ranges import ValidRange, batch_of_images, door_of, in_full, input_gradient, valid_range

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_SMALLEST = 16  # pixels of the shorter side of an octave, unless the image itself is smaller
_PIXELS_PER_INCH = 120

Channels = int | Sequence[int] | None
Picks = list[list[int] | None]
Run = Callable[[Tensor | Inputs], Seen]


class Dream(Images):
    """What `deep_dream` gives: images `(B, k, H, W)`, the objective they reach, and `before`, the images given.

    before   `Images`: the input, with its own `score`
    """

    def __init__(self, data: Tensor, *, before: Images, **about: Any) -> None:
        super().__init__(data, **about)
        self.before = before

    def _tensors(self) -> dict[str, Tensor | None]:
        return super()._tensors() | {"before": self.before.data, "before_score": self.before.score}

    def _layout(self, columns: int = 1, size: float | None = None) -> Layout:
        """columns: pairs side by side. size: a picture's width in inches, by default that of its pixels, in bounds."""
        from fastcam.figures.canvas import Layout

        columns, (height, width) = min(columns, len(self)), self.data.shape[-2:]
        size = size or min(max(width / _PIXELS_PER_INCH, 2.0), 5.0)
        rows = -(-len(self) // columns)
        return Layout(rows, 2 * columns, 2 * size * columns + 0.2, (size * height / width + 0.3) * rows + 0.1)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures.panels import show_picture

        for ax in axes.flat[2 * len(self) :]:
            ax.set_axis_off()
        for first, (title, images) in enumerate((("before", self.before), ("after", self))):
            assert images.score is not None
            for ax, picture, score in zip(axes.flat[first::2], images.pictures, images.score.tolist(), strict=False):
                show_picture(ax, shown(picture), f"{title}: objective {score:.3g}")


@torch.inference_mode(False)
def deep_dream(
    model: nn.Module,
    x: Tensor,
    layers: Layers,
    channels: Channels | Sequence[Channels] = None,
    *,
    octaves: int = 4,
    scale: float = 1.4,
    steps: int = 10,
    step_size: float = 0.01,
    jitter: int = 32,
    tile: int | None = None,
    mean: Any = None,
    std: Any = None,
    seed: int = 0,
    progress: bool = False,
) -> Dream:
    """Images changed so that layers answer to them more strongly (Mordvintsev, Olah and Tyka 2015).

    objective = sum over layers of mean a^2 / 2, the gradient of which is the activation a itself, or of mean a_c over
    the chosen channels; in each step picture += step_size g / mean |g|, g the gradient with respect to the picture

    It begins with a small version of the image, the smallest of the octaves; the detail found there is enlarged and
    laid over the next larger version of the image, and so on up to the image's own size.

    x          `(B, k, H, W)` of any size that the model takes up to the layers; each image is a dream of its own, the
               same alone as in a batch, but for rounding, which grows over the steps
    layers     as for `GradCAM`: a name, a module, or a list of these
    channels   None for all, a number or several; for n layers a list of n of these
    octaves    how many sizes, `scale` apart. Those with a side of less than 16 pixels, and those that the model does
               not run on, are left out; the image's own size is always there. `settings["sizes"]` tells which were used
    steps      for each octave
    step_size  mean change of a pixel in a step, 1 being the way from black to white
    jitter     before each step an image is shifted around by at most so many pixels, and at most a quarter of its
               side, so that no edge of a layer's grid shows
    tile       side in pixels of square tiles whose gradients are taken one after the other, for images that do not fit
               into memory as a whole. What lies outside a tile is not seen from inside, but the images are shifted
               around by as much as a tile, so that the seams lie elsewhere in every step
    mean, std  of pictures in [0, 1], see `Images`: the dream stays within the range of pictures. Without them the
               range is [0, 1] for an image that lies in it, for another from its least to its greatest value
    seed       of the shifts, which are the same for all images of a batch
    progress   show a bar on stderr

    Returns a `Dream`: inputs `(B, k, H, W)` of x's type on the model's device, `.score` `(B,)` the objective at full
    size, `.before` the images given with theirs. The model, in evaluation mode here, is left as it was; in half
    precision it is run on pictures kept in fp32.
    Raises ValueError for unknown layers and channels, for a layer whose output has not the batch first, for NaN in x
    and for numbers out of range; RuntimeError if no gradient can flow from the layers to the input.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> dream = deep_dream(model, torch.rand(2, 1, 8, 8), "1")
    >>> dream.data.shape, bool((dream.score > dream.before.score).all())
    (torch.Size([2, 1, 8, 8]), True)
    """
    from tqdm import tqdm

    net = unwrap(model)
    modules = find_layers(net, layers)
    settings: dict[str, Any] = {"octaves": octaves, "scale": scale, "steps": steps, "step_size": step_size}
    settings |= {"jitter": jitter, "tile": tile, "mean": mean, "std": std, "seed": seed}
    _check(octaves, scale, steps, step_size, jitter, tile)
    given = batch_of_images(net, x)
    limits = valid_range(given, mean, std)
    originals = limits.pictures(given)
    ascent = _Ascent(net, modules, limits, tile, _picks(channels, len(modules)))
    sizes = ascent.prepare(originals, _octave_sizes(given.shape[-2], given.shape[-1], octaves, scale))
    draws = torch.rand(len(sizes), steps, 2, generator=torch.Generator().manual_seed(seed))
    bar = tqdm(total=len(sizes) * steps, desc="deep_dream", disable=not progress, leave=False)
    pictures = _resized(originals, sizes[0])
    with differentiable(net, modules) as run, bar:
        before = ascent.values(run, originals)
        for number, size in enumerate(sizes):
            detail = pictures - _resized(originals, pictures.shape[-2:])
            pictures = (_resized(originals, size) + _resized(detail, size)).clamp(0, 1)
            for shifts in _shifts(draws[number], size, jitter, tile):
                pictures = ascent.step(run, pictures, shifts, step_size)
                bar.update()
        after = ascent.values(run, pictures)
    names = [layer_name(net, m) for m in modules]
    about: dict[str, Any] = {"target": channels, "layer": names[0] if len(names) == 1 else names, "mean": mean}
    about |= {"std": std, "value_range": (limits.low, limits.high)}
    return Dream(
        limits.inputs(pictures).to(x.dtype),
        before=Images(given.to(x.dtype), score=before, **about),
        score=after,
        settings={**settings, "sizes": sizes},
        **about,
    )


class _Ascent:
    """The objective of pictures and its gradient, in tiles if need be."""

    def __init__(
        self, net: nn.Module, modules: Sequence[nn.Module], limits: ValidRange, tile: int | None, picks: Picks
    ) -> None:
        self.net, self.modules, self.limits, self.tile, self.picks = net, modules, limits, tile, picks
        self.door = door_of(net)
        self.chosen: list[tuple[int, Tensor] | None] = []  # the dimension of a layer's channels, and which

    def prepare(self, pictures: Tensor, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The sizes that the model runs on, the smallest first; layers and channels are checked at the image's own."""
        first = pictures[:1]
        usable = []
        with differentiable(self.net, self.modules) as run, torch.no_grad():
            for number, size in enumerate(sizes):
                try:
                    seen = self._run(run, next(_tiles(_resized(first, size), self.tile))[0])
                except (RuntimeError, ValueError, AssertionError) as error:
                    if number == 0 or isinstance(error, RuntimeError) and is_out_of_memory(error):
                        raise
                    break
                if number == 0:
                    shapes = [seen.activations[m].shape for m in self.modules]
                usable.append(size)
        self.chosen = [self._chosen(*row, first) for row in zip(self.modules, self.picks, shapes, strict=True)]
        return usable[::-1]

    def values(self, run: Run, pictures: Tensor) -> Tensor:
        """The objective of each image `(B,)`, the mean over the tiles."""
        with torch.no_grad():
            found = [self._objective(self._run(run, part)) for part, *_ in _tiles(pictures, self.tile)]
        return torch.stack(found).mean(0)

    def step(self, run: Run, pictures: Tensor, shifts: tuple[int, int], size: float) -> Tensor:
        down, right = shifts
        gradient = self.gradient(run, pictures.roll((down, right), (2, 3))).roll((-down, -right), (2, 3))
        mean = gradient.abs().mean((1, 2, 3), keepdim=True)
        # Where nothing is active there is nothing to climb.
        return (pictures + size * gradient / torch.where(mean > 0, mean, 1)).clamp(0, 1)

    def gradient(self, run: Run, pictures: Tensor) -> Tensor:
        """Of the objective with respect to the pictures, times a factor that is the same for all of a batch."""
        total, count = torch.zeros_like(pictures), pictures.new_zeros(pictures.shape[-2:])
        for part, rows, columns in _tiles(pictures, self.tile):
            part = part.detach().requires_grad_()
            seen = self._run(run, part)
            # A mean's gradient is too small for half precision.
            enlarged = max(seen.activations[m][0].numel() for m in self.modules) * self._objective(seen).sum()
            total[..., rows, columns] += input_gradient(self.net, enlarged, part)
            count[rows, columns] += 1
        return total / count

    def _run(self, run: Run, pictures: Tensor) -> Seen:
        limits = self.limits.of(slice(len(pictures)))
        seen = run(self.door(limits.inputs(pictures)))
        for module in self.modules:
            shape = tuple(seen.activations[module].shape)
            if len(shape) < 2 or shape[0] != len(pictures):
                name = layer_name(self.net, module)
                raise ValueError(f"layer {name!r} has not the batch of {len(pictures)} first: its output is {shape}")
        return seen

    def _objective(self, seen: Seen) -> Tensor:
        value: Any = 0
        for module, chosen in zip(self.modules, self.chosen, strict=True):
            a = in_full(seen.activations[module])
            if chosen is None:
                value = value + a.flatten(1).square().mean(1) / 2
            else:
                value = value + a.index_select(*chosen).flatten(1).mean(1)
        return value

    def _chosen(
        self, module: nn.Module, picked: list[int] | None, shape: Sequence[int], pictures: Tensor
    ) -> tuple[int, Tensor] | None:
        if picked is None:
            return None
        last = len(shape) == 3  # tokens (B, N, C)
        if len(shape) == 4:
            with suppress(LookupError):
                last = channels_last(self.net, module, Inputs(self.door(self.limits.of([0]).inputs(pictures))), shape)
        dim = -1 if last else 1
        if not picked or not all(0 <= c < shape[dim] for c in picked):
            name = layer_name(self.net, module)
            raise ValueError(f"layer {name!r} has channels 0 to {shape[dim] - 1}, got channels {picked}")
        return dim, torch.tensor(picked, device=pictures.device)


def _check(octaves: int, scale: float, steps: int, step_size: float, jitter: int, tile: int | None) -> None:
    check_count("octaves", octaves)
    check_count("steps", steps)
    if tile is not None:
        check_count("tile", tile, " or None")
    if octaves > 1 and not scale > 1:
        raise ValueError(f"scale must be above 1, got {scale!r}")
    if not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size!r}")
    if jitter != 0:
        check_count("jitter", jitter, " or 0")


def _picks(channels: Any, layers: int) -> Picks:
    """The chosen channels of each layer, None for all."""
    if layers == 1:
        channels = [channels]
    elif channels is None:
        channels = [None] * layers
    elif not isinstance(channels, Sequence) or len(channels) != layers:
        raise ValueError(f"channels must be a list with an entry for each of the {layers} layers, got {channels!r}")
    return [None if c is None else [int(i) for i in np.atleast_1d(c)] for c in channels]


def _octave_sizes(height: int, width: int, octaves: int, scale: float) -> list[tuple[int, int]]:
    """From the image's own down to the smallest."""
    sizes = [(round(height / scale**n), round(width / scale**n)) for n in range(octaves)]
    return sizes[:1] + [size for size in sizes[1:] if min(size) >= _SMALLEST]


def _tiles(pictures: Tensor, tile: int | None) -> Iterator[tuple[Tensor, slice, slice]]:
    """Parts of one size that cover the pictures, with their place: rows, columns."""
    height, width = pictures.shape[-2:]
    for rows in _stretches(height, tile):
        for columns in _stretches(width, tile):
            yield pictures[..., rows, columns], rows, columns


def _stretches(side: int, tile: int | None) -> list[slice]:
    length = min(tile or side, side)
    count = -(-side // length)
    starts = [n * (side - length) // max(1, count - 1) for n in range(count)]
    return [slice(start, start + length) for start in starts]


def _shifts(draws: Tensor, size: tuple[int, int], jitter: int, tile: int | None) -> Iterator[tuple[int, int]]:
    """Pixels down and to the right, from draws `(steps, 2)` in [0, 1)."""
    height, width = (side if tile and tile < side else 2 * min(jitter, side // 4) + 1 for side in size)
    for down, right in draws.tolist():
        yield int(down * height) - height // 2, int(right * width) - width // 2


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if images.shape[-2:] == tuple(size):
        return images
    return F.interpolate(images, list(size), mode="bilinear", antialias=True)
