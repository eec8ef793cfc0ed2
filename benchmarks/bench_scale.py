"""Time and memory as one thing grows: `benchmarks.sweeps` says what; each point is a case."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from benchmarks.models import RECIPES, calibrate, images, network
from benchmarks.plain import plain_maps
from benchmarks.problem import Problem, forward, predicted
from benchmarks.session import SETTINGS
from benchmarks.settings import MADE, MODELS, Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from benchmarks.sweeps import SWEEPS, Curve, Sweep
from fastcam.layers import find_layers
from fastcam.methods import METHODS

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # on finished maps in [0, 1]; TF32 is off
MADE_SIDE = 112  # pixels of what the made network takes
SAMPLE = 3  # images and classes that are checked: the first, the last, and one between


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    device = str(settings.device)
    models = (*MODELS, MADE) if settings.models == MODELS else settings.models
    cases = [
        (model, sweep, curve, value)
        for model in models
        for sweep in SWEEPS
        if model in sweep.models[device]
        for curve in sweep.curves
        if settings.chosen([curve.method])
        for value in sweep.values(curve, model, device, settings.batches)
    ]
    names = [f"{model}-{sweep.name}-{curve.name}-{value}" for model, sweep, curve, value in cases]
    metafunc.parametrize(("model", "sweep", "curve", "value"), cases, ids=names)


def bench_point(
    benchmark: Any, row: dict[str, Any], settings: Settings, model: str, sweep: Sweep, curve: Curve, value: int
) -> None:
    device = str(settings.device)
    point = Point.of(model, sweep, curve, value, device)
    row.update(sweep=sweep.name, method=curve.name, x=value, unit=sweep.unit, batch=len(point.problem.x))
    comparison = SideBySide(point.sides(), wall_clock(device), settings.cap, device=device)
    outputs = comparison.warm_up()
    row["difference"] = check(point, outputs["fastcam"], TOLERANCE[device]) if "fastcam" in outputs else None
    del outputs
    gc.collect()
    row.update(comparison.run(benchmark, settings.repetitions))
    gc.collect()
    measured = {"forward": point.pass_of_full_batch(), "fastcam": point.sides()["fastcam"]}
    row["memory"] = {name: peak_bytes(call, device) for name, call in measured.items() if name in comparison.sides}
    row["memory_images"] = point.rows or len(point.problem.x)


@dataclass(frozen=True)
class Point:
    """What is explained at a point of a sweep.

    problem   its targets are the predicted classes
    layers    the target layers
    classes   of each image, `(B, T)`, in place of the predicted one
    rows      at once, of a method that scores masked images
    """

    problem: Problem
    curve: Curve
    layers: list[str]
    classes: Tensor | None = None
    rows: int | None = None

    @classmethod
    def of(cls, model: str, sweep: Sweep, curve: Curve, value: int, device: str) -> Point:
        batch = value if sweep.name == "batch" else sweep.batch[device]
        if model == MADE:
            channels = value if "channels" in sweep.name else 64
            net: Any = widening(channels, 7 if sweep.rows else 14, device)
            layer, side = "wide", MADE_SIDE
        else:
            net, layer, side = network(model, device), curve.layer or RECIPES[model].layer, RECIPES[model].size
        x = images(batch, math.isqrt(value) if sweep.name == "image size" else side).to(device)
        problem = Problem(net, layer, x, predicted(net, x))
        layers = blocks(net)[-value:] if sweep.name == "layers" else [layer]
        classes = several(problem.targets, value, net.fc.out_features) if sweep.name == "classes" else None
        return cls(problem, curve, layers, classes, sweep.rows[device] if sweep.rows else None)

    def sides(self) -> dict[str, Callable[[], Any]]:
        """The calls to compare, each with its own copy of the network, none of which has run yet."""
        problem = self.problem.copied()
        cam = METHODS[self.curve.method](problem.net, self.layers, **({"batch_size": self.rows} if self.rows else {}))
        targets = self.problem.targets if self.classes is None else self.classes
        explain = partial(cam, problem.x, targets)
        if self.curve.low:

            def explain() -> np.ndarray:
                return cam.attribute(problem.x, targets, size=None).cpu().numpy()

        return {"forward": forward(self.problem.copied()), "fastcam": explain}

    def pass_of_full_batch(self) -> Callable[[], Tensor]:
        """The forward pass that memory is compared with: of as many images as the method has in one."""
        problem = self.problem.copied()
        if self.rows is None:
            return forward(problem)
        x = problem.x[:1].expand(self.rows, -1, -1, -1).contiguous()
        return forward(Problem(problem.net, problem.layer, x, problem.targets))


def check(point: Point, maps: np.ndarray, tolerance: float) -> float:
    """The largest difference of a sample of the maps from those of plain PyTorch, on the same batch, class by class."""
    problem = point.problem.copied()
    layers = [m for name in point.layers for m in find_layers(problem.net, name)]
    classes = torch.tensor(problem.targets)[:, None] if point.classes is None else point.classes  # (B, T)
    maps = maps.reshape(*classes.shape, *maps.shape[-2:])
    chosen = _sample(len(classes))
    differences, alive = [], False
    for t in _sample(classes.shape[1]):
        targets, method = classes[:, t].tolist(), point.curve.method
        found = plain_maps(problem.net, layers, problem.x, targets, method, chosen, point.curve.low)
        expected = found.cpu().numpy()
        alive = alive or bool(expected.max() > 0.5)
        differences.append(np.abs(maps[chosen, t] - expected).max())
    if not alive:
        raise AssertionError("the maps are empty: comparing them says nothing")
    largest = float(np.max(differences))  # NaN if one is
    if not largest <= tolerance:
        raise AssertionError(f"maps differ from plain PyTorch's by {largest:.2e}, more than {tolerance:.0e}")
    return largest


def _sample(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (SAMPLE - 1)) for i in range(SAMPLE)})


def blocks(net: nn.Module) -> list[str]:
    """The residual blocks from the input on."""
    stages = [f"layer{s}" for s in range(1, 5)]
    return [f"{stage}.{name}" for stage in stages for name, _ in net.get_submodule(stage).named_children()]


def several(first: list[int], count: int, classes: int) -> Tensor:
    """So many classes `(B, count)` of each image, its predicted one and those that follow."""
    return (torch.tensor(first)[:, None] + torch.arange(count)) % classes


class Widening(nn.Module):
    """A few convolutions, a target layer `wide` of any number of channels, pooling and a linear layer.

    What comes before the target layer does not depend on its width, and is most of the work but for a wide one.
    """

    def __init__(self, channels: int, side: int) -> None:
        """side   of the target layer, 14 or 7"""
        super().__init__()
        halvings = int(math.log2(MADE_SIDE // 4 // side))
        halve = [layer for _ in range(halvings) for layer in (nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU())]
        self.trunk = nn.Sequential(nn.Conv2d(3, 64, 7, 4, 3), nn.ReLU(), *halve)
        self.wide = nn.Sequential(nn.Conv2d(64, channels, 1), nn.ReLU())
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.wide(self.trunk(x)).mean((2, 3)))


def widening(channels: int, side: int, device: str) -> Widening:
    """The network with random weights that keep the size of activations, and logits of deviation 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Widening(channels, side)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    calibrate(net, images(16, MADE_SIDE, seed=1))
    return net.eval().to(device)
