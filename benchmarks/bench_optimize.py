"""Grad-CAM in fast mode beside the user's own forward pass, and beside the exact method; how far the maps are apart."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.agreement import LEAST, rank_correlation
from benchmarks.models import RECIPES
from benchmarks.problem import Problem, forward
from benchmarks.rows import timed
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from benchmarks.side_by_side import SideBySide, wall_clock
from fastcam import GradCAM, Optimize
from fastcam.fast.compiled import compiled_blocks

BATCHES = {"cpu": (1, 4), "cuda": (1, 256)}
FAST = {
    "fast": Optimize(),
    "fast compiled": Optimize(compile=True),
    "fast bf16": Optimize(dtype="bf16"),
    "fast bf16 compiled": Optimize(dtype="bf16", compile=True),
}
GRAPHED = {
    "fast graphed": Optimize(cuda_graphs=True),
    "fast graphed compiled": Optimize(compile=True, cuda_graphs=True),
}
TOLERANCE = 1e-3  # of maps in [0, 1], in fp32


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    batches = settings.batches or BATCHES[str(settings.device)]
    models = [model for model in settings.models if model in RECIPES] if settings.chosen(["gradcam"]) else []
    metafunc.parametrize(("model", "batch"), [(model, batch) for model in models for batch in batches])


def bench_optimize(benchmark: Any, row: dict[str, Any], settings: Settings, model: str, batch: int) -> None:
    torch._dynamo.reset()  # of what earlier rows have compiled
    device = str(settings.device)
    row.update(batch=batch, method="gradcam", dtype="float32")
    calls = sides(Problem.of(model, batch, device), graphs=device == "cuda" and batch == 1)
    # What this machine cannot compile, or lacks, is said in the row; the first calls compile and take their time.
    optional = [name for name in calls if name not in ("forward", "exact", "fast")]
    comparison = SideBySide(calls, wall_clock(device), may_fail=optional)
    outputs = comparison.warm_up()
    row.update(check(outputs))
    compiled = [name for name in comparison.sides if name in FAST | GRAPHED and (FAST | GRAPHED)[name].compile]
    row["compiled_blocks"] = {name: calls[name].blocks for name in compiled}
    del outputs
    gc.collect()
    row.update(timed(benchmark, comparison, settings.repetitions, batch))


def sides(problem: Problem, graphs: bool) -> dict[str, Any]:
    """The calls to compare, each with a network of its own."""
    calls: dict[str, Any] = {"forward": forward(problem.copied())}
    calls["exact"] = _Explained(problem.copied(), None)
    calls |= {name: _Explained(problem.copied(), optimize) for name, optimize in FAST.items()}
    if graphs:
        calls["graphed forward"] = _Graphed(problem.copied())
        calls |= {name: _Explained(problem.copied(), optimize) for name, optimize in GRAPHED.items()}
    return calls


class _Explained:
    """A method that is made at the first call, where it is an error to lack a type, not to be compiled or captured."""

    def __init__(self, problem: Problem, optimize: Optimize | None) -> None:
        self._problem, self._optimize = problem, optimize
        self._cam: GradCAM | None = None

    def __call__(self) -> np.ndarray:
        problem = self._problem
        if self._cam is None:
            self._cam = GradCAM(problem.net, problem.layer, optimize=self._optimize)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".* is not (compiled|captured)")
                for _ in range(2):  # the first is compared with the exact one, the second captured
                    self._cam(problem.x, problem.targets)
        return self._cam(problem.x, problem.targets)

    @property
    def blocks(self) -> int:
        """How many blocks of modules are compiled."""
        fast = getattr(self._cam, "_fast", None)
        return 0 if fast is None else len(compiled_blocks(fast._fast.net))


class _Graphed:
    """The forward pass as one CUDA graph."""

    def __init__(self, problem: Problem) -> None:
        self._call, self._graph = forward(problem), None

    def __call__(self) -> None:
        if self._graph is None:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._call()
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._call()
        self._graph.replay()


def check(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """How far each side's maps are from the exact ones, as entries of a row; AssertionError if it is too far."""
    exact = outputs["exact"]
    if not (exact.max(axis=(1, 2)) > 0.5).mean() >= 0.5:
        raise AssertionError("most of the maps are empty: comparing them says nothing")
    fast = {name: maps for name, maps in outputs.items() if name in FAST | GRAPHED}
    differences = {name: float(np.abs(maps - exact).max()) for name, maps in fast.items()}
    ranks = {name: rank_correlation(maps, exact) for name, maps in fast.items()}
    for name, difference in differences.items():
        half = (FAST | GRAPHED)[name].dtype is not None
        if not (ranks[name] >= LEAST if half else difference <= TOLERANCE):
            raise AssertionError(f"{name} differs by {difference:.1e}, rank correlation {ranks[name]:.3f}")
    return {"difference": differences["fast"], "differences": differences, "rank_correlation": ranks}
