"""Looking inside a network, side by side: gradients at many points an image with captum, activation maximisation with
FlashTorch's procedure and with a loop over the channels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastcam
from benchmarks import agreement, definitions, peers
from benchmarks.memory import meter
from benchmarks.problem import Problem, forward
from benchmarks.rows import timed
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam.layers import find_layers
from fastcam.visualize import SALIENCY

MODELS = ("resnet18", "toy")
BATCH = 2
CHANNELS, SIZE, STEPS, LAYER = 16, 128, 16, "layer3.0.conv1"
SAMPLES = 25  # of SmoothGrad
OTHERS = {"captum", "FlashTorch"}
Sides = dict[str, Callable[[], Any]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    cases = [(model, name) for model in settings.models if model in MODELS for name in settings.chosen(CASES)]
    metafunc.parametrize(("model", "name"), cases)


def bench_inside(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, name: str) -> None:
    device, batch = str(settings.device), CHANNELS if name == "maximize" else BATCH
    problem = Problem.of(model, batch, device)
    row.update(batch=batch, method=name, dtype="float32")
    comparison = SideBySide(
        CASES[name](problem), wall_clock(device), settings.cap, OTHERS, partial(meter, device), device
    )
    outputs = comparison.warm_up()
    row["difference"] = check(name, problem, outputs) if "fastcam" in outputs else None
    del outputs
    gc.collect()
    row.update(timed(benchmark, comparison, settings.repetitions, batch))


def check(name: str, problem: Problem, outputs: dict[str, Any]) -> float:
    """How far fastcam's result is from the other, by their mean absolute values; an error if too far."""
    if name == "maximize":
        return _check_images(problem, outputs)
    ours = agreement.as_numpy(outputs["fastcam"])
    if name == "SmoothGrad":  # each draws noise of its own: what they agree in is the signal
        return _check_noisy(problem, ours, outputs)
    theirs = outputs["captum"] if "captum" in outputs else definitions.integrated_gradients(problem.copied())
    expected = agreement.as_numpy(theirs)
    # A rounding may move single pixels far, where it decides whether a ReLU of a point on the path is open.
    difference = float(np.abs(ours - expected).mean() / np.abs(expected).mean())
    if not difference <= 1e-3:
        raise AssertionError(f"{name} differs by {difference:.2e} of the mean absolute value")
    return difference


def _check_noisy(problem: Problem, ours: np.ndarray, outputs: dict[str, Any]) -> float:
    """By how much less it correlates with captum's, or with a plain loop's, than two loops of other seeds do."""
    loops = [agreement.as_numpy(definitions.smooth_grad(problem.copied(), SAMPLES, seed)) for seed in (1, 2)]
    usual = correlation(*loops)
    likeness = correlation(ours, agreement.as_numpy(outputs.get("captum", loops[0])))
    if not likeness > 0.8 * usual > 0.05:
        raise AssertionError(f"SmoothGrad correlates by {likeness:.3f} with another's, two others by {usual:.3f}")
    return 1 - likeness / usual


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _check_images(problem: Problem, outputs: dict[str, Any]) -> float:
    """Batch and loop reach the same activations, and no smaller ones than FlashTorch's images, cut to valid values."""
    ours = excited(problem, outputs["fastcam"].data)
    one_by_one = outputs.get("one at a time") or maximisation(problem)["one at a time"]()
    alone = excited(problem, torch.cat([found.data for found in one_by_one]))
    difference = float(((ours - alone).abs() / alone.abs()).max())
    if not difference < 0.05:  # over the steps a rounding grows
        raise AssertionError(f"channels in one batch reach activations that differ by {difference:.1%}")
    if "FlashTorch" in outputs:
        low, high = limits(problem.x.device)
        theirs = excited(problem, torch.cat([steps[-1].detach() for steps in outputs["FlashTorch"]]).clamp(low, high))
        if not (ours >= theirs).all():
            raise AssertionError(f"activations {ours.tolist()} are below FlashTorch's, {theirs.tolist()}")
    return difference


@torch.no_grad()
def excited(problem: Problem, x: Tensor) -> Tensor:
    """The mean activation of channel i at image i, `(CHANNELS,)`."""
    return fastcam.feature_maps(problem.net, x, LAYER).data.mean((2, 3)).diagonal()


def limits(device: torch.device) -> tuple[Tensor, Tensor]:
    """The inputs of a black and of a white picture, each `(3, 1, 1)`."""
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    return -mean / std, (1 - mean) / std


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def maximisation(problem: Problem) -> Sides:
    """16 channels, 128 pixels, 16 steps."""
    settings: dict[str, Any] = {"size": SIZE, "steps": STEPS, "mean": MEAN, "std": STD}
    alone, together = problem.copied().net, problem.copied().net
    texts = [f"{LAYER}:{channel}" for channel in range(CHANNELS)]
    sides: Sides = {
        "forward": forward(problem.copied()),
        "fastcam": partial(fastcam.maximize, together, texts, **settings),
        "one at a time": lambda: [fastcam.maximize(alone, text, **settings) for text in texts],
    }
    try:
        from flashtorch.activmax import GradientAscent
    except ImportError:
        return sides
    net = problem.copied().net
    layer = find_layers(net, LAYER)[0]
    ascent = GradientAscent(net, img_size=SIZE, use_gpu=problem.x.is_cuda)
    return {**sides, "FlashTorch": lambda: [ascent.optimize(layer, c, num_iter=STEPS) for c in range(CHANNELS)]}


def gradients(method: str, **options: Any) -> Callable[[Problem], Sides]:
    """A method of both packages for the same classes."""

    def sides(problem: Problem) -> Sides:
        mine = problem.copied()
        explain = SALIENCY[method](mine.net, **options)
        calls: Sides = {"forward": forward(problem.copied())}
        calls["fastcam"] = partial(explain.attribute, mine.x, mine.targets)
        return {**calls, **peers.calls(problem, method, **options)}

    return sides


CASES: dict[str, Callable[[Problem], Sides]] = {
    "integrated gradients": gradients("integratedgradients"),
    "SmoothGrad": gradients("smoothgrad", samples=SAMPLES),
    "maximize": maximisation,
}
