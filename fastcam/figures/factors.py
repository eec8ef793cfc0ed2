"""Several concepts on one image, a hue each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


def show_factorization_on_image(
    img: np.ndarray,
    explanations: np.ndarray,
    colors: Sequence[Any] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> np.ndarray:
    """The maps of several concepts on one image, a hue each, uint8 `(H, W, 3)`: at a pixel the strongest concept shows.

    img              RGB `(H, W, 3)` in [0, 1]
    explanations     `(n, H, W)` in [0, 1], from `DeepFeatureFactorization`; left as they are
    colors           n colours (R, G, B) in [0, 1]; None takes them from gist_rainbow
    concept_labels   n texts, for a legend as wide as the image on its right: `(H, 2 W, 3)` then
    Raises ValueError if shapes do not fit.
    """
    n, shape = len(explanations), img.shape[:2]
    if explanations.shape[1:] != shape:
        raise ValueError(f"explanations must be (n, H, W) = (n, {shape[0]}, {shape[1]}), got {explanations.shape}")
    colors = [matplotlib.colormaps["gist_rainbow"](i) for i in np.arange(0, 1, 1 / n)] if colors is None else colors
    hues = [_hue_saturation((np.asarray(c)[:3] * 255).astype(np.uint8)) for c in colors]
    strongest = explanations.argmax(0)  # (H, W)
    value = (255 * np.take_along_axis(explanations, strongest[None], 0)[0]).astype(np.uint8)
    hue, saturation = (np.array(part)[strongest] for part in zip(*hues, strict=True))
    painted = _rgb_of_hsv(hue, saturation, value).astype(np.float32) / 255
    result = ((img * image_weight + painted * (1 - image_weight)) * 255).astype(np.uint8)
    if concept_labels is None:
        return result
    return np.hstack((result, _legend(colors, concept_labels, *shape)))


def create_labels_legend(concept_scores: np.ndarray, labels: Mapping[int, str], top_k: int = 2) -> list[str]:
    """For each concept the names and scores of its `top_k` classes, a line a class; from scores `(n, K)`."""
    best = np.argsort(concept_scores, axis=1)[:, ::-1][:, :top_k]
    return [
        "\n".join(f"{','.join(labels[c].split(',')[:3])}:{row[c]:.2f}" for c in classes)
        for row, classes in zip(concept_scores, best.tolist(), strict=True)
    ]


def _hue_saturation(rgb: np.ndarray) -> tuple[int, int]:
    """Hue in 0 to 179 and saturation in 0 to 255 of a uint8 colour, rounded as OpenCV's 8-bit HSV is."""
    r, g, b = (int(c) for c in rgb)
    value, spread = max(r, g, b), max(r, g, b) - min(r, g, b)
    if not spread:
        return 0, 0
    half = 1 << 11
    saturation = (spread * round((255 << 12) / value) + half) >> 12
    sixth = g - b if value == r else b - r + 2 * spread if value == g else r - g + 4 * spread
    return ((sixth * round((180 << 12) / (6 * spread)) + half) >> 12) % 180, saturation


def _rgb_of_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 3)` from OpenCV's 8-bit HSV, each `(H, W)`; its fused products are rounded once, from fp64."""
    unit, one = np.float32(1 / 255), np.float32(1)
    h, s, v = hue * np.float32(6 / 180), saturation * unit, value * unit
    sector = h.astype(int) % 6
    f = h - np.trunc(h)
    falling, rising = (np.float32(1 - s.astype(np.float64) * part) for part in (f, one - f))
    shades = np.stack([v, v * (one - s), v * falling, v * rising])  # (4, H, W)
    order = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])[sector]
    rgb = np.take_along_axis(shades, np.moveaxis(order, -1, 0), 0)
    return np.moveaxis((rgb * np.float32(255)).astype(np.uint8), 0, -1)


def _legend(colors: Sequence[Any], labels: Sequence[str], height: int, width: int) -> np.ndarray:
    """A picture uint8 `(height, width, 3)` of a line in each colour and its label."""
    figure = Figure(dpi=matplotlib.rcParams["figure.dpi"])
    figure.set_size_inches(width / figure.dpi, height / figure.dpi)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    lines = [Line2D([0], [0], color=c, lw=5 * height / 256) for c in colors]
    size = int(14 * height / 256 / max(1, len(colors) / 6))
    axes.legend(lines, labels, mode="expand", fancybox=True, shadow=True, fontsize=size)
    figure.tight_layout(pad=0, w_pad=0, h_pad=0)
    axes.set_axis_off()
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    rows, columns = (np.arange(n) * have // n for n, have in zip((height, width), drawn.shape, strict=False))
    return drawn[rows][:, columns].copy()  # a canvas may be a pixel off
