"""Unmodified pytorch-grad-cam and FlashTorch scripts on fastcam: `python -m fastcam.compat script.py`, `install()`."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fastcam.compat.names import PACKAGES

__all__ = ["install", "installed", "uninstall"]


class _Stand(ModuleType):
    """Stands in for a module of another package: its names are looked up in fastcam when they are asked for."""

    def __init__(self, path: str, names: str) -> None:
        package = path.partition(".")[0]
        super().__init__(path, f"{path} of {PACKAGES[package].release}, by fastcam")
        self.__dict__["__all__"] = names.split()
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(path, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__["__all__"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = self.__dict__[name] = find(self.__name__.partition(".")[0], name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("__all__", ()) and not isinstance(value, ModuleType):
            seen = ", ".join(PACKAGES[self.__name__.partition(".")[0]].own)
            warnings.warn(
                f"{self.__name__}.{name} is replaced, which fastcam's methods do not see: override a step of the "
                f"class, or replace it in {seen}",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__dict__["__all__"]})


def find(package: str, name: str) -> Any:
    """What a name of the package is in fastcam; AttributeError if fastcam has none."""
    try:
        return getattr(importlib.import_module(PACKAGES[package].places.get(name, "fastcam")), name)
    except (AttributeError, ImportError) as error:
        raise AttributeError(f"fastcam has no {name}: {error}") from error


def install() -> None:
    """From now on imports of pytorch_grad_cam and flashtorch, installed or not, are answered by fastcam.

    Doing it twice changes nothing. RuntimeError if one of them was itself imported already: its classes are in use
    then.
    """
    for name in PACKAGES:
        there = sys.modules.get(name)
        if there is not None and not isinstance(there, _Stand):
            raise RuntimeError(
                f"{name} is already imported, from {getattr(there, '__file__', None)}: "
                "call fastcam.compat.install() before anything imports it"
            )
    importlib.import_module("fastcam.compat.cams")  # BaseCAM's subclasses are enumerated
    for name in PACKAGES:
        if name not in sys.modules:
            _stand_in(name)


def _stand_in(package: str) -> None:
    _, modules, _, own = PACKAGES[package]
    for path, names in modules.items():
        full = f"{package}.{path}" if path else package
        module = importlib.import_module(own[path]) if path in own else _Stand(full, names)
        sys.modules[full] = module
        parent, _, child = full.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def uninstall() -> None:
    """Undo `install()`: later imports find what is installed. Names that were imported stay as they are."""
    for name, package in PACKAGES.items():
        if isinstance(sys.modules.get(name), _Stand):
            for path in package.modules:
                del sys.modules[f"{name}.{path}" if path else name]


@contextmanager
def installed() -> Iterator[None]:
    """`install()` for a block, `uninstall()` at its end."""
    install()
    try:
        yield
    finally:
        uninstall()
