"""Maps by the methods' formulas, one image and one class after the other, with none of fastcam's operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.changed import masked_scores
from benchmarks.definitions import kept_outputs, min_max

METHODS = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam"),
    *("eigencam", "eigengradcam", "cam", "scorecam"),
)


def plain_maps(
    net: nn.Module,
    layers: Sequence[nn.Module],
    x: Tensor,
    targets: Sequence[int],
    method: str,
    images: Sequence[int],
    low: bool = False,
) -> Tensor:
    """The finished maps `(n, H, W)` of some images of a batch x `(B, k, H, W)`: the mean over layers, scaled to [0, 1].

    net   a copy, whose parameters are frozen
    low   at the size of the layer, which is one then
    The network runs on the whole batch, as it does for the maps that are compared: for a batch of another size it may
    take another algorithm, and behind a ReLU a rounding decides whether a gradient goes back.
    """
    activations, gradients = _recorded(net, layers, x, targets)
    maps = []
    for b in images:
        of_layers = []
        for A, G in zip(activations, gradients, strict=True):
            m = min_max(_low(net, x[b : b + 1], targets[b], method, wide(A[b]), wide(G[b])).relu(), (0, 1))
            of_layers.append(m if low else F.interpolate(m[None, None], x.shape[2:], mode="bilinear")[0, 0])
        maps.append(min_max(torch.stack(of_layers).mean(0), (0, 1)))
    return torch.stack(maps)


def wide(t: Tensor) -> Tensor:
    """In fp32 at least."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _recorded(
    net: nn.Module, layers: Sequence[nn.Module], x: Tensor, targets: Sequence[int]
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Outputs of the layers, the first to run first, and the gradients at them of each image's class.

    The network is frozen, so that there is no graph before the layers, which a large batch has no memory for.
    """
    net.requires_grad_(False)
    with kept_outputs(layers) as outputs, torch.enable_grad():
        score = net(x).gather(1, torch.tensor(targets, device=x.device)[:, None]).sum()
        gradients = torch.autograd.grad(score, [o for _, o in outputs])
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
    if method == "cam":
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        return (wide(head.weight[target])[:, None, None] * A).sum(0).detach()
    if method == "scorecam":
        return (masked_scores(net, x, target, A).softmax(0)[:, None, None] * A).sum(0)
    raise ValueError(f"no plain definition of {method}")


def _eigencam(A: Tensor) -> Tensor:
    """The projection on the first principal direction, positively correlated with the mean over channels."""
    points = A.flatten(1).T.double()  # (N, C)
    centred = points - points.mean(0)
    p = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    mean = points.mean(1)
    sign = 1 if (p * (mean - mean.mean())).sum() >= 0 else -1
    return (sign * p).to(A.dtype).view(A.shape[1:])
