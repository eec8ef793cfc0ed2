"""From the low maps of one or more layers to the finished map in [0, 1], in one launch.

`finish(L) = min_max(mean_l resize(min_max(relu(sum_p L[l, p]))))`, `min_max(v) = (v - min v) / (1e-7 + max v - min v)`.

A program writes a band of rows of one image, 1024 pixels at a time: where a column lies between low ones is found once.
It reads the image's low maps and keeps their normalised sums in a scratch row of its own, where its threads find the
corners they mix: beside the result, written once, each program of an image writes all its low maps again. That is
little at 7 x 7; of large low maps, 56 x 56 and up, it is what to time first.
Before a pixel is written its program needs the extremes of all: in a cell between four low pixels the resized map is
bilinear, extreme at the corners, so only the first and last rows and columns of pixels in the cells are sampled, at
most 2h by 2w.
All mixing is explicit fma: the same pixel gets the same bits in a sample and in the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles
from fastcam.kernels.resampling import extremes, mix, place, sample, samples, source, wider


def finish(low_maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The finished maps `(B, H, W)`, fp32, of low maps `(B, P, h, w)`, one a layer, each with its own P, h and w.

    `size` is (H, W). Lines, `(B, P, n)` and (N,), are images of one row.
    A NaN in the low maps of an image makes its finished map NaN, and no other image's.
    """
    if len(size) == 1:
        return finish([maps.unsqueeze(2) for maps in low_maps], (1, *size)).squeeze(1)
    B, (H, W) = len(low_maps[0]), size
    low = low_maps[0].flatten(1) if len(low_maps) == 1 else torch.cat([maps.flatten(1) for maps in low_maps], 1)
    layers, read, kept = [], 0, 0
    for P, h, w in (maps.shape[1:] for maps in low_maps):
        layers.append((P, h, w, h * w, read, kept, min(triton.next_power_of_2(h * w), 1024)))
        read, kept = read + P * h * w, kept + h * w
    rows, columns = samples([h for _, h, *_ in layers], H), samples([w for _, _, w, *_ in layers], W)
    BH, BW, band, warps = tiles.resized(B, H, W, rows[0] * columns[0], 4)
    programs = B * triton.cdiv(H, band) * triton.cdiv(W, BW)
    scratch = torch.empty((programs, kept), dtype=torch.float32, device=low.device)
    finished = torch.empty((B, H, W), dtype=torch.float32, device=low.device)
    constants = (tuple(layers), read, kept, H, W, rows, columns, *tiles.sample_tile(rows[0], columns[0]), BH, BW, band)
    with torch.cuda.device_of(low):
        _finish_kernel[(programs,)](
            low.contiguous(), scratch, finished, *constants, num_warps=warps, enable_fp_fusion=True
        )
    return finished


@triton.jit
def _fused(scratch, y, x, inside, LAYERS: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The sum of the resized layers at the pixels of rows y (BH, 1) and columns x (1, BW)."""
    total = tl.zeros([y.shape[0], x.shape[1]], tl.float32)
    for layer in tl.static_range(len(LAYERS)):
        top, bottom, down = source(y, LAYERS[layer][1], H, False)
        left, right, along = source(x, LAYERS[layer][2], W, False)
        above = scratch + LAYERS[layer][5] + top * LAYERS[layer][2]
        below = scratch + LAYERS[layer][5] + bottom * LAYERS[layer][2]
        upper = mix(tl.load(above + left, inside, 0), tl.load(above + right, inside, 0), along)
        lower = mix(tl.load(below + left, inside, 0), tl.load(below + right, inside, 0), along)
        total += mix(upper, lower, down)
    return total


@triton.jit
def _summed(low, i, P: tl.constexpr, N: tl.constexpr):
    """relu of the sum of the partial maps at positions i."""
    total = tl.zeros(i.shape, tl.float32)
    for p in tl.static_range(P):
        total += tl.load(low + p * N + i, mask=i < N, other=0).to(tl.float32)
    return tl.where(total < 0, 0, total)  # keeps NaN


@triton.jit
def _normalize(low, scratch, P: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Writes min_max(relu(sum of the partial maps)) of a layer to scratch."""
    lowest, highest = tl.full([BLOCK], float("inf"), tl.float32), tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        lowest, highest = wider(lowest, highest, _summed(low, i, P, N), i < N)
    lowest, highest = extremes(lowest, highest)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(scratch + i, tl.div_rn(_summed(low, i, P, N) - lowest, 1e-7 + (highest - lowest)), mask=i < N)


@triton.jit
def _finish_kernel(
    low, scratch, finished, LAYERS: tl.constexpr, READ: tl.constexpr, KEPT: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BH: tl.constexpr,
    BW: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    b, y, x = place(H, W, BH, BW, BAND)
    scratch += tl.program_id(0).to(tl.int64) * KEPT
    for layer in tl.static_range(len(LAYERS)):
        partial = low + b * READ + LAYERS[layer][4]
        _normalize(partial, scratch + LAYERS[layer][5], LAYERS[layer][0], LAYERS[layer][3], LAYERS[layer][6])
    tl.debug_barrier()  # every thread has written its part of the scratch row
    lowest, highest = tl.full([SH, SW], float("inf"), tl.float32), tl.full([SH, SW], -float("inf"), tl.float32)
    for first in range(0, tl.cdiv(ROWS[0], SH) * tl.cdiv(COLUMNS[0], SW)):
        row, column, inside = sample(first, ROWS, COLUMNS, H, W, SH, SW, False)
        lowest, highest = wider(lowest, highest, _fused(scratch, row, column, inside, LAYERS, H, W), inside)
    lowest, highest = extremes(lowest, highest)
    scale = tl.div_rn(1.0, len(LAYERS) * 1e-7 + (highest - lowest))  # the factor because these are sums, not means
    for start in range(0, BAND, BH):
        row = y + start
        inside = (row < H) & (x < W)
        v = (_fused(scratch, row, x, inside, LAYERS, H, W) - lowest) * scale
        tl.store(finished + (b * H + row) * W + x, tl.clamp(v, 0.0, 1.0, tl.PropagateNan.ALL), mask=inside)
