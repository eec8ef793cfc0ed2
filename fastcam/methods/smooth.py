"""Smooth Grad-CAM++: the weights of Grad-CAM++ from the gradients of noisy images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.inputs import Inputs
from fastcam.methods.base import BaseCAM
from fastcam.record import Run, record
from fastcam.targets import Targets, for_rows, scores

_ROWS_AT_ONCE = 64


class SmoothGradCAMpp(BaseCAM):
    """Smooth Grad-CAM++ (Omeiza et al. 2019, arXiv:1908.01224), with the weights of torch-cam.

    w_c = sum_ij a relu(G_n),  a = D² / (2 D² + sum_ij D³ A + 1e-8),  D^p = mean_i G_i^p,  map = sum_c w_c A_c

    A is the image's own activation, G_i the gradient for the i-th of n noisy images x + d_i, d_i ~ N(0, std²). As in
    torch-cam the numerator of a is D² (the paper has D¹), and relu sees the last noisy image; its map however takes
    that image's activation. The same n draws serve all images, so that a map does not depend on the batch. The 1e-8
    makes it depend on the gradient's scale.
    """

    uses_gradients = False  # of the image itself

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        num_samples: int = 4,
        std: float = 0.3,
        *,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Arguments as in `GradCAM`, the number n of noisy images, the noise's `std` in the unit of x, and its `seed`.

        The noise is drawn from a generator of its own.
        """
        super().__init__(model, target_layers, reshape_transform, **options)
        if num_samples < 1 or std < 0:
            raise ValueError(f"num_samples must be 1 or more and std not negative, got {num_samples} and {std}")
        self.num_samples, self.std, self.seed = num_samples, std, seed

    def at_once(self, x: Inputs) -> int:
        return min(len(x), max(1, _ROWS_AT_ONCE // self.num_samples))

    def noise(self, x: Tensor) -> Tensor:
        """The draws `(n, k, *S)` for inputs x, the same in each call."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = [torch.randn(x.shape[1:], generator=generator) for _ in range(self.num_samples)]
        return (torch.stack(draws) * self.std).to(x.device, x.dtype)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        x, n = run.input, self.num_samples
        B, A = len(x), self.spatial(run, run.activations)
        noisy = (x + self.noise(x).unsqueeze(1)).flatten(0, 1)  # (n * B, k, *S)
        images = list(range(B)) * n
        of_rows = for_rows(targets, run.output, B, images)
        rows = run.inputs.for_rows(noisy, torch.tensor(images, device=x.device))
        by_target = []
        with record(self.model, run.layers, rows) as noisy_run:
            with torch.enable_grad():
                columns = scores(noisy_run.output, of_rows, n * B).view(n * B, -1).unbind(1)
            for t, column in enumerate(columns, 1):
                gradients = self.spatial(noisy_run, noisy_run.gradients(column, keep_graph=t < len(columns)))
                by_target.append([_weights(a, G.unflatten(0, (n, B))) for a, G in zip(A, gradients, strict=True)])
        weights = [torch.stack(layer, 1).flatten(0, 1) for layer in zip(*by_target, strict=True)]  # (B * T, C)
        return [self.weighted_map(a, w, eigen_smooth) for a, w in zip(A, weights, strict=True)]


def _weights(A: Tensor, G: Tensor) -> Tensor:
    """The weights `(B, C)` from activations `(B, C, *S)` and the gradients `(n, B, C, *S)` of the noisy images."""
    A, G = ops.wide(A).flatten(2), ops.wide(G).flatten(3)
    square, cube = G.pow(2).mean(0), G.pow(3).mean(0)
    alpha = square / (2 * square + (cube * A).sum(2, keepdim=True) + 1e-8)
    return (alpha * G[-1].relu()).sum(2)
