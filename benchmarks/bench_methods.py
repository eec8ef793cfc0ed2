"""Each method against grad-cam and against the model's forward pass: time and peak memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from benchmarks.problem import Problem, forward
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import ops
from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.visualize import SALIENCY
from fastcam.visualize.sampled import SampledGradient

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # on finished maps in [0, 1]; TF32 is off
UNTIMED = ("randomcam", "smoothgradcam++", "sess")  # random; not in grad-cam; a hundred passes an image
ONE_PASS = [
    *(name for name, cls in METHODS.items() if name not in UNTIMED and not issubclass(cls, PerturbationCAM)),
    *(name for name, cls in SALIENCY.items() if not issubclass(cls, SampledGradient)),
]
SIGNLESS = ("eigencam", "eigengradcam")  # a principal component has no sign of its own


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    assert settings.device is not None
    cases = [
        (model, batch, method)
        for model in settings.models
        for batch in settings.batches_on(settings.device)
        for method in settings.chosen(ONE_PASS)
    ]
    metafunc.parametrize(("model", "batch", "method"), cases)


def bench_method(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, batch: int, method: str) -> None:
    device = str(settings.device)
    problem = Problem.of(model, batch, device)
    row.update(batch=batch, method=method)
    comparison = SideBySide(sides(problem, method), wall_clock(device), settings.cap)
    outputs = comparison.warm_up()
    row["difference"] = check(problem, method, outputs, TOLERANCE[device])
    gc.collect()
    row.update(comparison.run(benchmark, settings.repetitions))
    gc.collect()  # grad-cam's objects are in cycles with its hooks
    memory = {
        name: peak_bytes(call, device) for name, call in sides(problem, method).items() if name in comparison.sides
    }
    row["memory"] = memory
    row["memory_ratios"] = {
        f"{name}/forward": size / memory["forward"] for name, size in memory.items() if name != "forward"
    }


def sides(problem: Problem, method: str) -> dict[str, Callable[[], Any]]:
    """The calls to compare, from images on the device to maps in numpy, each with its own copy of the network.

    None of them has run yet, so the network copies hold no gradients and the methods no graph of an earlier call.
    """
    calls = {"forward": forward(problem.copied()), "fastcam": ours(problem.copied(), method)}
    if method == "guidedbackprop" and len(problem.x) == 1:  # grad-cam explains the first image of a batch alone
        calls["grad-cam"] = their_gradient(problem.copied())
    elif method in METHODS and method != "cam":  # which grad-cam has not
        calls["grad-cam"] = theirs(problem.copied(), METHODS[method].__name__)
    return calls


def ours(problem: Problem, method: str) -> Callable[[], np.ndarray]:
    if method in METHODS:
        return partial(METHODS[method](problem.net, problem.layer), problem.x, problem.targets)
    explain = SALIENCY[method](problem.net, *([problem.layer] if method == "guidedgradcam" else []))
    return lambda: explain.attribute(problem.x, problem.targets).cpu().numpy()


def their_gradient(problem: Problem) -> Callable[[], np.ndarray]:
    """Guided backpropagation of one image, `(1, k, H, W)`; the copied image, since grad-cam adds to its gradient."""
    model = pytorch_grad_cam.GuidedBackpropReLUModel(problem.net, problem.x.device)
    return lambda: np.moveaxis(model(problem.x.clone(), problem.targets[0]), -1, 0)[None]


def theirs(problem: Problem, name: str) -> Callable[[], np.ndarray]:
    cam = getattr(pytorch_grad_cam, name)(model=problem.net, target_layers=find_layers(problem.net, problem.layer))
    return partial(cam, input_tensor=problem.x, targets=[ClassifierOutputTarget(t) for t in problem.targets])


def check(problem: Problem, method: str, outputs: dict[str, Any], tolerance: float) -> float:
    """The largest difference between fastcam's maps and grad-cam's; an error if it is not within the tolerance.

    CAM is compared with grad-cam's GradCAM, which is the same map where CAM is defined.
    """
    if method in SALIENCY:
        return check_gradient(problem, method, outputs["fastcam"], tolerance)
    ours_, reference = outputs["fastcam"], outputs.get("grad-cam")
    if reference is None:
        reference = theirs(problem.copied(), "GradCAM")()
    if not (reference.max(axis=(1, 2)) > 0.5).mean() >= 0.5:
        raise AssertionError("most of grad-cam's maps are empty: comparing them says nothing")
    if method in SIGNLESS:
        difference = difference_up_to_sign(problem, method, ours_, reference)
    else:
        difference = float(np.abs(ours_ - reference).max())
    if not difference <= tolerance:
        raise AssertionError(f"maps differ from grad-cam's by {difference:.2e}, more than {tolerance:.0e}")
    return difference


def difference_up_to_sign(problem: Problem, method: str, maps: np.ndarray, reference: np.ndarray) -> float:
    """The reference must be the map of the signed component or of its opposite; the timed map that of the former."""
    cam = METHODS[method](problem.net, problem.layer)
    low = cam.attribute(problem.x, problem.targets, normalize=False, size=None).cpu().unsqueeze(1)  # (B, 1, h, w)
    same, opposite = (ops.finish([m], problem.x.shape[2:]).numpy() for m in (low, -low))
    both = np.stack([np.abs(reference - m).max(axis=(1, 2)) for m in (same, opposite)])  # (2, B)
    return float(max(both.min(axis=0).max(), np.abs(maps - same).max()))


def check_gradient(problem: Problem, method: str, gradient: np.ndarray, tolerance: float) -> float:
    """The largest difference from the gradient of a copy whose ReLUs were replaced by hand, over its largest value."""
    copied = problem.copied()
    plain = method in ("saliency", "inputxgradient")
    rule = nn.ReLU if plain else DeconvolvedReLU if method == "deconvnet" else GuidedReLU
    for module in list(copied.net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, rule())
    x = problem.x.clone().requires_grad_()
    logits = copied.net(x)
    picked = logits.gather(1, torch.tensor(problem.targets, device=x.device)[:, None]).sum()
    expected = torch.autograd.grad(picked, x)[0].cpu().numpy()
    if method == "inputxgradient":
        expected = expected * problem.x.cpu().numpy()
    if method == "guidedgradcam":
        expected = expected * ours(problem.copied(), "gradcam")()[:, None]
    difference = float(np.abs(gradient - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:
        raise AssertionError(f"{method} differs from a rewritten network's by {difference:.2e}")
    return difference


class GuidedReLU(nn.Module):
    """A ReLU through which only positive gradients go back."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        if y.requires_grad:
            y.register_hook(lambda g: g.clamp(min=0))
        return y


class DeconvolvedReLU(nn.Module):
    """A ReLU through which the positive part of the gradient goes back, whatever came in."""

    def forward(self, x: Tensor) -> Tensor:
        through = x * 1
        if through.requires_grad:
            through.register_hook(lambda g: g.clamp(min=0))
        return through + (torch.relu(x) - x).detach()
