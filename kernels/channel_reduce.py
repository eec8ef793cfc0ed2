"""Channel reduction of the Grad-CAM family: `low[b, p, n] = sum of w[b, c, n] A[b, c, n] over the p-th range of c`.

Reads A and G once and writes P maps an image (formulas of w: `fastcam.ops`). A weight of a channel needs its row of
all N positions: rows too long for a tile take a launch that writes the weights `(B, C)`, then one that reads A again.
A program owns one image, BN positions and a range of channels, BC at a time: every sum has a fixed order, so results
repeat to the bit. A tile is 8192 elements for 8 warps, 32 registers a thread for each of A, G and the sum: whole rows
up to 4096 positions, or up to 512 in channels_last (above, a position would give less than 32 bytes of channels).
Only compile-time shapes and strides tell the compiler that 14 x 14 rows are 16-byte aligned, to load 16 bytes at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles

# The axis that lies across the threads once the last one does; the compiler fills the others from their end or, in
# triton 3.6, from their beginning.
ACROSS = tl.constexpr(0 if triton.__version__.startswith("3.6.") else 2)


def channel_reduce(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """Partial maps fp32 `(B, P, *S)` of activations A and gradients G, `(B, C, *S)` in fp16, bf16 or fp32, any strides.

    Their sum over P is `fastcam.ops.weighted_activations(A, G, weighting).sum(1)`.
    """
    S, A, G = A.shape[2:], A.flatten(2), G.flatten(2)  # (B, C, N): a copy only where one stride can't step through S
    by_channel = weighting in ("gradcam", "gradcam++", "xgradcam")
    longest = tiles.WHOLE_ROWS_CHANNELS_LAST if _channels_last(A) else tiles.WHOLE_ROWS.get(weighting, 0)
    if by_channel and A.shape[2] > longest:
        return channel_sum(A, _channel_weights(A, G, weighting)).unflatten(2, S)
    return _reduce(A, G, weighting, whole_rows=by_channel).unflatten(2, S)


def channel_sum(A: Tensor, weights: Tensor) -> Tensor:
    """The same with given weights `(B, C)`, of any float type: partial maps fp32 `(B, P, *S)` of sum_c w_c A_c."""
    S, A = A.shape[2:], A.flatten(2)
    return _reduce(A, weights.unsqueeze(2).expand_as(A), "hirescam", whole_rows=False).unflatten(2, S)


def _channels_last(rows: Tensor) -> bool:
    return rows.stride(1) == 1 and rows.stride(2) > 1


def _reduce(A: Tensor, G: Tensor, weighting: str, whole_rows: bool) -> Tensor:
    B, C, N = A.shape
    *sides, warps = tiles.reduction(C, N, A.element_size(), _channels_last(A), whole_rows)
    programs, blocks = B * triton.cdiv(N, sides[2] * sides[3]), triton.cdiv(C, sides[0] * sides[1])
    P = tiles.splits(programs, blocks, A.device)
    low = torch.empty((B, P, N), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, triton.cdiv(blocks, P), *sides)
    with torch.cuda.device_of(A):
        _reduce_kernel[(programs, P)](A, G, low, *constants, num_warps=warps, enable_fp_fusion=True)
    return low


def _channel_weights(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    B, C, N = A.shape
    BC, BN, warps = tiles.channel_weights(A.element_size(), _channels_last(A))
    weights = torch.empty((B, C), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, BC, BN)
    with torch.cuda.device_of(A):
        _weights_kernel[(B * triton.cdiv(C, BC),)](A, G, weights, *constants, num_warps=warps, enable_fp_fusion=True)
    return weights


@triton.jit
def _along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0, 1, ... along the first or the third of four axes."""
    if AXIS == 0:
        return tl.arange(0, SIZE)[:, None, None, None]
    else:
        return tl.arange(0, SIZE)[None, None, :, None]


@triton.jit
def _load(ptr, c, n, c_inside, n_inside, strides: tl.constexpr):
    """(NR, CR, CT, NT) in fp32, 0 outside; a row that repeats one value (weights, a mean's gradient) is read once."""
    if strides[2] == 0:
        return tl.where(n_inside, tl.load(ptr + c * strides[1], mask=c_inside, other=0).to(tl.float32), 0)
    return tl.load(ptr + (c * strides[1] + n * strides[2]), mask=c_inside & n_inside, other=0).to(tl.float32)


@triton.jit
def _row_sum(x):
    return tl.sum(tl.sum(x, 2 - ACROSS, keep_dims=True), 3, keep_dims=True)


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0, x)  # NaN stays, as in PyTorch; tl.maximum would drop it


@triton.jit
def _terms(a, g, sum_a, WEIGHTING: tl.constexpr):
    """What is summed over the positions for the weight of a channel."""
    if WEIGHTING == "gradcam++":
        square = g * g
        return _relu(g) * tl.where(g != 0, square / (2 * square + sum_a * square * g + 1e-6), 0)
    return g * a if WEIGHTING == "xgradcam" else g


@triton.jit
def _weight(summed, sum_a, N: tl.constexpr, WEIGHTING: tl.constexpr):
    """The weight of a channel from its summed terms."""
    if WEIGHTING == "xgradcam":
        return summed / (sum_a + 1e-7)
    return summed / N if WEIGHTING == "gradcam" else summed


@triton.jit
def _reduce_kernel(
    A, G, low, C: tl.constexpr, N: tl.constexpr, a_strides: tl.constexpr, g_strides: tl.constexpr,
    WEIGHTING: tl.constexpr, BLOCKS: tl.constexpr, CT: tl.constexpr, CR: tl.constexpr, NR: tl.constexpr,
    NT: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = tl.cdiv(N, NR * NT)
    b = (tl.program_id(0) // TILES).to(tl.int64)
    p = tl.program_id(1).to(tl.int64)
    c = _along(ACROSS, CT).to(tl.int64) + CT * tl.arange(0, CR)[None, :, None, None]
    n = tl.arange(0, NT)[None, None, None, :] + NT * _along(2 - ACROSS, NR)
    n += (tl.program_id(0) % TILES).to(tl.int64) * (NR * NT)
    total = tl.zeros((c + n).shape, tl.float32).sum(1, keep_dims=True)
    for block in range(BLOCKS):
        start = (p * BLOCKS + block) * (CT * CR)
        a = _load(A + b * a_strides[0] + start * a_strides[1], c, n, c < C - start, n < N, a_strides)
        g = _load(G + b * g_strides[0] + start * g_strides[1], c, n, c < C - start, n < N, g_strides)
        if WEIGHTING == "gradcamelementwise":
            weighted = _relu(g * a)
        elif WEIGHTING == "layercam":
            weighted = _relu(g) * a
        elif WEIGHTING == "hirescam":
            weighted = g * a
        else:
            weighted = _weight(_row_sum(_terms(a, g, _row_sum(a), WEIGHTING)), _row_sum(a), N, WEIGHTING) * a
        total += tl.sum(weighted, 1, keep_dims=True)
    total = tl.sum(total, ACROSS, keep_dims=True)
    tl.store(low + (b * tl.num_programs(1) + p) * N + n, total, mask=n < N)


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
            sum_a += _load(A + b * a_strides[0], c, first + start, c < C, first + start < N, a_strides)
    known = tl.sum(sum_a, 1, keep_dims=True)  # (BC, 1)
    total = tl.zeros([BC, BN], tl.float32)
    for start in range(0, N, BN):
        n = first + start
        a = _load(A + b * a_strides[0], c, n, c < C, n < N, a_strides)
        g = _load(G + b * g_strides[0], c, n, c < C, n < N, g_strides)
        total += _terms(a, g, known, WEIGHTING)
        if WEIGHTING == "xgradcam":
            sum_a += a
    weight = _weight(tl.sum(total, 1, keep_dims=True), tl.sum(sum_a, 1, keep_dims=True), N, WEIGHTING)
    tl.store(weights + b * C + c, weight, mask=c < C)
