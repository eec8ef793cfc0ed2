"""CUDA graphs of whole calls: what is captured, copied and followed, with a stand-in for the graph; and on a GPU."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import fastcam
from fastcam import EigenCAM, GradCAM, LayerCAM, Optimize
from fastcam.fast import graphs

from models import build, inputs, tiny


class Again:
    """In the place of a CUDA graph: does the work again, into the memory of the first time."""

    made: list[Again] = []

    def __init__(self, work, device):
        self.work, self.replays, self.output = work, 0, work()
        self.made.append(self)

    def replay(self):
        self.replays += 1
        for memory, t in zip(self.output, self.work(), strict=True):
            memory.copy_(t)

    def in_turn(self):
        return nullcontext()


@pytest.fixture
def made(monkeypatch):
    """The graphs that are made, by methods that may have them on a CPU."""
    monkeypatch.setattr(Again, "made", [])
    monkeypatch.setattr(graphs, "CudaGraph", Again)
    monkeypatch.setattr(Optimize, "check", lambda self, device: None)
    return Again.made


def both(kind, net, layers="body", **options):
    """The method with graphs, and the same copy of the model without."""
    return [kind(net, layers, optimize=Optimize(cuda_graphs=g), **options) for g in (True, False)]


def test_calls_alike_share_a_graph_and_keep_what_they_gave(made):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    cam, plain = both(GradCAM, net)
    cam(x, 1)
    assert not made, "the first call is compared"
    first, logits = cam.attribute(x, 1), cam.outputs
    kept = first.clone(), logits.clone()
    assert len(made) == 1 and not made[0].replays
    for n, targets in enumerate([[2, 3], torch.tensor([0, 4]), 1], 1):
        image = torch.randn_like(x)
        found = cam(image, targets)
        assert np.array_equal(found, plain(image, targets)) and torch.equal(cam.outputs, plain.outputs)
        assert len(made) == 1 and made[0].replays == n
        logits = cam.outputs
    other = cam.attribute(x, 1)
    assert torch.equal(first, kept[0]) and torch.equal(other, kept[0]) and not torch.equal(logits, kept[1])
    with pytest.raises(ValueError, match="target 5 is out of range"):
        cam(x, [1, 5])


def test_new_weights_are_replayed(made):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    cam, plain = both(LayerCAM, net)
    old = [cam(x, 1) for _ in range(3)]
    with torch.no_grad():
        net.stem[1].weight.mul_(torch.rand(8) + 0.5)
    new = [cam(x, 1) for _ in range(2)]
    assert len(made) == 1 and made[0].replays == 2, "the first with new weights is compared anew"
    assert np.array_equal(new[0], new[1]) and np.array_equal(new[1], plain(x, 1))
    assert np.abs(new[1] - old[2]).max() > 1e-2
    net.tail = torch.nn.Conv2d(12, 16, 1)
    cam(x, 1)
    assert np.array_equal(cam(x, 1), plain(x, 1)) and len(made) == 2, "another copy of the model, another graph"


@pytest.mark.parametrize(
    ("kind", "change", "captured"),
    [
        (GradCAM, {"x": (3, 3, 20, 24)}, True),
        (GradCAM, {"targets": None}, True),
        (GradCAM, {"targets": [[1, 2], [3, 4]]}, True),
        (GradCAM, {"eigen_smooth": True}, True),
        (EigenCAM, {"targets": None}, True),
        (GradCAM, {"x": (17, 3, 20, 24)}, False),
        (GradCAM, {"aug_smooth": True}, False),
        (GradCAM, {"targets": lambda logits: logits[1]}, False),
        (fastcam.ReciproCAM, {}, False),
        (fastcam.RandomCAM, {}, False),
    ],
)
def test_what_is_captured(kind, change, captured, made):
    cam, plain = both(kind, tiny())
    call = {"x": (2, 3, 20, 24), "targets": 1} | change
    x = torch.randn(call.pop("x"))
    usual = torch.randn(2, 3, 20, 24)
    for _ in range(2):
        cam(usual, 1)
    before = len(made)
    for _ in range(2):
        np.random.seed(0)
        found = cam(x, **call)
    np.random.seed(0)
    assert np.array_equal(found, plain(x, **call))
    assert len(made) - before == captured and [graph.replays for graph in made[before:]] == [1] * captured


def test_old_graphs_make_room(made, monkeypatch):
    monkeypatch.setattr(graphs, "_KEPT", 2)
    cam, _ = both(GradCAM, tiny())
    for size in (1, 1, 2, 3, 3, 1):
        cam(torch.randn(size, 3, 20, 24), 1)
    assert len(made) == 4


def test_what_cannot_be_captured_runs_as_it_is(made, monkeypatch):
    def broken(work, device):
        made.append(None)
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(graphs, "CudaGraph", broken)
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    cam, plain = both(GradCAM, net)
    cam(x, 1)
    with pytest.warns(UserWarning, match="GradCAM of TinyNet is not captured as a CUDA graph: .* capturing$") as caught:
        assert np.array_equal(cam(x, 1), plain(x, 1))
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(cam(x, 2), plain(x, 2)) and len(made) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [GradCAM, LayerCAM, fastcam.GradCAMPlusPlus, fastcam.EigenGradCAM, EigenCAM])
def test_a_graph_gives_what_the_call_gives(kind, compiled):
    net, x = build("resnet18").cuda(), inputs("resnet18", 4).cuda()
    cam, plain = (kind(net, "layer4[-1]", optimize=Optimize(compile=compiled, cuda_graphs=g)) for g in (True, False))
    earlier = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (x[:1], x[1:2], x[2:3].flip(3), x, x.flip(2), x[:1]):
            for targets in (None, 3, [5] * len(image)):
                found, logits = cam.attribute(image, targets, complete=True), cam.outputs
                expected = plain.attribute(image, targets, complete=True)
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
                torch.testing.assert_close(logits, plain.outputs, atol=1e-5, rtol=1e-5)
                earlier.append((found, found.clone(), logits, logits.clone()))
    for found, kept, logits, kept_logits in earlier:
        assert torch.equal(found, kept) and torch.equal(logits, kept_logits)
    assert len(cam._fast._fast.graphs._calls) == 4


@pytest.mark.gpu
@pytest.mark.usefixtures("full_precision")
def test_a_graph_follows_the_weights_on_a_gpu():
    net, x = build("resnet18").cuda(), inputs("resnet18", 1).cuda()
    cam, plain = both(GradCAM, net, "layer4[-1]")
    for _ in range(3):
        old = cam(x, 1)
    with torch.no_grad():
        net.layer4[1].bn2.weight.mul_(torch.randn(512, device="cuda"))
    for _ in range(3):
        new = cam(x, 1)
    assert np.abs(new - plain(x, 1)).max() < 1e-6 and np.abs(new - old).max() > 1e-2


@pytest.mark.gpu
def test_a_model_that_asks_the_gpu_is_not_captured():
    class Asking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny()

        def forward(self, x):
            return self.net(x / x.abs().max().item())

    net, x = Asking().eval().cuda(), torch.randn(1, 3, 20, 24, device="cuda")
    cam = GradCAM(net, "net.body", optimize=Optimize(cuda_graphs=True))
    cam(x, 1)
    with pytest.warns(UserWarning, match="GradCAM of Asking is not captured"):
        cam(x, 1)
    assert np.abs(cam(2 * x, 1) - GradCAM(net, "net.body")(2 * x, 1)).max() < 1e-3
