"""pytorch-grad-cam itself and fastcam under its name, side by side in one process."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytorch_grad_cam as theirs

from fastcam import compat

NAME = "pytorch_grad_cam"
REAL = {"": theirs} | {
    m.name.removeprefix(f"{NAME}."): importlib.import_module(m.name)
    for m in pkgutil.walk_packages(theirs.__path__, f"{NAME}.")
}


@contextmanager
def hidden() -> Iterator[None]:
    """The real package as if it had not been imported."""
    kept = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == NAME}
    for name in kept:
        del sys.modules[name]
    try:
        yield
    finally:
        compat.uninstall()
        sys.modules.update(kept)


@contextmanager
def swapped() -> Iterator[ModuleType]:
    """`pytorch_grad_cam`, by fastcam."""
    with hidden(), compat.installed():
        yield importlib.import_module(NAME)


def close(ours, theirs, atol=1e-5):
    """Two maps that are no constants agree."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert np.ptp(theirs) > 1e-3, "the reference's map is constant"
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)
