"""Model inputs as pictures in [0, 1] and back, and what an optimisation of pictures needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcam.images import check_contrast, statistics
from fastcam.inputs import check_input
from fastcam.record import owned


class ValidRange(NamedTuple):
    """Where images lie: inputs = low + pictures (high - low), each `(1, 1 or k, 1, 1)` or `(B, 1, 1, 1)`."""

    low: Tensor
    high: Tensor

    def pictures(self, x: Tensor) -> Tensor:
        """In [0, 1]; what lies outside the range is cut off."""
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1)

    def inputs(self, pictures: Tensor) -> Tensor:
        return self.low + pictures * (self.high - self.low)

    def of(self, images: Any) -> ValidRange:
        """That of some images of the batch."""
        return self if len(self.low) == 1 else ValidRange(self.low[images], self.high[images])


def batch_of_images(net: nn.Module, x: Any) -> Tensor:
    """A checked batch `(B, k, H, W)` on the model's device, in at least fp32 and without a graph."""
    check_input(x)
    if x.ndim != 4:
        hint = ": it has no batch dimension, pass x[None]" if x.ndim == 3 else ""
        raise ValueError(f"x must be a batch of images (B, k, H, W), got {tuple(x.shape)}{hint}")
    if not bool(x.isfinite().all()):
        raise ValueError("x has values that are NaN or infinite")
    x = owned(net, x.detach())
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def valid_range(x: Tensor, mean: Any = None, std: Any = None) -> ValidRange:
    """The range of images `(B, k, H, W)`: that of pictures in [0, 1] behind (picture - mean) / std, if these are given.

    Otherwise [0, 1] for each image that lies in it, and for others from their least to their greatest value.
    Warns of images with hardly any contrast. Raises ValueError for a std of 0 or less, for lengths that do not fit and
    for an image of one value outside [0, 1].
    """
    if mean is None and std is None:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
        inside = (low >= 0) & (high <= 1)
        limits = ValidRange(torch.where(inside, 0, low), torch.where(inside, 1, high))
        if bool((limits.low == limits.high).any()):
            raise ValueError("x has an image of one value outside [0, 1], so its range is unknown: pass mean and std")
    else:
        centre, spread = (value[None] for value in statistics(x, mean, std, positive=True))
        limits = ValidRange(-centre / spread, (1 - centre) / spread)
    check_contrast(x, mean, std, name="x", stacklevel=5)
    return limits


def door_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """What is done to images in front of the model: a model in half precision gets them in its own type."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    return lambda x: x if dtype is None else x.to(dtype)


def in_full(activation: Tensor) -> Tensor:
    """An activation in at least fp32."""
    return activation.float() if activation.dtype in (torch.float16, torch.bfloat16) else activation


def input_gradient(net: nn.Module, value: Tensor, x: Tensor) -> Tensor:
    """d value / d x; RuntimeError where the model lets no gradient through."""
    gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise RuntimeError(
            f"{type(net).__name__} carries no gradient from the layers back to the input: its forward detaches it or "
            "switches gradients off"
        )
    return gradient
