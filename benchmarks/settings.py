"""What is to be measured: the command line and the named sets."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# What can be asked for by name: a part with all its cases, or a case alone, which is a file `bench_<case>.py`.
PARTS = {
    "methods": ("methods", "perturbation", "toolbox", "inside"),
    "operators": ("operators", "launches", "compiled"),
    "scale": ("scale",),
    "optimize": ("optimize",),
    "dataset": ("dataset",),
}
GPU_ONLY = ("launches",)
CASES = tuple(case for cases in PARTS.values() for case in cases)
MODELS = ("resnet18", "resnet50", "vgg16", "efficientnet_b0", "convnext_tiny", "vit_b_16")  # "toy" is for the tests
MADE = "widening"  # for the part on scale, which takes it where no model is named: any number of channels
BATCHES = {"cpu": (1, 8), "cuda": (1, 32, 256)}
DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
RECORDED_REPETITIONS = 7
TIME_IS_UP = "minutes were over"  # why a case was left out


@dataclass(frozen=True)
class Settings:
    """One run. Empty `batches`, `methods` and `dtypes` stand for all of them.

    set_name     the named set this is, as recorded
    cap          in seconds: a side of which one call takes longer is not timed, and the results say so
    minutes      cases that would begin later than so long after the first are left out, and the results say so
    images       of the data set in the part on data sets; None: all
    whole        nothing but a named set narrows its cases down, so its results replace those on record
    out          the folder of the results; None: `benchmarks/results/<device>`
    """

    device: str | None = None
    cases: tuple[str, ...] = CASES
    models: tuple[str, ...] = MODELS
    batches: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    repetitions: int = RECORDED_REPETITIONS
    threads: int | None = None
    cap: float = 30.0
    minutes: float | None = None
    commit: str | None = None
    images: int | None = None
    out: Path | None = None
    set_name: str | None = None
    whole: bool = True

    @property
    def recorded(self) -> bool:
        """Whether the run goes to `benchmarks/results/` when no folder is named."""
        return self.whole and self.repetitions >= RECORDED_REPETITIONS

    def batches_on(self, device: str) -> tuple[int, ...]:
        return self.batches or BATCHES[device]

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        return self.dtypes or DTYPES[device]

    def chosen(self, methods: Iterable[str]) -> list[str]:
        """Those of `methods` that are wanted, in their order."""
        return [m for m in methods if not self.methods or m in self.methods]


FAMILY = (
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam"),
    *("eigencam", "eigengradcam"),
)
_ON_GPU = Settings(device="cuda", cap=5.0, minutes=8.0)  # the case that is running then and the tables fit into ten
_BATCH_256 = replace(
    _ON_GPU,
    cases=("methods",),
    batches=(256,),
    methods=(*FAMILY, "segeigencam", "shapleycam", "finercam"),
    dtypes=("float32",),
)
_SETS = {
    "gpu-short": replace(
        _ON_GPU,
        models=("resnet50",),
        batches=(256, 1, 32),  # what is first is there if time runs out
        methods=(*FAMILY, "saliency"),
        minutes=7.0,  # the case that is running then and the tables take the rest of 8
        cases=("launches", "operators", "methods"),
    ),
    "gpu-operators-fp32": replace(_ON_GPU, cases=("operators",), batches=(256, 1), dtypes=("float32",)),
    "gpu-operators-bf16": replace(
        _ON_GPU,
        cases=("operators",),
        batches=(256, 1, 16),
        methods=("gradcam", "gradcam++", "layercam", "eigencam", "scorecam"),
        dtypes=("bfloat16",),
    ),
    "gpu-methods-1": replace(_BATCH_256, models=MODELS[:3]),
    "gpu-methods-2": replace(_BATCH_256, models=MODELS[3:]),
    "gpu-scale": replace(_ON_GPU, cases=("scale",)),
    "gpu-perturbation": replace(
        _ON_GPU,
        cases=("perturbation",),
        models=("resnet50",),
        methods=("ablationcam", "scorecam", "fullgrad", "sess"),
        cap=20.0,
    ),
}
SETS = {name: replace(settings, set_name=name) for name, settings in _SETS.items()}


def parse(arguments: list[str]) -> Settings:
    """The settings of a command line; what it says outweighs what its set says."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    if unknown := set(given["asked"]) - {*PARTS, *CASES}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys([*PARTS, *CASES]))}")
    base = SETS[name] if (name := given.pop("set")) else Settings()
    if base.device and given["device"] not in (None, base.device):
        parser.error(f"--set {name} is for {base.device}, got --device {given['device']}")
    said: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if v is not None}
    if asked := said.pop("asked"):
        named = [case for name in asked for case in PARTS.get(name, (name,))]
        said["cases"] = tuple(case for case in CASES if case in named)
    return replace(base, **said, whole=not {"batches", "methods", "dtypes", "images"} & said.keys())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure fastcam against grad-cam and the forward pass. `report` as the first word writes the "
        "README's tables from the recorded runs. Every case is written to a file of its own, for each model; one "
        "narrowed down by --batch, --method, --dtype or --images, or of fewer than "
        f"{RECORDED_REPETITIONS} repetitions, only with --out.",
    )
    names = dict.fromkeys([*PARTS, *CASES])
    parser.add_argument(
        "asked", nargs="*", metavar="PART", help=f"a part or a case of one: {', '.join(names)}; default: all"
    )
    parser.add_argument(
        "--set",
        choices=SETS,
        help="a named selection, each of about 8 minutes; gpu-short: what matters most; gpu-methods-1 and -2: the "
        "goals at batch 256, on three networks each",
    )
    parser.add_argument("--device", choices=tuple(BATCHES), help="default: cuda where there is one")
    parser.add_argument("--model", dest="models", choices=(*MODELS, "toy", MADE), action="append", help="repeatable")
    parser.add_argument("--batch", dest="batches", type=_positive, action="append", metavar="N", help="repeatable")
    parser.add_argument(
        "--method", dest="methods", action="append", metavar="NAME", help="repeatable; as in the command line"
    )
    parser.add_argument("--dtype", dest="dtypes", choices=DTYPES["cuda"], action="append", help="repeatable")
    parser.add_argument("--images", type=_positive, metavar="N", help="of the data set, in the part on data sets")
    parser.add_argument("--repetitions", type=_repetitions, metavar="N", help=f"default: {RECORDED_REPETITIONS}")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of torch, OpenMP and BLAS; default: theirs")
    parser.add_argument("--cap", type=float, metavar="SECONDS", help="do not time what takes longer for one call")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no case later than so long after the first")
    parser.add_argument("--commit", help="what to record as the commit where git is not at hand")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _repetitions(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"quartiles need at least 2 repetitions, got {value}")
    return value
