"""Is a map where the object is? Scores of maps against what is known of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcam import ops


def pointing_game(maps: Tensor, boxes: Tensor) -> float:
    """The share of maps whose peak lies in the object's box (Zhang et al., ECCV 2016, arXiv:1608.00507).

    maps    `(B, H, W)`; of equal peaks the first counts
    boxes   `(B, 4)` in pixels, (top, left, bottom, right), half-open
    Chance is `box_share`. Raises ValueError if the lengths differ.
    """
    _check_boxes(maps, boxes)
    peak = maps.flatten(1).argmax(1)
    row, column = peak // maps.shape[2], peak % maps.shape[2]
    top, left, bottom, right = boxes.to(maps.device).unbind(1)
    inside = (top <= row) & (row < bottom) & (left <= column) & (column < right)
    return inside.float().mean().item()


def box_share(boxes: Tensor, height: int, width: int) -> float:
    """The mean share of the image that lies in its box: what a random peak scores in the pointing game."""
    top, left, bottom, right = boxes.unbind(1)
    return ((bottom - top) * (right - left)).float().mean().item() / (height * width)


def energy_pointing_game(maps: Tensor, boxes: Tensor) -> Tensor:
    """The share of a map's positive values that lies in the object's box (Score-CAM, Wang et al., arXiv:1910.01279).

    sum_inside relu(m) / sum relu(m)

    maps    `(B, H, W)`
    boxes   `(B, 4)` as in `pointing_game`, or masks `(B, H, W)` of booleans
    `(B,)` in [0, 1], 0 for a map without positive values. Raises ValueError if the sizes differ.
    """
    if boxes.ndim == 3 and boxes.shape == maps.shape and boxes.dtype == torch.bool:
        inside = boxes.to(maps.device)
    else:
        _check_boxes(maps, boxes)
        top, left, bottom, right = boxes.to(maps.device).view(-1, 4, 1, 1).unbind(1)  # (B, 1, 1)
        row = torch.arange(maps.shape[1], device=maps.device).view(1, -1, 1)
        column = torch.arange(maps.shape[2], device=maps.device).view(1, 1, -1)
        inside = (top <= row) & (row < bottom) & (left <= column) & (column < right)
    positive = ops.wide(maps).relu()
    return _share((positive * inside).sum((1, 2)), positive.sum((1, 2)))


def image_grids(x: Tensor, classes: Tensor, n: int = 3, count: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grids of n x n images of different classes, for `grid_pointing_game` (Böhle et al., CVPR 2021, arXiv:2104.00032).

    x         `(B, k, H, W)`; the paper takes images that the model is sure of
    classes   `(B,)`, the class of each
    count     how many grids G, drawn with the seed; torch's own generator is not used
    Returns the grids `(G, k, n H, n W)` and the class in each cell `(G, n²)`, row by row: the `targets` to explain.
    Raises ValueError if there are fewer than n² classes.
    """
    if x.ndim != 4 or classes.shape != (len(x),):
        raise ValueError(f"classes must be (B,) for x (B, k, H, W), got {tuple(classes.shape)} for {tuple(x.shape)}")
    kinds, labels = classes.cpu().unique(return_inverse=True)
    if n < 1 or len(kinds) < n * n:
        raise ValueError(f"a grid of {n} x {n} images needs as many classes, got {len(kinds)}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, len(kinds), generator=generator).argsort(1)[:, : n * n]  # (G, n²)
    # The highest random number among a class's images names one of them.
    draws = torch.rand(count, 1, len(x), generator=generator).expand(-1, n * n, -1)
    images = torch.where(labels == chosen.unsqueeze(2), draws, -1).argmax(2)  # (G, n²)
    k, H, W = x.shape[1:]
    cells = x[images.to(x.device)].view(count, n, n, k, H, W)
    grids = cells.permute(0, 3, 1, 4, 2, 5).reshape(count, k, n * H, n * W)
    return grids, kinds[chosen].to(x.device)


def grid_pointing_game(maps: Tensor, n: int | None = None) -> Tensor:
    """The share of a map's positive values in the cell of its class (Böhle et al., CVPR 2021, arXiv:2104.00032).

    maps   `(G, n², H, W)`, for each grid the map of the class in each cell, row by row; H and W multiples of n
    n      cells along a side; only to check
    `(G, n²)` in [0, 1], 1 / n² for an even map, 0 for a map without positive values. Raises ValueError for other
    shapes.
    """
    side = round(maps.shape[1] ** 0.5) if maps.ndim == 4 else 0
    if side < 1 or side**2 != maps.shape[1] or (n is not None and n != side):
        raise ValueError(f"maps must be (G, n², H, W) with a map for each of the cells, got {tuple(maps.shape)}")
    if maps.shape[2] % side or maps.shape[3] % side:
        raise ValueError(f"maps of {side} x {side} cells must be multiples of {side} in size, got {tuple(maps.shape)}")
    positive = ops.wide(maps).relu()
    H, W = maps.shape[2] // side, maps.shape[3] // side
    cells = positive.unflatten(3, (side, W)).unflatten(2, (side, H)).sum((3, 5)).flatten(2)  # (G, map, cell)
    return _share(cells.diagonal(dim1=1, dim2=2), cells.sum(2))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


def _check_boxes(maps: Tensor, boxes: Tensor) -> None:
    if maps.ndim != 3 or boxes.shape != (len(maps), 4):
        raise ValueError(
            f"boxes must be (B, 4) = ({len(maps)}, 4) for maps (B, H, W), got {tuple(boxes.shape)} for "
            f"{tuple(maps.shape)}"
        )
