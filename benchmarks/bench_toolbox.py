"""What else there is, side by side with grad-cam: methods of another kind, metrics, many classes at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.feature_factorization.deep_feature_factorization import (
    DeepFeatureFactorization as TheirFactorization,
)
from pytorch_grad_cam.metrics import road as their_road
from pytorch_grad_cam.sobel_cam import sobel_cam as their_sobel_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import fastcam
from benchmarks.bench_methods import difference_up_to_sign
from benchmarks.problem import Problem, forward
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import metrics
from fastcam.layers import find_layers

MODELS = ("resnet50", "toy")
BATCH = 4
CLASSES = 10  # of an image at once
STAGES = ("layer1", "layer2", "layer3", "layer4")
# Finished maps in [0, 1]; ROAD's scores, logits of deviation 1, go through the rounding of solver and network.
# FEM counts positions above a threshold: one within rounding of it moves its channel's weight by 1 / (h w).
TOLERANCE = {"FEM": 1e-2, "ROAD combined": 1e-3, "SESS, 3 scales": 1e-4}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    cases = [(model, name) for model in settings.models if model in MODELS for name in settings.chosen(CASES)]
    metafunc.parametrize(("model", "name"), cases)


def bench_toolbox(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, name: str) -> None:
    device = str(settings.device)
    problem = Problem.of(model, BATCH, device)
    row.update(batch=BATCH, method=name)
    sides = CASES[name](problem)
    comparison = SideBySide({"forward": forward(problem.copied()), **sides}, wall_clock(device), settings.cap)
    outputs = comparison.warm_up()
    row["difference"] = check(name, problem, outputs)
    gc.collect()
    row.update(comparison.run(benchmark, settings.repetitions))


def check(name: str, problem: Problem, outputs: dict[str, Any]) -> float:
    """The largest difference between fastcam's result and what it is compared with; an error if it is too large."""
    outputs = {side: np.asarray(value, dtype=np.float64) for side, value in outputs.items() if side != "forward"}
    ours = outputs.pop("fastcam")
    (theirs,) = outputs.values()
    if not np.ptp(theirs) > 0.01:
        raise AssertionError("the results are constant: comparing them says nothing")
    difference = float(np.abs(ours - theirs).max())
    if name.startswith("EigenCAM"):  # which has no sign of its own
        there = replace(problem, layer=name.partition(" at ")[2] or problem.layer)
        difference = difference_up_to_sign(there, "eigencam", ours, theirs)
    tolerance = TOLERANCE.get(name, 1e-4)
    if not difference <= tolerance:
        raise AssertionError(f"{name} differs by {difference:.2e}, more than {tolerance:.0e}")
    return difference


def cam(name: str, *layers: str, **options: Any) -> Callable[[Problem], dict[str, Callable[[], Any]]]:
    """A method of both packages at the same layers."""

    def sides(problem: Problem) -> dict[str, Callable[[], Any]]:
        mine, theirs = problem.copied(), problem.copied()
        chosen = list(layers) or [problem.layer]
        ours = getattr(fastcam, name)(mine.net, chosen, **options)
        cls = getattr(pytorch_grad_cam, name)
        reference = cls(theirs.net, [m for layer in chosen for m in find_layers(theirs.net, layer)], **options)
        targets = [ClassifierOutputTarget(t) for t in problem.targets]
        # Finer-CAM compares a plain class index with other classes, which grad-cam does for the predicted ones only.
        given = targets if name == "FinerCAM" else problem.targets
        return {"fastcam": partial(ours, problem.x, given), "grad-cam": partial(reference, problem.x, targets)}

    return sides


def full_grad(problem: Problem) -> dict[str, Callable[[], Any]]:
    ours, theirs = fastcam.FullGrad(problem.copied().net), pytorch_grad_cam.FullGrad(problem.copied().net, [])
    targets = [ClassifierOutputTarget(t) for t in problem.targets]
    return {"fastcam": partial(ours, problem.x, problem.targets), "grad-cam": partial(theirs, problem.x, targets)}


def guided_backprop(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Of one image, as grad-cam's takes no more; over its largest value."""
    x, target = problem.x[:1], problem.targets[0]
    ours = fastcam.GuidedBackpropReLUModel(problem.copied().net)
    theirs = pytorch_grad_cam.GuidedBackpropReLUModel(problem.copied().net, x.device)

    def scaled(gradient: np.ndarray) -> np.ndarray:
        return gradient / np.abs(gradient).max()

    return {"fastcam": lambda: scaled(ours(x, target)), "grad-cam": lambda: scaled(theirs(x.clone(), target))}


def road(problem: Problem) -> dict[str, Callable[[], Any]]:
    maps = fastcam.GradCAM(problem.net, problem.layer)(problem.x, problem.targets)
    targets = [ClassifierOutputTarget(t) for t in problem.targets]

    def seeded(metric: Any, net: torch.nn.Module) -> np.ndarray:
        torch.manual_seed(0)
        return metric(problem.x, maps, targets, net)

    ours, theirs = metrics.ROADCombined(), their_road.ROADCombined()
    return {
        "fastcam": partial(seeded, ours, problem.copied().net),
        "grad-cam": partial(seeded, theirs, problem.copied().net),
    }


def imputation(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Half of each image, where Grad-CAM looks most."""
    maps = fastcam.GradCAM(problem.net, problem.layer).attribute(problem.x, problem.targets)
    keep = (maps < maps.flatten(1).median(1).values.view(-1, 1, 1)).float()
    ours, theirs = metrics.NoisyLinearImputer(noise=0.0), their_road.NoisyLinearImputer(noise=0.0)
    pairs = list(zip(problem.x.cpu(), keep.cpu(), strict=True))
    return {
        "fastcam": lambda: ours(problem.x, keep).cpu(),
        "grad-cam": lambda: torch.stack([theirs(image, mask) for image, mask in pairs]),
    }


def factorization(problem: Problem) -> dict[str, Callable[[], Any]]:
    mine, theirs = problem.copied().net, problem.copied().net
    ours = fastcam.DeepFeatureFactorization(mine, find_layers(mine, problem.layer)[0])
    reference = TheirFactorization(theirs, find_layers(theirs, problem.layer)[0])
    return {
        "fastcam": lambda: np.stack(ours(problem.x, n_components=5)[1]),
        "grad-cam": lambda: np.stack(reference(problem.x, n_components=5)[1]),
    }


def sobel(problem: Problem) -> dict[str, Callable[[], Any]]:
    image = problem.x[0].movedim(0, -1).cpu()
    picture = ((image - image.min()) / (image.max() - image.min()) * 255).byte().numpy()
    return {"fastcam": partial(fastcam.sobel_cam, picture), "grad-cam": partial(their_sobel_cam, picture)}


def many_classes(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Ten classes an image beside one: compared with itself."""
    several = torch.tensor([[(t + n) % problem.net.fc.out_features for n in range(CLASSES)] for t in problem.targets])
    one, ten = (fastcam.GradCAM(problem.copied().net, problem.layer) for _ in range(2))
    return {
        "one class": partial(one, problem.x, problem.targets),
        "fastcam": lambda: ten(problem.x, several).swapaxes(0, 1)[0],
    }


CASES: dict[str, Callable[[Problem], dict[str, Callable[[], Any]]]] = {
    **{name: cam(name) for name in ("FEM", "ShapleyCAM", "FinerCAM", "SegEigenCAM", "KPCA_CAM", "EigenCAM")},
    "EigenCAM at layer2": cam("EigenCAM", "layer2"),
    "RefineCAM, 4 layers": cam("RefineCAM", *STAGES),
    "SESS, 3 scales": cam("SESS", num_scales=3),
    "FullGrad": full_grad,
    "guided backprop": guided_backprop,
    "DFF": factorization,
    "Sobel": sobel,
    "ROAD combined": road,
    "ROAD imputation": imputation,
    "10 classes": many_classes,
}
