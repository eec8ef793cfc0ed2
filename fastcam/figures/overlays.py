"""Maps laid over images, and gradients as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcam import ops
from fastcam.figures.colours import shades, table
from fastcam.images import warn_of_flat

_SLACK = 1e-4  # beyond [0, 1], as rounding leaves behind when pictures are resized; it is cut off


def overlay(image: Any, cam: Any, colormap: str = "jet", image_weight: float = 0.5) -> Any:
    """A map laid over its image, uint8 `(H, W, 3)`: colours of the map and image blended, scaled to the full range.

    picture = w image + (1 - w) colormap(cam), divided by its largest value

    image          tensor `(k, H, W)` or array `(H, W)`, `(H, W, k)`, k = 1 or 3; in [0, 1], or uint8;
                   or a batch, a tensor `(B, k, H, W)`
                   (values up to 1e-4 beyond, as resizing leaves them, are cut off)
    cam            `(H, W)` in [0, 1], for a batch `(B, H, W)`; array or tensor
    colormap       a matplotlib name; "jet" is OpenCV's, as in pytorch-grad-cam
    image_weight   w in [0, 1]
    Gives an array for one image, for a batch a tensor `(B, H, W, 3)` on its device, where a GPU paints it
    itself; it is waited for, as values are checked first (`fastcam.ops.overlay` checks none).
    Raises ValueError for values out of range or shapes that do not fit; warns of floating-point images of nearly no
    contrast (`check_contrast`).

    >>> import torch, fastcam
    >>> fastcam.overlay(torch.rand(4, 3, 32, 32), torch.rand(4, 32, 32)).shape
    torch.Size([4, 32, 32, 3])
    """
    pictures = _pictures(image)
    maps = (cam.detach() if isinstance(cam, Tensor) else _tensor(cam)).to(pictures.device, torch.float32)
    batch = isinstance(image, Tensor) and image.ndim == 4
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must be in [0, 1], got {image_weight}")
    shape = (*pictures.shape[: int(batch)], *pictures.shape[2:])
    if maps.shape != shape:
        wanted = "(B, H, W)" if batch else "(H, W)"
        raise ValueError(f"cam must be {wanted} = {tuple(shape)} as the image, got {tuple(maps.shape)}")
    low, high = (end.item() for end in maps.aminmax())
    if not -_SLACK <= low <= high <= 1 + _SLACK:
        raise ValueError(f"cam must be in [0, 1], got {low} to {high}")
    maps = maps if low >= 0 and high <= 1 else maps.clamp(0, 1)
    painted = ops.overlay(pictures, maps.view(-1, *maps.shape[-2:]), torch.from_numpy(shades(colormap)), image_weight)
    return painted if batch else painted[0].cpu().numpy()


def show_cam_on_image(
    img: Any, mask: Any, use_rgb: bool = False, colormap: int | str = 2, image_weight: float = 0.5
) -> np.ndarray:
    """`overlay` as pytorch-grad-cam calls it, level by level: uint8 `(H, W, 3)`.

    img            float array `(H, W, 3)`, or tensor `(3, H, W)`, 1 at most; up to 1e-4 more is cut off
    mask           `(H, W)` in [0, 1], array or tensor
    use_rgb        whether img is RGB; by default it is taken, and the heat map made, as OpenCV's BGR
    colormap       OpenCV's number of a colour map, 2 for jet, or a matplotlib name
    image_weight   in [0, 1]
    Raises ValueError for an image or weight out of range, ImportError for a number that only OpenCV knows, without it;
    warns of an image of nearly no contrast (`check_contrast`).
    """
    pixels = img.detach() if isinstance(img, Tensor) else _tensor(img)
    pixels = pixels if pixels.is_floating_point() else pixels.double()
    low, high = (end.item() for end in pixels.aminmax())
    if high > 1 + _SLACK:
        raise ValueError(f"The input image should np.float32 in the range [0, 1], got {high}")
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight should be in the range [0, 1]. Got: {image_weight}")
    warn_of_flat([high - low], "img", stacklevel=3)
    pixels = pixels if high <= 1 else pixels.clamp(max=1)
    planes = pixels if isinstance(img, Tensor) and img.ndim == 3 and len(img) == 3 else pixels.movedim(-1, 0)
    maps = (mask.detach() if isinstance(mask, Tensor) else _tensor(mask)).to(pixels.device)
    heat = table(colormap) if use_rgb else table(colormap)[:, ::-1].copy()
    return ops.overlay(planes[None], maps[None], torch.from_numpy(heat), image_weight)[0].cpu().numpy()


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
    return table(colormap)[levels[0]]


def pixels_of(image: Any) -> np.ndarray:
    """An image as float `(H, W, 3)` in [0, 1]."""
    picture = _pictures(image)[0]
    pixels = picture.float() / 255 if picture.dtype == torch.uint8 else picture
    return pixels.expand(3, -1, -1).movedim(0, -1).cpu().numpy()


def _pictures(image: Any) -> Tensor:
    """An image, or a batch, as a tensor `(B, k, H, W)` where it is: fp32 in [0, 1], or uint8."""
    x = image.detach() if isinstance(image, Tensor) else _tensor(image)
    x = x if x.dtype == torch.uint8 else x.float()
    x = x.movedim(-1, 0) if x.ndim == 3 and not isinstance(image, Tensor) else x
    x = x[(None,) * max(0, 4 - x.ndim)] if x.ndim > 1 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel() or len(x) > 1 and not isinstance(image, Tensor):
        raise ValueError(
            "image must be (H, W), (H, W, 1 or 3), a tensor (1 or 3, H, W) or a batch, a tensor (B, 1 or 3, H, W), "
            f"got {tuple(np.shape(image))}"
        )
    if x.dtype != torch.uint8:
        lows, highs = (ends.tolist() for ends in (x.amin((1, 2, 3)), x.amax((1, 2, 3))))
        if not all(-_SLACK <= low <= high <= 1 + _SLACK for low, high in zip(lows, highs, strict=True)):
            low, high = min(lows), max(highs)
            raise ValueError(
                f"image must be in [0, 1] or uint8, got {low:.3g} to {high:.3g}: "
                "pass the picture itself, not the normalised input"
            )
        warn_of_flat([high - low for low, high in zip(lows, highs, strict=True)], "image", stacklevel=4)
        x = x if min(lows) >= 0 and max(highs) <= 1 else x.clamp(0, 1)
    return x


def _tensor(array: Any) -> Tensor:
    """An array as a tensor, copied only where torch cannot share it."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
