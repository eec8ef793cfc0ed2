"""Methods that score many changed rows an image, against grad-cam, the forward pass, and the passes they need."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.bench_methods import TOLERANCE, theirs
from benchmarks.memory import peak_bytes
from benchmarks.problem import Problem, forward
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import ops
from fastcam.methods import METHODS
from fastcam.methods.ablation import ReplayCAM
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.record import record

MODELS = {"cpu": ("resnet18", "toy"), "cuda": ("resnet50", "toy")}
BATCHES = {"cpu": (1,), "cuda": (1, 16)}
OPTIONS: dict[str, dict[str, Any]] = {"sscam": {"samples": 2}, "iscam": {"samples": 2}}  # 10 take five times as long
ROWS = 32  # of a batch, where memory is compared
PEERS = ("scorecam", "ablationcam")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    assert settings.device is not None
    names = [name for name, cls in METHODS.items() if issubclass(cls, PerturbationCAM)]
    cases = [
        (model, batch, method)
        for model in settings.models
        if model in MODELS[settings.device]
        for batch in settings.batches or BATCHES[settings.device]
        for method in settings.chosen(names)
    ]
    metafunc.parametrize(("model", "batch", "method"), cases)


def bench_perturbation(
    benchmark: Any, row: dict[str, Any], settings: Settings, model: str, batch: int, method: str
) -> None:
    device = str(settings.device)
    problem = Problem.of(model, batch, device)
    row.update(batch=batch, method=named(method))
    comparison = SideBySide(sides(problem, method), wall_clock(device), settings.cap)
    outputs = comparison.warm_up()
    row.update(check(problem, method, outputs, TOLERANCE[device]))
    gc.collect()
    row.update(comparison.run(benchmark, settings.repetitions))
    gc.collect()
    rows = problem.x[:1].expand(ROWS, -1, -1, -1).contiguous()
    measured = problem.copied()
    if issubclass(METHODS[method], ReplayCAM):  # so few rows an image that one would not fill a batch
        measured = replace(measured, x=rows, targets=problem.targets[:1])
    calls = {
        "forward": partial(torch.no_grad()(problem.net), rows),
        "fastcam": ours(measured, method, batch_size=ROWS),
    }
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    row["memory"] = memory
    row["memory_images"] = len(measured.x)
    row["memory_ratios"] = {"fastcam/forward": memory["fastcam"] / memory["forward"]}


def named(method: str) -> str:
    options = ", ".join(f"{value} {key}" for key, value in OPTIONS.get(method, {}).items())
    return f"{method}, {options}" if options else method


def sides(problem: Problem, method: str) -> dict[str, Callable[[], Any]]:
    """The calls to compare; Score-CAM also with nothing but its forward passes, at the batch size that suits them."""
    calls: dict[str, Callable[[], Any]] = {"forward": forward(problem.copied())}
    if method == "scorecam":
        calls["masked forward passes"] = masked_passes(problem.copied())
    calls["fastcam"] = ours(problem.copied(), method)
    if method == "scorecam" and problem.x.is_cuda:
        half = problem.copied()
        calls["fastcam bf16"] = ours(Problem(half.net.bfloat16(), half.layer, half.x.bfloat16(), half.targets), method)
    if method in PEERS:
        calls["grad-cam"] = theirs(problem.copied(), METHODS[method].__name__)
    return calls


def ours(problem: Problem, method: str, **options: Any) -> Callable[[], np.ndarray]:
    cam = METHODS[method](problem.net, problem.layer, **OPTIONS.get(method, {}), **options)
    return partial(cam, problem.x, problem.targets)


def masked_passes(problem: Problem) -> Callable[[], None]:
    """As many forward passes on masked images as there are channels, at the fastest of some batch sizes."""
    net, x = problem.net, problem.x
    with record(net, [net.get_submodule("layer4")], x, gradients=False) as run:
        A = run.activations[0]
    constant = A.flatten(2).amax(2) == A.flatten(2).amin(2)  # those of an image share a pass
    rows = int((~constant).sum() + constant.any(1).sum())
    masks, images = A.flatten(0, 1), torch.arange(rows, device=x.device) // A.shape[1]
    sizes = (8, 16, 32, 64) if x.device.type == "cpu" else (32, 64, 128, 256)
    batches = {n: ops.masked_inputs(x, masks[:n], images[:n]) for n in sizes if n <= rows}
    clock = wall_clock(x.device.type)
    run_batch = torch.no_grad()(net)

    def seconds(n: int) -> float:
        run_batch(batches[n])
        return min(clock(partial(run_batch, batches[n])) for _ in range(3)) / n

    best = min(batches, key=seconds)
    chosen = batches[best]

    def passes() -> None:
        for start in range(0, rows, best):
            run_batch(chosen[: min(best, rows - start)])

    return passes


def check(problem: Problem, method: str, outputs: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """How far the timed maps are from grad-cam's, or where it has none from the same in batches of another size."""
    maps = outputs["fastcam"]
    reference = outputs["grad-cam"] if "grad-cam" in outputs else ours(problem.copied(), method, batch_size=12)()
    if not (reference.max(axis=(1, 2)) > 0.5).mean() >= 0.5:
        raise AssertionError("most of the maps are empty: comparing them says nothing")
    difference = float(np.abs(maps - reference).max())
    if not difference <= tolerance:
        raise AssertionError(f"maps differ by {difference:.2e}, more than {tolerance:.0e}")
    found: dict[str, Any] = {"difference": difference}
    if "fastcam bf16" in outputs:
        found["rank_correlation_bf16"] = rank_correlation(outputs["fastcam bf16"], maps)
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, the lowest over the images of `(B, H, W)`."""
    ranks = [np.argsort(np.argsort(v.reshape(len(v), -1), axis=1), axis=1).astype(np.float64) for v in (a, b)]
    return min(float(np.corrcoef(p, q)[0, 1]) for p, q in zip(*ranks, strict=True))
