"""Maps of one image and one class by the methods' formulas, with none of fastcam's operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.definitions import kept_outputs, min_max

METHODS = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam"),
    *("eigencam", "eigengradcam", "scorecam"),
)
_ROWS = 12  # of masked images at once


def plain_map(net: nn.Module, layers: Sequence[nn.Module], x: Tensor, target: int, method: str, low: bool) -> Tensor:
    """The finished map `(H, W)` of an image `(1, k, H, W)`: the mean over layers, scaled to [0, 1].

    low   at the size of the layer, which is one then
    """
    activations, gradients = _recorded(net, layers, x, target)
    maps = []
    for A, G in zip(activations, gradients, strict=True):
        m = min_max(_low(net, x, target, method, A[0], G[0]).relu(), (0, 1))
        maps.append(m if low else F.interpolate(m[None, None], x.shape[2:], mode="bilinear")[0, 0])
    return min_max(torch.stack(maps).mean(0), (0, 1))


def _recorded(
    net: nn.Module, layers: Sequence[nn.Module], x: Tensor, target: int
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Outputs of the layers, the first to run first, and the gradients of the class's logit at them."""
    with kept_outputs(layers) as outputs, torch.enable_grad():
        gradients = torch.autograd.grad(net(x)[0, target], [o for _, o in outputs])
    return [o.detach() for _, o in outputs], gradients


def _low(net: nn.Module, x: Tensor, target: int, method: str, A: Tensor, G: Tensor) -> Tensor:
    """The map `(h, w)` of activations and gradients `(C, h, w)`."""
    if method == "gradcam":
        return (G.mean((1, 2))[:, None, None] * A).sum(0)
    if method == "gradcam++":
        alpha = G**2 / (2 * G**2 + A.sum((1, 2), keepdim=True) * G**3 + 1e-6)
        return ((torch.where(G != 0, alpha, 0) * G.relu()).sum((1, 2), keepdim=True) * A).sum(0)
    if method == "xgradcam":
        return ((G * A).sum((1, 2), keepdim=True) / (A.sum((1, 2), keepdim=True) + 1e-7) * A).sum(0)
    if method == "hirescam":
        return (G * A).sum(0)
    if method == "gradcamelementwise":
        return (G * A).relu().sum(0)
    if method == "eigengradcam":
        return _eigencam(G * A)
    if method == "layercam":
        return (G.relu() * A).sum(0)
    if method == "eigencam":
        return _eigencam(A)
    if method == "scorecam":
        return (_masked_scores(net, x, target, A).softmax(0)[:, None, None] * A).sum(0)
    raise ValueError(f"no plain definition of {method}")


def _eigencam(A: Tensor) -> Tensor:
    """The projection on the first principal direction, positively correlated with the mean over channels."""
    points = A.flatten(1).T.double()  # (N, C)
    centred = points - points.mean(0)
    p = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    mean = points.mean(1)
    sign = 1 if (p * (mean - mean.mean())).sum() >= 0 else -1
    return (sign * p).to(A.dtype).view(A.shape[1:])


@torch.no_grad()
def _masked_scores(net: nn.Module, x: Tensor, target: int, A: Tensor) -> Tensor:
    """The class's score of the image seen through each channel `(C,)`."""
    scores = []
    for part in A.split(_ROWS):
        masks = F.interpolate(part.unsqueeze(1), x.shape[2:], mode="bilinear", align_corners=True)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        varied = (part.amax((1, 2)) > part.amin((1, 2))).view(-1, 1, 1, 1)
        masks = torch.where(varied, (masks - low) / (high - low + 1e-8), 0)
        scores.append(net(x * masks)[:, target])
    return torch.cat(scores)
