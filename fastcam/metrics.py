"""Is a map faithful? Scores of maps against what is known of the images."""

from __future__ import annotations

from torch import Tensor


def pointing_game(maps: Tensor, boxes: Tensor) -> float:
    """The share of maps whose peak lies in the object's box (Zhang et al., ECCV 2016, arXiv:1608.00507).

    maps    `(B, H, W)`; of equal peaks the first counts
    boxes   `(B, 4)` in pixels, (top, left, bottom, right), half-open
    Chance is `box_share`. Raises ValueError if the lengths differ.
    """
    if len(maps) != len(boxes):
        raise ValueError(f"boxes must be (B, 4) = ({len(maps)}, 4), got {tuple(boxes.shape)}")
    peak = maps.flatten(1).argmax(1)
    row, column = peak // maps.shape[2], peak % maps.shape[2]
    top, left, bottom, right = boxes.to(maps.device).unbind(1)
    inside = (top <= row) & (row < bottom) & (left <= column) & (column < right)
    return inside.float().mean().item()


def box_share(boxes: Tensor, height: int, width: int) -> float:
    """The mean share of the image that lies in its box: what a random peak scores in the pointing game."""
    top, left, bottom, right = boxes.unbind(1)
    return ((bottom - top) * (right - left)).float().mean().item() / (height * width)
