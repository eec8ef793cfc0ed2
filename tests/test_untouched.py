"""A user's model is exactly what it was after any public call, and after an exception anywhere in one."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest
import torch

import fastcam
from fastcam.layers import default_layer
from fastcam.methods import METHODS, SESS
from fastcam.methods.fullgrad import SmoothFullGrad
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.visualize import SALIENCY

from models import TinyNet, tiny


class Fragile(TinyNet):
    """Global pooling and a linear head directly behind `tail`; raises in the middle of a forward pass on demand."""

    broken = False

    def forward(self, x):
        x = self.relu(self.body(self.stem(x)))
        if self.broken:
            raise KeyError("in forward")
        return self.head(self.tail(x).mean((2, 3)))


def snapshot(net):
    modules = {
        name: (
            module,
            module.training,
            {k: list(v) for k, v in vars(module).items() if "hook" in k and hasattr(v, "__iter__")},
            sorted(vars(module)),
        )
        for name, module in net.named_modules()
    }
    tensors = {
        name: (id(t), t.requires_grad, None if t.grad is None else (id(t.grad), t.grad.clone()), t.detach().clone())
        for name, t in [*net.named_parameters(), *net.named_buffers()]
    }
    world = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_cache_enabled())
    return modules, tensors, world, torch.get_rng_state()


def assert_same(before, after):
    assert before[0] == after[0] and before[2] == after[2]
    assert torch.equal(before[3], after[3]), "random numbers were drawn"
    assert before[1].keys() == after[1].keys()
    for name, (identity, requires_grad, grad, value) in before[1].items():
        now = after[1][name]
        assert (identity, requires_grad) == now[:2] and torch.equal(value, now[3]), name
        assert (grad is None) == (now[2] is None), name
        assert grad is None or grad[0] == now[2][0] and torch.equal(grad[1], now[2][1]), name


def broken_target(row):
    raise KeyError("in target")


def broken_transform(t):
    raise KeyError("in reshape_transform")


CALLS = {
    "plain": lambda cam, x: cam(x),
    "classes": lambda cam, x: cam(x, torch.tensor([[0, 1], [2, 3]])),
    "aug_smooth": lambda cam, x: cam(x, 1, aug_smooth=True),
    "eigen_smooth": lambda cam, x: cam(x, 1, eigen_smooth=True),
    "attribute": lambda cam, x: cam.attribute(x, normalize=False, size=None),
    "context": lambda cam, x: cam.__enter__()(x) is cam.__exit__(None, None, None),
}


def fragile():
    net = tiny(Fragile).train()
    net.stem.eval()
    net.head.weight.requires_grad_(False)
    net.tail.weight.grad = torch.randn_like(net.tail.weight)
    net.body.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", CALLS)
def test_after_a_call(method, call):
    if call == "eigen_smooth" and method in ("groupcam", "reciprocam"):
        pytest.skip("its map is no sum of channels")
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    before, image = snapshot(net), x.detach().clone()
    CALLS[call](METHODS[method](net, "tail"), x)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["forward", "target", "reshape_transform"])
def test_after_an_exception(method, where):
    if where == "reshape_transform" and "fullgrad" in method:
        pytest.skip("takes no layer")
    net, x = fragile(), torch.randn(2, 3, 20, 24)
    net.broken = where == "forward"
    cam = METHODS[method](net, "tail", broken_transform if where == "reshape_transform" else None)
    before = snapshot(net)
    targets = broken_target if where == "target" else None
    if where == "target" and (method == "cam" or not cam.class_discriminative):  # takes only classes, asks no target
        pytest.skip("no callable is called")
    with pytest.raises(KeyError, match=f"in {where}"):
        cam(x, targets)
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("where", [None, "forward", "target"])
@pytest.mark.parametrize("name", SALIENCY)
def test_after_a_gradient_of_the_input(name, where):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    net.broken = where == "forward"
    method = SALIENCY[name](net, *["tail"] * (name == "guidedgradcam"))
    before, image = snapshot(net), x.detach().clone()
    if where is None:
        method(x, torch.tensor([[0, 1], [2, 3]]))
    else:
        with pytest.raises(KeyError, match=f"in {where}"):
            method(x, broken_target if where == "target" else None)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None and x.requires_grad
    with torch.enable_grad():
        assert (-torch.ones(1, requires_grad=True)).relu().grad_fn.name() == "ReluBackward0", "the mode is still there"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_after_a_key_press(method, interrupted):
    """Ctrl-C in the n-th of the modules' forward passes behind the layer, on the way there or in a replay."""
    net, x = fragile(), torch.randn(2, 3, 20, 24)
    passes = []

    def press(*_):
        passes.append(1)
        if len(passes) == interrupted:
            raise KeyboardInterrupt

    net.head.register_forward_hook(press)
    cam = METHODS[method](net, "body" if method != "cam" else "tail")
    before = snapshot(net)
    many = isinstance(cam, PerturbationCAM | SESS | SmoothFullGrad)
    passes_needed = 2 if method == "smoothgradcam++" else 3 if many else 1
    expected = cam.class_discriminative and interrupted <= passes_needed
    with pytest.raises(KeyboardInterrupt) if expected else contextlib.nullcontext():
        cam.attribute(x)
    assert_same(before, snapshot(net))


def test_after_a_signal():
    """The same by a real signal, a little later each time until a call ends before it, while many rows are scored."""
    net, x = fragile(), torch.randn(2, 3, 20, 24)
    before, stopped = snapshot(net), 0
    for n in range(120):  # it may come behind a fast call, but not behind a slow one
        if n >= 40 and stopped:
            break
        cam = METHODS["ablationcam" if n % 2 else "scorecam"](net, "body", batch_size=2)
        timer = threading.Timer(0.0015 * (n + 1) % 0.02, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            cam(x)
            timer.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            stopped += 1
        timer.join()
        assert_same(before, snapshot(net))
    assert stopped > 0


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("call", [fastcam.layer_table, default_layer], ids=lambda c: c.__name__)
def test_after_looking_at_the_layers(call, broken):
    net, x = fragile(), torch.randn(2, 3, 20, 24)
    net.broken = broken
    before = snapshot(net)
    if broken:
        with pytest.raises(KeyError, match="in forward"):
            call(net, x)
    else:
        call(net, x)
    assert_same(before, snapshot(net))


def test_the_snapshot_sees_a_change():
    """The check can fail: each kind of change makes it raise."""
    changes = [
        lambda n: n.train(not n.training),
        lambda n: n.stem.register_forward_hook(print),
        lambda n: n.stem[1].running_mean.add_(1),
        lambda n: n.head.weight.requires_grad_(True),
        lambda n: setattr(n.tail.weight, "grad", None),
        lambda n: setattr(n, "relu", torch.nn.ReLU()),
        lambda n: torch.rand(1),
    ]
    for change in changes:
        net = fragile()
        before = snapshot(net)
        change(net)
        with pytest.raises(AssertionError):
            assert_same(before, snapshot(net))
