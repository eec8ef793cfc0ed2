"""Looking inside a network, side by side: gradients of the input with captum, activation maximisation with FlashTorch's
procedure and with a loop over the channels."""

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
from benchmarks.problem import Problem, forward
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam.layers import find_layers

MODELS = ("resnet18", "toy")
BATCH = 8
CHANNELS, SIZE, STEPS, LAYER = 16, 128, 32, "layer3.0.conv1"
SAMPLES = 25  # of SmoothGrad
POINTS = 50  # of integrated gradients
Sides = dict[str, Callable[[], Any]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    cases = [(model, name) for model in settings.models if model in MODELS for name in settings.chosen(CASES)]
    metafunc.parametrize(("model", "name"), cases)


def bench_inside(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, name: str) -> None:
    device = str(settings.device)
    problem = Problem.of(model, BATCH, device)
    row.update(batch=BATCH, method=name)
    comparison = SideBySide(CASES[name](problem), wall_clock(device), settings.cap)
    row["difference"] = check(name, problem, comparison.warm_up())
    gc.collect()
    row.update(comparison.run(benchmark, settings.repetitions))


def check(name: str, problem: Problem, outputs: dict[str, Any]) -> float:
    """How far fastcam's result is from the other, by their mean absolute values; an error if too far."""
    if name == "maximize":
        return _check_images(problem, outputs)
    ours, theirs = (np.asarray(outputs[side].detach().cpu(), np.float64) for side in ("fastcam", "captum"))
    if name == "SmoothGrad":  # each draws noise of its own: what they agree in is the signal
        again = fastcam.SmoothGrad(problem.net, samples=SAMPLES, seed=1).attribute(problem.x, problem.targets)
        usual, likeness = (float(np.corrcoef(ours.ravel(), a.ravel())[0, 1]) for a in (again.cpu().numpy(), theirs))
        if not likeness > 0.8 * usual > 0.05:
            raise AssertionError(f"{name} correlates by {likeness:.3f} with captum's, by {usual:.3f} with another seed")
        return 1 - likeness / usual
    # A rounding may move single pixels far, where it decides whether a ReLU of a point on the path is open.
    difference = float(np.abs(ours - theirs).mean() / np.abs(theirs).mean())
    if not difference <= 1e-3:
        raise AssertionError(f"{name} differs by {difference:.2e} of the mean absolute value")
    return difference


def _check_images(problem: Problem, outputs: dict[str, Any]) -> float:
    """Batch and loop reach the same activations, and no smaller ones than FlashTorch's images, cut to valid values."""
    ours = excited(problem, outputs["fastcam"].data)
    alone = excited(problem, torch.cat([found.data for found in outputs["one at a time"]]))
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
    """16 channels, 128 pixels, 32 steps."""
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


def gradients(ours: str, theirs: str, **options: Any) -> Callable[[Problem], Sides]:
    """A method of both packages for the same classes."""

    def sides(problem: Problem) -> Sides:
        from captum import attr

        mine, other = problem.copied().net, problem.copied().net
        targets = torch.tensor(problem.targets, device=problem.x.device)
        explain = getattr(fastcam, ours)(mine)
        reference = getattr(attr, theirs)(other)
        return {
            "forward": forward(problem.copied()),
            "fastcam": partial(explain.attribute, problem.x, targets),
            "captum": lambda: reference.attribute(problem.x.clone().requires_grad_(), target=targets, **options),
        }

    return sides


def smooth(problem: Problem) -> Sides:
    from captum.attr import NoiseTunnel, Saliency

    mine, other = problem.copied().net, problem.copied().net
    targets = torch.tensor(problem.targets, device=problem.x.device)
    explain, reference = fastcam.SmoothGrad(mine, samples=SAMPLES), NoiseTunnel(Saliency(other))
    spread = 0.15 * float((problem.x.amax((1, 2, 3)) - problem.x.amin((1, 2, 3))).mean())
    return {
        "forward": forward(problem.copied()),
        "fastcam": partial(explain.attribute, problem.x, targets),
        "captum": lambda: reference.attribute(
            problem.x.clone().requires_grad_(),
            *("smoothgrad", SAMPLES, 4, spread),
            abs=False,
            target=targets,
        ),
    }


CASES: dict[str, Callable[[Problem], Sides]] = {
    "saliency": gradients("Saliency", "Saliency", abs=False),
    "guided backprop": gradients("GuidedBackprop", "GuidedBackprop"),
    "deconvnet": gradients("DeconvNet", "Deconvolution"),
    "input x gradient": gradients("InputXGradient", "InputXGradient"),
    "integrated gradients": gradients(
        "IntegratedGradients", "IntegratedGradients", n_steps=POINTS, internal_batch_size=64
    ),
    "SmoothGrad": smooth,
    "maximize": maximisation,
}
