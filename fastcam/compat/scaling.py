"""Min-max and resize of numpy maps, as in `pytorch_grad_cam.utils.image`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastcam import ops


def scale_cam_image(cam: Any, target_size: Sequence[int] | None = None) -> np.ndarray:
    """Each map of a batch scaled to [0, 1), (v - min v) / (1e-7 + max(v - min v)), then resized: float32 `(B, *S)`.

    cam           arrays `(B, *S)` or a list of them; a single map `(H, W)` is taken as H lines, each scaled by itself
    target_size   (W, H) or (W, H, D); None leaves the size
    """
    maps = [np.asarray(m) for m in cam]
    if not maps:
        return np.zeros(0, np.float32)
    if len({m.shape for m in maps}) > 1:
        return np.concatenate([scale_cam_image(m[None], target_size) for m in maps])
    batch = np.stack(maps)
    axes = tuple(range(1, batch.ndim))
    batch = batch - batch.min(axes, keepdims=True)
    batch = (batch / (1e-7 + batch.max(axes, keepdims=True))).astype(np.float32)
    if target_size is None:
        return batch
    batch = batch[:, None] if batch.ndim == 2 else batch  # a line is a picture one pixel high
    return ops.resize(torch.from_numpy(batch), tuple(target_size)[::-1]).numpy()


def scale_accross_batch_and_channels(tensor: np.ndarray, target_size: Sequence[int]) -> np.ndarray:
    """`scale_cam_image` of every channel by itself, `(B, C, H, W)` at the size (W, H)."""
    scaled = scale_cam_image(tensor.reshape(-1, *tensor.shape[2:]), target_size)
    return scaled.reshape(*tensor.shape[:2], *scaled.shape[1:])
