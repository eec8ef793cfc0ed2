"""How many kernels an explanation launches once the gradient is there: ours by name, and all by CUDA's profiler."""

from __future__ import annotations

import operator
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from benchmarks import bench_launches, session, settings
from fastcam import ops
from fastcam.kernels import channel_reduce

from gpu_cases import OPERATIONS, PYTORCHS, explanation, on_resnet

LAUNCHES = {
    **{name: ["_reduce_kernel", "_finish_kernel"] for name in ops.WEIGHTINGS},
    "eigencam": ["_gram_kernel", "_solve_kernel", "_finish_kernel"],
    "eigengradcam": ["_gram_kernel", "_solve_kernel", "_finish_kernel"],  # of their product, which is PyTorch's
}


@pytest.fixture
def ours(monkeypatch, device):
    """The names of the kernels of ours that are launched; all operators are on kernels, interpreted on a CPU."""
    names, kind = [], type(channel_reduce._reduce_kernel)
    usual = kind.__getitem__

    def launcher(kernel, grid):
        names.append(kernel.fn.__name__)
        return usual(kernel, grid)

    monkeypatch.setattr(kind, "__getitem__", launcher)
    monkeypatch.setattr(ops, "_on_kernel", lambda t: t.dtype == torch.float32)
    return names


@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_of_ours_for_one_image(device, ours, monkeypatch, name):
    case = explanation(name, device)
    x = case.x[:1, :, :16, :16].to(device)  # a layer of 8 x 8 positions
    maps = case.method.attribute(x, 0)
    assert ours == LAUNCHES[name] and maps.amax() > 0.9
    monkeypatch.setattr(ops, "_on_kernel", lambda t: False)
    torch.testing.assert_close(maps, case.method.attribute(x, 0))


def test_which_operations_are_pytorchs(device, monkeypatch):
    launched = []
    monkeypatch.setattr(ops, "_on_kernel", lambda t: True)
    monkeypatch.setattr(
        type(channel_reduce._reduce_kernel), "__getitem__", lambda kernel, grid: lambda *a, **k: launched.append(kernel)
    )
    for name, operation in OPERATIONS.items():
        launched.clear()
        operation.run(*operation.inputs(device))
        assert bool(launched) == (name not in PYTORCHS), name


def event(name, start, device=DeviceType.CUDA, **more):
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start), **more)


def test_what_is_launched_behind_the_last_mark():
    mark = "at::cuda::spin_kernel(long)"
    events = [
        event("map", 9),
        event("conv", 1),
        event(mark, 4),
        event("backward", 3),
        event("aten::conv", 0, DeviceType.CPU),
    ]
    events += [event("a user's range", 2, is_user_annotation=True), event(mark, 8), event("finish", 11)]
    names = bench_launches.on_the_gpu(events)
    assert bench_launches.split(names) == (["map", "finish"], ["conv", "backward", "map", "finish"])
    with pytest.raises(AssertionError, match="no spin_kernel among the 2 launches recorded"):
        bench_launches.split(["conv", "map"])


class Called(TorchDispatchMode):
    """Writes down what PyTorch is asked for."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, asked, types, args=(), kwargs=None):
        self.names.append(asked.name())
        return asked(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "marks"), [("gradcam", 2), ("eigencam", 1), ("eigengradcam", 2)])
def test_marks_come_and_go(monkeypatch, name, marks):
    called, backward = [], torch.autograd.grad
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: called.append("mark"))
    case = explanation(name)
    with bench_launches.marked(case.method), Called(called):
        case(case.x)
    assert called.count("mark") == marks
    assert "aten::clone" not in called[called.index("mark") :], "the activations are copied before"
    assert torch.autograd.grad is backward and "low_maps" not in vars(case.method)


def test_launches_are_a_case_for_a_gpu(capsys):
    assert "launches" in settings.PARTS["operators"] and "launches" in settings.SETS["gpu-short"].cases
    assert session.run(settings.parse(["launches", "--device", "cpu"])) == 2
    assert "launches are measured on a GPU only" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_behind_the_backward_pass(device, monkeypatch, name):
    """Of one image, with no copy and no fill; EigenGradCAM's product is PyTorch's. The classes are those predicted."""
    monkeypatch.undo()  # the fixture that fills what torch.empty gives, by a launch of its own
    case = on_resnet(name, device=device)
    x = case.x[:1].to(device)
    case(x), case(x)  # compiles; and asks, once, whether the gradient is 0 everywhere
    maps, ours, total = bench_launches.counted(lambda: case.method.attribute(x), case.method)
    wanted = [""] * (name == "eigengradcam") + LAUNCHES[name]
    assert len(ours) == len(wanted) and all(map(operator.contains, ours, wanted)), ours
    assert len(total) > 40 and maps.amax() > 0.9
    print(f"{name}: {len(ours)} launches behind the backward pass, {len(total)} in all")


@pytest.mark.gpu
def test_the_profiler_sees_every_launch(device, monkeypatch):
    monkeypatch.undo()
    x = torch.rand(100, device=device)
    names = bench_launches.launched(lambda: x.sin().cos())[1]
    assert len(names) == 2 and "sin" in names[0] and "cos" in names[1], names
