"""What a peer gives where it does something else than fastcam under the same name, from activations and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.problem import Problem
from fastcam import ops
from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.record import record
from fastcam.targets import scores
from fastcam.visualize import SALIENCY

COMPARED = 3  # classes, in Finer-CAM


def cam(problem: Problem) -> Tensor:
    return min_max(_low(problem, "cam", problem.targets))


def grad_cam_plus_plus(problem: Problem) -> Tensor:
    """Weights w_c = sum_ij G² relu(G)."""
    ((A, G),) = gradients(problem)
    return min_max(((G.pow(2) * G.relu()).sum((2, 3), keepdim=True) * A).sum(1).relu())


def finer_cam(problem: Problem) -> Tensor:
    def target(c: int) -> Callable[[Tensor], Tensor]:
        def contrast(y: Tensor) -> Tensor:
            distance = (y.detach() - y.detach()[c]).abs()
            distance[c] = torch.inf
            return y[c] - y[distance.topk(COMPARED, largest=False).indices].mean()

        return contrast

    return min_max(_low(problem, "gradcam", [target(c) for c in problem.targets]).relu())


def refine_cam(problem: Problem) -> Tensor:
    lows = [min_max(low.relu()) for low in _low(problem, "layercam", problem.targets)]
    size = max((low.shape[1:] for low in lows), key=torch.Size.numel)
    return min_max(torch.stack([F.interpolate(low[:, None], size, mode="bilinear")[:, 0] for low in lows]).prod(0))


def smooth_grad_cam_plus_plus(problem: Problem) -> Tensor:
    """Weights as in `fastcam.SmoothGradCAMpp`, for the last noisy image's activations, with noise for each image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(peers.SEED)
        noise = [torch.distributions.Normal(0, 0.3).sample(problem.x.shape) for _ in range(4)]
    ((A, _),) = gradients(problem)
    noisy = [replace(problem, x=problem.x + n.to(problem.x.device)) for n in noise]
    found = [gradients(p)[0] for p in noisy]
    square, cube = (sum(G**p for _, G in found) / len(found) for p in (2, 3))
    alpha = square / (2 * square + (cube * A).sum((2, 3), keepdim=True) + 1e-8)
    last, G = found[-1]
    return min_max(((alpha * G.relu()).sum((2, 3), keepdim=True) * last).sum(1).relu())


def guided_grad_cam(problem: Problem) -> Tensor:
    low = _low(problem, "gradcam", problem.targets).relu()
    maps = ops.resize(low, problem.x.shape[2:])
    return SALIENCY["guidedbackprop"](problem.net).attribute(problem.x, problem.targets) * maps[:, None]


# What a side gives for a method, and how that differs from fastcam's.
OWN_WAYS: dict[tuple[str, str], tuple[Callable[[Problem], Tensor], str]] = {
    ("torch-cam", "cam"): (cam, "no ReLU: negative values are low ones"),
    ("torch-cam", "gradcam++"): (grad_cam_plus_plus, "w = sum G² relu(G): its division by a is lost in a copy"),
    ("torch-cam", "smoothgradcam++"): (
        smooth_grad_cam_plus_plus,
        "the activations are the last noisy image's, the noise differs from image to image",
    ),
    ("torch-cam", "finercam"): (finer_cam, "the compared classes count alike"),
    ("torch-cam", "refinecam"): (refine_cam, "multiplied at the size of the largest layer"),
    ("captum", "guidedgradcam"): (guided_grad_cam, "Grad-CAM's map in its own unit"),
}


def way(side: str, method: str) -> Callable[[Problem], np.ndarray] | None:
    """What gives the side's own result, in numpy; None where it does what fastcam does."""
    if (side, method) not in OWN_WAYS:
        return None
    return lambda problem: OWN_WAYS[side, method][0](problem).float().cpu().numpy()


def min_max(low: Tensor) -> Tensor:
    """`(B, h, w)` to [0, 1]."""
    low = low - low.amin((1, 2), keepdim=True)
    return low / (low.amax((1, 2), keepdim=True) + 1e-8)


def _low(problem: Problem, method: str, targets: Any) -> Tensor:
    return METHODS[method](problem.net, problem.layer).attribute(problem.x, targets, normalize=False, size=None)


def gradients(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """The activation of each layer and the gradient of the images' scores in it, `(B, C, h, w)`."""
    example = METHODS["gradcam"](problem.net, problem.layer)  # which knows how tokens lie in space
    with record(problem.net, find_layers(problem.net, problem.layer), problem.x) as run:
        with torch.enable_grad():
            score = scores(run.output, problem.targets, len(problem.x))
        found = example.spatial(run, run.gradients(score, keep_graph=False))
        return list(zip(example.spatial(run, run.activations), found, strict=True))
