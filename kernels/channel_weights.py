"""The weight of a channel, `w[b, c]`, and the launch for rows too long for a tile of the channel reduction.

The sum over n of  gradcam `G / N`;  xgradcam `G A / (sum A + 1e-7)`;  gradcam++ `relu(G) a`, with
`a = G^2 / (2 G^2 + G^3 sum A + 1e-6)`, 0 where G is.  Written as here, xgradcam divides once a channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles


def channel_weights(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """The weights fp32 `(B, C)` of activations A and gradients G, `(B, C, N)` in fp16, bf16 or fp32, any strides."""
    B, C, N = A.shape
    BC, BN, warps = tiles.channel_weights(A.element_size(), channels_last(A))
    weights = torch.empty((B, C), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, BC, BN)
    with torch.cuda.device_of(A):
        _weights_kernel[(B * triton.cdiv(C, BC),)](A, G, weights, *constants, num_warps=warps, enable_fp_fusion=True)
    return weights


def channels_last(rows: Tensor) -> bool:
    return rows.stride(1) == 1 and rows.stride(2) > 1


@triton.jit
def load(ptr, c, n, c_inside, n_inside, strides: tl.constexpr):
    """(NR, CR, CT, NT) in fp32, 0 outside; a row that repeats one value (weights, a mean's gradient) is read once."""
    if strides[2] == 0:
        return tl.where(n_inside, tl.load(ptr + c * strides[1], mask=c_inside, other=0).to(tl.float32), 0)
    return tl.load(ptr + (c * strides[1] + n * strides[2]), mask=c_inside & n_inside, other=0).to(tl.float32)


@triton.jit
def relu(x):
    return tl.where(x < 0, 0, x)  # NaN stays, as in PyTorch; tl.maximum would drop it


@triton.jit
def terms(a, g, sum_a, WEIGHTING: tl.constexpr):
    """What is summed over the positions for the weight of a channel."""
    if WEIGHTING == "gradcam++":
        square = g * g
        return relu(g) * tl.where(g != 0, square / (2 * square + sum_a * square * g + 1e-6), 0)
    return g * a if WEIGHTING == "xgradcam" else g


@triton.jit
def weight(summed, sum_a, N: tl.constexpr, WEIGHTING: tl.constexpr):
    """The weight of a channel from its summed terms."""
    if WEIGHTING == "xgradcam":
        return summed / (sum_a + 1e-7)
    return summed / N if WEIGHTING == "gradcam" else summed


@triton.jit
def _weights_kernel(
    A, G, weights, C: tl.constexpr, N: tl.constexpr, a_strides: tl.constexpr, g_strides: tl.constexpr,
    WEIGHTING: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tl.cdiv(C, BC)).to(tl.int64)
    c = (tl.program_id(0) % tl.cdiv(C, BC)).to(tl.int64) * BC + tl.arange(0, BC)[:, None]
    first = tl.arange(0, BN)[None, :].to(tl.int64)
    sum_a = tl.zeros([BC, BN], tl.float32)
    if WEIGHTING == "gradcam++":  # its terms need the sum, xgradcam's are divided by it in the end
        for start in range(0, N, BN):
            sum_a += load(A + b * a_strides[0], c, first + start, c < C, first + start < N, a_strides)
    known = tl.sum(sum_a, 1, keep_dims=True)  # (BC, 1)
    total = tl.zeros([BC, BN], tl.float32)
    for start in range(0, N, BN):
        n = first + start
        a = load(A + b * a_strides[0], c, n, c < C, n < N, a_strides)
        g = load(G + b * g_strides[0], c, n, c < C, n < N, g_strides)
        total += terms(a, g, known, WEIGHTING)
        if WEIGHTING == "xgradcam":
            sum_a += a
    result = weight(tl.sum(total, 1, keep_dims=True), tl.sum(sum_a, 1, keep_dims=True), N, WEIGHTING)
    tl.store(weights + b * C + c, result, mask=c < C)
