"""Small random moves of pictures, so that what is found does not hang on single pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Moves:
    """Jitter, scale and rotation about the centre in one resampling, at the picture's own size; grey beyond its edges.

    jitter   the largest shift, as a share of each side
    scale    the largest change of size: by factors from 1 / (1 + scale) to 1 + scale
    rotate   the largest turn in degrees
    """

    jitter: float = 0.05
    scale: float = 0.1
    rotate: float = 10.0

    def draw(self, generators: Sequence[torch.Generator], steps: int) -> Tensor:
        """Random numbers in [-1, 1], `(steps, N, 4)` for N pictures, each from its own generator."""
        return torch.stack([2 * torch.rand(steps, 4, generator=g) - 1 for g in generators], 1)

    def matrices(self, drawn: Tensor, height: int, width: int) -> Tensor:
        """Where each output pixel is taken from, as `affine_grid` has it: `(..., 2, 3)` from numbers `(..., 4)`."""
        y, x, scale, turn = drawn.unbind(-1)
        zoom = (1 + self.scale) ** -scale
        angle = turn * math.radians(self.rotate)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        rows = [cos, -sin * height / width, 2 * self.jitter * x, sin * width / height, cos, 2 * self.jitter * y]
        return torch.stack(rows, -1).unflatten(-1, (2, 3))

    def __call__(self, pictures: Tensor, matrices: Tensor) -> Tensor:
        """Pictures `(N, k, H, W)`, each moved by its matrix of `(N, 2, 3)`."""
        grid = F.affine_grid(matrices.to(pictures), list(pictures.shape), align_corners=False)
        moved = F.grid_sample(pictures - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved + 0.5


def moves_of(given: Any, automatic: bool) -> Moves | Callable[[Tensor], Tensor] | None:
    """What is meant: `Moves` for True, None for False; as `automatic` says for "auto"."""
    if isinstance(given, str) and given == "auto":
        given = automatic
    if isinstance(given, bool):
        return Moves() if given else None
    if given is not None and not callable(given):
        raise ValueError(f'transforms must be "auto", True, None, a Moves or a callable, got {given!r}')
    return given


def named(moves: Moves | Callable[[Tensor], Tensor] | None) -> str | None:
    """What is done, in words."""
    if moves is None or isinstance(moves, Moves):
        return None if moves is None else repr(moves)
    return getattr(moves, "__name__", type(moves).__name__)
