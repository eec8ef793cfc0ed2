"""A data set through Grad-CAM beside a plain inference loop over it, and the memory of a long run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import photographs
from benchmarks.inference import Decoded, Loading, in_slices, in_turn, plain_loop, usual_workers
from benchmarks.models import RECIPES
from benchmarks.problem import Problem
from benchmarks.resident import EARLY, KNOWN, measure
from benchmarks.rows import timed
from benchmarks.session import SETTINGS
from benchmarks.settings import MODELS, Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import GradCAM
from fastcam.dataset.attribute import attribute_dataset
from fastcam.dataset.maps import Maps

METHOD = "gradcam"
PLAIN = "plain loop"
TOLERANCE = 0.0025  # on maps in [0, 1]: what fp16 loses, and another batch's rounding
SAMPLE = 8  # images that are checked
AGREEMENT = 0.99  # of the predicted classes: rounding may decide between two that are close


@dataclass(frozen=True)
class Amount:
    """What is run on a kind of device.

    images   in all
    size     of the slice that a side takes in a repetition; every slice is taken once at least
    """

    model: str
    batch: int
    images: int
    size: int


AMOUNTS = {"cpu": Amount("resnet18", 16, 2000, 250), "cuda": Amount("resnet50", 128, 16384, 16384)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    amount = AMOUNTS[str(settings.device)]
    models = (amount.model,) if settings.models == MODELS else settings.models
    cases = [
        (model, batch)
        for model in models
        if model in {"toy", *(a.model for a in AMOUNTS.values())} and settings.chosen([METHOD])
        for batch in settings.batches or (amount.batch,)
    ]
    if "benchmark" not in metafunc.fixturenames and settings.device == "cuda":
        cases = []  # resident memory is measured on a CPU
    metafunc.parametrize(("model", "batch"), cases, ids=[f"{model}-{METHOD}-{batch}" for model, batch in cases])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Of the photographs, which both cases read."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def bench_throughput(
    benchmark: Any, row: dict[str, Any], settings: Settings, folder: Path, model: str, batch: int
) -> None:
    device = str(settings.device)
    case = Case.of(model, batch, device, folder, settings.images)
    row.update(kind="throughput", method=METHOD, batch=batch, images=len(case.slices[0]), data=case.data)
    row.update(workers=case.loading.workers)
    with tempfile.TemporaryDirectory() as out:
        comparison = SideBySide(case.sides(Path(out)), wall_clock(device), settings.cap)
        outputs = comparison.warm_up()
        row["difference"] = check(case, outputs["fastcam"], outputs.get(PLAIN)) if "fastcam" in outputs else None
        row.update(timed(benchmark, comparison, max(settings.repetitions, len(case.slices)), len(case.slices[0])))


def bench_resident_memory(row: dict[str, Any], settings: Settings, folder: Path, model: str, batch: int) -> None:
    if not KNOWN:
        pytest.skip("the system does not say how much memory a process has resident")
    loading, count = Loading(batch, usual_workers()), settings.images or AMOUNTS["cpu"].images
    photographs.make(folder, count)  # not in the process that is looked at
    found = measure(folder, count, model, loading, torch.get_num_threads())
    row.update(kind="resident memory", method=METHOD, batch=batch, workers=loading.workers, resident=found)
    if count > EARLY:
        row["growth"] = {name: found[name][-1] / found[name][0] for name in ("process", "workers") if found[name][0]}


@dataclass(frozen=True)
class Case:
    """What both sides go through.

    problem   the network and its layer
    slices    data sets, one for each repetition in turn
    data      what they are, in words
    """

    problem: Problem
    slices: Sequence[Any]
    loading: Loading
    device: str
    data: str

    @classmethod
    def of(cls, model: str, batch: int, device: str, folder: Path, count: int | None) -> Case:
        amount, loading = AMOUNTS[device], Loading(batch, usual_workers())
        count = count or amount.images
        size = min(amount.size, count)
        problem = Problem.of(model, 1, device)
        if device == "cuda":
            slices: Sequence[Any] = [Decoded(size, RECIPES[model].size)]
            return cls(problem, slices, loading, device, "in memory, fp32")
        return cls(problem, in_slices(folder, count, size), loading, device, "JPEG, 500 x 375")

    def sides(self, out: Path) -> dict[str, Callable[[], Any]]:
        """The calls to compare, each with its own copy of the network; the second writes folders into `out`."""
        problem = self.problem.copied()
        cam = GradCAM(problem.net, problem.layer)
        folders = (out / str(number) for number in range(10**6))

        def explain(data: Any) -> Maps:
            loading = self.loading
            return attribute_dataset(cam, data, next(folders), batch_size=loading.batch, workers=loading.workers)

        plain = partial(plain_loop, self.problem.copied().net, loading=self.loading, device=self.device)
        return {PLAIN: in_turn(plain, self.slices), "fastcam": in_turn(explain, self.slices)}


def check(case: Case, maps: Maps, predicted: Tensor | None) -> float:
    """The largest difference of a sample of what was stored of the first slice from maps of calls, image by image.

    The predicted classes must be those of the plain loop, where it has run.
    """
    data, problem = case.slices[0], case.problem.copied()
    if len(maps) != len(data):
        raise AssertionError(f"{len(maps)} of {len(data)} images were explained: {maps.failed[:1]}")
    if predicted is not None and np.mean(maps.predicted == predicted.numpy()) < AGREEMENT:
        raise AssertionError("the predicted classes are not those of the plain loop")
    cam = GradCAM(problem.net, problem.layer)
    differences, alive = [], False
    for index in np.linspace(0, len(data) - 1, SAMPLE).round().astype(int):
        x = data.inputs(data[index][0].unsqueeze(0).to(case.device))
        expected = cam(x, [int(maps.target[index])])[0]
        alive = alive or bool(expected.max() > 0.5)
        differences.append(np.abs(maps[index] - expected).max())
    if not alive:
        raise AssertionError("the maps are empty: comparing them says nothing")
    largest = float(np.max(differences))  # NaN if one is
    if not largest <= TOLERANCE:
        raise AssertionError(f"maps differ from those of calls by {largest:.2e}, more than {TOLERANCE:.1e}")
    return largest
