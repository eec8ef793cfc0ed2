"""Images seen through masks, a whole batch for the model in one launch, in its type and memory format.

`m = (u - min u) / (max u - min u + 1e-8)`, u a mask resized to the image; `out = x m (+ baseline (1 - m))`.

A program writes a band of an image's rows, 1024 pixels at a time, 16 bytes a thread. The mask's extremes, which every
pixel needs, are sampled first where a bilinear map has them, beside the borders of the cells between low pixels (see
`finish`). Low mask and image are read again and again but small, and stay in the caches: what costs is the writing.
In channels_last a lane is a channel of a pixel, so that what is written at once lies together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles
from fastcam.kernels.resampling import extremes, mix, place, sample, samples, source, wider


def masked_inputs(
    x: Tensor, masks: Tensor, images: Tensor, baseline: Tensor | None = None, align_corners: bool = True
) -> Tensor:
    """The rows `(N, k, H, W)` of images x `(B, k, H, W)` seen through masks `(N, h, w)`; images `(N,)` integers.

    x, masks, baseline (as x) in fp16, bf16 or fp32, any strides; the result has x's type and memory format.
    Lines, `(B, k, W)` and `(N, w)`, are images of one row.
    """
    if x.ndim == 3:
        below = None if baseline is None else baseline.unsqueeze(2)
        return masked_inputs(x.contiguous().unsqueeze(2), masks.unsqueeze(1), images, below, align_corners).squeeze(2)
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    x, masks, images = x.contiguous(memory_format=layout), masks.contiguous(), images.contiguous()
    seen = x if baseline is None else baseline.to(x.dtype).contiguous(memory_format=layout)
    N, (h, w), (K, H, W) = len(masks), masks.shape[1:], x.shape[1:]
    rows, columns = samples([h], H), samples([w], W)
    along = W * (K if last else 1)  # elements that lie together
    BH, BW, band, warps = tiles.resized(N, H, along, rows[0] * columns[0], x.element_size())
    out = torch.empty((N, K, H, W), dtype=x.dtype, device=x.device, memory_format=layout)
    grid = (N * triton.cdiv(H, band) * triton.cdiv(along, BW),)
    flags, sample_tile = (align_corners, baseline is not None, last), tiles.sample_tile(rows[0], columns[0])
    constants = (K, h, w, H, W, rows, columns, *flags, *sample_tile, BH, BW, band)
    with torch.cuda.device_of(x):
        _masked_kernel[grid](x, masks, images, seen, out, *constants, num_warps=warps, enable_fp_fusion=True)
    return out


@triton.jit
def _resized(
    mask, y, x, inside, h: tl.constexpr, w: tl.constexpr, H: tl.constexpr, W: tl.constexpr, ALIGN: tl.constexpr
):
    """The mask at the pixels of rows y (BH, 1) and columns x (1, BW)."""
    top, bottom, down = source(y, h, H, ALIGN)
    left, right, along = source(x, w, W, ALIGN)
    upper = mix(_load(mask + top * w + left, inside), _load(mask + top * w + right, inside), along)
    lower = mix(_load(mask + bottom * w + left, inside), _load(mask + bottom * w + right, inside), along)
    return mix(upper, lower, down)


@triton.jit
def _load(ptr, inside):
    return tl.load(ptr, mask=inside, other=0).to(tl.float32)


@triton.jit
def _masked_kernel(
    x, masks, images, baseline, out, K: tl.constexpr, h: tl.constexpr, w: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr, BASELINE: tl.constexpr,
    LAST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    PER_LANE: tl.constexpr = 1 if LAST else K  # channels that a lane writes
    ALONG: tl.constexpr = W * K // PER_LANE  # elements of a row
    n, y, j = place(H, ALONG, BH, BW, BAND)
    column = j // K if LAST else j
    b = tl.load(images + n).to(tl.int64)
    mask = masks + n * (h * w)
    lowest, highest = tl.full([SH, SW], float("inf"), tl.float32), tl.full([SH, SW], -float("inf"), tl.float32)
    for first in range(0, tl.cdiv(ROWS[0], SH) * tl.cdiv(COLUMNS[0], SW)):
        row, beside, inside = sample(first, ROWS, COLUMNS, H, W, SH, SW, ALIGN)
        lowest, highest = wider(lowest, highest, _resized(mask, row, beside, inside, h, w, H, W, ALIGN), inside)
    lowest, highest = extremes(lowest, highest)
    scale = tl.div_rn(1.0, (highest - lowest) + 1e-8)
    for start in range(0, BAND, BH):
        row = y + start
        inside = (row < H) & (j < ALONG)
        m = (_resized(mask, row, column, inside, h, w, H, W, ALIGN) - lowest) * scale
        for k in range(PER_LANE):
            at = k * (H * W) + row * ALONG + j
            value = _load(x + b * (K * H * W) + at, inside) * m
            if BASELINE:
                value += _load(baseline + b * (K * H * W) + at, inside) * (1 - m)
            tl.store(out + n * (K * H * W) + at, value, mask=inside)
