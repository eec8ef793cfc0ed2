"""The patches that excite a channel and what of them does, side by side as one picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from fastcam.figures.panels import SMOOTH, mosaic, scale_of, show_picture

_PAPER = 1.0  # between tiles


def show_block(ax: Axes, patches: np.ndarray, projections: np.ndarray | None, title: str = "") -> AxesImage:
    """A square of patches `(N, h, w)` or `(N, h, w, 3)` in [0, 1], beside it one of the projections `(N, h, w, k)`.

    Each projection is 1/2 + value / (2 s), cut to [0, 1], s the 99th percentile of its absolute values: 0 is grey.
    Three channels have their own colours, others are summed.
    """
    height, width = patches.shape[1:3]
    gap = max(1, round(min(height, width) / 16))
    side = int(np.ceil(np.sqrt(len(patches))))
    tiles = [patches]
    if projections is not None:
        tiles.append(np.stack([_grey_at_zero(p) for p in projections]))
    if any(t.ndim == 4 for t in tiles):
        tiles = [t if t.ndim == 4 else np.repeat(t[..., None], 3, 3) for t in tiles]
    wholes = [mosaic(t.astype(np.float32), side, gap, _PAPER) for t in tiles]
    between = np.full((wholes[0].shape[0], 2 * gap, *wholes[0].shape[2:]), _PAPER, np.float32)
    whole = np.concatenate([wholes[0], between, wholes[1]], 1) if wholes[1:] else wholes[0]
    shown = show_picture(ax, whole, title, SMOOTH)
    ax.set_xlim(-0.5 - 3 * gap, whole.shape[1] - 0.5 + 3 * gap)  # what belongs together is nearer
    for spine in ax.spines.values():
        spine.set_visible(False)
    return shown


def _grey_at_zero(values: np.ndarray) -> np.ndarray:
    values = values if values.shape[2] == 3 else values.sum(2)
    return np.clip(0.5 + values / (2 * scale_of(values).high), 0, 1)
