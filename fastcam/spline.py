"""Cubic spline interpolation of a line as a matrix, as `scipy.ndimage.zoom(order=3)` does it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def zoom_matrix(n: int, m: int) -> np.ndarray:
    """The matrix `(m, n)`, float64, that takes n values of a line to m of the cubic spline through them.

    The line is mirrored about its first and last value, and these stay where they are. Where rounding takes the last
    of the m positions past the last value, its row is 0, as in scipy: 8 values to 26, say.
    """
    step = (n - 1) / (m - 1) if m > 1 else 1.0
    positions = np.arange(m) * step
    through = np.linalg.inv(_basis(np.arange(n), n))  # from the values to the spline's coefficients
    matrix = _basis(positions, n) @ through
    matrix[positions > n - 1] = 0
    matrix.flags.writeable = False
    return matrix


def _basis(positions: np.ndarray, n: int) -> np.ndarray:
    """The cubic B-splines centred at 0 to n - 1, those beyond mirrored into them, at each position: `(m, n)`."""
    first = np.floor(positions).astype(int) - 1
    values, rows = np.zeros((len(positions), n)), np.arange(len(positions))
    for centre in (first, first + 1, first + 2, first + 3):
        distance = np.abs(positions - centre)
        near, far = 2 / 3 - distance**2 * (2 - distance) / 2, (2 - distance) ** 3 / 6
        folded = np.abs(centre) % max(2 * (n - 1), 1)
        np.add.at(values, (rows, np.minimum(folded, 2 * (n - 1) - folded)), np.where(distance < 1, near, far))
    return values
