"""Principal components of numpy activations, as in `pytorch_grad_cam.utils.svd_on_activations`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import fastcam
from fastcam import ops


def get_2d_projection(activation_batch: np.ndarray) -> np.ndarray:
    """First principal component of `(B, C, *S)` activations, float32 `(B, *S)`, with the sign that LAPACK gives it."""
    return ops.principal_component(_tensor(activation_batch), "lapack").sum(1).float().numpy()


def get_2d_projection_kernel(activation_batch: np.ndarray, kernel: Any = "sigmoid", gamma: Any = None) -> np.ndarray:
    """First component of kernel PCA, see `fastcam.KPCA_CAM`, float32 `(B, *S)`."""
    cam = fastcam.KPCA_CAM(torch.nn.Identity(), kernel=kernel, gamma=gamma)
    return cam.low_map(_tensor(activation_batch), False).sum(1).float().numpy()


def get_2d_projection_with_sign_correction(activation_batch: np.ndarray) -> np.ndarray:
    """`get_2d_projection` with the sign that makes the largest absolute value positive."""
    p = get_2d_projection(activation_batch)
    axes = tuple(range(1, p.ndim))
    return np.where(np.abs(p.min(axes, keepdims=True)) > np.abs(p.max(axes, keepdims=True)), -p, p)


def _tensor(activations: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(activations))
