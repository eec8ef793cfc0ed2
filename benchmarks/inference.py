"""Images to a model and what it says of them: the data of the part on data sets, and the plain loop over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import photographs
from benchmarks.models import images
from fastcam.dataset.sources import ImageFiles

_DISTINCT = 256  # images that are held: as many as it takes for two batches to differ


class Decoded(Dataset[tuple[Tensor, int]]):
    """Inputs of a model that are in memory already; beyond the first so many the same again."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.held = images(min(count, _DISTINCT), size)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.held[index % len(self.held)], -1

    def inputs(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Loading:
    """How either side reads.

    batch     images at once
    workers   processes that decode
    """

    batch: int
    workers: int


def usual_workers() -> int:
    """As many as `attribute_dataset` takes by itself."""
    return max(1, min(8, os.cpu_count() or 1))


def listed(paths: Sequence[Path], file: Path) -> ImageFiles:
    """Image files as the data set that the command makes of a list of them."""
    file.write_text("".join(f"{path.name}\n" for path in paths))
    return ImageFiles(file)


def in_slices(folder: Path, count: int, size: int) -> list[ImageFiles]:
    """Photographs, made in the folder if need be, as data sets of `size` each; what is left over is left out."""
    paths = photographs.make(folder, count)
    starts = range(0, count - size + 1, size)
    return [listed(paths[start : start + size], folder / f"slice-{start}-{size}.txt") for start in starts]


@torch.no_grad()
def plain_loop(net: nn.Module, data: Any, loading: Loading, device: str) -> Tensor:
    """The predicted classes, as anyone's loop finds them: workers decode, the device normalises."""
    pin = device == "cuda"
    batches = DataLoader(data, batch_size=loading.batch, num_workers=loading.workers, pin_memory=pin)
    found = [net(data.inputs(x.to(device, non_blocking=True))).argmax(1) for x, _ in batches]
    return torch.cat(found).cpu()


def in_turn(call: Callable[[Any], Any], slices: Sequence[Any]) -> Callable[[], Any]:
    """A call of nothing that takes the next slice each time."""
    turns: Iterator[Any] = cycle(slices)
    return lambda: call(next(turns))
