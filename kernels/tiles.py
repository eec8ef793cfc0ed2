"""How much a program of each kernel takes on: tile sizes, warps and programs from sizes and types alone.

Chosen by reasoning from the compiled code (registers, accesses, bytes in flight); a measurement on a GPU overrules it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from triton import cdiv, next_power_of_2

WHOLE_ROWS = {"gradcam": 4096, "gradcam++": 8192, "xgradcam": 16384}  # positions; gradcam loses nothing by two launches
WHOLE_ROWS_CHANNELS_LAST = 512  # above, a position would give less than 32 bytes of channels


@lru_cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def splits(programs: int, blocks: int, device: torch.device, most: int) -> int:
    """Among how many programs to split the channel blocks of one: at most `most`, about 8 a multiprocessor in all."""
    parts = most
    while parts > 1 and (parts > blocks or programs * parts > 8 * multiprocessors(device)):
        parts //= 2
    return cdiv(blocks, cdiv(blocks, parts))  # none is left without a block


def reduction(
    C: int, N: int, element_size: int, channels_last: bool, whole_rows: bool
) -> tuple[int, int, int, int, int]:
    """Of the channel reduction: (CT, CR, NR, NT) channels and positions, and warps; 16 elements a thread.

    CT x NT of them lie across the threads, 16 lanes or more to a row that is summed. CR and NR are a thread's own,
    where a sum takes no shuffle.
    """
    if channels_last:
        NT = next_power_of_2(N if whole_rows else min(N, 64))
        channels = min(next_power_of_2(C), max(4096 // NT, 16))
        CT = min(channels, 128)
        return CT, channels // CT, 1, NT, max(1, channels * NT // 512)
    vector = max(1, math.gcd(16, N * element_size) // element_size)  # elements that a thread loads at once
    positions = next_power_of_2(N if whole_rows else min(N, 256 * vector))
    channels = min(next_power_of_2(C), max(4096 // positions, 1))
    warps = max(1, channels * positions // 512)
    NT = min(positions, max(16 if whole_rows else 256, 32 * warps // channels) * vector)
    CT = min(channels, max(1, 32 * warps * vector // NT))
    return CT, channels // CT, positions // NT, NT, warps


def channel_weights(element_size: int, channels_last: bool) -> tuple[int, int, int]:
    """Of the launch that writes weights alone: channels and positions at a time, and warps."""
    channels = 64 // element_size if channels_last else 4
    return channels, 4096 // channels, 4


def resized(images: int, H: int, W: int, samples: int, element_size: int) -> tuple[int, int, int, int]:
    """Of a kernel that resizes maps to H rows of W: rows and columns at a time, rows of a program, and warps.

    1024 elements at a time, 16 bytes a thread, in the shape that pads the image least. A program writes an eighth of
    the share of one of 132 multiprocessors, but 1024 to 16384 elements, and a quarter of the samples it takes before.
    """

    def padded(columns: int) -> tuple[int, int]:
        return cdiv(W, columns) * columns * cdiv(H, 1024 // columns) * (1024 // columns), -columns

    columns = min((32, 64, 128, 256, 512, 1024), key=padded)
    share = next_power_of_2(images * H * W // (8 * 132) + 1) // 2
    elements = min(max(share, next_power_of_2(samples // 4), 1024), 16384)
    rows = 1024 // columns
    return rows, columns, max(rows, min(elements // columns, cdiv(H, rows) * rows)), 8 if element_size == 4 else 4


def sample_tile(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of samples at a time, at most 1024 together."""
    width = min(next_power_of_2(columns), 1024 // min(next_power_of_2(rows), 32))
    return min(next_power_of_2(rows), 1024 // width), width


def overlay(size: int) -> int:
    """Pixels of a program of the overlay, 1024 at a time: a block, but in an image of more than 512 blocks more."""
    return max(1024, next_power_of_2(cdiv(size, 512)))
