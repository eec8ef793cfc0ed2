"""Maps laid over images, and gradients as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fastcam.figures.colours import coloured, table


def overlay(image: Any, cam: Any, colormap: str = "jet", image_weight: float = 0.5) -> np.ndarray:
    """A map laid over its image, uint8 `(H, W, 3)`: colours of the map and image blended, scaled to the full range.

    picture = w image + (1 - w) colormap(cam), divided by its largest value

    image          tensor `(k, H, W)` or array `(H, W)`, `(H, W, k)`, k = 1 or 3; in [0, 1], or uint8
    cam            `(H, W)` in [0, 1]
    colormap       a matplotlib name; "jet" is OpenCV's, as in pytorch-grad-cam
    image_weight   w in [0, 1]
    Raises ValueError for values out of range or shapes that do not fit.
    """
    pixels = pixels_of(image)
    values = np.asarray(cam.detach().cpu() if isinstance(cam, Tensor) else cam, dtype=np.float32)
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must be in [0, 1], got {image_weight}")
    if values.shape != pixels.shape[:2]:
        raise ValueError(f"cam must be (H, W) = {pixels.shape[:2]} as the image, got {values.shape}")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"cam must be in [0, 1], got {values.min()} to {values.max()}")
    colours = coloured((255 * values).astype(np.uint8), colormap)
    blend = image_weight * pixels + (1 - image_weight) * colours
    return (255 * blend / max(blend.max(), 1e-7)).astype(np.uint8)


def show_cam_on_image(
    img: Any, mask: Any, use_rgb: bool = False, colormap: int | str = 2, image_weight: float = 0.5
) -> np.ndarray:
    """`overlay` as pytorch-grad-cam calls it, level by level: uint8 `(H, W, 3)`.

    img            float array `(H, W, 3)`, or tensor `(3, H, W)`, 1 at most
    mask           `(H, W)` in [0, 1], array or tensor
    use_rgb        whether img is RGB; by default it is taken, and the heat map made, as OpenCV's BGR
    colormap       OpenCV's number of a colour map, 2 for jet, or a matplotlib name
    image_weight   in [0, 1]
    Raises ValueError for an image or weight out of range, ImportError for a number that only OpenCV knows, without it.
    """
    if isinstance(img, Tensor):
        img = (img.movedim(0, -1) if img.ndim == 3 and len(img) == 3 else img).detach().cpu().numpy()
    mask = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if np.max(img) > 1:
        raise ValueError(f"The input image should np.float32 in the range [0, 1], got {np.max(img)}")
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight should be in the range [0, 1]. Got: {image_weight}")
    heat = table(colormap)[(255 * np.asarray(mask)).astype(np.uint8)]
    heat = (heat if use_rgb else heat[..., ::-1]).astype(np.float32) / 255
    blend = (1 - image_weight) * heat + image_weight * img
    largest = np.max(blend)
    return (255 * (blend / largest if largest > 0 else blend)).astype(np.uint8)


def deprocess_image(img: np.ndarray) -> np.ndarray:
    """A gradient, or any array, as a picture of the same shape, uint8: 0.5 + 0.1 (g - mean) / (std + 1e-5), clipped."""
    scaled = (img - np.mean(img)) / (np.std(img) + 1e-5) * 0.1 + 0.5
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


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
    return (255 * coloured(levels[0], colormap)).round().astype(np.uint8)


def pixels_of(image: Any) -> np.ndarray:
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
