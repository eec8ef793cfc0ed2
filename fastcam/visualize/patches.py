"""The patches of a data set that excite a channel most, and what in them does (Zeiler and Fergus, figure 2)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import check_count
from fastcam.images import check_contrast
from fastcam.layers import find_layers
from fastcam.record import owned, unwrap
from fastcam.results import Images, shown
from fastcam.visualize.fields import cropped, fields_of
from fastcam.visualize.neurons import RULES, Neurons
from fastcam.visualize.winners import Winners, batches_of

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_FEW = 8  # channels, if none are named
Box = tuple[int, int, int, int]


class TopPatches(Images):
    """The patches that excite channels most, the best first; n channels, K patches of each.

    data          `(n, K, k, h, w)`, model inputs; the middle of their range where the field reaches beyond the image
    projections   `(n, K, k, h, w)`, signed; None if there are none
    score         `(n, K)`, the activations
    target        `(n,)`, the channels
    index         `(n, K)`, the number of the image in the data set
    position      `(n, K, 2)`, row and column in the layer's map
    boxes         `(n, K, 4)`, top, left, bottom, right of the patch in the image, in pixels, half-open
    pictures      `(n, K, k, h, w)` in [0, 1]
    """

    def __init__(
        self, data: Tensor, projections: Tensor | None, index: Tensor, position: Tensor, boxes: Tensor, **about: Any
    ) -> None:
        super().__init__(data, **about)
        self.projections, self.index, self.position, self.boxes = projections, index, position, boxes

    def save_images(self, folder: str | os.PathLike[str], names: str = "{title}.png") -> list[Path]:
        """Each patch as a PNG file of its own size; a title is `channel-rank`, names as for `Images`."""
        titles = [f"{c}-{rank}" for c in self.target.tolist() for rank in range(self.data.shape[1])]
        images = Images(self.pictures.flatten(0, 1), layer=self.layer, titles=titles)
        return images.save_images(folder, names)

    def _tensors(self) -> dict[str, Tensor | None]:
        more = {"projections": self.projections, "index": self.index, "position": self.position, "boxes": self.boxes}
        return super()._tensors() | more

    def _layout(self, columns: int | None = None, size: float = 2.2) -> Layout:
        """columns: blocks in a row; size: the width of a square of patches in inches."""
        from fastcam.figures.canvas import Layout

        n, count = self.data.shape[:2]
        side = int(np.ceil(np.sqrt(count)))
        squares = 1 if self.projections is None else 2
        columns = min(n, columns or (4 if squares == 1 else 2))
        rows = -(-n // columns)
        height = size * self.data.shape[-2] / self.data.shape[-1] * -(-count // side) / side
        return Layout(rows, columns, (squares * size + 0.3) * columns, (0.97 * height + 0.38) * rows)

    def _draw(self, axes: np.ndarray, *_: Any, **__: Any) -> None:
        from fastcam.figures.patches import show_block

        for ax in axes.flat[len(self.data) :]:
            ax.set_axis_off()
        projections = None if self.projections is None else self.projections.float().movedim(2, -1).cpu().numpy()
        best = [] if self.score is None else self.score[:, 0].tolist()
        for n, (ax, channel) in enumerate(zip(axes.flat, self.target.tolist(), strict=False)):
            patches = np.stack([shown(picture) for picture in self.pictures[n]])
            title = f"{self.layer}:{channel}, up to {best[n]:.3g}"
            show_block(ax, patches, None if projections is None else projections[n], title)


def top_patches(
    model: nn.Module,
    dataset: Any,
    layer: Any,
    channels: int | Iterable[int] | None = None,
    k: int = 9,
    *,
    projection: str | None = "guided",
    per_image: bool = True,
    batch_size: int = 32,
    mean: Any = None,
    std: Any = None,
    reshape_transform: Callable[[Any], Tensor] | None = None,
    progress: bool = False,
) -> TopPatches:
    """The patches of a data set that excite channels most (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901, figure 2).

    Of each channel the k highest activations over all images and the rectangle of the input that each depends on, which
    is measured: the whole image where something global lies before the layer, attention or squeeze and excitation, say.
    Beside each its projection, d (that one activation) / d (input) by the rule of `projection`. The data set is run
    through once, as far as the layer; only the images that hold a current winner are kept.

    dataset      model inputs `(N, k, H, W)`, or what gives single images or batches of them, of any sizes, once: a
                 list, a Dataset, a DataLoader, a generator; labels behind an image are ignored
    layer        a module or its name, of maps `(B, C, h, w)`, `(B, h, w, C)` or tokens `(B, N, C)`
    channels     one or several of 0 to C - 1; None for the first 8
    k            patches a channel; fewer, with a warning, if the data set has not as many
    projection   "guided" (guided backpropagation), "deconvnet" (the paper's, which knows of the image only what its
                 max pooling passed on, nothing in a network without), "gradient" (the plain one), or None for none
    per_image    an image counts once, by the highest activation of its map; otherwise each position counts
    batch_size   images in a run of the model
    mean, std    of the inputs, x = (picture - mean) / std, to show them. Without them inputs in [0, 1] are pictures,
                 others are scaled from the least to the greatest value of all patches
    reshape_transform   turns the layer's output into `(B, C, h, w)`; None finds out how it lies, as for `GradCAM`
    progress     show a bar on stderr

    Of equal activations the first wins, by image, row and column. Returns `TopPatches` on the model's device. Warns if
    the first images have nearly no contrast (`check_contrast`). Raises
    ValueError for an unknown channel, a layer without maps, activations that are not a number, a data set without
    images, and for "guided" and "deconvnet" if no ReLU is met up to the layer; TypeError for what is no data set.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    >>> found = top_patches(model, torch.rand(20, 1, 12, 12), "2", [0, 5], k=4)
    >>> found.shape, found.projections.shape, found.index.shape
    (torch.Size([2, 4, 1, 5, 5]), torch.Size([2, 4, 1, 5, 5]), torch.Size([2, 4]))
    """
    k, batch_size = check_count("k", k), check_count("batch_size", batch_size)
    if projection is not None and projection not in RULES:
        raise ValueError(f'projection must be "guided", "deconvnet", "gradient" or None, got {projection!r}')
    found = find_layers(model, layer)
    if len(found) != 1:
        raise ValueError(f"layer must be one layer, {layer!r} names {len(found)}")
    seen = Neurons(unwrap(model), found[0], projection, reshape_transform)
    wanted, winners = _numbers(channels), None
    for images in batches_of(dataset, batch_size, progress):
        maps = seen.maps(images)
        if winners is None:
            numbers = _existing(wanted, maps.shape[1], seen.name)
            winners = Winners(k, per_image, maps[:, numbers])
            _grey(mean, std, images[0])
            check_contrast(images, mean, std, name="dataset", stacklevel=3)
            seen.projected(images[:1], [(numbers[0], 0, 0)])  # what is wrong is better said before a long run
        winners.add(maps[:, numbers], images)
    if winners is None:
        raise ValueError("dataset gave no image")
    _check_finite(winners, numbers, seen.name)
    if winners.score.shape[1] < k:
        have = f"{winners.score.shape[1]} {'images' if per_image else 'positions'}"
        warnings.warn(f"k is {k}, the data set has {have}: all of them are shown", stacklevel=2)
    about = {"k": k, "projection": projection, "per_image": per_image, "images": winners.seen, "mean": mean, "std": std}
    return _assembled(seen, winners, numbers, batch_size, about)


def _assembled(
    seen: Neurons, winners: Winners, numbers: list[int], batch_size: int, about: dict[str, Any]
) -> TopPatches:
    """The winners' patches and projections, cut out of their images."""
    shape = winners.score.shape
    index, position = winners.index.flatten().tolist(), winners.position.flatten(0, 1).tolist()
    neurons = [(numbers[n // shape[1]], *place) for n, place in enumerate(position)]
    images = [winners.images[n] for n in index]
    boxes, size = _boxes(seen, images, position)
    first = owned(seen.net, images[0])
    zero, unknown = torch.zeros_like(first[:, :1, :1]), torch.full_like(first[:, :1, :1], float("nan"))
    patches, projections = [zero] * len(images), [zero] * len(images)
    for rows in _batches(images, batch_size):
        batch = owned(seen.net, torch.stack([images[n] for n in rows]))
        gradients = seen.projected(batch, [neurons[n] for n in rows])
        for place, n in enumerate(rows):
            patches[n] = cropped(batch[place], boxes[n], size, unknown)
            if gradients is not None:
                projections[n] = cropped(gradients[place], boxes[n], size, zero)
    device, data = first.device, torch.stack(patches)
    limits = _limits(data, about)
    data = torch.where(data.isnan(), _grey(about["mean"], about["std"], first, sum(limits) / 2), data)
    return TopPatches(
        data.unflatten(0, shape),
        None if seen.projection is None else torch.stack(projections).unflatten(0, shape),
        winners.index.to(device),
        winners.position.to(device),
        torch.tensor(boxes, device=device).unflatten(0, shape),
        mean=about["mean"],
        std=about["std"],
        value_range=limits,
        titles=[f"channel {n}" for n in numbers],
        target=torch.tensor(numbers, device=device),
        score=winners.score,
        layer=seen.name,
        settings=about,
    )


def _boxes(seen: Neurons, images: list[Tensor], position: list[list[int]]) -> tuple[list[Box], tuple[int, int]]:
    """Of each position the rectangle of its image that it depends on, and the size that holds each of them."""
    shapes = dict.fromkeys(image.shape for image in images)
    boxes: dict[int, Box] = {}
    extents = []
    for shape in shapes:
        rows = [n for n, image in enumerate(images) if image.shape == shape]
        fields = fields_of(
            seen.net, seen.module, images[rows[0]], [(position[n][0], position[n][1]) for n in rows], seen.arranged
        )
        extents.append(fields.extent())
        for n in rows:
            (top, bottom), (left, right) = fields.rows[position[n][0]], fields.columns[position[n][1]]
            boxes[n] = top, left, bottom, right
    height, width = (max(sizes) for sizes in zip(*extents, strict=True))
    return [boxes[n] for n in range(len(images))], (height, width)


def _batches(images: list[Tensor], size: int) -> Iterable[list[int]]:
    """The places of images of one shape, up to `size` at once."""
    for shape in dict.fromkeys(image.shape for image in images):
        rows = [n for n, image in enumerate(images) if image.shape == shape]
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _limits(patches: Tensor, about: dict[str, Any]) -> tuple[float, float]:
    """The range of pictures, or, without mean and std, of patches that are none; NaN is where there is no image."""
    if about["mean"] is not None or about["std"] is not None:
        return 0.0, 1.0
    low, high = (end.item() for end in patches[~patches.isnan()].aminmax())
    return (low, high) if (low < 0 or high > 1) and low < high else (0.0, 1.0)


def _grey(mean: Any, std: Any, image: Tensor, middle: float = 0.5) -> Tensor:
    """The input `(k, 1, 1)` of a grey picture."""
    grey = torch.full((len(image), 1, 1), middle, device=image.device, dtype=image.dtype)
    for name, given in (("mean", mean), ("std", std)):
        if given is None:
            continue
        values = torch.as_tensor(given, device=image.device, dtype=image.dtype).view(-1, 1, 1)
        if len(values) not in (1, len(image)):
            raise ValueError(f"{name} must be one value or {len(image)}, got {len(values)}")
        if name == "std" and bool((values <= 0).any()):
            raise ValueError(f"std must be above 0, got {std}")
        grey = grey - values if name == "mean" else grey / values
    return grey


def _numbers(channels: Any) -> list[int] | None:
    """Channels as a list of whole numbers, not yet known to exist."""
    if channels is None:
        return None
    if isinstance(channels, Tensor | np.ndarray):
        channels = channels.tolist()
    given = list(channels) if isinstance(channels, Iterable) and not isinstance(channels, str) else [channels]
    wrong = [c for c in given if not isinstance(c, int | np.integer) or isinstance(c, bool)]
    if wrong or not given:
        raise TypeError(f"channels must be a channel's number or several, got {wrong[0] if wrong else given!r}")
    return [int(c) for c in given]


def _existing(numbers: list[int] | None, count: int, name: str) -> list[int]:
    if numbers is None:
        return list(range(min(count, _FEW)))
    if wrong := [c for c in numbers if not 0 <= c < count]:
        raise ValueError(f"layer {name!r} has {count} channels, 0 to {count - 1}; channels has {wrong[0]}")
    return numbers


def _check_finite(winners: Winners, numbers: list[int], name: str) -> None:
    wrong = winners.score.isnan().nonzero().tolist()  # which come first in order
    if wrong:
        n, rank = wrong[0]
        raise ValueError(
            f"channel {numbers[n]} of layer {name!r} is not a number for image {int(winners.index[n, rank])}"
        )
