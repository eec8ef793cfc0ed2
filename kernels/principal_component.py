"""First principal component of the channel vectors at up to 64 positions: `p = sqrt(l) u`, where u is the leading unit
eigenvector of the Gram matrix of the centred positions and l its eigenvalue (EigenCAM; see `fastcam.ops`).

The first launch reads X once. A program takes one image and a range of channels, 32 at a time: a NaN becomes 0, each
channel is centred over its positions, and the program's share of the Gram matrix, NP x NP with NP = N padded to a power
of two from 16 on, and of the sum over channels at each position is written. The second launch, a program an image, adds
the shares in a fixed order and squares the Gram matrix, in registers, until it has rank one.

Products are full fp32 ("ieee"). 64 x 64 takes 16 warps: with 8, the unrolled product spilled up to 10 KB a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles

BC = tl.constexpr(32)  # channels of a block
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def principal_component(X: Tensor) -> Tensor:
    """The projections, fp32 `(B, 1, *S)`, of X `(B, C, *S)` in fp16, bf16 or fp32, any strides, at most 64 positions.

    The sign correlates with the mean of X over channels; on a tie the largest absolute value is positive.
    """
    S, X = X.shape[2:], X.flatten(2)  # (B, C, N)
    B, C, N = X.shape
    NP, blocks = max(16, triton.next_power_of_2(N)), triton.cdiv(C, BC.value)
    P = tiles.splits(B, blocks, X.device, most=8)
    grams = torch.empty((B, P, NP, NP), dtype=torch.float32, device=X.device)
    sums = torch.empty((B, P, NP), dtype=torch.float32, device=X.device)
    projections = torch.empty((B, 1, N), dtype=torch.float32, device=X.device)
    constants = (C, N, X.stride(), triton.cdiv(blocks, P), NP)
    with torch.cuda.device_of(X):
        _gram_kernel[(B, P)](X, grams, sums, *constants, num_warps=NP // 4, enable_fp_fusion=True)
        _solve_kernel[(B,)](grams, sums, projections, N, P, NP, num_warps=NP // 4, enable_fp_fusion=True)
    return projections.unflatten(2, S)


@triton.jit
def _gram_kernel(
    X, grams, sums, C: tl.constexpr, N: tl.constexpr, STRIDES: tl.constexpr, BLOCKS: tl.constexpr, NP: tl.constexpr
):
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BC)[:, None].to(tl.int64)
    i, j = tl.arange(0, NP)[:, None], tl.arange(0, NP)[None, :]
    gram = tl.zeros([NP, NP], tl.float32)
    total = tl.zeros([1, NP], tl.float32)
    for block in range(BLOCKS):
        start = (part * BLOCKS + block) * BC
        first = X + b * STRIDES[0] + start * STRIDES[1]
        inside = (c < C - start) & (j < N)
        x = tl.load(first + (c * STRIDES[1] + j * STRIDES[2]), mask=inside, other=0).to(tl.float32)  # (BC, NP)
        x = tl.where(x == x, x, 0)
        x = tl.where(inside, x - tl.div_rn(tl.sum(x, 1, keep_dims=True), N), 0)
        gram = tl.dot(tl.trans(x), x, gram, input_precision="ieee")
        total += tl.sum(x, 0, keep_dims=True)
    share = b * tl.num_programs(1) + part
    tl.store(grams + share * (NP * NP) + i * NP + j, gram, mask=(i < NP) & (j < NP))
    tl.store(sums + share * NP + j, total, mask=j < NP)


@triton.jit
def _trace(matrix):
    n = tl.arange(0, matrix.shape[0])
    return tl.sum(tl.where(n[:, None] == n[None, :], matrix, 0))


@triton.jit
def _norm(x):
    return tl.sqrt_rn(tl.sum(x * x))


@triton.jit
def _unit(x):
    return x / tl.maximum(_norm(x), TINY)


@triton.jit
def _solve_kernel(grams, sums, projections, N: tl.constexpr, P: tl.constexpr, NP: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, NP)[:, None], tl.arange(0, NP)[None, :]
    gram = tl.zeros([NP, NP], tl.float32)
    mean = tl.zeros([1, NP], tl.float32)  # over the channels, centred, times C
    for part in tl.static_range(P):
        gram += tl.load(grams + (b * P + part) * (NP * NP) + i * NP + j, mask=(i < N) & (j < N), other=0)
        mean += tl.load(sums + (b * P + part) * NP + j, mask=j < N, other=0)
    power = gram / tl.maximum(_trace(gram), TINY)
    rest, squarings = _trace(power), 0  # a bound on the share of all eigenvalues but the largest
    while (squarings < 16) & (rest > 1e-6):
        power = tl.dot(power, power, input_precision="ieee")
        trace = _trace(power)
        power /= tl.maximum(trace, TINY)
        rest = 1 - trace
        squarings += 1
    largest = tl.argmax(tl.sum(tl.where(i == j, power, 0), 0, keep_dims=True), 1, keep_dims=True)  # (1, 1)
    column = _unit(tl.sum(tl.where(j == largest, power, 0), 1, keep_dims=True))  # (NP, 1)
    u = _unit(tl.sum(gram * column, 0, keep_dims=True))  # (1, NP), rid of the rounding of the squarings
    p = u * tl.sqrt_rn(tl.maximum(tl.sum(gram * tl.trans(u) * u), 0))
    product = tl.sum(p * mean)
    largest = tl.sum(tl.where(j == tl.argmax(tl.abs(p), 1, keep_dims=True), p, 0))
    tie = tl.abs(product) <= 1e-6 * _norm(p) * _norm(mean)
    tl.store(projections + b * N + j, tl.where(tl.where(tie, largest, product) < 0, -p, p), mask=j < N)
