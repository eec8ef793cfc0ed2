"""Unmodified pytorch-grad-cam scripts run on fastcam: `python -m fastcam.compat script.py args`, or `install()`."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fastcam.compat.names import MODULES, PLACES

__all__ = ["install", "installed", "uninstall"]

NAME = "pytorch_grad_cam"


class _Stand(ModuleType):
    """Stands in for a module of pytorch_grad_cam: its names are looked up in fastcam when they are asked for."""

    def __init__(self, path: str, names: str) -> None:
        super().__init__(path, f"{path} of pytorch-grad-cam 1.5.7, by fastcam")
        self.__dict__["__all__"] = names.split()
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(path, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__["__all__"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = self.__dict__[name] = find(name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("__all__", ()) and not isinstance(value, ModuleType):
            warnings.warn(
                f"{self.__name__}.{name} is replaced, which fastcam's methods do not see: override a step of BaseCAM",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__dict__["__all__"]})


def find(name: str) -> Any:
    """What a name of pytorch_grad_cam is in fastcam; AttributeError if fastcam has none."""
    try:
        return getattr(importlib.import_module(PLACES.get(name, "fastcam")), name)
    except (AttributeError, ImportError) as error:
        raise AttributeError(f"fastcam has no {name}: {error}") from error


def install() -> None:
    """From now on every import of pytorch_grad_cam, whether it is installed or not, is answered by fastcam.

    Doing it twice changes nothing. RuntimeError if pytorch_grad_cam itself was imported already: its classes are in
    use then.
    """
    there = sys.modules.get(NAME)
    if isinstance(there, _Stand):
        return
    if there is not None:
        raise RuntimeError(
            f"{NAME} is already imported, from {getattr(there, '__file__', None)}: "
            "call fastcam.compat.install() before anything imports it"
        )
    importlib.import_module("fastcam.compat.cams")  # BaseCAM's subclasses are enumerated
    for path, names in MODULES.items():
        full = f"{NAME}.{path}" if path else NAME
        # Users replace functions of this module, which its own classes must see.
        module = importlib.import_module("fastcam.compat.base_cam") if path == "base_cam" else _Stand(full, names)
        sys.modules[full] = module
        parent, _, child = full.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def uninstall() -> None:
    """Undo `install()`: later imports find what is installed. Names that were imported stay as they are."""
    if isinstance(sys.modules.get(NAME), _Stand):
        for path in MODULES:
            del sys.modules[f"{NAME}.{path}" if path else NAME]


@contextmanager
def installed() -> Iterator[None]:
    """`install()` for a block, `uninstall()` at its end."""
    install()
    try:
        yield
    finally:
        uninstall()
