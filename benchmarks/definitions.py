"""Maps by their formulas, with hooks and loops: what a method is checked against where no peer has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
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
        shares = [g / len(copies) for g in gradients[1:]]
        layers = [n + g for n, g in zip(layers, shares, strict=True)] if layers else shares
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
    A = outputs_of(problem)
    square: Any = 0
    cube: Any = 0
    for d in noise(problem.x, samples):
        G = recorded(replace(problem, x=problem.x + std * d))[1]
        square, cube = square + G**2 / samples, cube + G**3 / samples
    alpha = square / (2 * square + (cube * A).sum((2, 3), keepdim=True) + 1e-8)
    return finished(((alpha * G.relu()).sum((2, 3), keepdim=True) * A).sum(1), problem.x)


def of_attention(problem: Problem, method: str) -> Tensor:
    """LeGrad or a rollout `(B, H, W)` of torchvision's vision transformer, whose class token alone is read off.

    See `fastcam.LeGrad`, `GradientRollout` and `AttentionRollout`.
    """
    with attention_maps(problem.net) as maps:
        gradients = torch.autograd.grad(score_of(problem, problem.x), maps)
    if method == "legrad":
        relevance = torch.stack([G.relu().mean((1, 2)) for G in gradients]).sum(0)
    else:
        R: Any = torch.eye(maps[0].shape[-1]).to(maps[0])
        for A, G in zip(maps, gradients, strict=True):
            step = (A * G).relu().mean(1) if method == "gradientrollout" else A.mean(1)
            R = R + step @ R  # the half of each attention rollout is lost in the scale
        relevance = R[:, 0]
    side = math.isqrt(relevance.shape[1] - 1)
    return finished(relevance[:, 1:].detach().unflatten(1, (side, side)), problem.x)


@contextmanager
def attention_maps(net: nn.Module) -> Iterator[list[Tensor]]:
    """The maps `(B, heads, N, N)` of each `nn.MultiheadAttention`, batch first, in the order of their calls."""
    maps: list[Tensor] = []

    def attend(m: nn.MultiheadAttention, inputs: tuple[Tensor, ...], _: Any) -> tuple[Tensor, None]:
        joint = F.linear(inputs[0], m.in_proj_weight, m.in_proj_bias).unflatten(2, (3, m.num_heads, -1))
        q, k, v = joint.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        maps.append((q @ k.mT / math.sqrt(q.shape[3])).softmax(3))
        return m.out_proj((maps[-1] @ v).transpose(1, 2).flatten(2)), None

    handles = [m.register_forward_hook(attend) for m in net.modules() if isinstance(m, nn.MultiheadAttention)]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def integrated_gradients(problem: Problem, steps: int = 50) -> Tensor:
    """x times the mean gradient on the way from 0 to x `(B, k, H, W)`, by the quadrature of Gauss and Legendre."""
    total = torch.zeros_like(problem.x)
    for at, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):  # on [-1, 1]
        point = ((at + 1) / 2 * problem.x).requires_grad_()
        total += weight / 2 * torch.autograd.grad(score_of(problem, point), point)[0]
    return problem.x * total


def smooth_grad(problem: Problem, samples: int, seed: int) -> Tensor:
    """The mean gradient of noisy images `(B, k, H, W)`, of deviation 0.15 (max x - min x) of each image."""
    x, dims = problem.x, (1, 2, 3)
    spread = 0.15 * (x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True))
    total = torch.zeros_like(x)
    for d in noise(x, samples, seed):
        point = (x + spread * d).requires_grad_()
        total += torch.autograd.grad(score_of(problem, point), point)[0] / samples
    return total


def masked_as_in_torch_cam(problem: Problem, method: str, samples: int = 1) -> Tensor:
    """What torch-cam's ScoreCAM, SSCAM or ISCAM gives, `(B, h, w)` in [0, 1]: its masks are scaled, then resized.

    SSCAM's noise comes, as there, from torch's own generator.
    """
    x, A = problem.x, outputs_of(problem)
    resized = F.interpolate(min_max(A, (2, 3)), x.shape[2:], mode="bilinear", align_corners=False)  # (B, C, H, W)
    total = torch.zeros(A.shape[:2], device=x.device)
    for n in range(1, samples + 1):
        masks = resized
        if method == "sscam":
            masks = masks + torch.normal(0.0, 2.0, resized.shape).to(x.device)
        factor = n * (n + 1) / (2 * samples) if method == "iscam" else 1
        for b, target in enumerate(problem.targets):
            for start in range(0, A.shape[1], 32):
                batch = factor * masks[b, start : start + 32, None] * x[b]
                with torch.no_grad():
                    total[b, start : start + 32] += problem.net(batch)[:, target] / samples
    return min_max((total.softmax(1)[..., None, None] * A).sum(1).relu(), (1, 2))


def recorded(problem: Problem) -> tuple[Tensor, Tensor]:
    """What the layer gives, and the gradients of the images' scores there, each `(B, C, h, w)`."""
    with kept_outputs(find_layers(problem.net, problem.layer)) as outputs:
        score = score_of(problem, problem.x)
    A = outputs[0][1]
    return A.detach(), torch.autograd.grad(score, A)[0]


def outputs_of(problem: Problem) -> Tensor:
    """What the layer gives, `(B, C, h, w)`."""
    with kept_outputs(find_layers(problem.net, problem.layer)) as outputs, torch.no_grad():
        problem.net(problem.x)
    return outputs[0][1]


def noise(x: Tensor, samples: int, seed: int = 0) -> Iterator[Tensor]:
    """Draws `(k, H, W)`; those of seed 0 are what fastcam's methods take by default."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randn(x.shape[1:], generator=generator).to(x.device, x.dtype)


def score_of(problem: Problem, x: Tensor) -> Tensor:
    targets = torch.tensor(problem.targets, device=x.device)
    return problem.net(x).gather(1, targets[:, None]).sum()


@contextmanager
def kept_outputs(modules: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """The modules and what they give, in the order of their calls; the network goes on with copies.

    Of a frozen network the graph begins at the first of them.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        outputs.append((module, output))
        return output.clone()

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def finished(low: Tensor, x: Tensor) -> Tensor:
    """Maps `(B, h, w)` of the layer's size as a call gives them, `(B, H, W)`."""
    scaled = min_max(low.relu(), (1, 2)).unsqueeze(1)
    return min_max(F.interpolate(scaled, x.shape[2:], mode="bilinear", align_corners=False)[:, 0], (1, 2))


def min_max(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    """To [0, 1), what is constant to 0; 1e-7 as in pytorch-grad-cam."""
    v = v - v.amin(dims, keepdim=True)
    return v / (1e-7 + v.amax(dims, keepdim=True))
