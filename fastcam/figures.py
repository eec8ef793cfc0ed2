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


def gradient_picture(gradient: Any, colormap: str = "RdBu_r") -> np.ndarray:
    """A signed gradient of an image as a picture, uint8 `(H, W, 3)`; 0 is neutral.

    Three channels in their own colours, grey + g / (2 s); otherwise the sum over channels in colours from -s to s;
    s is the 99th percentile of the absolute values.

    gradient   tensor or array `(k, H, W)`, from `GuidedBackprop` say, or `(H, W, k)` with k = 1 or 3
    Raises ValueError for another shape, or values that are not finite.
    """
    values = np.asarray(gradient.detach().cpu().float() if isinstance(gradient, Tensor) else gradient, np.float32)
    if values.ndim == 3 and len(values) not in (1, 3) and values.shape[2] in (1, 3):
        values = np.moveaxis(values, -1, 0)
    if values.ndim != 3:
        raise ValueError(f"gradient must be (k, H, W) or (H, W, k), one image's, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("gradient has values that are not finite")
    values = values if len(values) == 3 else values.sum(0, keepdims=True)
    scale = max(float(np.percentile(np.abs(values), 99)), 1e-30)
    levels = (255 * np.clip(0.5 + values / (2 * scale), 0, 1)).round().astype(np.uint8)
    if len(values) == 3:
        return np.moveaxis(levels, 0, -1).copy()
    return (255 * _colours(levels[0], colormap)).round().astype(np.uint8)


def method_grid(
    images: Sequence[Tensor],
    maps: Mapping[str, Sequence[Tensor]],
    titles: Sequence[str],
    colormap: str = "jet",
    panels: int = 2,
) -> Figure:
    """A figure with a row a method: its map of each image, a column an image `(k, H, W)`; the images on top.

    maps     for each method's name, a map `(H, W)` per image, laid over it, or a signed gradient `(k, H, W)`
    titles   a line per image, above its column
    panels   the methods are spread over as many panels, side by side
    """
    names, count = list(maps), len(images)
    rows = 1 + -(-len(names) // panels)
    figure = Figure(figsize=(panels * (1.0 * count + 1.1), 1.0 * rows + 0.3), layout="constrained", dpi=130)
    for p, panel in enumerate(figure.subfigures(1, panels, squeeze=False)[0]):
        axes = panel.subplots(rows, count, squeeze=False)
        shown = ["image", *names[p * (rows - 1) : (p + 1) * (rows - 1)]]
        for row, column in np.ndindex(rows, count):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if row >= len(shown):
                axis.set_axis_off()
                continue
            axis.imshow(_cell(images[column], maps.get(shown[row]), column, colormap), interpolation="nearest")
            if row == 0:
                axis.set_title(titles[column], fontsize=8)
            if column == 0:
                axis.set_ylabel(shown[row], fontsize=6)
    return figure


def _cell(image: Tensor, maps: Sequence[Tensor] | None, column: int, colormap: str) -> np.ndarray:
    """The image itself, its map laid over it, or its gradient."""
    if maps is None:
        return (255 * _pixels(image)).astype(np.uint8)
    return overlay(image, maps[column], colormap) if maps[column].ndim == 2 else gradient_picture(maps[column])


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
