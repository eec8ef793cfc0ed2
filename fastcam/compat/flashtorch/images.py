"""Pictures to inputs of a model and back, as `flashtorch.utils` does, for any number of channels."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fastcam.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, as_image, open_image


def statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for each channel: ImageNet's for 3, otherwise the mean of those three for all."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_STD) / 3,) * channels


def load_image(image_path: str | os.PathLike[str]) -> Any:
    """An image file as Pillow's RGB image, upright. ValueError, naming the file, if it is none."""
    return open_image(image_path, 3)


def apply_transforms(image: Any, size: int = 224) -> Tensor:
    """A picture as a model's input `(1, k, size, size)` that requires a gradient: resized, cropped, normalised.

    The short side becomes `size` pixels, the centre is kept; x = (picture - mean) / std with ImageNet's values, for
    grey pictures their mean over the channels.
    image   Pillow's, or a uint8 array `(H, W)` or `(H, W, k)`, or a tensor `(k, H, W)`, floating point in [0, 1]; k is
            1 or 3, and a fourth channel, the transparency, does not count
    Raises TypeError and ValueError for what is no picture.
    """
    picture = as_image(image)
    mean, std = statistics(len(picture.getbands()))
    x, _ = Preprocess(size, size, mean, std)(picture)
    return x.unsqueeze(0).requires_grad_()


def denormalize(tensor: Tensor) -> Tensor:
    """Inputs `(B, k, H, W)` or `(k, H, W)` as pictures: x std + mean, a new tensor, in the graph of the old one."""
    if tensor.ndim < 3:
        raise ValueError(f"tensor must be (B, k, H, W) or (k, H, W), got {tuple(tensor.shape)}")
    mean, std = (torch.tensor(v, dtype=tensor.dtype, device=tensor.device) for v in statistics(tensor.shape[-3]))
    return tensor * std.view(-1, 1, 1) + mean.view(-1, 1, 1)


def standardize_and_clip(
    tensor: Tensor,
    min_value: float = 0.0,
    max_value: float = 1.0,
    saturation: float = 0.1,
    brightness: float = 0.5,
) -> Tensor:
    """saturation (x - mean) / std + brightness, cut to [min_value, max_value]: a detached tensor on the CPU.

    Mean and standard deviation are those of all values; a constant tensor becomes `brightness`.
    """
    x = tensor.detach().cpu()
    std = x.std() if x.numel() > 1 else x.new_zeros(())
    return ((x - x.mean()) / (std if std > 0 else 1e-7) * saturation + brightness).clamp(min_value, max_value)


def format_for_plotting(tensor: Tensor) -> Tensor:
    """`(1, k, H, W)` or `(k, H, W)` as `(H, W, k)`, or `(H, W)` for one channel: a detached tensor of its own.

    More images than one keep their dimension: `(B, H, W, k)` or `(B, H, W)`.
    """
    if tensor.ndim not in (3, 4):
        raise ValueError(f"tensor must be (B, k, H, W) or (k, H, W), got {tuple(tensor.shape)}")
    x = tensor.detach().clone()
    x = x.squeeze(0) if x.ndim == 4 else x
    return x.squeeze(-3) if x.shape[-3] == 1 else x.movedim(-3, -1)


def grey_or_rgb(tensor: Tensor) -> Tensor:
    """What a figure can show of `(k, H, W)` or `(B, k, H, W)`: 3 channels, otherwise the mean over them."""
    return (tensor if tensor.shape[-3] == 3 else tensor.mean(-3, keepdim=True)).float()
