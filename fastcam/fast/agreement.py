"""How near the maps of fast mode are to the exact ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcam import ops


@dataclass(frozen=True)
class Agreement:
    """How near maps of fast mode were to those of the model as it is, on the first images.

    max_difference     the largest difference of two values, maps being in [0, 1]
    rank_correlation   Spearman's over the positions of a map, the lowest of all maps
    maps               how many were compared
    """

    max_difference: float
    rank_correlation: float
    maps: int

    def __str__(self) -> str:
        return (
            f"agreement with the exact maps: largest difference {self.max_difference:.1e}, "
            f"rank correlation {self.rank_correlation:.4f} ({self.maps} map{'s' * (self.maps != 1)})"
        )

    def with_worse(self, other: Agreement) -> Agreement:
        """What holds of both."""
        difference = float(np.maximum(self.max_difference, other.max_difference))  # NaN stays
        correlation = float(np.minimum(self.rank_correlation, other.rank_correlation))
        return Agreement(difference, correlation, self.maps + other.maps)


def agreement_of(fast: Sequence[Tensor], exact: Sequence[Tensor], beside: int, normalized: bool) -> Agreement:
    """Of maps `(B, *S)` or `(B, T, *S)`, a tensor a layer.

    beside       the number of dimensions before S
    normalized   whether they are in [0, 1]; signed ones are brought there first
    """
    found: list[tuple[float, float]] = []
    for pair in zip(fast, exact, strict=True):
        a, b = (m.cpu().double().reshape(-1, *m.shape[beside:]) for m in pair)
        if not normalized:
            a, b = (ops.min_max(m.relu()) for m in (a, b))
        found += [
            ((p - q).abs().max().item(), _rank_correlation(p.numpy(), q.numpy())) for p, q in zip(a, b, strict=True)
        ]
    differences, correlations = zip(*found, strict=True)
    return Agreement(float(np.max(differences)), float(np.min(correlations)), len(found))  # NaN stays


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; of two constant maps 1, of a constant one and another 0, NaN where a value is no number."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    p, q = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    norms = float(np.linalg.norm(p)), float(np.linalg.norm(q))
    if 0 in norms:
        return float(norms[0] == norms[1])
    return float(p.ravel() @ q.ravel() / norms[0] / norms[1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, equal ones sharing theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - counts / 2)[places.ravel()]


def random_state(device: torch.device) -> Callable[[], None]:
    """What puts every generator that a method or a model draws from back to where it is now."""
    on_cpu, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(on_cpu)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return restore
