"""GPU only: how many launches an explanation of one image takes, as CUDA's profiler records them.

A launch is a kernel, a copy or a fill. Where the activations are recorded, and where the backward pass ends, a kernel
is put in whose name is known; what comes behind the last one is the making of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import RECIPES
from benchmarks.problem import Problem, forward
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings
from fastcam import ops
from fastcam.methods import METHODS, BaseCAM

COUNTED = (*ops.WEIGHTINGS, "eigencam", "eigengradcam")
COMPONENT = "the principal component takes two launches, the Gram matrix and its eigenvector, and the finish one"
REASONS = {"eigencam": COMPONENT, "eigengradcam": f"{COMPONENT}; before them, gradients times activations is PyTorch's"}
MARK = "spin_kernel"  # what `torch.cuda._sleep` launches


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash[SETTINGS]
    models = [model for model in settings.models if model in RECIPES]
    cases = [(model, method) for model in models for method in settings.chosen(COUNTED)]
    metafunc.parametrize(("model", "method"), cases)


def bench_launches(row: dict[str, Any], settings: Settings, model: str, method: str) -> None:
    problem = Problem.of(model, 1, str(settings.device))
    cam = METHODS[method](problem.net, problem.layer)
    call = partial(cam.attribute, problem.x, problem.targets)
    expected = [call(), call()][-1]  # the first call compiles, and asks whether the gradient is 0 everywhere
    maps, ours, total = counted(call, cam)
    difference = float((maps - expected).abs().max())
    if not (difference < 1e-3 and expected.max() > 0.5):
        raise AssertionError(f"the map of {method} is empty, or off by {difference:.2e} from one call to the next")
    forward(problem)()
    row.update(
        batch=1,
        method=method,
        difference=difference,
        ours=len(ours),
        total=len(total),
        forward=len(launched(forward(problem))[1]),
        names=[name[:60] for name in ours],
    )
    if method in REASONS:
        row["reason"] = REASONS[method]


def counted(call: Callable[[], Tensor], cam: BaseCAM) -> tuple[Tensor, list[str], list[str]]:
    """What a call of the method gives; its launches behind the last mark, and all of them."""
    with marked(cam):
        result, names = launched(call)
    return result, *split(names)


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launches behind the last mark, and all but the marks."""
    marks = [place for place, name in enumerate(names) if MARK in name]
    if not marks:
        raise AssertionError(f"no {MARK} among the {len(names)} launches recorded: {names[:5]}")
    return list(names[marks[-1] + 1 :]), [name for name in names if MARK not in name]


@contextmanager
def marked(cam: BaseCAM) -> Iterator[None]:
    """In the block a mark is launched once a run of the method is recorded, and behind each backward pass."""
    backward, low_maps = torch.autograd.grad, cam.low_maps

    def grad(*args: Any, **kwargs: Any) -> Any:
        gradients = backward(*args, **kwargs)
        torch.cuda._sleep(1)
        return gradients

    def marked_low_maps(*args: Any) -> list[Tensor]:
        torch.cuda._sleep(1)
        return low_maps(*args)

    with patch.object(torch.autograd, "grad", grad), patch.object(cam, "low_maps", marked_low_maps):
        yield


def launched(call: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """What a call gives, and the names of its launches in the order in which they ran."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        result = call()
        torch.cuda.synchronize()  # until here what is launched is recorded
    return result, on_the_gpu(profiler.events() or [])


def on_the_gpu(events: Iterable[Any]) -> list[str]:
    """The names of the events on a GPU, the earliest first."""
    found = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    return [e.name for e in sorted(found, key=lambda e: e.time_range.start)]
