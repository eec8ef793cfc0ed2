"""Is a curve a straight line? A least-squares fit of what grows, time or memory, against what it grows with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.15  # of a measured value: how far the line may be from it
FEWEST = 3  # points; through two there is always a line


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x.

    worst      the largest distance of a measured value from the line, over that value
    straight   whether the line passes every point within the tolerance
    """

    slope: float
    intercept: float
    worst: float
    straight: bool

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(
    xs: Sequence[float],
    ys: Sequence[float],
    quartiles: Sequence[Sequence[float]] | None = None,
    tolerance: float = TOLERANCE,
) -> Line:
    """The line through positive values `ys` at `xs` whose relative distances have the least sum of squares.

    Relative, so that a small value counts as much as a large one. The line passes a point if it is within the
    tolerance of some value between the point's `quartiles` (low, high); without these, of the value itself.
    Raises ValueError for fewer than three different x, for lengths that differ, and for a value that is not positive.
    """
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    bounds = np.stack([y, y], 1) if quartiles is None else np.asarray(quartiles, dtype=np.float64)
    if x.shape != y.shape or bounds.shape != (len(y), 2):
        raise ValueError(f"{len(x)} x, {len(y)} values and quartiles of shape {bounds.shape} do not go together")
    if len(set(x.tolist())) < FEWEST:
        raise ValueError(f"a line needs {FEWEST} different x or more, got {sorted(set(x.tolist()))}")
    if not (y > 0).all():
        raise ValueError(f"values must be positive, got {y.min()}")
    terms = np.stack([np.ones_like(x), x], 1) / y[:, None]
    scale = np.abs(terms).max(0)  # x may be millions of pixels
    intercept, slope = np.linalg.lstsq(terms / scale, np.ones_like(y), rcond=None)[0] / scale
    line = intercept + slope * x
    on_line = (bounds[:, 0] * (1 - tolerance) <= line) & (line <= bounds[:, 1] * (1 + tolerance))
    return Line(float(slope), float(intercept), float((np.abs(line - y) / y).max()), bool(on_line.all()))
