"""Overlays and figures. The one file that imports matplotlib."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

# OpenCV's numbers of the colour maps that matplotlib has too, equal within one level of 255
_OF_OPENCV = {
    **{0: "autumn", 1: "bone", 2: "jet", 3: "winter", 6: "summer", 7: "spring", 8: "cool"},
    **{13: "magma", 14: "inferno", 15: "plasma", 16: "viridis", 17: "cividis", 20: "turbo"},
}


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
    heat = _table(colormap)[(255 * np.asarray(mask)).astype(np.uint8)]
    heat = (heat if use_rgb else heat[..., ::-1]).astype(np.float32) / 255
    blend = (1 - image_weight) * heat + image_weight * img
    largest = np.max(blend)
    return (255 * (blend / largest if largest > 0 else blend)).astype(np.uint8)


def deprocess_image(img: np.ndarray) -> np.ndarray:
    """A gradient, or any array, as a picture of the same shape, uint8: 0.5 + 0.1 (g - mean) / (std + 1e-5), clipped."""
    scaled = (img - np.mean(img)) / (np.std(img) + 1e-5) * 0.1 + 0.5
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


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
        return _table("jet")[levels].astype(np.float32) / 255
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap must be a name that matplotlib knows, got {colormap!r}")
    return np.asarray(matplotlib.colormaps[colormap](levels))[..., :3]


@functools.cache
def _table(colormap: int | str) -> np.ndarray:
    """The 256 colours of a map by its name or OpenCV's number: uint8 `(256, 3)`, RGB; jet is OpenCV's."""
    name = colormap if isinstance(colormap, str) else _OF_OPENCV.get(int(colormap))
    levels = np.arange(256)
    if name == "jet":
        rising, falling = np.array([-382, -128, 128]), np.array([1148, 892, 638])
        table = np.minimum(4 * levels[:, None] + rising, falling - 4 * levels[:, None]).clip(0, 255)
        table[159, 2] = 1  # where OpenCV's table leaves the line
        return table.astype(np.uint8)
    if name is not None:
        return (255 * _colours(levels.astype(np.uint8), name)).round().astype(np.uint8)
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"colormap {colormap} is OpenCV's own: pip install opencv-python-headless, or pass a matplotlib name"
        ) from error
    return np.asarray(cv2.applyColorMap(levels.astype(np.uint8)[None], int(colormap)))[0, :, ::-1].copy()


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
