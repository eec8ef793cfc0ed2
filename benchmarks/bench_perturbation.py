"""Methods that run the network many times an image, or look at all of its layers: beside their peers, the forward pass,
and the passes they need."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import agreement, changed, definitions, peers
from benchmarks.agreement import TOLERANCE, as_numpy
from benchmarks.memory import meter, peak_bytes
from benchmarks.problem import Problem, forward
from benchmarks.rows import memory, timed
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import ops
from fastcam.methods import METHODS
from fastcam.methods.ablation import ReplayCAM
from fastcam.methods.fullgrad import FullGrad
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.methods.sess import SESS
from fastcam.methods.smooth import SmoothGradCAMpp
from fastcam.record import record

MODELS = {"cpu": ("resnet18", "toy"), "cuda": ("resnet50", "toy")}
BATCHES = {"cpu": (1,), "cuda": (1, 16)}
MANY_PASSES = [n for n, c in METHODS.items() if issubclass(c, PerturbationCAM | SESS | FullGrad | SmoothGradCAMpp)]
IN_BFLOAT16 = ("scorecam", "ablationcam")
OPTIONS: dict[str, dict[str, Any]] = {"sscam": {"samples": 1}, "iscam": {"samples": 1}}  # 10 take ten times as long
ROWS = 32  # of a batch, where memory is compared
PASSES = "masked forward passes"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    assert settings.device is not None
    cases = [
        (model, batch, method, dtype)
        for model in settings.models
        if model in MODELS[settings.device]
        for batch in settings.batches or BATCHES[settings.device]
        for method in settings.chosen(MANY_PASSES)
        for dtype in settings.dtypes_on(settings.device)
        if dtype == "float32" or method in IN_BFLOAT16
    ]
    metafunc.parametrize(("model", "batch", "method", "dtype"), cases)


def bench_perturbation(
    benchmark: Any, row: dict[str, Any], settings: Settings, model: str, batch: int, method: str, dtype: str
) -> None:
    device = str(settings.device)
    single = Problem.of(model, batch, device)
    problem = single.cast(getattr(torch, dtype))
    row.update(batch=batch, method=named(method), dtype=dtype)
    calls, clock = sides(problem, method), wall_clock(device)
    comparison = SideBySide(calls, clock, settings.cap, peers.PACKAGES, partial(meter, device), device)
    outputs = comparison.warm_up()
    row.update(check(single, method, outputs, TOLERANCE[device], reduced=problem is not single))
    del outputs
    gc.collect()  # grad-cam's objects are in cycles with its hooks
    row.update(timed(benchmark, comparison, settings.repetitions, batch))
    if issubclass(METHODS[method], PerturbationCAM) and "fastcam" in comparison.sides:
        row.update(of_full_batches(problem, method, device))


def named(method: str) -> str:
    options = ", ".join(f"{value} {key.removesuffix('s')}" for key, value in OPTIONS.get(method, {}).items())
    return f"{method}, {options}" if options else method


def sides(problem: Problem, method: str) -> dict[str, Callable[[], Any]]:
    """The calls to compare; Score-CAM also with nothing but its forward passes, at the batch size that suits them."""
    calls: dict[str, Callable[[], Any]] = {"forward": forward(problem.copied())}
    if method == "scorecam":
        calls[PASSES] = masked_passes(problem.copied())
    calls["fastcam"] = ours(problem.copied(), method)
    return {**calls, **peers.calls(problem, method, **OPTIONS.get(method, {}))}


def ours(problem: Problem, method: str, **options: Any) -> Callable[[], np.ndarray]:
    layer = None if issubclass(METHODS[method], FullGrad) else problem.layer
    cam = METHODS[method](problem.net, layer, **OPTIONS.get(method, {}), **options)
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


def of_full_batches(problem: Problem, method: str, device: str) -> dict[str, Any]:
    """Peak bytes of the forward pass of 32 images and of fastcam at batch size 32, in place of the timed calls'.

    Images of a replay are 32 too: their rows are so few that those of one would not fill a batch. The others' batches
    have sizes of their own, which say nothing beside a forward pass of 32.
    """
    rows = problem.x[:1].expand(ROWS, -1, -1, -1).contiguous()
    measured = problem.copied()
    if issubclass(METHODS[method], ReplayCAM):
        measured = replace(measured, x=rows, targets=problem.targets[:1])
    found = {
        "forward": peak_bytes(partial(torch.no_grad()(problem.net), rows), device),
        "fastcam": peak_bytes(ours(measured, method, batch_size=ROWS), device),
    }
    return {**memory(found), "memory_images": len(measured.x)}


def check(
    problem: Problem, method: str, outputs: dict[str, Any], tolerance: float, reduced: bool = False
) -> dict[str, Any]:
    """How far the timed maps are from what they should be, as entries of a row; AssertionError if it is too far.

    problem   in fp32
    reduced   the outputs are in bf16: their ranks are compared with those of maps in fp32, see `agreement.unlike`
    In fp32 fastcam's maps are compared with grad-cam's, where it has none with what `reference` gives; torch-cam's with
    its own formula; where fastcam's are missing, grad-cam's with the reference. `checked_against` has what it was.
    """
    given = {side: as_numpy(value) for side, value in outputs.items() if side not in ("forward", PASSES)}
    if not given:
        return {"difference": None}
    maps = given.get("fastcam", next(iter(given.values())))
    if not (maps.max(axis=(1, 2)) > 0.5).mean() >= 0.5:
        raise AssertionError("most of the maps are empty: comparing them says nothing")
    expected, against = {}, "the formula of torch-cam"
    if "fastcam" in given and "grad-cam" in given and not reduced:
        expected["fastcam"], against = given["grad-cam"], "grad-cam"
    elif side := next((side for side in ("fastcam", "grad-cam") if side in given), None):
        expected[side], against = reference(problem, method)
    if "torch-cam" in given:
        own = agreement.way("torch-cam", method) or masked_as_in_torch_cam(method)
        expected["torch-cam"] = own(problem.copied())
    pairs = {side: (given[side][: len(value)], value) for side, value in expected.items()}
    differences = {side: float(np.abs(got - wanted).max()) for side, (got, wanted) in pairs.items()}
    row: dict[str, Any] = {"difference": max(differences.values()), "differences": differences}
    row["checked_against"] = against
    if reduced:
        row["rank_correlation"] = {side: agreement.rank_correlation(*pair) for side, pair in pairs.items()}
        if "fastcam" in pairs and agreement.unlike(*pairs["fastcam"]):
            raise AssertionError(f"{method} ranks otherwise than in fp32: {row['rank_correlation']}")
    elif not row["difference"] <= tolerance:
        raise AssertionError(f"maps differ by {differences}, more than {tolerance:.0e}")
    return row


def reference(problem: Problem, method: str) -> tuple[np.ndarray, str]:
    """The finished maps, of the first image where each takes many passes, and by what: the formula, or, of SESS,
    fastcam in other batches."""
    copied = problem.copied()
    if issubclass(METHODS[method], FullGrad):
        return as_numpy(definitions.full_grad(copied, method)), "its formula"
    if method == "smoothgradcam++":
        return as_numpy(definitions.smooth_grad_cam_pp(copied)), "its formula"
    if method == "scorecam":
        return agreement.plain_maps(copied, method, 1), "its formula"
    if method in changed.MAPS:
        first = replace(copied, x=copied.x[:1], targets=copied.targets[:1])
        if method == "ablationcam":  # a small difference of two scores
            first = replace(first, net=first.net.double(), x=first.x.double())
        return as_numpy(changed.MAPS[method](first, **OPTIONS.get(method, {}))), "its formula"
    return ours(copied, method, batch_size=12)(), "fastcam in batches of 12"


def masked_as_in_torch_cam(method: str) -> Callable[[Problem], np.ndarray]:
    formula = partial(definitions.masked_as_in_torch_cam, method=method, **OPTIONS.get(method, {}))
    return lambda problem: as_numpy(seeded(partial(formula, problem)))


def seeded(call: Callable[[], Any]) -> Any:
    """The call with a seed of torch's generator, which goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(peers.SEED)
        return call()
