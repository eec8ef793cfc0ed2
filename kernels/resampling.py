"""What the kernels that resize low maps bilinearly share: where a pixel lies, and where the extremes of all are."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl


def samples(sizes: Sequence[int], resized: int) -> tuple[int, ...]:
    """How many pixels to sample along a dimension, and the sizes to sample by, none for every pixel."""
    samples = 2 * sum(set(sizes))
    return (samples, *sorted(set(sizes))) if samples < resized else (resized,)


@triton.jit
def sampled(i, SAMPLES: tl.constexpr, RESIZED: tl.constexpr, ALIGN: tl.constexpr):
    """The i-th pixel to sample along a dimension: of each size, the last before and the first from a low centre on."""
    pixel = i
    for s in tl.static_range(1, len(SAMPLES)):
        if ALIGN:  # a low centre may be a pixel: the last up to it and the first from it on
            first = ((i // 2) * (RESIZED - 1) + (1 - i % 2) * (SAMPLES[s] - 2)) // max(SAMPLES[s] - 1, 1)
            pixel = tl.where(i >= 0, tl.minimum(tl.maximum(first, 0), RESIZED - 1), pixel)
        else:
            first = (2 * RESIZED * (i // 2) + RESIZED + SAMPLES[s] - 1) // (2 * SAMPLES[s])
            pixel = tl.where(i >= 0, tl.minimum(tl.maximum(first - i % 2, 0), RESIZED - 1), pixel)
        i -= 2 * SAMPLES[s]
    return pixel


@triton.jit
def sample(
    block, ROWS: tl.constexpr, COLUMNS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SH: tl.constexpr,
    SW: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Rows (SH, 1) and columns (1, SW) of the pixels of a block of samples, and which are inside."""
    y = (block // tl.cdiv(COLUMNS[0], SW)) * SH + tl.arange(0, SH)[:, None]
    x = (block % tl.cdiv(COLUMNS[0], SW)) * SW + tl.arange(0, SW)[None, :]
    inside = (y < ROWS[0]) & (x < COLUMNS[0])
    return sampled(y, ROWS, H, ALIGN), sampled(x, COLUMNS, W, ALIGN), inside


@triton.jit
def place(H: tl.constexpr, W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BAND: tl.constexpr):
    """The image of a program, int64, and the first rows (BH, 1) and the columns (1, BW) of its band."""
    ACROSS: tl.constexpr = tl.cdiv(W, BW)
    part = tl.program_id(0) % (tl.cdiv(H, BAND) * ACROSS)
    y = (part // ACROSS) * BAND + tl.arange(0, BH)[:, None]
    x = (part % ACROSS) * BW + tl.arange(0, BW)[None, :]
    return tl.program_id(0).to(tl.int64) // (tl.cdiv(H, BAND) * ACROSS), y, x


@triton.jit
def source(i, LOW: tl.constexpr, RESIZED: tl.constexpr, ALIGN: tl.constexpr):
    """The two low pixels that pixel i mixes, and the share of the second; ALIGN as in `align_corners`."""
    if ALIGN:
        position = i.to(tl.float32) * ((LOW - 1) / max(RESIZED - 1, 1))
    else:
        position = tl.maximum(tl.fma(i.to(tl.float32) + 0.5, LOW / RESIZED, -0.5), 0.0)
    first = tl.minimum(position.to(tl.int32), LOW - 1)
    return first, tl.minimum(first + 1, LOW - 1), position - first.to(tl.float32)


@triton.jit
def mix(first, second, share):
    return tl.fma(share, second - first, first)  # two equal values give just that value


@triton.jit
def wider(low, high, values, inside):
    """Running extremes, lane by lane; a NaN stays in both."""
    low = tl.minimum(low, tl.where(inside, values, float("inf")), propagate_nan=tl.PropagateNan.ALL)
    return low, tl.maximum(high, tl.where(inside, values, -float("inf")), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def extremes(low, high):
    """(min, max) over the lanes; (NaN, max) if one is NaN, which a reduction alone would pass over."""
    return tl.where(tl.max((low != low).to(tl.int32)) > 0, float("nan"), tl.min(low)), tl.max(high)
