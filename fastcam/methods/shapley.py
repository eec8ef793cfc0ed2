"""ShapleyCAM: weights from the gradient and the Hessian of what follows the layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastcam import ops
from fastcam.inputs import Inputs
from fastcam.methods.gradient import GradientCAM
from fastcam.record import Run
from fastcam.targets import Targets, scores

_lock = threading.Lock()
_inside = 0  # runs under way that differentiate twice
_usual: list[bool] = []  # what the first of them found switched on, the last puts back: the setting is the process's


class ShapleyCAM(GradientCAM):
    """ShapleyCAM (Cai 2025, arXiv:2501.06261): Shapley values of the channels, from a second-order expansion.

    w_c = mean_ij (G - H A / 2)_cij,  map = sum_c w_c A_c,  H = d G / dA the Hessian of the target

    Where what follows the layer is linear, or piecewise so, H is 0 but for the target's own curvature: the paper
    proposes `ClassifierOutputReST` as target. Raises RuntimeError if an operation there has no second derivative.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> ShapleyCAM(model, "0")(torch.rand(2, 1, 8, 8), lambda row: row.softmax(0)[1]).shape
    (2, 8, 8)
    """

    looks_inside = True

    @contextmanager
    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> Iterator[Run]:
        with _plain_attention(), _Hardsigmoid(), super().recorded(x, layers, complete) as run:
            yield run

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        B = len(run.input)
        with torch.enable_grad():
            columns = scores(run.output, targets, B).view(B, -1).unbind(1)
        by_target = [self._weights(run, column) for column in columns]
        weights = [torch.stack(layer, 1).flatten(0, 1) for layer in zip(*by_target, strict=True)]  # (B * T, C)
        A = self.spatial(run, run.activations)
        return [self.weighted_map(a, w, eigen_smooth) for a, w in zip(A, weights, strict=True)]

    def _weights(self, run: Run, score: Tensor) -> list[Tensor]:
        """The weights `(B, C)` of each layer."""
        gradients = run.gradients(score, create_graph=True)
        weights = []
        for layer, G in zip(run.layers, gradients, strict=True):
            product = self.spatial_of(run, layer, _hessian_times_activation(G, run.attached(layer)))
            difference = ops.wide(self.spatial_of(run, layer, G.detach())) - ops.wide(product) / 2
            weights.append(difference.flatten(2).mean(2))
        self._warn_if_zero(run, [G.detach() for G in gradients])
        return weights


def _hessian_times_activation(G: Tensor, A: Tensor) -> Tensor:
    """H A = d (G · A) / dA with the second A held fixed; 0 where G does not depend on A."""
    if not G.requires_grad:
        return torch.zeros_like(A)
    (product,) = torch.autograd.grad(G, A, A.detach(), retain_graph=True, allow_unused=True)
    return torch.zeros_like(A) if product is None else product


class _Hardsigmoid(TorchFunctionMode):
    """The hard sigmoid, in this thread, as a function that torch differentiates twice: MobileNetV3 has it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products: the fused kernels have no second derivative."""
    global _inside
    cuda = torch.backends.cuda
    switches = cuda.enable_math_sdp, cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp
    enabled = cuda.math_sdp_enabled, cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled
    with _lock:
        if _inside == 0:
            _usual[:] = [on() for on in enabled]
            for switch in switches:
                switch(switch is cuda.enable_math_sdp)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for switch, on in zip(switches, _usual, strict=True):
                    switch(on)
