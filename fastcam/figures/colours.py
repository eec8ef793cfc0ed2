"""Colour maps as tables."""

from __future__ import annotations

import functools

import numpy as np

# OpenCV's numbers of the colour maps that matplotlib has too, equal within one level of 255
_OF_OPENCV = {
    **{0: "autumn", 1: "bone", 2: "jet", 3: "winter", 6: "summer", 7: "spring", 8: "cool"},
    **{13: "magma", 14: "inferno", 15: "plasma", 16: "viridis", 17: "cividis", 20: "turbo"},
}


def shades(colormap: str) -> np.ndarray:
    """The 256 colours of a map by its name: `(256, 3)`, RGB; uint8 for jet, which needs no matplotlib, or fp32."""
    if colormap == "jet":
        return table("jet")
    import matplotlib

    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap must be a name that matplotlib knows, got {colormap!r}")
    return np.asarray(matplotlib.colormaps[colormap](np.arange(256)), np.float32)[:, :3]


@functools.cache
def table(colormap: int | str) -> np.ndarray:
    """The 256 colours of a map by its name or OpenCV's number: uint8 `(256, 3)`, RGB; jet is OpenCV's."""
    name = colormap if isinstance(colormap, str) else _OF_OPENCV.get(int(colormap))
    if name == "jet":
        levels = np.arange(256)
        rising, falling = np.array([-382, -128, 128]), np.array([1148, 892, 638])
        table = np.minimum(4 * levels[:, None] + rising, falling - 4 * levels[:, None]).clip(0, 255)
        table[159, 2] = 1  # where OpenCV's table leaves the line
        return table.astype(np.uint8)
    if name is not None:
        return (255 * shades(name)).round().astype(np.uint8)
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"colormap {colormap} is OpenCV's own: pip install opencv-python-headless, or pass a matplotlib name"
        ) from error
    return np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], int(colormap)))[0, :, ::-1].copy()
