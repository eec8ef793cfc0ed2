"""Results in a notebook: pictures with maps over them and a slider, in HTML that needs nothing from outside of it.

Nothing in it has an id and no script defines a name, so that any number of them may stand in one notebook. Where
scripts do not run, in a notebook that is not trusted say, the maps are half transparent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fastcam.figures.colours import shades
from fastcam.figures.panels import Scale
from fastcam.images import as_image, encoded, shrunk

_MOST = 64  # rows that are shown
_SIDE = 224  # pixels of a picture
_SLIDE = (
    "const all = this.closest('.fastcam-maps'); all.style.setProperty('--fastcam-opacity', this.value / 100); "
    "all.querySelector('output').textContent = this.value + ' %'"
)
Maps = Mapping[str, tuple[np.ndarray, Scale, float | None]]


def slider_of(pictures: Sequence[np.ndarray], maps: Maps, captions: Sequence[Sequence[str]]) -> str:
    """HTML: a row a picture with a column a method, and one slider for the opacity of all maps.

    pictures   `(H, W)` or `(H, W, 3)` in [0, 1]
    maps       by method `(rows, H, W)`, with their scale; None for maps that let the more of the picture through, the
               smaller they are, and a number for those that do so everywhere alike
    captions   lines that are said of each row
    """
    shown = min(len(pictures), _MOST)
    names = "".join(f"<span>{escape(name)}</span>" for name in ("input", *maps))
    rows = []
    for row in range(shown):
        pixels = (255 * np.clip(np.nan_to_num(pictures[row]), 0, 1)).round().astype(np.uint8)
        base = _data(shrunk(as_image(pixels), _SIDE), "JPEG")
        cells = [f'<div class="fastcam-map">{base}</div>']
        cells += [f'<div class="fastcam-map">{base}{_painted(*given, row)}</div>' for given in maps.values()]
        said = "<br>".join(map(escape, captions[row]))
        rows.append(f'{"".join(cells)}<div class="fastcam-said">{said}</div>')
    more = f"<p>The first {shown} of {len(pictures)}.</p>" if shown < len(pictures) else ""
    style = (files("fastcam.report") / "notebook.css").read_text(encoding="utf-8")
    return (
        f'<div class="fastcam-maps" style="--fastcam-columns: {1 + len(maps)}"><style>{style}</style>'
        f'<label>Map <input type="range" min="0" max="100" value="50" oninput="{escape(_SLIDE)}"> '
        f'<output>50 %</output></label><div class="fastcam-rows">{names}<span></span>{"".join(rows)}</div>{more}</div>'
    )


def _painted(maps: np.ndarray, scale: Scale, alpha: float | None, row: int) -> str:
    """A map in its colours, as an image that lies over the picture."""
    values = maps[row].astype(np.float32)
    if max(values.shape) > _SIDE:
        size = [max(1, round(n * _SIDE / max(values.shape))) for n in values.shape]
        values = F.interpolate(torch.from_numpy(values)[None, None], size, mode="area")[0, 0].numpy()
    values = np.nan_to_num(values, nan=scale.low)
    table = shades(scale.colormap)
    colours = table if table.dtype == np.uint8 else (255 * table).round().astype(np.uint8)
    levels = (255 * ((values - scale.low) / (scale.high - scale.low)).clip(0, 1)).round().astype(np.uint8)
    strength = np.ones_like(values) if alpha is not None else (np.abs(values) / scale.high).clip(0, 1) ** 0.5
    painted = np.dstack([colours[levels], (255 * strength).round().astype(np.uint8)])
    return _data(painted, "PNG")


def _data(picture: Any, kind: str) -> str:
    """An `<img>` that holds a picture of Pillow's or pixels."""
    data = base64.b64encode(encoded(picture, kind)).decode()
    return f'<img alt="" src="data:image/{kind.lower()};base64,{data}">'
