"""Overlays and figures. The one file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def overlay(image: Any, cam: Any, colormap: str = "jet", image_weight: float = 0.5) -> np.ndarray:
    """A map laid over its image, uint8 `(H, W, 3)`: colours of the map and image blended, scaled to the full range.

    picture = w image + (1 - w) colormap(cam), divided by its largest value

    image          tensor `(k, H, W)` or array `(H, W)`, `(H, W, k)`, k = 1 or 3; in [0, 1], or uint8
    cam            `(H, W)` in [0, 1]
    colormap       a matplotlib name; "jet" is OpenCV's, as in pytorch-grad-cam
    image_weight   w in [0, 1]
    Raises ValueError for values out of range or shapes that do not fit.
    """
    pixels = _pixels(image)
    values = np.asarray(cam.detach().cpu() if isinstance(cam, Tensor) else cam, dtype=np.float32)
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must be in [0, 1], got {image_weight}")
    if values.shape != pixels.shape[:2]:
        raise ValueError(f"cam must be (H, W) = {pixels.shape[:2]} as the image, got {values.shape}")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"cam must be in [0, 1], got {values.min()} to {values.max()}")
    colours = _colours((255 * values).astype(np.uint8), colormap)
    blend = image_weight * pixels + (1 - image_weight) * colours
    return (255 * blend / max(blend.max(), 1e-7)).astype(np.uint8)


def method_grid(
    images: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]], titles: Sequence[str], colormap: str = "jet"
) -> Figure:
    """A figure with a row per image `(k, H, W)`: the image, then its map by each method, laid over it.

    maps     for each method's name, a map `(H, W)` per image
    titles   a line per image, left of its row
    """
    columns = ["image", *maps]
    figure = Figure(figsize=(1.25 * len(columns) + 0.6, 1.25 * len(images) + 0.5), layout="constrained", dpi=130)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for row, image in enumerate(images):
        pictures = [(255 * _pixels(image)).astype(np.uint8), *(overlay(image, maps[m][row], colormap) for m in maps)]
        for axis, picture, name in zip(axes[row], pictures, columns, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name, fontsize=8)
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
    return figure


def _colours(levels: np.ndarray, colormap: str) -> np.ndarray:
    """The colours `(H, W, 3)` in [0, 1] of uint8 levels `(H, W)`."""
    if colormap == "jet":
        position = 4 * (levels.astype(np.float32) + 0.5) / 256
        return np.clip(1.5 - np.abs(position[..., None] - np.array([3, 2, 1], np.float32)), 0, 1)
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap must be a name that matplotlib knows, got {colormap!r}")
    return np.asarray(matplotlib.colormaps[colormap](levels))[..., :3]


def _pixels(image: Any) -> np.ndarray:
    """An image as float `(H, W, 3)` in [0, 1]."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().movedim(0, -1) if image.ndim == 3 else image.detach().cpu()
    pixels = np.asarray(image)
    pixels = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"image must be (H, W), (H, W, 1 or 3) or a tensor (1 or 3, H, W), got {pixels.shape}")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(
            f"image must be in [0, 1] or uint8, got {pixels.min():.3g} to {pixels.max():.3g}: "
            "pass the picture itself, not the normalised input"
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
