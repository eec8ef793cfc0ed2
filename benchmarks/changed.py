"""Maps by the formulas of methods that change the image or the activations and look at the score: one image after the
other, with hooks and whole forward passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from benchmarks.definitions import finished, outputs_of, recorded
from benchmarks.problem import Problem
from fastcam.layers import find_layers

ROWS = 12  # of changed images at once
Vary = Callable[[Tensor], Tensor]


def masks_scored(problem: Problem, method: str, samples: int = 1) -> Tensor:
    """Faster-Score-CAM, SS-CAM or IS-CAM `(B, H, W)`, see `fastcam.FasterScoreCAM`, `SSCAM` and `ISCAM`."""
    x = problem.x
    draws = 2.0 * torch.randn(samples, *x.shape[2:], generator=torch.Generator().manual_seed(0)).to(x)
    lows = []
    for image, A, target in zip(x.split(1), outputs_of(problem), problem.targets, strict=True):
        if method == "fasterscorecam":
            A = A[A.flatten(1).var(1).topk(min(32, len(A))).indices]
        varied: dict[str, list[Vary]] = {  # of each mask
            "fasterscorecam": [lambda seen: seen],
            "sscam": [lambda seen, noise=image * d: seen + noise for d in draws],
            "iscam": [lambda seen, n=n: seen * (n * (n + 1) / 2 / samples) for n in range(1, samples + 1)],
        }
        scores = torch.stack([masked_scores(problem.net, image, target, A, vary) for vary in varied[method]])
        lows.append((scores.mean(0).softmax(0)[:, None, None] * A).sum(0))
    return finished(torch.stack(lows), x)


@torch.no_grad()
def masked_scores(net: nn.Module, x: Tensor, target: int, A: Tensor, vary: Vary = lambda seen: seen) -> Tensor:
    """The class's score of the image `(1, k, H, W)` seen through each channel, `(C,)`."""
    scores = []
    for part in A.split(ROWS):
        masks = F.interpolate(part.unsqueeze(1), x.shape[2:], mode="bilinear", align_corners=True)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        constant = (part.amax((1, 2)) == part.amin((1, 2))).view(-1, 1, 1, 1)
        masks = torch.where(constant, 0, (masks - low) / (high - low + 1e-8))
        scores.append(net(vary(x * masks).to(x.dtype))[:, target])
    return torch.cat(scores)


def group_cam(problem: Problem, groups: int = 32) -> Tensor:
    """Group-CAM `(B, H, W)`, see `fastcam.GroupCAM`."""
    x, (A, G) = problem.x, recorded(problem)
    parts = (G.mean((2, 3), keepdim=True) * A).chunk(groups, 1)
    M = torch.stack([part.sum(1).relu() for part in parts], 1)  # (B, L, h, w)
    M = torch.where(M.flatten(2).quantile(0.7, 2)[..., None, None] < M, M, 0)
    resized = F.interpolate(M, x.shape[2:], mode="bilinear", align_corners=False)
    low, high = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
    scaled, blurred = (resized - low) / (high - low + 1e-8), gaussian_blur(x, [51, 51], [50.0, 50.0])
    maps = []
    for b, target in enumerate(problem.targets):
        m = scaled[b].unsqueeze(1)
        with torch.no_grad():
            images = (x[b] * m + blurred[b] * (1 - m), blurred[b : b + 1])
            seen, unseen = (problem.net(v).softmax(1)[:, target] for v in images)
        share = torch.where(high[b] > low[b], (M[b] - low[b]) / (high[b] - low[b]), 0)
        maps.append(((seen - unseen)[:, None, None] * share).sum(0))
    return finished(torch.stack(maps), x)


@torch.no_grad()
def recipro_cam(problem: Problem) -> Tensor:
    """Recipro-CAM `(B, H, W)`, see `fastcam.ReciproCAM`."""
    A = outputs_of(problem)
    kept = torch.eye(A[0, 0].numel()).to(A).view(-1, 1, *A.shape[2:])  # (Q, 1, h, w)
    scores = [logits_instead(problem, b, A[b] * kept).softmax(1)[:, t] for b, t in enumerate(problem.targets)]
    p = torch.stack(scores).view(len(A), *A.shape[2:])
    return finished(p - p.amin((1, 2), keepdim=True), problem.x)


@torch.no_grad()
def ablation_cam(problem: Problem) -> Tensor:
    """Ablation-CAM `(B, H, W)`, see `fastcam.AblationCAM`."""
    A, logits = outputs_of(problem), problem.net(problem.x)
    maps = []
    for b, target in enumerate(problem.targets):
        lowest, scores = A[b].min(), []
        value = lowest if lowest == 0 else lowest - 1e7
        for channels in torch.eye(A.shape[1], dtype=torch.bool, device=A.device).split(ROWS):
            without = torch.where(channels[:, :, None, None], value, A[b])
            scores.append(logits_instead(problem, b, without)[:, target])
        w = (logits[b, target] - torch.cat(scores)) / logits[b, target]
        maps.append((w[:, None, None] * A[b]).sum(0))
    return finished(torch.stack(maps), problem.x)


def logits_instead(problem: Problem, image: int, A: Tensor) -> Tensor:
    """What the network gives `(N, K)` for an image with other outputs `(N, C, h, w)` of the layer."""
    (layer,) = find_layers(problem.net, problem.layer)
    found = []
    for part in A.split(ROWS):
        handle = layer.register_forward_hook(lambda *_, part=part: part.clone())
        try:
            found.append(problem.net(problem.x[image].expand(len(part), -1, -1, -1)))
        finally:
            handle.remove()
    return torch.cat(found)


MAPS: dict[str, Callable[..., Tensor]] = {
    **{method: partial(masks_scored, method=method) for method in ("fasterscorecam", "sscam", "iscam")},
    **{"groupcam": group_cam, "reciprocam": recipro_cam, "ablationcam": ablation_cam},
}
