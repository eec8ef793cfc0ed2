"""Maps in colours laid over images, 8 bits out, in two launches: each image's largest value, then the picture.

`blend = (1 - w) table[cut(255 map)] + w image;  picture = cut(255 (blend / max blend))`

A program owns 1024 pixels of one image, or more of a large one, 1024 at a time with 8 warps. The first launch writes
the largest value of each program, the second reads those of its image and writes the picture once, from the last image
to the first, as the cache still holds the last; blending again costs less than keeping the blend, which is five times
the picture. The colours, a few kB, stay in the cache.
A lane of the second launch is a byte of the picture, so that what is written at once lies together. Products and
sums are rounded one by one, not fused, and divisions are exact: every level is the definition's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcam.kernels import tiles

BLOCK = tl.constexpr(1024)  # pixels at a time


def overlay(images: Tensor, maps: Tensor, table: Tensor, image_weight: float = 0.5) -> Tensor:
    """The pictures uint8 `(B, H, W, 3)` of images `(B, 1 or 3, H, W)` and maps `(B, H, W)`, any strides.

    images in fp16, bf16, fp32, or uint8, which counts as divided by 255; maps in fp16, bf16 or fp32; table `(256, 3)`
    uint8 or floating point. A NaN in an image makes its picture black, and no other image's.
    """
    images, (B, H, W) = images.expand(-1, 3, -1, -1), maps.shape
    pixels = tiles.overlay(H * W)
    parts = triton.cdiv(H * W, pixels)
    largest = torch.empty((B, parts), dtype=torch.float32, device=maps.device)
    pictures = torch.empty((B, H, W, 3), dtype=torch.uint8, device=maps.device)
    interleaved = images.stride()[1:] == (1, 3 * W, 3)
    strides = (maps.stride(0), 0, *maps.stride()[1:])
    given = (
        images,
        maps,
        table.to(maps.device).contiguous(),
        largest,
        pictures,
        float(image_weight),
        float(1 - image_weight),
    )
    constants = (H, W, images.stride(), strides, interleaved, pixels)
    with torch.cuda.device_of(maps):
        for kernel in (_largest_kernel, _picture_kernel):
            kernel[(B * parts,)](*given, *constants, num_warps=8, enable_fp_fusion=False)
    return pictures


@triton.jit
def _lanes(part, INTERLEAVED: tl.constexpr):
    """Pixel of a block and channel of each lane, in one of three parts: the bytes as they lie, or a channel."""
    if INTERLEAVED:
        byte = part * BLOCK + tl.arange(0, BLOCK)
        return byte // 3, byte % 3
    return tl.arange(0, BLOCK), tl.full([BLOCK], part, tl.int32)


@triton.jit
def _at(pixel, c, W: tl.constexpr, strides: tl.constexpr):
    """Where a pixel's channel lies in its image; a single stride steps through most."""
    if strides[2] == W * strides[3]:
        return c * strides[1] + pixel * strides[3]
    return c * strides[1] + (pixel // W) * strides[2] + (pixel % W) * strides[3]


@triton.jit
def _in_unit_range(values):
    """uint8 divided by 255: 1 / 255 in two parts, a product with the first is exact, and so each sum the quotient."""
    wide = values.to(tl.float32)
    return wide * (257 / 65536) + wide * (1 / 255 - 257 / 65536) if values.dtype == tl.uint8 else wide


@triton.jit
def _blend(
    images, maps, table, image_weight, map_weight, first, part, b, H: tl.constexpr, W: tl.constexpr,
    image_strides: tl.constexpr, map_strides: tl.constexpr, BYTES: tl.constexpr, IMAGE_BYTES: tl.constexpr,
):  # fmt: skip
    """The blend at the lanes of a part of the block at pixel `first`, 0 outside the image, and which are inside."""
    byte = first * 3 + part * BLOCK + tl.arange(0, BLOCK)
    local, c = _lanes(part, BYTES)
    pixel, c = first + local, c.to(tl.int64)
    inside = byte < H * W * 3 if BYTES else pixel < H * W  # the same, but of bytes in a row seen to be one for all
    level = tl.load(maps + b * map_strides[0] + _at(pixel, c, W, map_strides), mask=inside, other=0).to(tl.float32)
    level = tl.minimum(tl.maximum(255 * level, 0.0), 255.0).to(tl.int32)  # the table has no others
    at = byte if BYTES and IMAGE_BYTES else _at(pixel, c, W, image_strides)
    image = _in_unit_range(tl.load(images + b * image_strides[0] + at, mask=inside, other=0))
    colour = _in_unit_range(tl.load(table + level * 3 + c, mask=inside, other=0))
    return map_weight * colour + image_weight * image, inside


@triton.jit
def _largest_kernel(
    images, maps, table, largest, pictures, image_weight, map_weight, H: tl.constexpr, W: tl.constexpr,
    image_strides: tl.constexpr, map_strides: tl.constexpr, INTERLEAVED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // tl.cdiv(H * W, PIXELS)).to(tl.int64)
    start = (tl.program_id(0) % tl.cdiv(H * W, PIXELS)).to(tl.int64) * PIXELS
    highest = tl.zeros([BLOCK], tl.float32)
    for block in range(PIXELS // BLOCK):
        for part in tl.static_range(3):
            blend, _ = _blend(
                images, maps, table, image_weight, map_weight, start + block * BLOCK, part, b, H, W, image_strides,
                map_strides, INTERLEAVED, INTERLEAVED,
            )  # fmt: skip
            highest = tl.maximum(highest, blend, propagate_nan=tl.PropagateNan.ALL)
    # A reduction passes over NaN; what is divided by infinity is black, as the definition's picture is.
    highest = tl.where(highest == highest, highest, float("inf"))
    tl.store(largest + tl.program_id(0).to(tl.int64), tl.max(highest, 0))


@triton.jit
def _picture_kernel(
    images, maps, table, largest, pictures, image_weight, map_weight, H: tl.constexpr, W: tl.constexpr,
    image_strides: tl.constexpr, map_strides: tl.constexpr, INTERLEAVED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = tl.cdiv(H * W, PIXELS)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (program // TILES).to(tl.int64)
    start = (program % TILES).to(tl.int64) * PIXELS
    tile = tl.arange(0, 512)
    top = tl.max(tl.load(largest + b * TILES + tile, mask=tile < TILES, other=0), 0)
    top = tl.where(top > 0, top, 1.0)
    for block in range(PIXELS // BLOCK):
        for part in tl.static_range(3):
            first = start + block * BLOCK
            blend, inside = _blend(
                images, maps, table, image_weight, map_weight, first, part, b, H, W, image_strides, map_strides, True,
                INTERLEAVED,
            )  # fmt: skip
            at = first * 3 + part * BLOCK + tl.arange(0, BLOCK)
            tl.store(pictures + b * (H * W * 3) + at, (255 * tl.div_rn(blend, top)).to(tl.int32).to(tl.uint8), inside)
