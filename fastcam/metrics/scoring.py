"""What a model says of images and of changed copies of them, in full batches; maps in the forms that callers have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import BatchSize, in_batches
from fastcam.record import call, check_input, evaluation, owned, unwrap
from fastcam.rows import Rows
from fastcam.targets import Targets, per_image, row_scores

_AT_ONCE = 2**27  # values of changed images that are held at once


def as_maps(maps: Any, x: Tensor) -> Tensor:
    """Maps as a tensor `(B, H, W)` beside the images x `(B, k, H, W)`, in fp32 or fp64; or a ValueError.

    maps   an array, a tensor or a list of either, of floats, integers or booleans
    """
    if isinstance(maps, list | tuple):
        maps = torch.stack(maps) if maps and isinstance(maps[0], Tensor) else np.stack(maps)
    if not isinstance(maps, Tensor | np.ndarray):
        raise TypeError(f"maps must be an array, a tensor or a list of them, got {type(maps).__name__}")
    wanted = (len(x), *x.shape[2:])
    if tuple(maps.shape) != wanted:
        raise ValueError(f"maps must be (B, H, W) = {wanted} as the input is, got {tuple(maps.shape)}")
    t = maps.detach() if isinstance(maps, Tensor) else torch.from_numpy(np.array(maps))
    keep = t.dtype == torch.float64 and x.device.type != "mps"
    return t.to(x.device, torch.float64 if keep else torch.float32)


def multiplied(x: Tensor, factors: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
    """x m + baseline (1 - m) for factors m `(B, *S)`, in the type of x `(B, k, *S)`."""
    m = factors.unsqueeze(1)
    mixed = x * m
    if isinstance(baseline, Tensor) or baseline != 0:
        mixed = mixed + baseline * (1 - m)
    return mixed.to(x.dtype)


class Scorer:
    """A model's scores of a batch of images, and of rows made from them.

    x        the images on the model's device
    before   the score of each image, `(B,)` in at least fp32
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        targets: Targets,
        *,
        probability: bool = False,
        batch_size: int | str = "auto",
    ) -> None:
        check_input(x)
        if per_image(targets) is not None:
            raise ValueError("targets must be one per image; for several, repeat the images and give a map for each")
        self.net = unwrap(model)
        self.x = owned(self.net, x.detach())
        self._size = BatchSize(batch_size, self.x.device)
        with evaluation(self.net):
            output = call(self.net, self.x.clone())
            self._score = row_scores(targets, output, len(x), probability)
            self.before = self._score(output, Rows.of(range(len(x)), self.x.device)).squeeze(1)

    def of(self, rows: int, images: Tensor, make: Callable[[int, int], Tensor]) -> Tensor:
        """The scores `(rows,)` of the changed images `make(start, stop)`, made once each and in order.

        images   the image of each row, `(rows,)`
        """
        step = max(1, _AT_ONCE // self.x[0].numel())
        listed, parts = images.tolist(), []
        with evaluation(self.net):
            for first in range(0, rows, step):
                batch = make(first, min(rows, first + step))
                parts.append(in_batches(len(batch), self._run(batch, listed[first : first + step]), self._size))
        return torch.cat(parts)

    def _run(self, batch: Tensor, images: Sequence[int]) -> Callable[[int, int], Tensor]:
        def run(start: int, stop: int) -> Tensor:
            output = call(self.net, batch[start:stop].clone())
            return self._score(output, Rows.of(images[start:stop], batch.device)).squeeze(1)

        return run

    def after(self, changed: Tensor) -> Tensor:
        """The scores `(B,)` of a changed copy of each image."""
        return self.of(len(changed), torch.arange(len(changed), device=changed.device), lambda i, j: changed[i:j])
