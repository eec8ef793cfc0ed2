"""Which channels are drawn: chosen, sorted, and no more than can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fastcam.batches import check_count


def indices_of(given: Any, count: int, name: str, what: str) -> list[int]:
    """The places meant by a number, a slice or several numbers; from the end where below 0. All of them for None.

    name   the argument's
    what   is there `count` times: "output channels of layer 'conv1'"
    Raises TypeError for anything else, ValueError for a number that is out of range, and where there is none.
    """
    if given is None:
        return list(range(count))
    if isinstance(given, slice):
        found = list(range(count))[given]
    else:
        found = [_index(n, count, name, what) for n in _listed(given, name)]
    if not found:
        raise ValueError(f"{name} chooses none of the {count} {what}: got {given!r}")
    return found


def selected(
    given: Any, count: int, name: str, what: str, keys: np.ndarray | None = None, limit: int | None = None
) -> tuple[list[int], str]:
    """The places as above, and which share they are: "first 64 of 512".

    keys    `(count,)`, the largest come first
    limit   at most as many
    """
    found = indices_of(given, count, name, what)
    if keys is not None:
        found = sorted(found, key=lambda n: -keys[n])  # of equal ones the first stays first
    shown = found if limit is None else found[: check_count("limit", limit)]
    if len(shown) == count:
        return shown, str(count)
    first = "" if given is not None else "first " if keys is None else "top "
    return shown, f"{first}{len(shown)} of {count}"


def check_one_of(name: str, given: Any, known: tuple[Any, ...]) -> None:
    """ValueError for a value that is not known."""
    if given not in known:
        raise ValueError(f"{name} must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, got {given!r}")


def _listed(given: Any, name: str) -> list[Any]:
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    if isinstance(given, list | tuple | range):
        return list(given)
    if isinstance(given, int | np.integer):
        return [given]
    raise TypeError(f"{name} must be a number, several or a slice, got {type(given).__name__}")


def _index(n: Any, count: int, name: str, what: str) -> int:
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"{name} must be whole numbers, got {n!r}")
    if not -count <= n < count:
        raise ValueError(f"{name} must be from 0 to {count - 1}, there are {count} {what}: got {n}")
    return int(n) % count
