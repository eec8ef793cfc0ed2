"""What a call of pytorch-grad-cam's is made of: augmentations, targets, outputs, and the gradients of the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.targets import ClassifierOutputTarget, find_logits


class FlipAndScale:
    """An augmentation of images `(B, k, H, W)`, with ttach's method names."""

    def __init__(self, flip: bool, factor: float) -> None:
        self.flip, self.factor = flip, factor

    def augment_image(self, image: Tensor) -> Tensor:
        return (image.flip(3) if self.flip else image) * self.factor

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        return mask.flip(3) if self.flip else mask


AUGMENTATIONS = [FlipAndScale(flip, factor) for flip, factor in itertools.product((False, True), (0.9, 1, 1.1))]


def smoothed(
    transforms: Any, forward: Callable[[Tensor], np.ndarray], x: Tensor, outputs: Callable[[], Any] = lambda: None
) -> tuple[np.ndarray, Any]:
    """The mean of the maps over augmentations, and the outputs for the image itself, None if it is not among them."""
    maps, clean = [], None
    for transform in transforms:
        cam = torch.from_numpy(forward(transform.augment_image(x)))
        maps.append(transform.deaugment_mask(cam[:, None])[:, 0].numpy())
        if transform is AUGMENTATIONS[1]:
            clean = outputs()
    return np.mean(np.stack(maps), axis=0), clean


def as_numpy(t: Any) -> np.ndarray:
    """Activations or gradients as numpy, in fp32 at least; ValueError for None, which stands for none."""
    if t is None:
        raise ValueError("a target layer gave no activation or no gradient: it did not run, or the output is not of it")
    if not isinstance(t, Tensor):
        t = torch.from_numpy(np.ascontiguousarray(t))
    return ops.wide(t.detach()).cpu().numpy()


def listed(targets: Any) -> Any:
    """Targets as None or a list of callables, class indices included."""
    if targets is None:
        return None
    targets = [targets] if callable(targets) or not hasattr(targets, "__iter__") else list(targets)
    return [t if callable(t) else ClassifierOutputTarget(int(t)) for t in targets]


def rows_of(outputs: Any, targets: Any) -> Any:
    """What targets are called with, one by one: the outputs as they are, but the logits in a mapping.

    Where the targets are yet to be found, the logits anyway.
    """
    if targets is None or callable(targets) or isinstance(outputs, Mapping) or hasattr(outputs, "logits"):
        logits = find_logits(outputs)
        if logits is None and targets is None:
            raise TypeError(f"targets must be given for a model that returns {type(outputs).__name__}")
        return outputs if logits is None else logits
    return outputs


def per_row(targets: Any, rows: Any) -> Any:
    """A target a row: the predicted classes for None, what a function makes of the rows; a single one serves all."""
    if callable(targets):
        return targets(rows)
    if targets is None:
        return [ClassifierOutputTarget(c) for c in rows.detach().argmax(-1).tolist()]
    return targets * len(rows) if len(targets) == 1 and isinstance(rows, Tensor | list) else targets


def version_of(x: Any) -> int:
    """How often a tensor was written into; 0 for what else a model takes."""
    return x._version if isinstance(x, Tensor) and not x.is_inference() else 0


def detached(output: Any) -> Any:
    """An output without its graph."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return type(output)((key, detached(value)) for key, value in output.items())
    return type(output)(map(detached, output)) if type(output) in (list, tuple) else output


@contextmanager
def gradients_kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The parameters' `.grad` is as before at the end, whatever runs backwards inside."""
    kept = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        yield
    finally:
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad
