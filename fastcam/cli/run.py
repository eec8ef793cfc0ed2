"""`fastcam run` and `fastcam export`: the maps of a whole folder, by one process or many."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastcam.cli.arguments import (
    DTYPES,
    Once,
    complain,
    load,
    make_folder,
    model_arguments,
    optimize_arguments,
    optimized,
    option_argument,
    positive,
    say,
)
from fastcam.cli.explain import made

_SHOWN = 5  # failures named on stderr


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    from fastcam.methods import ATTENTION, METHODS

    text = "explain a whole data set: shards of small maps, resumable, also by several processes (torchrun) at once"
    parser = commands.add_parser("run", help=text)
    parser.add_argument("images", metavar="DIR_OR_LIST", type=Path, help="a folder, or a file with a path a line")
    model_arguments(parser)
    methods = [*METHODS, *ATTENTION]
    parser.add_argument("--method", choices=methods, default="gradcam", action=Once, help="default: gradcam")
    parser.add_argument("--layer", action="append", help="name, index path or glob; repeat for several layers")
    text = "predicted, label (the sub-folders' order, or a list's second column, after a tab) or a class index"
    parser.add_argument("--target", type=_target, default="predicted", action=Once, help=f"{text}; default: predicted")
    parser.add_argument("--eigen-smooth", action="store_true", help="principal component instead of the sum")
    parser.add_argument("--aug-smooth", action="store_true", help="mean over six augmentations; with --full")
    option_argument(parser, "an argument of the method's class, channels=8 for fasterscorecam say")
    optimize_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="folder, new or of the same command")
    parser.add_argument("--full", action="store_true", help="finished maps at the input's size, not the layer's own")
    parser.add_argument("--store", choices=("fp16", "uint8", "fp32"), default="fp16", help="default: fp16")
    parser.add_argument("--batch-size", type=positive, help="images at once; default: 16 on a CPU, 128 elsewhere")
    parser.add_argument("--shard-size", type=positive, default=512, help="images in a file; default: 512")
    parser.add_argument("--workers", type=_count, help="processes that decode; default: a core each, up to 8")
    text = "seconds without a sign after which this process counts as lost to other machines; default: 60"
    parser.add_argument("--claim-expiry", type=float, default=60.0, metavar="SECONDS", help=text)
    text = "make shards again in which samples failed, after their cause is gone"
    parser.add_argument("--retry-failed", action="store_true", help=text)
    parser.set_defaults(run=_run)

    parser = commands.add_parser("export", help="write what `run` made to one .npz, .zarr or .parquet")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of `fastcam run`")
    parser.add_argument("file", metavar="FILE", type=Path, help="its ending says the kind")
    text = "input, or a number of pixels a side, for finished maps; default: as stored"
    parser.add_argument("--size", type=_side, help=text)
    parser.set_defaults(run=_export)


def _run(options: argparse.Namespace) -> int:
    from fastcam.dataset.attribute import attribute_dataset
    from fastcam.dataset.sources import ImageFiles
    from fastcam.fast.agreement import Agreement
    from fastcam.methods import ATTENTION, METHODS

    if options.aug_smooth and not options.full:
        raise ValueError("--aug-smooth is a mean of finished maps: give --full, too")
    make_folder(options.out)
    loaded = load(options)
    device = _own_device(options.device)
    model = loaded.model.to(device, DTYPES[options.dtype])
    cam = made({**METHODS, **ATTENTION}[options.method], options, model, options.layer, **optimized(options))
    images = ImageFiles(options.images, loaded.preprocess, skip=options.out)
    if isinstance(options.target, int) and not cam.class_discriminative:
        warnings.warn(f"{options.method} does not depend on the class, --target is ignored", stacklevel=1)
        options.target = "predicted"
    shared = ("full", "store", "eigen_smooth", "aug_smooth", "batch_size", "shard_size", "workers")
    given = {name: getattr(options, name) for name in (*shared, "retry_failed", "claim_expiry")}
    first = os.environ.get("RANK", "0") == "0"
    with _interrupted_when_terminated():
        maps = attribute_dataset(cam, images, options.out, options.target, **given, progress=first)
    if not first:  # under torchrun one of them says it
        return 0
    if agreement := maps.manifest["result"].get("agreement"):
        say(Agreement(**agreement))
    return _told(maps, len(images), options.out)


def _told(maps: Any, total: int, out: Path) -> int:
    """Say what came of it; the exit status."""
    for failure in maps.failed[:_SHOWN]:
        reason = failure["reason"]
        complain(reason if failure["path"] in reason else f"{failure['path']}: {reason}")
    failed = f"; {len(maps.failed)} failed, see {out / 'manifest.json'}" if maps.failed else ""
    say(f"explained {len(maps)} of {total} images into {out}{failed}")
    return 1 if maps.failed else 0


def _export(options: argparse.Namespace) -> int:
    from fastcam.dataset.maps import open_maps

    maps = open_maps(options.out)
    if not maps.complete:
        complain(f"warning: {options.out} is not complete, {len(maps)} images are there")
    maps.export(options.file, options.size)
    say(f"wrote {len(maps)} maps to {options.file}")
    return 0


def _own_device(given: str) -> torch.device:
    """Under torchrun, the GPU of this process."""
    device = torch.device(given)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


@contextmanager
def _interrupted_when_terminated() -> Iterator[None]:
    """SIGTERM, with which schedulers stop a job, as Ctrl-C: claims are given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        if hasattr(signal, "SIGCHLD"):  # the readers were told, too: their end is no error
            signal.signal(signal.SIGCHLD, lambda *_: None)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _target(text: str) -> str | int:
    if text in ("predicted", "label"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be predicted, label or a class index, got {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def _side(text: str) -> Any:
    return text if text == "input" else (positive(text),) * 2
