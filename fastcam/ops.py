"""Every operator as its PyTorch definition; on an NVIDIA GPU the Triton kernel of the same name instead.

The definitions are the specification, the CPU path and the oracle of the kernels. Shapes: A and G are `(B, C, *S)`;
a low map is `(B, P, *S)`, P partial maps whose sum over dimension 1 is the map (P = 1 from a definition; a kernel
splits the channels to fill the GPU and leaves the sum to `finish`, which reads the partial maps anyway).
All arithmetic is at least fp32, whatever the input; matrix products on a GPU keep to the caller's TF32 setting.
Not differentiable: definitions write in place, kernels record no graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcam.spline import zoom_matrix

ELEMENTWISE = ("hirescam", "gradcamelementwise", "layercam")  # a weight per channel and position
CHANNELWISE = ("gradcam", "gradcam++", "xgradcam")  # a weight per channel
WEIGHTINGS = CHANNELWISE + ELEMENTWISE
INTERPOLATIONS = (None, "linear", "cubic")
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def channel_weights(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """The weight of each channel, `(B, C)`, from its activations and gradients.

    gradcam    w_c = mean_ij G_cij                                             (Selvaraju et al. 2017)
    gradcam++  w_c = sum_ij relu(G) a,  a = G² / (2 G² + G³ sum_ij A + 1e-6), a = 0 where G = 0
                                                                               (Chattopadhay et al. 2018)
    xgradcam   w_c = sum_ij G A / (sum_ij A + 1e-7)                            (Fu et al. 2020)
    """
    A, G = wide(A).flatten(2), wide(G).flatten(2)  # (B, C, N)
    if weighting == "gradcam":
        return G.mean(2)
    if weighting == "xgradcam":
        return (G * A).sum(2) / (A.sum(2) + 1e-7)
    if weighting == "gradcam++":  # relu(G) a is relu(G)³ over the divisor; few large tensors, and those written again
        positive = G.relu()
        square = positive * positive
        cube = positive.mul_(square)
        divisor = square.mul_(2).addcmul_(A.sum(2, keepdim=True), cube).add_(1e-6)
        return cube.div_(divisor).sum(2)
    raise ValueError(f"weighting must be one of {CHANNELWISE} for a weight per channel, got {weighting!r}")


def weighted_activations(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """What the map is the sum over channels of, `(B, C, *S)`.

    gradcam, gradcam++, xgradcam   w_c A_c
    hirescam                       G A              (Draelos and Carin 2020)
    gradcamelementwise             relu(G A)
    layercam                       relu(G) A        (Jiang et al. 2021)
    """
    A, G = wide(A), wide(G)
    if weighting == "hirescam":
        return G * A
    if weighting == "gradcamelementwise":
        return (G * A).relu_()
    if weighting == "layercam":  # in place: at an early layer A is most of the memory
        return G.relu().to(torch.promote_types(A.dtype, G.dtype)).mul_(A)
    return channel_weights(A, G, weighting).view(*A.shape[:2], *[1] * (A.ndim - 2)) * A


def pooled_maps(A: Tensor, W: Tensor, weighting: str) -> Tensor | None:
    """The T maps of each image, `(B * T, 1, *S)`, for targets W · mean(A), W `(B, T, C)` or `(T, C)` for every image.

    `weighted_activations(A, G, weighting).sum(1)` for G_cij = W_c / N at each of the N positions, by one product of
    matrices where the weights are the same for every image; None for "gradcamelementwise", which is no weighted sum.
    """
    if weighting == "gradcamelementwise":
        return None
    S, N = A.shape[2:], A.shape[2:].numel()
    A, W = wide(A).flatten(2), wide(W)  # (B, C, N)
    total = A.sum(2, keepdim=True)
    with not_autocast(A):
        if weighting == "gradcam++":
            each = zip(A, W.expand(len(A), *W.shape[-2:]), total, strict=True)
            return torch.cat([_plus_plus(*of_image) for of_image in each]).view(-1, 1, *S)
        A = A * (total / (total + 1e-7) / N) if weighting == "xgradcam" else A / N
        W = W.relu() if weighting == "layercam" else W
        if W.ndim == 3:
            return torch.bmm(W, A).view(-1, 1, *S)
        maps = W @ A.movedim(1, 0).flatten(1)  # (T, B * N)
    return maps.unflatten(1, (-1, N)).movedim(1, 0).reshape(-1, 1, *S)


def _plus_plus(A: Tensor, W: Tensor, total: Tensor) -> Tensor:
    """Grad-CAM++'s maps `(T, N)` of one image, A `(C, N)`, for W `(T, C)`; a few at a time stay in a CPU's cache."""
    C, N = A.shape
    maps = []
    for w in W.split(len(W) if A.is_cuda else max(1, 100_000 // C)):
        g = w.relu() / N
        square = g * g
        divisor = torch.addcmul(2 * square, square * g, total.mT).add_(1e-6)
        maps.append((g.mul_(square).div_(divisor)) @ A)
    return torch.cat(maps) * N


def channel_sum(A: Tensor, weights: Tensor) -> Tensor:
    """sum_c w_c A_c with given weights `(B, C)`: a low map `(B, P, *S)`.

    With weights `(B, T, C)` the T maps of each image, `(B * T, 1, *S)`, by one matrix product.
    """
    if weights.shape not in (A.shape[:2], (len(A), *weights.shape[1:-1], A.shape[1])) or weights.ndim > 3:
        raise ValueError(f"weights must be (B, C) = {tuple(A.shape[:2])} or (B, T, C), got {tuple(weights.shape)}")
    if _on_kernel(A) and weights.shape == A.shape[:2]:
        from fastcam.kernels import channel_reduce

        return channel_reduce.channel_sum(A, weights)
    A = wide(A)
    weights = weights.to(A.dtype).view(len(A), -1, A.shape[1])  # (B, T, C)
    with not_autocast(A):
        return torch.bmm(weights, A.flatten(2)).view(-1, 1, *A.shape[2:])


def channel_reduce(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """Weights and weighted sum over channels: `weighted_activations(A, G, weighting).sum(1)` as a low map `(B, P, *S)`.

    On a GPU one pass over A and G for maps up to 64 x 64, or further where it matters (512 positions in channels_last,
    where a longer row is read in pieces too small), a second pass over A above.
    """
    if A.shape != G.shape:
        raise ValueError(f"activations and gradients must have one shape, got {tuple(A.shape)} and {tuple(G.shape)}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
    if _on_kernel(A) and A.dtype == G.dtype:
        from fastcam.kernels import channel_reduce as kernel

        return kernel.channel_reduce(A, G, weighting)
    if weighting in CHANNELWISE:
        return channel_sum(A, channel_weights(A, G, weighting))
    return weighted_activations(A, G, weighting).sum(1, keepdim=True)


def masked_inputs(
    x: Tensor, masks: Tensor, images: Tensor, baseline: Tensor | None = None, align_corners: bool = True
) -> Tensor:
    """Images seen through masks, `(N, k, *S)` in the type and memory format of x: the n-th is image b = images[n].

    m_n = (u - min u) / (max u - min u + 1e-8), u the n-th mask resized to S;  x_b m_n + baseline_b (1 - m_n)

    x               `(B, k, *S)`
    masks           `(N, *s)`, any float type; a constant mask becomes 0
    images          `(N,)`, the image that each mask is for
    baseline        what is seen where a mask is 0, as x; None: zeros
    align_corners   of the (bi, tri)linear resize; True as in ScoreCAM (Wang et al. 2020) in pytorch-grad-cam
    """
    if masks.ndim != x.ndim - 1 or masks.ndim > 4:
        raise ValueError(f"masks must be (N, *s) of {x.ndim - 2} spatial dimensions, got {tuple(masks.shape)}")
    if _on_kernel(x) and x.ndim <= 4:
        from fastcam.kernels import masked_inputs as kernel

        return kernel.masked_inputs(x, masks, images, baseline, align_corners)
    mode = _LINEAR[masks.ndim - 1]
    m = F.interpolate(wide(masks).unsqueeze(1), x.shape[2:], mode=mode, align_corners=align_corners)  # (N, 1, *S)
    dims = tuple(range(1, m.ndim))
    m -= m.amin(dims, keepdim=True)
    m /= m.amax(dims, keepdim=True) + 1e-8
    low = masks.flatten(1)
    m.masked_fill_((low.amax(1) == low.amin(1)).view(-1, *[1] * len(dims)), 0)  # not the resize's rounding
    rows = wide(x)[images] * m
    if baseline is not None:
        rows += wide(baseline)[images] * (1 - m)
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    rows = rows.to(x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    return rows if last else rows.contiguous()  # which `to` leaves out where the type stays


def min_max(maps: Tensor) -> Tensor:
    """(v - min v) / (1e-7 + max(v - min v)) for each map of a batch `(B, *S)`: in [0, 1); a constant map becomes 0."""
    dims = tuple(range(1, maps.ndim))
    maps = maps - maps.amin(dims, keepdim=True)
    return maps / (1e-7 + maps.amax(dims, keepdim=True))


def resize(maps: Tensor, size: Sequence[int], interpolation: str | None = None) -> Tensor:
    """Maps `(B, *S)` of one to three spatial dimensions at another size.

    "linear"   (bi, tri)linear, half-pixel centres, edges clamped, no anti-aliasing
    "cubic"    the cubic spline through the values, corner to corner, which leaves their range; `spline.zoom_matrix`
    None       as pytorch-grad-cam does it: linear in one and two dimensions, cubic in three
    """
    rank = maps.ndim - 1
    if rank not in _LINEAR:
        raise ValueError(f"maps are resized in 1 to 3 spatial dimensions, got {rank}: {tuple(maps.shape)}")
    if len(size) != rank:
        raise ValueError(f"size must have {rank} values for maps {tuple(maps.shape)}, got {tuple(size)}")
    if not _is_cubic(interpolation, rank):
        return F.interpolate(maps.unsqueeze(1), tuple(size), mode=_LINEAR[rank], align_corners=False).squeeze(1)
    for n, m in zip(maps.shape[1:], size, strict=True):  # the first dimension goes last, once each
        matrix = torch.tensor(zoom_matrix(n, m), dtype=maps.dtype).to(maps.device, non_blocking=True)  # no waiting
        with not_autocast(maps):
            maps = maps.movedim(1, -1) @ matrix.mT
    return maps


def _is_cubic(interpolation: str | None, rank: int) -> bool:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f'interpolation must be None, "linear" or "cubic", got {interpolation!r}')
    return interpolation == "cubic" or interpolation is None and rank == 3


def finish(low_maps: Sequence[Tensor], size: Sequence[int], interpolation: str | None = None) -> Tensor:
    """From the low maps `(B, P, *S)` of one or more layers to the finished map `(B, *size)` in [0, 1].

    finish(L) = min_max(mean_l relu(resize(min_max(relu(sum_p L_lp))))), the outer relu for what a spline undershoots
    """
    first = low_maps[0]
    cubic = _is_cubic(interpolation, first.ndim - 2)
    if _on_kernel(first) and first.ndim <= 4 and not cubic:
        from fastcam.kernels import finish as kernel

        return kernel.finish(low_maps, size)
    maps = _finished_layer(first, size, interpolation)
    for low in low_maps[1:]:  # one layer beside their sum at a time
        maps += _finished_layer(low, size, interpolation)
    if len(low_maps) > 1:
        maps /= len(low_maps)
    dims = tuple(range(1, maps.ndim))
    maps -= maps.amin(dims, keepdim=True)  # `min_max` in place
    maps /= 1e-7 + maps.amax(dims, keepdim=True)
    return maps


def _finished_layer(low: Tensor, size: Sequence[int], interpolation: str | None) -> Tensor:
    """relu(resize(min_max(relu(sum_p L_p)))) of one layer, a tensor of its own."""
    maps = resize(min_max(low.sum(1).relu()), size, interpolation)
    return maps.relu_() if _is_cubic(interpolation, low.ndim - 2) else maps


def overlay(images: Tensor, maps: Tensor, table: Tensor, image_weight: float = 0.5) -> Tensor:
    """Maps in colours laid over images: uint8 `(B, H, W, 3)`, the fractions of levels cut off.

    blend = (1 - w) table[cut(255 map)] + w image;  picture = cut(255 (blend / max blend)), the largest of each image

    Level by level pytorch-grad-cam's `show_cam_on_image`; a blend of 0 everywhere, 0 / 0 there, stays black.

    images         `(B, k, H, W)`, k = 1 or 3, floating point in [0, 1], or uint8, which counts as divided by 255
    maps           `(B, H, W)`, floating point in [0, 1]
    table          the colours of the 256 levels `(256, 3)`, uint8 or floating point in [0, 1]; RGB, or as images are
    image_weight   w in [0, 1]
    Values are not looked at, so that a GPU need not be waited for: one out of range gives some colour.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (B, 1 or 3, H, W), got {tuple(images.shape)}")
    if maps.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"maps must be (B, H, W) as images {tuple(images.shape)}, got {tuple(maps.shape)}")
    if table.shape != (256, 3):
        raise ValueError(f"table must be (256, 3), got {tuple(table.shape)}")
    if _on_kernel(maps) and (_on_kernel(images) or images.is_cuda and images.dtype == torch.uint8):
        from fastcam.kernels import overlay as kernel

        return kernel.overlay(images, maps, table, image_weight)
    pixels = (image_weight * _in_unit_range(images)).movedim(1, -1)  # (B, H, W, k)
    colours = (1 - image_weight) * _in_unit_range(table.to(pixels.device))  # the products, once a level
    colours = colours.to(torch.promote_types(colours.dtype, pixels.dtype))
    blend = F.embedding((255 * wide(maps)).to(torch.uint8).int(), colours).add_(pixels)  # (B, H, W, 3)
    largest = blend.amax((1, 2, 3), keepdim=True)
    return blend.div_(largest.masked_fill_(largest <= 0, 1)).mul_(255).to(torch.uint8)


def _in_unit_range(pixels: Tensor) -> Tensor:
    return wide(pixels) / 255 if pixels.dtype == torch.uint8 else wide(pixels)


def principal_component(X: Tensor, sign: str = "activation") -> Tensor:
    """The projection of the channel vectors on their first principal component: a low map `(B, 1, *S)`.

    With X_n the channel vector at position n, centred over the positions: p_n = X_n · v, v the leading right singular
    vector (EigenCAM, Muhammad and Yeasin 2020). A NaN counts as 0. The sign of v is free:
    "activation" takes a positive correlation of p with the mean of X over channels, and on a tie (a correlation
    within 1e-6 of 0) the one whose largest absolute value is positive; "lapack" takes what LAPACK's gesdd gives.
    """
    if sign == "lapack":
        return _lapack_component(X)
    if sign != "activation":
        raise ValueError(f'sign must be "activation" or "lapack", got {sign!r}')
    if _on_kernel(X) and math.prod(X.shape[2:]) <= 64:
        from fastcam.kernels import principal_component as kernel

        return kernel.principal_component(X)
    with not_autocast(X):
        return _oriented_component(X)


def _oriented_component(X: Tensor) -> Tensor:
    """`principal_component` as PyTorch computes it."""
    B, C, *S = X.shape
    X = wide(X).flatten(2)  # (B, C, N)
    X = torch.where(X.isnan(), 0, X)
    # The Gram matrix holds squares, which leave fp32's range long before the values do; a power of two rounds nothing.
    exponent = torch.frexp(X.abs().amax((1, 2), keepdim=True)).exponent  # (B, 1, 1)
    X = torch.ldexp(X, -exponent)
    centred = X - X.mean(2, keepdim=True)
    if centred.shape[2] <= C:  # the smaller Gram matrix has the same leading eigenvalue
        gram = centred.mT @ centred  # (B, N, N)
        u = _leading_eigenvector(gram)
        p = u * (u.unsqueeze(1) @ gram @ u.unsqueeze(2)).clamp(min=0).sqrt().view(B, 1)
    else:
        v = _leading_eigenvector(centred @ centred.mT)  # (B, C)
        p = (v.unsqueeze(1) @ centred).squeeze(1)
    return torch.ldexp(_oriented(p, X.mean(1)), exponent.view(B, 1)).view(B, 1, *S)


def _leading_eigenvector(gram: Tensor, squarings: int = 16) -> Tensor:
    """Unit eigenvectors `(B, n)` of the largest eigenvalues of positive semidefinite `(B, n, n)`, 0 for a 0 matrix.

    Repeated squaring: after k steps the second eigenvalue's share is (λ2 / λ1)^(2^k); the largest column is then
    parallel to the eigenvector, and one product with the matrix itself removes the rounding of the squarings.
    """
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for _ in range(squarings):
        power = power / _trace(power).clamp(min=tiny).view(-1, 1, 1)
        power = power @ power
        if not power.is_cuda and (_trace(power) > 1 - 1e-6).all():  # rank one but for 1e-12; a GPU is not asked
            break
    largest = power.diagonal(dim1=1, dim2=2).argmax(1)
    v = power[torch.arange(len(power), device=power.device), largest].unsqueeze(2)  # (B, n, 1)
    v = gram @ (v / v.norm(dim=1, keepdim=True).clamp(min=tiny))
    return (v / v.norm(dim=1, keepdim=True).clamp(min=tiny)).squeeze(2)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def _oriented(p: Tensor, mean: Tensor) -> Tensor:
    """p `(B, N)` with the sign that correlates with `mean` (B, N); on a tie its largest absolute value is positive."""
    mean = mean - mean.mean(1, keepdim=True)
    product = (p * mean).sum(1)
    tie = product.abs() <= 1e-6 * p.norm(dim=1) * mean.norm(dim=1)
    largest = p.gather(1, p.abs().argmax(1, keepdim=True)).squeeze(1)
    negative = torch.where(tie, largest, product) < 0
    return torch.where(negative.unsqueeze(1), -p, p)


def _lapack_component(X: Tensor) -> Tensor:
    """`principal_component` with LAPACK's own sign, an image at a time on the CPU, as the package grad-cam has it."""
    B, _, *S = X.shape
    maps = []
    for image in wide(X.detach()).flatten(2).cpu().numpy():  # (C, N)
        points = np.where(np.isnan(image), 0, image).T  # (N, C)
        points = points - points.mean(axis=0)
        maps.append(points @ np.linalg.svd(points, full_matrices=False)[2][0])
    return torch.from_numpy(np.stack(maps)).to(X.device).view(B, 1, *S)


def wide(t: Tensor) -> Tensor:
    """fp16 and bf16 as fp32; wider types as they are."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def not_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """A context for matrix products of wide tensors, which autocast would narrow."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _on_kernel(t: Tensor) -> bool:
    """Whether the Triton kernel takes over: an NVIDIA GPU and a type it knows. Everything else is plain PyTorch."""
    return t.is_cuda and torch.version.hip is None and t.dtype in (torch.float16, torch.bfloat16, torch.float32)
