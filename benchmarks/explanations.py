"""An explanation and the operators in it: what they take of the whole, beside what the network takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.clocks import CallClock, KernelClock
from benchmarks.operations import definitions
from benchmarks.problem import Problem, forward
from benchmarks.settings import Settings
from benchmarks.side_by_side import Call, wall_clock
from fastcam import ops
from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.record import record

NETWORK = {"cpu": "resnet18", "cuda": "resnet50"}
ROWS = 64  # masked images at a time
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # on maps and masked images; TF32 is off


@dataclass(frozen=True)
class Explanation:
    """`batch` images explained by a method, one target each."""

    method: str
    network: str
    batch: int

    def __str__(self) -> str:
        return f"{self.method}-{self.network}-{self.batch}"


def chosen(settings: Settings) -> Iterator[Explanation]:
    device = str(settings.device)
    if "float32" not in settings.dtypes_on(device):  # the only type in which a whole explanation is measured
        return
    network = "toy" if settings.models == ("toy",) else NETWORK[device]
    methods = settings.chosen(["gradcam", "eigencam"])
    for method, batch in itertools.product(methods, settings.batches_on(device)):
        yield Explanation(method, network, batch)
    if settings.chosen(["scorecam"]) or settings.set_name == "gpu-short":
        yield Explanation("scorecam", network, 1)


class Sides:
    """The calls to compare, their clock, and the check of what they return.

    kernel    GPU only: GPU time of the method's operators, on what a run of the network left
    call      wall clock of the same; Score-CAM's are those that mask its images
    fastcam   the whole explanation, to maps in numpy
    forward   the forward pass alone
    """

    def __init__(self, explanation: Explanation, device: str) -> None:
        self.method, self.device = explanation.method, device
        self.problem = Problem.of(explanation.network, explanation.batch, device)
        self.A, self.G = recorded(self.problem)
        operators = OPERATORS[self.method]
        ours = self.problem.copied()
        cam = METHODS[self.method](ours.net, ours.layer)
        self.calls: dict[str, Call] = {
            "kernel": lambda: operators(self.problem, self.A, self.G),
            "call": lambda: operators(self.problem, self.A, self.G),
            "fastcam": lambda: cam(ours.x, ours.targets),
            "forward": forward(self.problem.copied()),
        }
        self._clocks: dict[Call, CallClock | KernelClock] = {}
        if device == "cuda":
            self._clocks[self.calls["kernel"]] = KernelClock()
        else:
            del self.calls["kernel"]
            self._clocks[self.calls["call"]] = CallClock()

    def clock(self, call: Call) -> float:
        return self._clocks.get(call, wall_clock(self.device))(call)

    def capture(self) -> str:
        """Before any side is timed; what the operators' seconds come from."""
        ((call, clock),) = self._clocks.items()
        if isinstance(clock, KernelClock):
            clock.capture([call])
        return clock.timer

    def check(self, outputs: Mapping[str, Any]) -> float:
        """The largest difference from the map, and from what the operators give, of the definitions in fp64."""
        expected, exact = self.expected
        if not (expected.amax((1, 2)) > 0.5).double().mean() >= 0.5:
            raise AssertionError("most maps are empty: comparing them says nothing")
        pairs = [(outputs[name], exact) for name in ("kernel", "call") if name in outputs]
        pairs += [(torch.from_numpy(outputs["fastcam"]), expected)] if "fastcam" in outputs else []
        differences = [(out.cpu().double() - reference.cpu()).abs().max() for out, reference in pairs]
        difference = float(torch.stack(differences).max())  # NaN if one is
        if not difference <= TOLERANCE[self.device]:
            raise AssertionError(f"{self.method} is off its definitions in fp64 by {difference:.2e}")
        return difference

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """The map, and what the operators give."""
        with definitions():
            expected = _expected_map(self.method, self.problem, self.A, self.G)
            return expected, OPERATORS[self.method](self.problem, self.A.double(), self.G.double())


def recorded(problem: Problem) -> tuple[Tensor, Tensor]:
    """Activations at the layer and the gradients of the classes' logits, as a run of the network leaves them."""
    net = problem.copied().net
    with record(net, find_layers(net, problem.layer), problem.x) as run, torch.enable_grad():
        classes = torch.tensor(problem.targets, device=problem.x.device).unsqueeze(1)
        return run.activations[0], run.gradients(run.output.gather(1, classes).sum())[0]


def _gradcam(problem: Problem, A: Tensor, G: Tensor) -> Tensor:
    return ops.finish([ops.channel_reduce(A, G, "gradcam")], problem.x.shape[2:])


def _eigencam(problem: Problem, A: Tensor, G: Tensor) -> Tensor:
    return ops.finish([ops.principal_component(A)], problem.x.shape[2:])


def _masked(problem: Problem, A: Tensor, G: Tensor) -> Tensor:
    """The images of the first input as Score-CAM sees them, one batch after the other; the last one."""
    for batch in _masked_batches(problem, A):
        last = batch
    return last


def _masked_batches(problem: Problem, A: Tensor) -> Iterator[Tensor]:
    images = torch.zeros(ROWS, dtype=torch.long, device=A.device)
    for masks in A[0].split(ROWS):
        yield ops.masked_inputs(problem.x[:1], masks, images[: len(masks)])


OPERATORS: dict[str, Callable[[Problem, Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "eigencam": _eigencam,
    "scorecam": _masked,
}


def _expected_map(method: str, problem: Problem, A: Tensor, G: Tensor) -> Tensor:
    if method != "scorecam":
        return OPERATORS[method](problem, A.double(), G.double())
    with torch.no_grad():
        logits = torch.cat([problem.net(batch) for batch in _masked_batches(problem, A)])
    weights = logits[:, problem.targets[0]].double().softmax(0)
    return ops.finish([ops.channel_sum(A.double(), weights.unsqueeze(0))], problem.x.shape[2:])
