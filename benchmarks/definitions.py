"""Maps by their formulas, with hooks and loops: what a method is checked against where no peer has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.problem import Problem
from fastcam.layers import find_layers


def full_grad(problem: Problem, method: str) -> Tensor:
    """FullGrad, SimpleFullGrad or SmoothFullGrad of a network of convolutions and batch norms, `(B, H, W)`.

    min_max(sum_c r(x dy/dx) + sum_l sum_c resize(r(b_l dy/dz_l))), see `fastcam.FullGrad` and its variants
    """
    x, dims = problem.x, (1, 2, 3)
    copies = [x]
    if method == "smoothfullgrad":
        spread = 0.15 * (x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True))
        copies = [x + spread * d for d in noise(x, 25)]
    image: Tensor = torch.zeros(())
    layers: list[Tensor] = []
    biases: list[Tensor] = []
    for copy in copies:
        gradients, biases = full_gradients(problem, copy)
        image = image + copy * gradients[0] / len(copies)
        layers = [n + g / len(copies) for n, g in zip(layers or [0] * len(biases), gradients[1:], strict=True)]
    if method == "smoothfullgrad":
        image = image.sum(1, keepdim=True)
    if method != "simplefullgrad":
        layers = [g * b.view(-1, 1, 1) for g, b in zip(layers, biases, strict=True)]
    over = (2, 3) if method == "fullgrad" else dims
    maps = [min_max(v.abs(), over).sum(1, keepdim=True) for v in (image, *layers)]
    resized = [F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=False)[:, 0] for m in maps]
    return min_max(torch.stack(resized).sum(0), (1, 2))


def full_gradients(problem: Problem, x: Tensor) -> tuple[Sequence[Tensor], list[Tensor]]:
    """The gradients of the input and of the output of each module that adds a bias; the biases `(C,)`."""
    modules = [(m, b) for m in problem.net.modules() if (b := bias_of(m)) is not None]
    x = x.clone().requires_grad_()
    with kept_outputs([m for m, _ in modules]) as outputs:
        score = score_of(problem, x)
    biases = {m: b for m, b in modules}
    return torch.autograd.grad(score, [x, *(z for _, z in outputs)]), [biases[m] for m, _ in outputs]


def bias_of(module: nn.Module) -> Tensor | None:
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None and module.running_var is not None
        return (module.bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()).detach()
    return module.bias.detach() if isinstance(module, nn.Conv2d) and module.bias is not None else None


def smooth_grad_cam_pp(problem: Problem, samples: int = 4, std: float = 0.3) -> Tensor:
    """Smooth Grad-CAM++ `(B, H, W)`, a noisy image after the other; see `fastcam.SmoothGradCAMpp`."""
    layers = find_layers(problem.net, problem.layer)
    square: Any = 0
    cube: Any = 0
    with kept_outputs(layers) as outputs, torch.no_grad():
        problem.net(problem.x)
    A = outputs[0][1]  # (B, C, h, w)
    for d in noise(problem.x, samples):
        with kept_outputs(layers) as outputs:
            score = score_of(problem, problem.x + std * d)
        (G,) = torch.autograd.grad(score, outputs[0][1])
        square, cube = square + G**2 / samples, cube + G**3 / samples
    alpha = square / (2 * square + (cube * A).sum((2, 3), keepdim=True) + 1e-8)
    weights = (alpha * G.relu()).sum((2, 3), keepdim=True)
    return finished((weights * A).sum(1), problem.x.shape[2:])


def noise(x: Tensor, samples: int) -> Iterator[Tensor]:
    """The draws `(k, H, W)` that fastcam's methods take by default."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(samples):
        yield torch.randn(x.shape[1:], generator=generator).to(x.device, x.dtype)


def score_of(problem: Problem, x: Tensor) -> Tensor:
    targets = torch.tensor(problem.targets, device=x.device)
    return problem.net(x).gather(1, targets[:, None]).sum()


@contextmanager
def kept_outputs(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """The modules and what they give, in the order of their calls; the network goes on with copies."""
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        outputs.append((module, output))
        return output.clone()

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def min_max(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    v = v - v.amin(dims, keepdim=True)
    return v / (1e-7 + v.amax(dims, keepdim=True))


def finished(low: Tensor, size: Sequence[int]) -> Tensor:
    """A low map `(B, h, w)` cut at 0, scaled to [0, 1] and resized, `(B, H, W)`."""
    scaled = min_max(low.relu(), (1, 2)).unsqueeze(1)
    return min_max(F.interpolate(scaled, tuple(size), mode="bilinear", align_corners=False)[:, 0], (1, 2))
