"""The highest values of channels over a stream of images, and the images that hold them: no more is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_WANTED = "dataset must give floating-point tensors (k, H, W) or (B, k, H, W), alone or first in a pair with labels"


def batches_of(dataset: Any, size: int, progress: bool = False) -> Iterator[Tensor]:
    """The images of a data set in their order, as batches `(B, k, H, W)` with B up to `size` of one shape.

    dataset    a tensor `(N, k, H, W)`, or what gives tensors when it is iterated, or indexed from 0 to its length:
               single images or batches, with or without labels behind them
    progress   show a bar on stderr
    Raises TypeError for what gives no images.
    """
    from tqdm import tqdm

    waiting: list[Tensor] = []
    items = tqdm(_items(dataset, size), total=_count(dataset, size), disable=not progress, leave=False)
    for place, item in enumerate(items):
        images = _images(item, place)
        if waiting and (images.shape[1:], images.dtype, images.device) != _kind(waiting):
            yield torch.cat(waiting)
            waiting = []
        while len(images):
            free = size - sum(map(len, waiting))
            waiting.append(images[:free])
            images = images[free:]
            if sum(map(len, waiting)) == size:
                yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                waiting = []
    if waiting:
        yield torch.cat(waiting)


def _kind(waiting: list[Tensor]) -> tuple[Any, ...]:
    return waiting[0].shape[1:], waiting[0].dtype, waiting[0].device


def _items(dataset: Any, size: int) -> Iterable[Any]:
    if isinstance(dataset, Tensor):
        if dataset.ndim != 4:
            raise TypeError(f"dataset must be (N, k, H, W) if it is a tensor, got {tuple(dataset.shape)}")
        return dataset.split(size)
    if hasattr(dataset, "__iter__") and not isinstance(dataset, str | bytes | Mapping):
        return dataset
    if (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and not isinstance(dataset, str | bytes | Mapping)
    ):
        return (dataset[n] for n in range(len(dataset)))  # not every data set ends with an IndexError
    raise TypeError(f"{_WANTED}; got {type(dataset).__name__}, which gives none")


def _count(dataset: Any, size: int) -> int | None:
    if isinstance(dataset, Tensor):
        return -(-len(dataset) // size)
    try:
        return len(dataset)
    except TypeError:
        return None


def _images(item: Any, place: int) -> Tensor:
    """The images `(B, k, H, W)` of what a data set gave."""
    if isinstance(item, Mapping):
        item = next((v for v in item.values() if isinstance(v, Tensor) and v.ndim in (3, 4)), item)
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if not isinstance(item, Tensor):
        hint = "; torch.from_numpy(x).float() makes one" if type(item).__name__ == "ndarray" else ""
        raise TypeError(f"{_WANTED}; item {place} is {type(item).__name__}{hint}")
    if item.ndim not in (3, 4) or not item.is_floating_point():
        raise TypeError(f"{_WANTED}; item {place} is {item.dtype} {tuple(item.shape)}")
    return item.detach() if item.ndim == 4 else item.detach()[None]


class Winners:
    """The k highest values of each of n channels so far; of equal ones the one that came first.

    score      `(n, k)`, the highest first; fewer than k columns as long as there were fewer
    index      `(n, k)`, the number of the image
    position   `(n, k, 2)`, row and column in the map
    images     the images that hold them by their number, each `(k, H, W)`
    """

    def __init__(self, k: int, per_image: bool, like: Tensor) -> None:
        """Nothing seen yet.

        per_image   an image has one value, the highest of its map; otherwise each position has one
        like        maps `(B, n, h, w)`, for their n, type and device
        """
        self.k, self.per_image, self.seen = k, per_image, 0
        self.images: dict[int, Tensor] = {}
        self.score = like.new_empty(like.shape[1], 0)
        self.index = self.score.long()
        self.position = self.index.new_empty(like.shape[1], 0, 2)

    def add(self, maps: Tensor, images: Tensor) -> None:
        """The maps `(B, n, h, w)` of the next images `(B, k, H, W)`."""
        width = maps.shape[3]
        values = maps.movedim(1, 0).flatten(2)  # (n, B, h w)
        if self.per_image:
            values, place = values.max(2)  # the first of equal ones
            number = torch.arange(values.shape[1], device=maps.device).expand_as(values)
        else:
            number, place = (
                t.flatten().expand(len(values), -1)
                for t in torch.meshgrid(*(torch.arange(n, device=maps.device) for n in values.shape[1:]), indexing="ij")
            )
            values = values.flatten(1)
        position = torch.stack([place // width, place % width], 2)
        score = torch.cat([self.score, values], 1)
        index = torch.cat([self.index, number + self.seen], 1)
        position = torch.cat([self.position, position], 1)
        # topk promises no order of equal ones
        order = score.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.score, self.index = score.gather(1, order), index.gather(1, order)
        self.position = position.gather(1, order[..., None].expand(-1, -1, 2))
        holding = set(self.index.flatten().tolist())
        kept = {n: image for n, image in self.images.items() if n in holding}
        fresh = sorted(n for n in holding if n >= self.seen)
        self.images = kept | {n: images[n - self.seen].clone() for n in fresh}  # a view would keep the whole batch
        self.seen += len(images)
