"""Channel reduction of the Grad-CAM family: `low[b, p, n] = sum of w[b, c, n] A[b, c, n] over the p-th range of c`.

Reads A and G once and writes P maps an image (formulas of w: `fastcam.ops`). A weight of a channel needs its row of
all N positions: rows too long for a tile take a launch that writes the weights `(B, C)`, then one that reads A again.
A program owns one image, a range of positions and one of channels, a tile at a time (sizes: `tiles`): every sum has a
fixed order, so results repeat to the bit. What a thread holds of a row it adds before any lane asks another: 7 x 7 rows
shared by 32 lanes took a shuffle for every value, which cost as much time as reading it.
Only compile-time shapes and strides tell the compiler that 14 x 14 rows are 16-byte aligned, to load 16 bytes at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles
from fastcam.kernels.channel_weights import channel_weights, channels_last, load, relu, terms, weight

# The axis that lies across the threads once the last one does; the compiler fills the others from their end or, in
# triton 3.6, from their beginning.
ACROSS = tl.constexpr(0 if triton.__version__.startswith("3.6.") else 2)


def channel_reduce(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """Partial maps fp32 `(B, P, *S)` of activations A and gradients G, `(B, C, *S)` in fp16, bf16 or fp32, any strides.

    Their sum over P is `fastcam.ops.weighted_activations(A, G, weighting).sum(1)`.
    """
    S, A, G = A.shape[2:], A.flatten(2), G.flatten(2)  # (B, C, N): a copy only where one stride can't step through S
    by_channel = weighting in ("gradcam", "gradcam++", "xgradcam")
    longest = tiles.WHOLE_ROWS_CHANNELS_LAST if channels_last(A) else tiles.WHOLE_ROWS.get(weighting, 0)
    if by_channel and A.shape[2] > longest:
        return channel_sum(A, channel_weights(A, G, weighting)).unflatten(2, S)
    return _reduce(A, G, weighting, whole_rows=by_channel).unflatten(2, S)


def channel_sum(A: Tensor, weights: Tensor) -> Tensor:
    """The same with given weights `(B, C)`, of any float type: partial maps fp32 `(B, P, *S)` of sum_c w_c A_c."""
    S, A = A.shape[2:], A.flatten(2)
    return _reduce(A, weights.unsqueeze(2).expand_as(A), "hirescam", whole_rows=False).unflatten(2, S)


def _reduce(A: Tensor, G: Tensor, weighting: str, whole_rows: bool) -> Tensor:
    B, C, N = A.shape
    *sides, warps = tiles.reduction(C, N, A.element_size(), channels_last(A), whole_rows)
    programs, blocks = B * triton.cdiv(N, sides[2] * sides[3]), triton.cdiv(C, sides[0] * sides[1])
    P = tiles.splits(programs, blocks, A.device, most=32 if N <= 256 else 8)  # every program of `finish` reads all P
    low = torch.empty((B, P, N), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, triton.cdiv(blocks, P), *sides)
    with torch.cuda.device_of(A):
        _reduce_kernel[(programs, P)](A, G, low, *constants, num_warps=warps, enable_fp_fusion=True)
    return low


@triton.jit
def _along(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """0, 1, ... along the first or the third of four axes."""
    if AXIS == 0:
        return tl.arange(0, SIZE)[:, None, None, None]
    else:
        return tl.arange(0, SIZE)[None, None, :, None]


@triton.jit
def _row_sum(x):
    return tl.sum(tl.sum(x, 2 - ACROSS, keep_dims=True), 3, keep_dims=True)


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
        a = load(A + b * a_strides[0] + start * a_strides[1], c, n, c < C - start, n < N, a_strides)
        g = load(G + b * g_strides[0] + start * g_strides[1], c, n, c < C - start, n < N, g_strides)
        if WEIGHTING == "gradcamelementwise":
            weighted = relu(g * a)
        elif WEIGHTING == "layercam":
            weighted = relu(g) * a
        elif WEIGHTING == "hirescam":
            weighted = g * a
        else:
            weighted = weight(_row_sum(terms(a, g, _row_sum(a), WEIGHTING)), _row_sum(a), N, WEIGHTING) * a
        total += tl.sum(weighted, 1, keep_dims=True)
    total = tl.sum(total, ACROSS, keep_dims=True)
    tl.store(low + (b * tl.num_programs(1) + p) * N + n, total, mask=n < N)
