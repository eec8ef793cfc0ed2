"""Missing pixels as the weighted mean of their neighbours: conjugate gradients, preconditioned by a multigrid cycle.

The equation of a missing pixel i with its neighbours n inside the image is sum_n w_n (v_i - v_n) = 0: a Laplacian on
the missing pixels, symmetric and positive definite, with the known pixels as its boundary. The channels of an image
share a matrix, and every image of a batch has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Operator = Callable[[Tensor], Tensor]

_OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
_COARSEST = 9  # pixels along a side at which the system is inverted
_TOLERANCE = 3e-6  # of the largest known value, in the energy norm, before the last correction
_REDUCTION = 1e-4  # of the error between two residuals in fp64
_ROUNDS, _STEPS = 12, 30  # several times what the hardest masks need


class Weights(NamedTuple):
    """The weight of a neighbour beside, above or below, and at a corner."""

    beside: float = 1 / 6
    above: float = 1 / 6
    corner: float = 1 / 12


def harmonic(x: Tensor, known: Tensor, weights: Weights) -> Tensor:
    """Images `(R, C, H, W)`, fp32, whose pixels that are not `known` `(R, H, W)` solve the equation; all missing: 0.

    Within 1e-6 of the largest known value of the exact solution (on devices with fp64).
    """
    on_cpu = x.device.type == "cpu"
    if on_cpu:
        torch.empty(2**23 - 2**12)  # glibc keeps freed blocks up to the largest it saw: three times faster
    size = 2**18 if on_cpu else 2**24  # values at once: what a CPU's cache holds, what a GPU fills
    step = max(1, size // x[0].numel())
    return torch.cat([_within(x[i : i + step], known[i : i + step], weights) for i in range(0, len(x), step)])


def _within(x: Tensor, known: Tensor, weights: Weights) -> Tensor:
    """`_solve` for the part of the images in which pixels are missing: the known ones around it are all that counts."""
    rows, columns = ((~known).any(0).any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    if not rows:
        return x
    top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    part = ..., slice(top, rows[-1] + 2), slice(left, columns[-1] + 2)
    result = x.clone()
    result[part] = _solve(x[part], known[part], weights)
    return result


def _solve(x: Tensor, known: Tensor, weights: Weights) -> Tensor:
    fine = torch.float32 if x.device.type == "mps" else torch.float64
    known = known.unsqueeze(1)
    missing = ~known & known.any((2, 3), keepdim=True)  # (R, 1, H, W); without a known pixel there is no equation
    x = torch.where(known, x, 0).to(fine)
    exact, quick = _laplacian(missing.to(fine), weights), _laplacian(missing.float(), weights)
    preconditioner = _Multigrid(missing.float(), quick, weights)
    right = -exact(x)  # (R, C, H, W)
    limit = _TOLERANCE * x.abs().amax((2, 3), keepdim=True).float()

    v = torch.zeros_like(right)
    for _ in range(_ROUNDS):
        correction, small = _conjugate_gradients(quick, preconditioner, (right - exact(v)).float(), limit)
        v += correction
        if small:
            break
    return (x + v).float()


def _conjugate_gradients(operator: Operator, preconditioner: Operator, r: Tensor, limit: Tensor) -> tuple[Tensor, bool]:
    """The solution for a right side r, to 1e-4 of its energy norm, and whether that was below the limit at once.

    More than 1e-4 fp32 does not always hold; a last step of the preconditioner comes for nothing.
    """
    v, z = torch.zeros_like(r), preconditioner(r)
    direction, product = z, _dot(r, z)
    target = torch.maximum(limit**2, _REDUCTION**2 * product)
    for step in range(_STEPS):
        if (product <= target).all():
            return v + z, step == 0 and bool((product <= limit**2).all())
        image = operator(direction)
        length = product / _dot(direction, image).clamp(min=1e-30)
        v.addcmul_(length, direction)
        r = r.addcmul(length, image, value=-1)
        z, before = preconditioner(r), product
        product = _dot(r, z)
        direction = z.addcmul(product / before.clamp(min=1e-30), direction)
    return v + z, False


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)


def _laplacian(missing: Tensor, weights: Weights) -> Operator:
    """v -> sum_n w_n (v_i - v_n) at the missing pixels, 0 elsewhere; for v `(R, C, H, W)`."""
    total = _neighbours(torch.ones_like(missing[:1]), weights) * missing
    return lambda v: (total * v).addcmul_(_neighbours(v, weights), missing, value=-1)


def _neighbours(v: Tensor, weights: Weights) -> Tensor:
    """sum_n w_n v_n over the neighbours inside the image."""
    pair = torch.zeros_like(v)
    pair[..., 1:] += v[..., :-1]
    pair[..., :-1] += v[..., 1:]
    rows = (weights.above * v).add_(pair, alpha=weights.corner)
    out = pair.mul_(weights.beside)
    out[..., 1:, :] += rows[..., :-1, :]
    out[..., :-1, :] += rows[..., 1:, :]
    return out


class _Level(NamedTuple):
    operator: Operator
    smoother: Tensor  # (R, 1, h, w), a damped inverse of the diagonal
    free: Tensor  # (R, 1, h, w), 1 where there is an unknown


class _Multigrid:
    """A V-cycle with a Jacobi step before and after: symmetric, so that conjugate gradients may use it.

    A coarse grid has every other pixel; P interpolates linearly, but to missing pixels only, and the coarse operator is
    P^T A P. The Jacobi step damps by 3 whatever the coarse grid cannot hold.
    """

    def __init__(self, missing: Tensor, operator: Operator, weights: Weights) -> None:
        free = missing
        diagonal = free * _neighbours(torch.ones_like(free[:1]), weights)
        self.levels: list[_Level] = []
        while True:
            smoother = torch.where(free > 0, 0.95 / diagonal.clamp(min=1e-12), 0)
            self.levels.append(_Level(operator, smoother, free))
            if max(free.shape[2:]) <= _COARSEST:
                break
            stencil = _galerkin(operator, free)
            free = (stencil[:, 4:5] > 1e-6).float()
            # Beside a hole's edge coarse pixels overlap; half the row's sum keeps the step from overshooting.
            diagonal = torch.maximum(stencil[:, 4:5], stencil.abs().sum(1, keepdim=True) / 2)
            operator = _stencil_operator(stencil * free)
        self.inverse = _inverse(operator, free)

    def __call__(self, r: Tensor, depth: int = 0) -> Tensor:
        if depth == len(self.levels) - 1:
            return (r.flatten(2) @ self.inverse).view_as(r)
        operator, smoother, free = self.levels[depth]
        z = smoother * r
        coarse = self(_restrict(r - operator(z)), depth + 1)
        z.addcmul_(_prolong(coarse, r.shape[2], r.shape[3]), free)
        return z.addcmul_(smoother, r - operator(z))


def _restrict(fine: Tensor) -> Tensor:
    """P^T without the mask: `(R, C, H, W)` to `(R, C, H // 2 + 1, W // 2 + 1)`."""
    H, W = fine.shape[2:]
    if H % 2 == 0 or W % 2 == 0:
        fine = F.pad(fine, (0, 1 - W % 2, 0, 1 - H % 2))
    rows, between = fine[..., ::2, :].clone(), fine[..., 1::2, :]
    rows[..., :-1, :].add_(between, alpha=0.5)
    rows[..., 1:, :].add_(between, alpha=0.5)
    coarse, between = rows[..., ::2].clone(), rows[..., 1::2]
    coarse[..., :-1].add_(between, alpha=0.5)
    coarse[..., 1:].add_(between, alpha=0.5)
    return coarse


def _prolong(coarse: Tensor, height: int, width: int) -> Tensor:
    """P without the mask: linear interpolation to `(R, C, height, width)`."""
    R, C, h, w = coarse.shape
    rows = coarse.new_empty(R, C, h, 2 * w - 1)
    rows[..., ::2] = coarse
    rows[..., 1::2] = torch.lerp(coarse[..., 1:], coarse[..., :-1], 0.5)
    fine = coarse.new_empty(R, C, 2 * h - 1, 2 * w - 1)
    fine[..., ::2, :] = rows
    torch.lerp(rows[..., 1:, :], rows[..., :-1, :], 0.5, out=fine[..., 1::2, :])
    return fine[..., :height, :width]


def _galerkin(operator: Operator, free: Tensor) -> Tensor:
    """P^T A P as the 3 x 3 stencil of each coarse pixel, `(R, 9, h, w)`.

    Coarse pixels three apart do not meet in it, so nine images with every third pixel set find it whole.
    """
    H, W = free.shape[2:]
    h, w = H // 2 + 1, W // 2 + 1
    y, x = torch.arange(h, device=free.device), torch.arange(w, device=free.device)
    third = torch.arange(3, device=free.device)
    rows, columns = (y % 3 == third[:, None]).float(), (x % 3 == third[:, None]).float()  # (3, h), (3, w)
    probes = (rows[:, None, :, None] * columns[None, :, None, :]).view(1, 9, h, w)
    answers = _restrict(operator(_prolong(probes, H, W) * free))  # (R, 9, h, w)
    return torch.stack(
        [answers[:, 3 * ((y + dy) % 3)[:, None] + (x + dx) % 3, y[:, None], x] for dy, dx in _OFFSETS], 1
    )


def _stencil_operator(stencil: Tensor) -> Operator:
    """v `(R, C, h, w)` -> sum over the nine offsets of stencil times neighbour."""
    h, w = stencil.shape[2:]
    parts = stencil.unsqueeze(2).unbind(1)  # 9 times (R, 1, h, w)

    def operator(v: Tensor) -> Tensor:
        padded = F.pad(v, (1, 1, 1, 1))
        out = parts[4] * v
        for part, (dy, dx) in zip(parts, _OFFSETS, strict=True):
            if (dy, dx) != (0, 0):
                out.addcmul_(part, padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w])
        return out

    return operator


def _inverse(operator: Operator, free: Tensor) -> Tensor:
    """The inverse on the coarsest grid, `(R, n, n)`, 0 where there is no unknown.

    A missing pixel alone between four coarse ones makes their equations the same: a little is added to the diagonal.
    """
    n = free[0].numel()
    unknown = free.flatten(1)  # (R, n)
    eye = torch.eye(n, device=free.device)
    matrix = operator(eye.view(1, n, *free.shape[2:]) * free).flatten(2)
    matrix = matrix * unknown.unsqueeze(1) + torch.diag_embed(1 - unknown)
    matrix = matrix + torch.diag_embed(1e-4 * matrix.diagonal(dim1=1, dim2=2))
    return torch.linalg.inv(matrix) * unknown.unsqueeze(1)
