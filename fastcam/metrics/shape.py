"""What a map looks like, whatever the model: its sparseness. And maps that know nothing of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcam import ops


def sparseness(maps: Tensor) -> Tensor:
    """The Gini index of |m| (Chalasani et al., ICML 2020, arXiv:1810.06583).

    1 - 2 sum_k v_k / |v|_1 (N - k + 1/2) / N, v the absolute values in ascending order, k from 1 to N

    maps   `(B, H, W)`
    `(B,)` from 0, all pixels alike (a map of zeros too), to 1 - 1/N, one pixel only.

    >>> sparseness(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
    tensor([0.7500])
    """
    v = ops.wide(maps).flatten(1).abs().sort(1).values
    N = v.shape[1]
    k = torch.arange(1, N + 1, device=v.device)
    weighted, total = (v * (N - k + 0.5)).sum(1) / N, v.sum(1)
    return torch.where(total > 0, 1 - 2 * weighted / torch.where(total > 0, total, 1), 0)


def random_maps(B: int, H: int, W: int, seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1), `(B, H, W)` on the CPU, the same for a seed; torch's own generator is not used."""
    return torch.rand(B, H, W, generator=torch.Generator().manual_seed(seed))


def centre_gaussian_maps(B: int, H: int, W: int, std: float = 0.25) -> Tensor:
    """A Gaussian in the middle, `(B, H, W)` in (0, 1] on the CPU: what a photographer's habit alone scores.

    std   the standard deviation, in heights and widths
    """
    if std <= 0:
        raise ValueError(f"std must be above 0, got {std}")
    y, x = (torch.exp(-(((torch.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * std**2)) for n in (H, W))
    peak = y.max() * x.max()
    return (y[:, None] * x / peak).expand(B, H, W).clone()
