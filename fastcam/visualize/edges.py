"""Edges of an image: a map that looks at no model, to compare others with."""

from __future__ import annotations

import numpy as np

_GREY = np.array([9798, 19235, 3735], np.float32) / 32768  # 0.299, 0.587 and 0.114; sums are exact in fp32
_BAND = 1 << 16  # pixels at once, which stay in the cache


def sobel_cam(img: np.ndarray) -> np.ndarray:
    """The size of the grey image's gradient, by Sobel's 3 x 3 filters: uint8 `(H, W)`.

    grey = round(0.299 R + 0.587 G + 0.114 B),  map = (min(|dx|, 255) + min(|dy|, 255)) / 2, a half to the even number

    Mirrored at the edges without repeating them; equal to pytorch-grad-cam's, which calls OpenCV, number by number.
    img   uint8 RGB `(H, W, 3)`; a fourth channel does not count
    Raises TypeError for another type, ValueError for another shape.
    """
    if not isinstance(img, np.ndarray) or img.dtype != np.uint8:
        got = img.dtype if isinstance(img, np.ndarray) else type(img).__name__
        raise TypeError(f"img must be a numpy array of uint8, got {got}")
    if img.ndim != 3 or img.shape[2] not in (3, 4) or img.size == 0:
        raise ValueError(f"img must be RGB (H, W, 3), got {img.shape}")
    H, W = img.shape[:2]
    edges = np.empty((H, W), np.uint8)
    rows = max(1, _BAND // W)
    for top in range(0, H, rows):
        edges[top : top + rows] = _gradient(_mirrored_grey(img, top, min(top + rows, H)))
    return edges


def _mirrored_grey(img: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Rows top to bottom in grey, int16, with one more pixel on each side."""
    H, W = img.shape[:2]
    first, last = max(top - 1, 0), min(bottom + 1, H)
    grey = np.empty((bottom - top + 2, W + 2), np.int16)
    values = img[first:last, :, :3].reshape(-1, 3).astype(np.float32) @ _GREY
    values += np.float32(0.5)
    grey[first - top + 1 : last - top + 1, 1:-1] = values.reshape(-1, W)
    if top == 0:
        grey[0] = grey[min(2, H)]
    if bottom == H:
        grey[-1] = grey[max(H - 2, 0) - top + 1]
    grey[:, 0], grey[:, -1] = grey[:, min(2, W)], grey[:, max(W - 1, 1)]
    return grey


def _gradient(grey: np.ndarray) -> np.ndarray:
    """`(h, w)` from `(h + 2, w + 2)`. All rows as one line: what runs over a row's end is cut off at the end."""
    h, line = grey.shape[0] - 2, grey.shape[1]
    g = grey.reshape(-1)
    pairs = g[:-line] + g[line:]
    smooth = pairs[:-line] + pairs[line:]  # 1 2 1, from above to below
    x = smooth[2:] - smooth[:-2]
    pairs = g[:-1] + g[1:]
    smooth = pairs[:-1] + pairs[1:]
    y = smooth[2 * line :] - smooth[: -2 * line]
    most = np.full_like(x, 255)  # an array, as numpy is slower with a number
    for d in (x, y):
        np.abs(d, out=d)
        np.minimum(d, most, out=d)
    x += y
    np.right_shift(x, 1, out=y)
    y &= 1
    x += y  # where the half of an odd sum is odd too
    x >>= 1
    edges = np.empty(h * line, np.uint8)
    edges[: len(x)] = x
    return edges.reshape(h, line)[:, :-2]
