"""What grows in the benchmark's part on scale, point by point, and the reasons on record for curves that are not lines.

Plain data: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.settings import MADE

_SIDES = (64, 128, 192, 256, 320, 384, 448)


@dataclass(frozen=True)
class Curve:
    """One method along a sweep.

    method   as in the command line
    layer    the target layer, None for the network's usual one
    low      maps at the layer's resolution, not at the image's
    points   instead of the sweep's, on a CPU and on a GPU
    """

    method: str
    layer: str | None = None
    low: bool = False
    points: Mapping[str, Sequence[int]] | None = None

    @property
    def name(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        return f"{self.method}{where}{', layer resolution' if self.low else ''}"


@dataclass(frozen=True)
class Sweep:
    """One thing that grows while all else is held.

    unit     what its values count
    models   the networks, on a CPU and on a GPU
    points   its values, on a CPU and on a GPU
    batch    how many images, on a CPU and on a GPU
    rows     at once, of methods that score masked images, on a CPU and on a GPU
    """

    name: str
    unit: str
    curves: Sequence[Curve]
    models: Mapping[str, Sequence[str]]
    points: Mapping[str, Sequence[int]]
    batch: Mapping[str, int]
    rows: Mapping[str, int] | None = None

    def values(self, curve: Curve, model: str, device: str, batches: Sequence[int] = ()) -> Sequence[int]:
        """The points of a curve that a model has; `batches` replace those of the sweep over the batch."""
        if self.name == "batch" and batches:
            return batches
        most = _MOST.get((model, self.name))
        return [v for v in (curve.points or self.points)[device] if most is None or v <= most]


_MOST = {("toy", "layers"): 4, ("toy", "classes"): 10}
_RESNETS = {"cpu": ("resnet18", "toy"), "cuda": ("resnet50", "toy")}
_MADE = {"cpu": (MADE,), "cuda": (MADE,)}
_ONE_BY_ONE = {"cpu": (1, 3, 10, 30, 100), "cuda": (1, 3, 10, 30, 100, 300)}  # a backward pass a class

SWEEPS = (
    Sweep(
        "batch",
        "images",
        (Curve("gradcam"), Curve("eigencam")),
        _RESNETS,
        {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (1, 4, 16, 32, 64, 128, 256)},
        batch={"cpu": 1, "cuda": 1},
    ),
    Sweep(
        "batch",
        "images",
        (Curve("scorecam"),),
        _MADE,
        {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32)},
        batch={"cpu": 1, "cuda": 1},
        rows={"cpu": 32, "cuda": 256},
    ),
    Sweep(
        "image size",
        "pixels",
        (Curve("gradcam"), Curve("eigencam")),
        _RESNETS,
        {device: tuple(side**2 for side in _SIDES) for device in ("cpu", "cuda")},
        batch={"cpu": 2, "cuda": 32},
    ),
    Sweep(
        "layers",
        "target layers",
        (Curve("gradcam"), Curve("layercam")),
        {"cpu": ("resnet50", "toy"), "cuda": ("resnet50", "toy")},
        {"cpu": (1, 2, 4, 8, 12, 16), "cuda": (1, 2, 4, 6, 8, 10, 12, 14, 16)},
        batch={"cpu": 1, "cuda": 32},
    ),
    Sweep(
        "classes",
        "classes of an image",
        (
            Curve("gradcam", low=True),
            Curve("gradcam"),
            Curve("gradcam", layer="layer4[0]", points=_ONE_BY_ONE),
        ),
        _RESNETS,
        {device: (1, 3, 10, 30, 100, 300, 1000) for device in ("cpu", "cuda")},
        batch={"cpu": 1, "cuda": 1},
    ),
    Sweep(
        "channels",
        "channels of the target layer",
        (Curve("gradcam"), Curve("layercam"), Curve("eigencam")),
        _MADE,
        {device: (64, 128, 256, 512, 1024, 2048) for device in ("cpu", "cuda")},
        batch={"cpu": 8, "cuda": 64},
    ),
    Sweep(
        "ScoreCAM channels",
        "channels of the target layer",
        (Curve("scorecam"),),
        _MADE,
        {device: (64, 128, 256, 512, 1024) for device in ("cpu", "cuda")},
        batch={"cpu": 1, "cuda": 1},
        rows={"cpu": 32, "cuda": 256},
    ),
)

_PEAK = "a peak is that of the largest moment: "

UNKNOWN = "no reason on record"

# Why a curve of fastcam is not straight: by device, sweep and quantity, and the beginning of the curve's name.
REASONS: dict[tuple[str, str, str], dict[str, str]] = {
    ("cpu", "batch", "time"): {
        "eigencam": "the forward pass timed beside it bends alike, from 15 ms an image up to batch 4 to 18 from 8 on; "
        "beside Grad-CAM it does so later, and why is not known"
    },
    ("cpu", "batch", "memory"): {
        "": _PEAK + "at batch 1 a convolution's weights, laid out anew by oneDNN, from batch 2 on activations"
    },
    ("cpu", "image size", "memory"): {
        "": _PEAK + "of small images a convolution's weights, laid out anew by oneDNN, of others activations"
    },
    ("cpu", "layers", "time"): {
        "": "the backward pass runs to the earliest target layer, and blocks nearer the input take longer: the same "
        "multiplications, on more and larger activations"
    },
    ("cpu", "layers", "memory"): {
        "": "the graph is kept from the earliest target layer on, and activations double from stage to stage towards "
        "the input"
    },
    ("cpu", "classes", "memory"): {
        "": _PEAK + "of few classes the forward pass's own, of many the maps themselves and nothing else"
    },
    ("cpu", "channels", "time"): {
        "eigencam": "the principal component is that of a square matrix of channels or of positions, whichever are "
        "fewer: from as many channels as positions on (196) its powers cost the same"
    },
    ("cpu", "channels", "memory"): {
        "": _PEAK + "the fixed layers' activations while the target layer is narrow, then its own"
    },
}


def reason(device: str, sweep: str, method: str, quantity: str) -> str:
    """Why fastcam's curve of "time" or "memory" is not straight on a device, `UNKNOWN` if nobody has said so."""
    known = REASONS.get((device, sweep, quantity), {})
    return next((why for begin, why in known.items() if method.startswith(begin)), UNKNOWN)
