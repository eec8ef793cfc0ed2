"""Each method of one pass against its peers and the model's forward pass: time, peak memory, images per second."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import agreement, peers
from benchmarks.memory import meter
from benchmarks.models import RECIPES
from benchmarks.problem import Problem, forward
from benchmarks.report.figures import ON_DEVICE
from benchmarks.rows import timed
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam.methods import ATTENTION, METHODS
from fastcam.methods.fullgrad import FullGrad
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.methods.sess import SESS
from fastcam.methods.smooth import SmoothGradCAMpp
from fastcam.visualize import SALIENCY
from fastcam.visualize.sampled import SampledGradient

CAMS = {**METHODS, **ATTENTION}
ELSEWHERE = (PerturbationCAM, SESS, FullGrad, SmoothGradCAMpp, SampledGradient)  # many passes or layers
ONE_PASS = [name for name, cls in {**CAMS, **SALIENCY}.items() if not issubclass(cls, ELSEWHERE)]
COMBINED = ("refinecam",)  # of several layers
# RefineCAM's usual base, Grad-CAM++, divides by what may be 0 where activations have both signs: a matter of rounding.
OPTIONS = {"refinecam": {"base_method": "layercam"}}
# What a model may lack, as fastcam says it, and the methods that need it.
LACKING: dict[str, tuple[str, ...]] = {
    "no attention was met": tuple(ATTENTION),
    "met no ReLU": ("guidedbackprop", "deconvnet", "guidedgradcam"),
    "CAM needs global average pooling": ("cam",),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    assert settings.device is not None
    cases = [
        (model, batch, method, dtype)
        for model in settings.models
        if model in RECIPES
        for batch in settings.batches_on(settings.device)
        for method in settings.chosen(ONE_PASS)
        for dtype in settings.dtypes_on(settings.device)
    ]
    metafunc.parametrize(("model", "batch", "method", "dtype"), cases)


def bench_method(
    benchmark: Any, row: dict[str, Any], settings: Settings, model: str, batch: int, method: str, dtype: str
) -> None:
    device = str(settings.device)
    single = explained(model, batch, device, method)
    problem = single.cast(getattr(torch, dtype))
    row.update(batch=batch, method=method, dtype=dtype, options=OPTIONS.get(method, {}))
    calls, clock = sides(problem, method), wall_clock(device)
    comparison = SideBySide(calls, clock, settings.cap, peers.PACKAGES, partial(meter, device), device)
    try:
        outputs = comparison.warm_up()
    except ValueError as error:
        if not any(said in str(error) and method in methods for said, methods in LACKING.items()):
            raise
        pytest.skip(f"{model}: {error}")
    exact = ours(single.copied(), method)() if problem is not single else None
    row.update(agreement.check(single, method, outputs, agreement.TOLERANCE[device], exact))
    del outputs
    gc.collect()  # grad-cam's objects are in cycles with its hooks
    row.update(timed(benchmark, comparison, settings.repetitions, batch))
    row["not_supported"] = {**peers.left_out(problem, method), **comparison.not_supported}


_latest = lru_cache(maxsize=1)(Problem.of)


def explained(model: str, batch: int, device: str, method: str) -> Problem:
    """The problem at the model's layer, or at its stages."""
    problem = _latest(model, batch, device)
    return replace(problem, layer=RECIPES[model].stages) if method in COMBINED else problem


def sides(problem: Problem, method: str) -> dict[str, Callable[[], Any]]:
    """The calls to compare, from images on the device to maps in numpy or to gradients on the device; on a GPU also to
    maps that stay there, as the forward pass's output does.

    Each has its own copy of the network. None of them has run yet, so the copies hold no gradients and the methods no
    graph of an earlier call.
    """
    theirs = peers.calls(problem, method, **OPTIONS.get(method, {}))
    calls = {"forward": forward(problem.copied()), "fastcam": ours(problem.copied(), method)}
    if problem.x.is_cuda and method in CAMS:
        calls[ON_DEVICE] = ours(problem.copied(), method, on_device=True)
    calls |= theirs
    if method == "randomcam":  # draws from numpy's own generator
        calls |= {name: partial(_seeded, call) for name, call in calls.items()}
    return calls


def ours(problem: Problem, method: str, on_device: bool = False) -> Callable[[], Any]:
    if method in CAMS:
        options: dict[str, Any] = {key: METHODS[name] for key, name in OPTIONS.get(method, {}).items()}
        cam = CAMS[method](problem.net, problem.layer, **options)
        return partial(partial(cam.attribute, complete=True) if on_device else cam, problem.x, problem.targets)
    explain = SALIENCY[method](problem.net, *([problem.layer] if method == "guidedgradcam" else []))
    return partial(explain.attribute, problem.x, problem.targets)


def _seeded(call: Callable[[], Any]) -> Any:
    np.random.seed(0)
    return call()
