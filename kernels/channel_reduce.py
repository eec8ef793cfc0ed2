"""Channel reduction of the Grad-CAM family: `low[b, p, n] = sum of w[b, c, n] A[b, c, n] over the p-th range of c`.

Reads A and G once and writes P maps an image (formulas of w: `fastcam.ops`). A weight of a channel needs its row of
all N positions: rows too long for a tile take a launch that writes the weights `(B, C)`, then one that reads A again.
A program owns one image, BN positions and a range of channels, BC at a time: every sum has a fixed order, so results
repeat to the bit. A tile is 8192 elements for 8 warps, 32 registers a thread for each of A, G and the sum: whole rows
up to 4096 positions, or up to 512 in channels_last (above, a position would give less than 32 bytes of channels).
Only compile-time shapes and strides tell the compiler that 14 x 14 rows are 16-byte aligned, to load 16 bytes at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor


def channel_reduce(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    """Partial maps fp32 `(B, P, *S)` of activations A and gradients G, `(B, C, *S)` in fp16, bf16 or fp32, any strides.

    Their sum over P is `fastcam.ops.weighted_activations(A, G, weighting).sum(1)`.
    """
    S, A, G = A.shape[2:], A.flatten(2), G.flatten(2)  # (B, C, N): a copy only where one stride can't step through S
    by_channel = weighting in ("gradcam", "gradcam++", "xgradcam")
    if by_channel and A.shape[2] > (512 if _channels_last(A) else 4096):
        return channel_sum(A, _channel_weights(A, G, weighting)).unflatten(2, S)
    return _reduce(A, G, weighting, whole_rows=by_channel).unflatten(2, S)


def channel_sum(A: Tensor, weights: Tensor) -> Tensor:
    """The same with given weights `(B, C)`, of any float type: partial maps fp32 `(B, P, *S)` of sum_c w_c A_c."""
    S, A = A.shape[2:], A.flatten(2)
    return _reduce(A, weights.unsqueeze(2).expand_as(A), "hirescam", whole_rows=False).unflatten(2, S)


def splits(programs: int, blocks: int, device: torch.device) -> int:
    """Among how many programs to split the channel blocks of one: at most 8, about 4 a multiprocessor in all."""
    parts = 8
    while parts > 1 and (parts > blocks or programs * parts > 4 * _multiprocessors(device)):
        parts //= 2
    return triton.cdiv(blocks, triton.cdiv(blocks, parts))  # none is left without a block


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _channels_last(rows: Tensor) -> bool:
    return rows.stride(1) == 1 and rows.stride(2) > 1


def _reduce(A: Tensor, G: Tensor, weighting: str, whole_rows: bool) -> Tensor:
    B, C, N = A.shape
    longest = N if whole_rows else 64 if _channels_last(A) else 1024
    BN = triton.next_power_of_2(min(N, longest))
    BC = min(triton.next_power_of_2(C), 8192 // BN)
    tiles, blocks = triton.cdiv(N, BN), triton.cdiv(C, BC)
    P = splits(B * tiles, blocks, A.device)
    low = torch.empty((B, P, N), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, triton.cdiv(blocks, P), BC, BN)
    warps = max(1, BC * BN // 1024)
    with torch.cuda.device_of(A):
        _reduce_kernel[(B * tiles, P)](A, G, low, *constants, num_warps=warps, enable_fp_fusion=True)
    return low


def _channel_weights(A: Tensor, G: Tensor, weighting: str) -> Tensor:
    B, C, N = A.shape
    BC = 64 // A.element_size() if _channels_last(A) else 4
    weights = torch.empty((B, C), dtype=torch.float32, device=A.device)
    constants = (C, N, A.stride(), G.stride(), weighting, BC, 4096 // BC)
    with torch.cuda.device_of(A):
        _weights_kernel[(B * triton.cdiv(C, BC),)](A, G, weights, *constants, num_warps=4, enable_fp_fusion=True)
    return weights


@triton.jit
def _load(ptr, c, n, c_inside, n_inside, strides: tl.constexpr):
    """(BC, BN) in fp32, 0 outside; a row that repeats one value (given weights, a mean's gradient) is read once."""
    if strides[2] == 0:
        return tl.where(n_inside, tl.load(ptr + c * strides[1], mask=c_inside, other=0).to(tl.float32), 0)
    return tl.load(ptr + (c * strides[1] + n * strides[2]), mask=c_inside & n_inside, other=0).to(tl.float32)


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0, x)  # NaN stays, as in PyTorch; tl.maximum would drop it


@triton.jit
def _terms(a, g, sum_a, WEIGHTING: tl.constexpr):
    """What is summed over the positions for the weight of a channel."""
    if WEIGHTING == "gradcam++":
        square = g * g
        return _relu(g) * tl.where(g != 0, square / (2 * square + sum_a * square * g + 1e-6), 0)
    return g * (a / (sum_a + 1e-7)) if WEIGHTING == "xgradcam" else g


@triton.jit
def _reduce_kernel(
    A, G, low, C: tl.constexpr, N: tl.constexpr, a_strides: tl.constexpr, g_strides: tl.constexpr,
    WEIGHTING: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    DIVISOR: tl.constexpr = N if WEIGHTING == "gradcam" else 1
    b = (tl.program_id(0) // tl.cdiv(N, BN)).to(tl.int64)
    p = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BC)[:, None].to(tl.int64)
    n = (tl.program_id(0) % tl.cdiv(N, BN)).to(tl.int64) * BN + tl.arange(0, BN)[None, :]
    total = tl.zeros([BC, BN], tl.float32)
    for block in range(BLOCKS):
        start = (p * BLOCKS + block) * BC
        a = _load(A + b * a_strides[0] + start * a_strides[1], c, n, c < C - start, n < N, a_strides)
        g = _load(G + b * g_strides[0] + start * g_strides[1], c, n, c < C - start, n < N, g_strides)
        if WEIGHTING == "gradcamelementwise":
            total += _relu(g * a)
        elif WEIGHTING == "layercam":
            total += _relu(g) * a
        elif WEIGHTING == "hirescam":
            total += g * a
        else:
            total += tl.sum(_terms(a, g, tl.sum(a, 1, keep_dims=True), WEIGHTING), 1, keep_dims=True) / DIVISOR * a
    tl.store(low + (b * tl.num_programs(1) + p) * N + n, tl.sum(total, 0, keep_dims=True), mask=n < N)


@triton.jit
def _weights_kernel(
    A, G, weights, C: tl.constexpr, N: tl.constexpr, a_strides: tl.constexpr, g_strides: tl.constexpr,
    WEIGHTING: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tl.cdiv(C, BC)).to(tl.int64)
    c = (tl.program_id(0) % tl.cdiv(C, BC)).to(tl.int64) * BC + tl.arange(0, BC)[:, None]
    first = tl.arange(0, BN)[None, :].to(tl.int64)
    total = tl.zeros([BC, BN], tl.float32)
    if WEIGHTING != "gradcam":
        for start in range(0, N, BN):
            total += _load(A + b * a_strides[0], c, first + start, c < C, first + start < N, a_strides)
    sum_a = tl.sum(total, 1, keep_dims=True)  # (BC, 1)
    total = tl.zeros([BC, BN], tl.float32)
    for start in range(0, N, BN):
        n = first + start
        a = _load(A + b * a_strides[0], c, n, c < C, n < N, a_strides)
        g = _load(G + b * g_strides[0], c, n, c < C, n < N, g_strides)
        total += _terms(a, g, sum_a, WEIGHTING)
    DIVISOR: tl.constexpr = N if WEIGHTING == "gradcam" else 1
    tl.store(weights + b * C + c, tl.sum(total, 1, keep_dims=True) / DIVISOR, mask=c < C)
