"""pytorch-grad-cam or FlashTorch itself and fastcam under its name, side by side in one process."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytorch_grad_cam as theirs
import torch

from fastcam import compat
from fastcam.compat.names import PACKAGES

NAME = "pytorch_grad_cam"
REAL = {"": theirs} | {
    m.name.removeprefix(f"{NAME}."): importlib.import_module(m.name)
    for m in pkgutil.walk_packages(theirs.__path__, f"{NAME}.")
}


@contextmanager
def hidden() -> Iterator[None]:
    """The real packages as if they had not been imported."""

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
        return {name: sys.modules.pop(name) for name in names}

    kept = take_out()
    try:
        yield
    finally:
        compat.uninstall()
        take_out()
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


def ascent(until, x, index, count, lr=1.0):
    """FlashTorch's published procedure on a function that ends at the layer: the image after each step."""
    images = []
    for _ in range(count):
        x = x.detach().requires_grad_()
        g = torch.autograd.grad(until(x)[:, index].mean(), x)[0]
        x = x.detach() + lr * g / (g.pow(2).mean().sqrt() + 1e-5)
        images.append(x)
    return images
