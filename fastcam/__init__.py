"""fastcam: see what a vision network looks at."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcam.figures import overlay as overlay
    from fastcam.images import load_image as load_image
    from fastcam.layers import layer_table as layer_table
    from fastcam.methods import CAM as CAM
    from fastcam.methods import EigenCAM as EigenCAM
    from fastcam.methods import EigenGradCAM as EigenGradCAM
    from fastcam.methods import GradCAM as GradCAM
    from fastcam.methods import GradCAMElementWise as GradCAMElementWise
    from fastcam.methods import GradCAMPlusPlus as GradCAMPlusPlus
    from fastcam.methods import HiResCAM as HiResCAM
    from fastcam.methods import LayerCAM as LayerCAM
    from fastcam.methods import XGradCAM as XGradCAM
    from fastcam.targets import BinaryClassifierOutputTarget as BinaryClassifierOutputTarget
    from fastcam.targets import ClassifierOutputReST as ClassifierOutputReST
    from fastcam.targets import ClassifierOutputSoftmaxTarget as ClassifierOutputSoftmaxTarget
    from fastcam.targets import ClassifierOutputTarget as ClassifierOutputTarget

__version__ = "0.1.0"

_WHERE = {
    "fastcam.methods": (
        *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM"),
        *("EigenCAM", "EigenGradCAM", "CAM"),
    ),
    "fastcam.targets": (
        *("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget"),
        *("ClassifierOutputReST", "BinaryClassifierOutputTarget"),
    ),
    "fastcam.layers": ("layer_table",),
    "fastcam.images": ("load_image",),
    "fastcam.figures": ("overlay",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastcam' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
