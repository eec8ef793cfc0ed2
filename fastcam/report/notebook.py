"""Results in a notebook: pictures with maps over them and a slider, in HTML that needs nothing from outside of it.

Nothing in it has an id and no script defines a name, so that any number of them may stand in one notebook. Where
scripts do not run, in a notebook that is not trusted say, the maps are half transparent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcam.figures.colours import shades
from fastcam.figures.panels import Scale, scale_of
from fastcam.images import as_image, encoded, shrunk

if TYPE_CHECKING:
    from fastcam.dataset.maps import Maps

_MOST = 64  # rows that are shown
_SIDE = 224  # pixels of a picture
_SLIDE = (
    "const all = this.closest('.fastcam-maps'); all.style.setProperty('--fastcam-opacity', this.value / 100); "
    "all.querySelector('output').textContent = this.value + ' %'"
)
_OF_RUN = 8  # rows of a run
Painted = tuple[np.ndarray | Sequence[np.ndarray], Scale, float | None]


def slider_of(
    pictures: Sequence[np.ndarray],
    maps: Mapping[str, Painted],
    captions: Sequence[Sequence[str]],
    total: int = 0,
) -> str:
    """HTML: a row a picture with a column a method, and one slider for the opacity of all maps.

    pictures   `(H, W)` or `(H, W, 3)` in [0, 1]
    maps       by method `(rows, H, W)`, with their scale; None for maps that let the more of the picture through, the
               smaller they are, and a number for those that do so everywhere alike
    captions   lines that are said of each row
    total      rows of which these are the first
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
    total = max(total, len(pictures))
    more = f"<p>The first {shown} of {total}.</p>" if shown < total else ""
    style = (files("fastcam.report") / "notebook.css").read_text(encoding="utf-8")
    return (
        f'<div class="fastcam-maps" style="--fastcam-columns: {1 + len(maps)}"><style>{style}</style>'
        f'<label>Map <input type="range" min="0" max="100" value="50" oninput="{escape(_SLIDE)}"> '
        f'<output>50 %</output></label><div class="fastcam-rows">{names}<span></span>{"".join(rows)}</div>{more}</div>'
    )


def slider_of_answers(answers: Mapping[str, Mapping[str, Tensor]], images: Tensor, normalized: bool) -> str:
    """The maps of `explain`, by method and layer, of the first images of its batch `(B, k, H, W)`."""
    from fastcam.visualize.attribution import pictures_of

    columns: dict[str, Painted] = {}
    rows = total = per_image = 0
    for method, by_layer in answers.items():
        for layer, maps in by_layer.items():
            per_image = maps.shape[1] if maps.ndim == 4 else 1
            rows, total = len(images) * per_image, len(maps) * per_image
            values = maps[: len(images)].detach().float().cpu().reshape(rows, *maps.shape[-2:]).numpy()
            name = method if len(by_layer) == 1 else f"{method} {layer}"
            columns[name] = (values, Scale(0.0, 1.0, "jet"), 0.5) if normalized else (values, scale_of(values), None)
    pictures = [p for p in pictures_of(images) for _ in range(per_image)]
    said = [[f"image {row // per_image}"] for row in range(rows)]
    if per_image > 1:
        said = [[*lines, f"target {row % per_image + 1} of {per_image}"] for row, lines in enumerate(said)]
    return slider_of(pictures, columns, said, total)


def slider_of_run(maps: Maps) -> str | None:
    """The first maps of a run; None if their images are not found."""
    from fastcam.report.columns import column_of
    from fastcam.report.pictures import Pictures
    from fastcam.report.table import table_of

    column = column_of(maps, _OF_RUN)
    try:
        found = Pictures(table_of([column], False, None), None, lambda _: None)
    except ValueError:  # of no files, or of files elsewhere
        return None
    pictures, values, said = [], [], []
    for place, row in enumerate(column.rows):
        if (picture := found.of(row)) is not None:
            pictures.append(np.asarray(as_image(picture), np.float32) / 255)
            values.append(maps[place])
            explained = [] if row.target < 0 else [f"target {row.target}", f"p={row.score:.2f}"]
            said.append([str(row.path), *explained])
    return slider_of(pictures, {column.method: (values, Scale(0.0, 1.0, "jet"), 0.5)}, said, len(maps))


def _painted(maps: np.ndarray | Sequence[np.ndarray], scale: Scale, alpha: float | None, row: int) -> str:
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
