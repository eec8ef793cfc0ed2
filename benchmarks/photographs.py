"""JPEG files that are as much work to decode as photographs, made here: nothing is downloaded."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.models import images

WIDTH, HEIGHT = 500, 375
QUALITY = 90
_CANVAS = 1024  # pixels a side of what the pictures are cut from
_GRAIN = 10.0  # deviation, of 255: fine detail, without which a file would be too small
_SHAPES = 6


def make(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """So many files of 500 x 375 pixels, 50 to 100 KB each, the same in every run; those that are there stay.

    Each is two cuts of coloured noise with the spectrum of nature, mixed, with shapes that have edges, and grain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        canvases = images(2, _CANVAS, seed).permute(0, 2, 3, 1).numpy()
        generator = torch.Generator().manual_seed(seed)
        grain = _GRAIN * torch.randn(_CANVAS, _CANVAS, 3, generator=generator).numpy()
    for number in missing:
        _picture(canvases, grain, random.Random(f"{seed} {number}")).save(paths[number], quality=QUALITY)
    return paths


def _picture(canvases: np.ndarray, grain: np.ndarray, draw: random.Random) -> Image.Image:
    share = draw.uniform(0.2, 0.8)
    first, second = (_cut(canvas, draw) for canvas in canvases)
    pixels = 128 + 50 * (share * first + (1 - share) * second) + _cut(grain, draw)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y, w, h = (draw.randrange(limit) for limit in (WIDTH, HEIGHT, WIDTH // 3, HEIGHT // 3))
        shape = draw.choice((pen.ellipse, pen.rectangle))
        shape((x, y, x + w, y + h), outline=tuple(draw.randrange(256) for _ in range(3)), width=draw.randrange(1, 9))
    return image


def _cut(canvas: np.ndarray, draw: random.Random) -> np.ndarray:
    """A place of the canvas, perhaps mirrored, `(375, 500, 3)`."""
    y, x = draw.randrange(_CANVAS - HEIGHT), draw.randrange(_CANVAS - WIDTH)
    return canvas[y : y + HEIGHT, x : x + WIDTH][:, :: draw.choice((1, -1))]
