"""A data set through a method, to shards of maps on disk."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import check_count
from fastcam.dataset import describing, manifest, retrying, starting
from fastcam.dataset.claims import Claims
from fastcam.dataset.explaining import Explainer
from fastcam.dataset.maps import Maps, open_maps
from fastcam.dataset.shards import STORED
from fastcam.dataset.sources import ImageFiles, check_dataset, lengths_of, loader, names_of, origin
from fastcam.dataset.work import Plan, Worker
from fastcam.fast.agreement import Agreement
from fastcam.methods import BaseCAM
from fastcam.streams import WhileRead

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBED = 16  # samples, for the layer
Targets = str | int | Callable[[Any], Tensor]


def attribute_dataset(
    cam: BaseCAM,
    dataset: Any,
    out: str | os.PathLike[str],
    targets: Targets = "predicted",
    *,
    full: bool = False,
    store: str = "fp16",
    eigen_smooth: bool = False,
    aug_smooth: bool = False,
    batch_size: int | None = None,
    shard_size: int = 512,
    workers: int | None = None,
    retry_failed: bool = False,
    claim_expiry: float = 60.0,
    progress: bool = False,
) -> Maps:
    """The maps of a whole data set, written to a folder as they are made; what is there already is not made again.

    Processes that are given the same folder share the work, on one machine or on many that see the folder, started by
    `torchrun` or by hand: each takes the next shard that nobody has, and those of a worker that was lost. A sample that
    cannot be read, that the model rejects or whose map is not a number is recorded with its reason, and the others go
    on. Where memory does not suffice, batches are halved.

    cam            a method, bound to model and layers; the model stays where it is and as it is
    dataset        of PyTorch's kind, with a length: a sample is a tensor `(k, H, W)` as the model takes it, or it and
                   its class; or `ImageFiles`, or parts and sequences of either. Samples may differ in size
    out            a folder, new or of the same run: manifest.json, and shards/ with its .npz files
    targets        "predicted", "label" for the data set's own, a class index, or a callable from one image's output to
                   a scalar
    full           finished maps in [0, 1] at the image's size, in place of each layer's signed low map, of which
                   `open_maps` makes the same
    store          "fp16", "uint8" or "fp32"; what the first two lose is said in `Maps`
    eigen_smooth, aug_smooth   as in a call of the method; the mean over augmentations only with `full`
    batch_size     images at once; None for 16 on a CPU, 128 elsewhere. Batches do not cross shards
    shard_size     samples of a shard, which is what a kill loses at most, besides those begun
    workers        processes that read and decode; None for what the cores allow, 0 for none
    retry_failed   make again the shards with samples without a map, after their cause is gone; they stay until then
    claim_expiry   seconds without a sign after which this worker counts as lost to those of other machines
    progress       show a bar on stderr, with images a second, the time left and the slowest stage
    Returns the maps, as `open_maps(out)`.
    Raises ValueError if the folder holds another run's maps, saying what differs; OSError if the disk is full: the same
    call goes on later; RuntimeError if the model takes none of the first images, nor of some others.

    >>> import fastcam, tempfile, torch
    >>> data = torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> maps = attribute_dataset(fastcam.GradCAM(model, "0"), data, tempfile.mkdtemp(), "label", workers=0)
    >>> len(maps), maps[0].shape, maps.target.tolist()
    (6, (8, 8), [0, 1, 2, 0, 1, 2])
    """
    out, samples = Path(out), check_dataset(dataset)
    _check(cam, targets, store, full, aug_smooth, dataset)
    rank, of = int(os.environ.get("RANK", "0")), max(1, int(os.environ.get("WORLD_SIZE", "1")))
    options = {"eigen_smooth": eigen_smooth, **({"aug_smooth": True} if aug_smooth else {})}
    targets = targets if isinstance(targets, str) or callable(targets) else operator.index(targets)
    inputs = partial(_inputs, dataset, cam.model)
    explainer = Explainer(cam, targets, full, options, inputs, names_of(dataset), batch_size)
    plan = Plan(out, samples, explainer.batch_size, check_count("shard_size", shard_size), store, _workers(workers))
    plan.lengths = lengths_of(dataset)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with Claims(out / "claims", claim_expiry) as claims:
        wanted = {
            **manifest.versions(),
            "device": explainer.device.type,
            "precision": describing.described_precision(explainer.device),
            "model": _described_model(cam.model),
            "method": _described_method(cam, dataset, explainer, plan.workers),
            "targets": describing.plain(targets),
            "smoothing": [name for name, asked in options.items() if asked],
            **{"full": full, "store": store, "batch_size": plan.batch_size, "shard_size": plan.shard_size},
            "dataset": describing.described_dataset(dataset),
        }
        plan.run = starting.agree(plan, wanted, claims)
        starting.check_lengths(plan)
        claims.tidy(out, plan.folder)
        if retry_failed:
            plan.again = retrying.to_make_again(plan, claims.token)
        with _Bar(samples, progress) as bar:
            try:
                Worker(plan, dataset, explainer, claims, rank, of, bar.told).work()
            except BaseException as error:
                with suppress(OSError):
                    _add_result(plan, claims, explainer.cam, patient=False)
                if isinstance(error, OSError) and error.errno in _FULL:
                    hint = "the disk is full; what is written is whole, and the same call goes on from there"
                    raise OSError(error.errno, hint, str(out)) from error
                raise
        if retry_failed:
            (out / retrying.NAME).unlink(missing_ok=True)
        _add_result(plan, claims, explainer.cam)
        claims.tidy(out, plan.folder)
    return open_maps(out)


def _check(cam: Any, targets: Any, store: str, full: bool, aug_smooth: bool, dataset: Any) -> None:
    if not isinstance(cam, BaseCAM):
        raise TypeError(f"cam must be a method such as GradCAM(model, layers), got {type(cam).__name__}")
    index = isinstance(targets, int | np.integer) and not isinstance(targets, bool) and targets >= 0
    if not (targets in ("predicted", "label") or index or callable(targets)):
        raise ValueError(f'targets must be "predicted", "label", a class index or a callable, got {targets!r}')
    if store not in STORED:
        raise ValueError(f"store must be one of {', '.join(STORED)}, got {store!r}")
    if aug_smooth and not full:
        raise ValueError("aug_smooth is a mean of finished maps: pass full=True")
    if targets == "label" and isinstance(dataset, ImageFiles) and max(dataset.labels) < 0:
        raise ValueError(f"targets are labels, and {dataset.source} has none: neither folders of classes nor a column")


def _workers(given: int | None) -> int:
    if given is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(8, cores // here))
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(f"workers must be a whole number of 0 or more, got {given!r}")
    return given


def _inputs(dataset: Any, model: nn.Module, x: Tensor, index: int) -> Tensor:
    """What the model takes, of what a data set holds from an index on; only pixels of files are turned into it."""
    of, _ = origin(dataset, index)
    if not isinstance(of, ImageFiles) or of is not dataset and x.dtype != torch.uint8:  # a part may have done it
        return x
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    x = of.inputs(x)
    return x if first is None else x.to(first.dtype)


def _described_model(model: nn.Module) -> dict[str, Any]:
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {"class": type(model).__name__, "dtype": kinds, "fingerprint": describing.model_fingerprint(model)}


def _described_method(cam: BaseCAM, dataset: Any, explainer: Explainer, workers: int) -> dict[str, Any]:
    """The method's settings; a layer that it finds by itself is the one for the first sample that can be read.

    That is read as all are, in another process if there are any: what a data set opens here, its copies would share.
    """
    found = describing.described_method(cam)
    if cam.target_layers is not None:
        return found
    for batch in loader(dataset, ([i] for i in range(min(len(dataset), _PROBED))), min(1, workers), ahead=1):
        with suppress(Exception):  # the run will say it
            x = explainer.inputs(batch.groups[0].x.to(explainer.device), batch.groups[0].indices[0])
            return {**found, "layers": cam.layer_names(x)}
    return found


def _add_result(plan: Plan, claims: Claims, cam: BaseCAM, patient: bool = True) -> None:
    """Say in the manifest how far it has come. One that has finished waits for others that say it."""
    if not starting.take_manifest(claims, patient):
        return
    try:
        manifest.add_result(plan.out, {**_result(plan), **_agreement(plan, cam)}, claims.token)
    finally:
        claims.release(starting.MANIFEST)


def _result(plan: Plan) -> Mapping[str, Any]:
    found = [plan.stored(number) for number in range(plan.shards)]
    done = [shard for shard in found if shard is not None]
    return {
        "complete": len(done) == plan.shards,
        "explained": sum(map(len, done)),
        "batch_size": min((shard.meta["batch_size"] for shard in done), default=plan.batch_size),
        "failed": [failure for shard in done for failure in shard.meta["failed"]],
    }


def _agreement(plan: Plan, cam: BaseCAM) -> dict[str, Any]:
    """In fast mode, what holds of the first batches of all workers so far."""
    if cam.optimize is None:
        return {}
    known = manifest.read(plan.out).get("result", {}).get("agreement")
    found = [Agreement(**known)] if known else []
    found += [cam.agreement] if cam.agreement is not None else []
    return {"agreement": asdict(reduce(Agreement.with_worse, found))} if found else {}


class _Bar:
    """Progress on stderr; what was there before does not count as fast."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._shown, self._bar = total, shown, None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def told(self, images: int, state: str) -> None:
        import sys

        from tqdm import tqdm

        if self._bar is None:
            often = 0.1 if sys.stderr.isatty() else 30.0
            self._bar = tqdm(
                total=self._total,
                initial=images,
                unit="image",
                disable=not self._shown,
                mininterval=often,
                file=WhileRead(sys.stderr),
            )
            return
        self._bar.set_postfix_str(state, refresh=False)
        self._bar.update(images)
