"""pytorch-grad-cam's transforms, for one grid each; `fastcam.tokens` finds how tokens lie in space by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens `(B, 1 + height * width, C)` behind one class token as `(B, C, height, width)`."""
    return tensor[:, 1:].unflatten(1, (height, width)).movedim(-1, 1)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Tokens `(B, height * width, C)`, or a channels-last map `(B, height, width, C)`, as `(B, C, height, width)`."""
    return (tensor if tensor.ndim == 4 else tensor.unflatten(1, (height, width))).movedim(-1, 1)


def fasterrcnn_reshape_transform(x: dict[str, Tensor]) -> Tensor:
    """The levels `(B, C, h, w)` of a feature pyramid as one: magnitudes, at the size of the level "pool"."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], 1)
