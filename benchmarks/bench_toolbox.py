"""What is neither a method of one pass nor one of many: metrics, factors, many classes at once, tall maps."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fastcam
from benchmarks import agreement, bench_methods, bench_perturbation, peers
from benchmarks.agreement import TOLERANCE
from benchmarks.memory import meter
from benchmarks.models import RECIPES
from benchmarks.problem import Problem, forward
from benchmarks.rows import timed
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import metrics
from fastcam.layers import find_layers

MODELS = ("resnet50", "toy")
BATCH = 4
FEW_CLASSES, DOZEN = 10, 12  # classes of an image at once; of all of them those that are checked
Sides = dict[str, Callable[[], Any]]


class Case(NamedTuple):
    """The calls beside the forward pass, and what says how far their outputs are off: entries of a row, or an error."""

    sides: Sides
    check: Callable[[dict[str, Any]], dict[str, Any]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    cases = [(model, name) for model in settings.models if model in MODELS for name in settings.chosen(CASES)]
    metafunc.parametrize(("model", "name"), cases)


def bench_toolbox(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, name: str) -> None:
    device, batch = str(settings.device), BATCHES.get(name, BATCH)
    problem = Problem.of(model, batch, device)
    row.update(batch=batch, method=name, dtype="float32")
    case = CASES[name](problem)
    sides = {"forward": forward(problem.copied()), **case.sides}
    comparison = SideBySide(sides, wall_clock(device), settings.cap, peers.PACKAGES, partial(meter, device), device)
    outputs = comparison.warm_up()
    outputs.pop("forward", None)
    row.update(case.check(outputs) if "fastcam" in outputs else {"difference": None})
    del outputs
    gc.collect()
    row.update(timed(benchmark, comparison, settings.repetitions, batch))


def equal(name: str, tolerance: float, outputs: dict[str, Any]) -> dict[str, Any]:
    """The largest difference between fastcam's result and the other's, which must not be constant."""
    values = {side: np.asarray(value, dtype=np.float64) for side, value in outputs.items()}
    ours = values.pop("fastcam")
    if not values:
        pytest.skip(f"{name}: nothing to compare it with")
    (theirs,) = values.values()
    if not np.ptp(theirs) > 0.01:
        raise AssertionError("the results are constant: comparing them says nothing")
    difference = float(np.abs(ours - theirs).max())
    if not difference <= tolerance:
        raise AssertionError(f"{name} differs by {difference:.2e}, more than {tolerance:.0e}")
    return {"difference": difference}


def cam(method: str, *layers: str) -> Callable[[Problem], Case]:
    """A method at other layers than the last, with the options that it has there."""

    def case(problem: Problem) -> Case:
        there = replace(problem, layer=layers if len(layers) > 1 else layers[0])
        tolerance = TOLERANCE[problem.x.device.type]
        sides = bench_methods.sides(there, method)
        del sides["forward"]
        return Case(sides, lambda outputs: agreement.check(there, method, outputs, tolerance))

    return case


def full_grad(problem: Problem) -> Case:
    sides = bench_perturbation.sides(problem, "fullgrad")
    del sides["forward"]
    tolerance = TOLERANCE[problem.x.device.type]
    return Case(sides, lambda outputs: bench_perturbation.check(problem, "fullgrad", outputs, tolerance))


def of_grad_cam(module: str, make: Callable[[Any], Callable[[], Any]]) -> Sides:
    """The side of grad-cam, made from one of its modules; nothing where it is not installed."""
    if not peers.installed("grad-cam"):
        return {}
    package = importlib.import_module(f"{peers.PACKAGES['grad-cam']}.{module}")
    return {"grad-cam": make(package)}


def road(problem: Problem) -> Case:
    """ROAD's scores of Grad-CAM's maps, with the same noise."""
    maps = fastcam.GradCAM(problem.net, problem.layer)(problem.x, problem.targets)
    targets = [fastcam.ClassifierOutputTarget(t) for t in problem.targets]

    def scored(package: Any) -> Callable[[], Any]:
        net, metric = problem.copied().net, package.ROADCombined()
        return lambda: bench_perturbation.seeded(partial(metric, problem.x, maps, targets, net))

    # Logits of deviation 1, which go through the rounding of solver and network.
    return Case({"fastcam": scored(metrics), **of_grad_cam("metrics.road", scored)}, partial(equal, "ROAD", 1e-3))


def imputation(problem: Problem) -> Case:
    """Half of each image, where Grad-CAM looks most."""
    maps = fastcam.GradCAM(problem.net, problem.layer).attribute(problem.x, problem.targets)
    keep = (maps < maps.flatten(1).median(1).values.view(-1, 1, 1)).float()
    pairs = list(zip(problem.x.cpu(), keep.cpu(), strict=True))

    def one_by_one(package: Any) -> Callable[[], Any]:
        impute = package.NoisyLinearImputer(noise=0.0)
        return lambda: torch.stack([impute(image, mask) for image, mask in pairs])

    ours = metrics.NoisyLinearImputer(noise=0.0)
    sides = {"fastcam": lambda: ours(problem.x, keep).cpu(), **of_grad_cam("metrics.road", one_by_one)}
    return Case(sides, partial(equal, "ROAD imputation", 1e-4))


def factorization(problem: Problem) -> Case:
    def factors(package: Any) -> Callable[[], Any]:
        net = problem.copied().net
        found = package.DeepFeatureFactorization(net, find_layers(net, problem.layer)[0])
        return lambda: np.stack(found(problem.x, n_components=5)[1])

    theirs = of_grad_cam("feature_factorization.deep_feature_factorization", factors)
    return Case({"fastcam": factors(fastcam), **theirs}, partial(equal, "DFF", 1e-4))


def sobel(problem: Problem) -> Case:
    image = problem.x[0].movedim(0, -1).cpu()
    picture = ((image - image.min()) / (image.max() - image.min()) * 255).byte().numpy()
    theirs = of_grad_cam("sobel_cam", lambda package: partial(package.sobel_cam, picture))
    return Case({"fastcam": partial(fastcam.sobel_cam, picture), **theirs}, partial(equal, "Sobel", 1e-4))


def few_classes(problem: Problem) -> Case:
    """Ten classes an image, each image its own, beside one."""
    targets = torch.tensor(problem.targets)[:, None]
    several = (targets + torch.arange(FEW_CLASSES)) % class_count(problem)  # (B, T)
    one, ten = (fastcam.GradCAM(problem.copied().net, problem.layer) for _ in range(2))
    sides: Sides = {"one class": partial(one, problem.x, problem.targets), "fastcam": partial(ten, problem.x, several)}

    def check(outputs: dict[str, Any]) -> dict[str, Any]:
        if "one class" in outputs:
            equal("10 classes", 1e-4, {**outputs, "fastcam": outputs["fastcam"][:, 0]})
        return one_at_a_time(problem, several, outputs["fastcam"], size="input")

    return Case(sides, check)


def every_class(problem: Problem) -> Case:
    """All class maps of each image, `(B, K, h, w)` on the device."""
    classes = torch.arange(class_count(problem))
    explain = fastcam.GradCAM(problem.copied().net, problem.layer)
    some = torch.linspace(0, len(classes) - 1, DOZEN).long()

    def check(outputs: dict[str, Any]) -> dict[str, Any]:
        maps = outputs["fastcam"]
        if maps.shape[:2] != (len(problem.x), len(classes)):
            raise AssertionError(f"{tuple(maps.shape)} are not the maps of {len(classes)} classes")
        return one_at_a_time(problem, classes[some].expand(len(problem.x), -1), maps[:, some], size=None)

    sides: Sides = {"fastcam": lambda: explain.attribute(problem.x, classes[None], size=None)}
    return Case(sides, check)


def one_at_a_time(problem: Problem, classes: torch.Tensor, maps: Any, size: Any) -> dict[str, Any]:
    """The largest difference of maps `(B, T, ...)` of classes `(B, T)` from a backward pass for each class alone."""
    explain = fastcam.GradCAM(problem.copied().net, problem.layer)
    alone = [explain.attribute(problem.x, column, size=size).cpu().numpy() for column in classes.unbind(1)]
    found = equal("a class among others", 1e-3, {"fastcam": agreement.as_numpy(maps), "alone": np.stack(alone, 1)})
    return {"difference": found["difference"]}


def class_count(problem: Problem) -> int:
    with torch.no_grad():
        return problem.net(problem.x[:1]).shape[1]


CASES: dict[str, Callable[[Problem], Case]] = {
    "EigenCAM at layer2": cam("eigencam", "layer2"),
    "RefineCAM of LayerCAM, 4 layers": cam("refinecam", *RECIPES["resnet50"].stages),
    "FullGrad": full_grad,
    "DFF": factorization,
    "Sobel": sobel,
    "ROAD combined": road,
    "ROAD imputation": imputation,
    "10 classes": few_classes,
    "1000 classes at layer resolution": every_class,
}
BATCHES = {
    "FullGrad": 8,
    "1000 classes at layer resolution": 8,
    "ROAD combined": 2,
}  # of the last grad-cam takes 7 s each
