"""Methods that look at the activations alone; no class, no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam import ops
from fastcam.methods.base import BaseCAM
from fastcam.record import Run
from fastcam.targets import Targets, are_callables, class_indices, logits_of

Kernel = Callable[[np.ndarray, np.ndarray], float]


class ActivationCAM(BaseCAM):
    """A map made of a layer's activations A `(B, C, *S)`; targets do not matter."""

    uses_gradients = False
    class_discriminative = False

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        if run.output is not None and targets is not None and not are_callables(targets):
            class_indices(targets, logits_of(run.output))  # a mistake in them is an error here as elsewhere
        return [self.low_map(A, eigen_smooth) for A in self.spatial(run, run.activations)]

    def low_map(self, A: Tensor, eigen_smooth: bool) -> Tensor:
        """The low map `(B, P, *S)` of one layer."""
        raise NotImplementedError(f"{type(self).__name__} defines no low_map")


class EigenCAM(ActivationCAM):
    """EigenCAM (Muhammad and Yeasin, IJCNN 2020, arXiv:2008.00299).

    map_n = (X_n - mean X) · v, X_n the channel vector at position n, v their first principal direction

    v has no sign of its own: by default the map correlates positively with the mean over channels (on a tie its
    largest absolute value is positive); `sign="lapack"` gives pytorch-grad-cam's choice. Targets do not matter.
    """

    is_capturable = True

    def low_map(self, A: Tensor, eigen_smooth: bool) -> Tensor:
        return ops.principal_component(A, self.sign)


class KPCA_CAM(ActivationCAM):
    """KPCA-CAM (Karmani et al. 2024, arXiv:2410.00267): EigenCAM with a kernel.

    map = sqrt(λ) u, λ the largest eigenvalue of the centred kernel matrix k(X_n, X_m), u its eigenvector

    X_n is the channel vector at position n, centred over the positions; u's largest absolute value is positive.

    kernel    "sigmoid" tanh(γ x·y + 1), "rbf" exp(-γ |x - y|²), "poly" (γ x·y + 1)³, "cosine", "linear", or a callable
              from two channel vectors (numpy) to a number, which is called for each pair of positions
    gamma     γ; 1 / C if None
    Memory and time grow with the square and the cube of the positions. `eigen_smooth` and targets do not matter.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        kernel: str | Kernel = "sigmoid",
        gamma: float | None = None,
        **options: Any,
    ) -> None:
        """Arguments as in `GradCAM`, and `kernel` and `gamma`, see the class."""
        super().__init__(model, target_layers, reshape_transform, **options)
        if not callable(kernel) and kernel not in _KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(map(repr, _KERNELS))} or a callable, got {kernel!r}")
        self.kernel = kernel
        self.gamma = gamma

    def low_map(self, A: Tensor, eigen_smooth: bool) -> Tensor:
        X = ops.wide(A).flatten(2).mT  # (B, N, C)
        X = torch.where(X.isnan(), 0, X)
        X = X - X.mean(1, keepdim=True)
        gamma = 1 / X.shape[2] if self.gamma is None else self.gamma
        with ops.not_autocast(X):
            K = _pairwise(X, self.kernel) if callable(self.kernel) else _KERNELS[self.kernel](X, gamma)  # (B, N, N)
        K = K - K.mean(1, keepdim=True) - K.mean(2, keepdim=True) + K.mean((1, 2), keepdim=True)
        values, vectors = torch.linalg.eigh(K)
        u = vectors[..., -1]
        u = u * u.gather(1, u.abs().argmax(1, keepdim=True)).sign()
        return (values[:, -1:].clamp(min=0).sqrt() * u).view(len(A), 1, *A.shape[2:])


_KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda X, gamma: (gamma * X @ X.mT + 1).tanh(),
    "rbf": lambda X, gamma: (-gamma * torch.cdist(X, X).square()).exp(),
    "poly": lambda X, gamma: (gamma * X @ X.mT + 1) ** 3,
    "cosine": lambda X, _: F.normalize(X, dim=2) @ F.normalize(X, dim=2).mT,
    "linear": lambda X, _: X @ X.mT,
}


def _pairwise(X: Tensor, kernel: Kernel) -> Tensor:
    """The matrices `(B, N, N)` of a kernel that is called for each pair of points."""
    matrices = [[[kernel(x, y) for y in points] for x in points] for points in X.cpu().numpy()]
    return torch.tensor(np.asarray(matrices, dtype=np.float64)).to(X)


class FEM(ActivationCAM):
    """Feature-based explanation method (Fuad et al., IPTA 2020).

    w_c = share of the positions with A_c > mean A_c + k std A_c,  map = sum_c w_c A_c

    Targets do not matter, neither does `eigen_smooth`.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        k: float = 2,
        **options: Any,
    ) -> None:
        """Arguments as in `GradCAM`, and `k`, in standard deviations."""
        super().__init__(model, target_layers, reshape_transform, **options)
        self.k = k

    def low_map(self, A: Tensor, eigen_smooth: bool) -> Tensor:
        values = ops.wide(A).flatten(2)
        threshold = values.mean(2, keepdim=True) + self.k * values.std(2, correction=0, keepdim=True)
        return ops.channel_sum(A, (values > threshold).to(values.dtype).mean(2))


class RandomCAM(ActivationCAM):
    """Random weights, a baseline that no method should come near.

    w_c ~ U(-1, 1),  map = sum_c w_c A_c

    The weights `(B, C)` of each target layer are drawn from numpy's global generator, as in pytorch-grad-cam: seed it
    by `np.random.seed`; `attribute_dataset` does so for each batch, by the index of its first sample. Targets do not
    matter.
    """

    def low_map(self, A: Tensor, eigen_smooth: bool) -> Tensor:
        precise = torch.float32 if A.device.type == "mps" else torch.float64  # which Apple's GPUs have not
        weights = torch.from_numpy(np.random.uniform(-1, 1, size=A.shape[:2])).to(A.device, precise)
        return self.weighted_map(A.to(precise), weights, eigen_smooth).to(ops.wide(A).dtype)
