"""Fast mode's copies: models that run only in the usual memory order, hold hooks of their own, or cannot be copied."""

from __future__ import annotations

import functools
import gc
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcam
from fastcam import GradCAM
from fastcam.methods import METHODS

from models import TinyNet, tiny


def fast_copy(cam):
    return cam._fast._fast.net


class Flattening(nn.Module):
    """Looks at activations through `view`, which knows one memory order only."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.head = nn.Sequential(nn.Linear(16 * 5 * 5, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(x.view(x.size(0), -1))


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Flattening()

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam", "ablationcam", "scorecam", "fullgrad"])
def test_a_model_that_runs_in_the_usual_memory_order_only(method):
    torch.manual_seed(0)
    net, x = Inside().eval(), torch.randn(2, 3, 32, 32)
    layers = [] if method == "fullgrad" else "net.conv2"  # which never changes the order
    cam = METHODS[method](net, layers, optimize=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = cam(x, 1)
        np.testing.assert_allclose(cam(x, 1), found, atol=1e-5)
    np.testing.assert_allclose(found, METHODS[method](net, layers)(x, 1), atol=1e-4)
    assert [str(w.message).partition(" size")[0] for w in caught] == (
        ["Inside does not run in channels_last, and keeps its order: in 'net', view"] if layers else []
    )
    assert all(w.filename == __file__ for w in caught)


def test_what_a_model_raises_in_any_order_is_raised():
    net = Flattening().eval()
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        warnings.simplefilter("error")
        GradCAM(net, "conv2", optimize=True)(torch.randn(2, 3, 40, 40))


class Branching(nn.Module):
    """Reads what its convolution gives only when asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.tail, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.2, 3)

    def forward(self, x, mask=None, how=None):
        both = mask is not None and mask is not False or how is not None and how.both
        z = self.conv(x)
        y = self.norm(z).relu()
        return self.head(self.tail(y + z if both else y).relu().mean((2, 3)))


class How:
    def __init__(self, both):
        self.both = both


@pytest.mark.filterwarnings("ignore:no batch norm of Branching is folded")
def test_arguments_that_are_no_tensors_may_run_something_else():
    net, x = Branching().double().eval(), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    cam, exact = GradCAM(net, "tail", optimize=True), GradCAM(net, "tail")
    how = How(False)
    changed = {"x": x, "how": how}
    for given in [(x, False), (x, True), {"x": x, "mask": None}, {"x": x, "mask": x}, (x, None), changed, changed]:
        np.testing.assert_allclose(cam(given, 1), exact(given, 1), atol=1e-6, err_msg=str(given))
        how.both = given is changed
    for mask in (False, True, False):
        arguments = {"forward_kwargs": {"mask": mask}}
        np.testing.assert_allclose(cam(x, 1, **arguments), exact(x, 1, **arguments), atol=1e-6)


@pytest.mark.filterwarnings("ignore:no batch norm of Branching is folded")
def test_equal_arguments_take_the_same_copy():
    net, x = Branching().double().eval(), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    cam = GradCAM(net, "tail", optimize=True)
    for make in (
        lambda: {"how": How(False), "mask": None},
        lambda: {"mask": x.clone()},
        lambda: {"mask": {"all": [x.clone(), (1, "a")]}},
        lambda: {"mask": net.head, "how": None},
    ):
        cam(x, 1, forward_kwargs=make())
        ours = fast_copy(cam)
        cam(x, 1, forward_kwargs=dict(reversed(make().items())))
        assert fast_copy(cam) is ours
    for _ in range(2):  # two calls of which nobody can say that they are the same
        ours = fast_copy(cam)
        cam(x, 1, forward_kwargs={"mask": threading.Lock()})
        assert fast_copy(cam) is not ours


class Store:
    """As timm's: a part of the model that its hooks write into."""

    def __init__(self):
        self.kept = {}

    def keep(self, name, module, args, output):
        self.kept[name] = output


class Remembering(TinyNet):
    """Its forward reads what a hook has put aside."""

    def __init__(self, kind="method"):
        super().__init__()
        self.store, self.stores = Store(), [Store()]
        hooks = {
            "method": self._save,
            "partial": functools.partial(self.store.keep, "body"),
            "in a list": functools.partial(self.stores[0].keep, "body"),
            "closure": lambda module, args, output: self.store.keep("body", module, args, output),
        }
        self.body.register_forward_hook(hooks[kind])
        self.read = {"method": lambda net: net.saved, "in a list": lambda net: net.stores[0].kept["body"]}.get(
            kind, lambda net: net.store.kept["body"]
        )

    def _save(self, module, args, output):
        self.saved = output

    def forward(self, x):
        self.body(self.stem(x))
        return self.head(self.tail(self.read(self)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", ["method", "partial", "in a list", "closure"])
def test_the_model_s_own_hooks_write_into_the_copy(kind):
    net, x = tiny(Remembering, kind=kind).double(), torch.randn(2, 3, 20, 24, dtype=torch.float64)
    exact = GradCAM(net, "stem")(x, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = fastcam.explain(net, x[:1], "gradcam", "stem", 1, optimize=True)
        saved = net.read(net)
        second = fastcam.explain(net, x[1:], "gradcam", "stem", 1, optimize=True)
    np.testing.assert_allclose(torch.cat([maps["gradcam"]["stem"] for maps in (first, second)]), exact, atol=1e-6)
    if kind == "closure":
        reason = "a hook of 'body' is a function around a part of the model"
        assert [str(w.message) for w in caught] == [f"Remembering is explained as it is, without fast mode: {reason}"]
    else:
        assert not caught and net.read(net) is saved, "the second call has left the model alone"
    gone = weakref.ref(net)
    del net, saved
    gc.collect()
    assert gone() is None


class Frozen(TinyNet):
    """Returns nothing from `train`, and so from `eval`."""

    def train(self, mode=True):
        super().train(mode)
        self.body[1].eval()


def test_a_train_of_its_own():
    net, x = tiny().train(), torch.randn(2, 3, 20, 24)
    net.__class__ = Frozen
    cam = GradCAM(net, "tail", optimize=True)
    np.testing.assert_allclose(cam(x, 1), GradCAM(net, "tail")(x, 1), atol=1e-4)
    assert net.training and not any(m.training for m in fast_copy(cam).modules())


@pytest.mark.parametrize(("module", "name"), [("", "lock"), ("tail", "tail.lock")])
def test_a_model_that_cannot_be_copied_is_explained_as_it_is(module, name):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    net.get_submodule(module).lock = threading.Lock()
    cam = GradCAM(net, "tail", optimize=True)
    with pytest.warns(UserWarning, match=rf"TinyNet is explained as it is, .*: '{name}' cannot be copied") as caught:
        found = cam(x, 1)
    assert len(caught) == 1 and caught[0].filename == __file__ and cam.agreement is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cam(x, 1)
    exact = GradCAM(net, "tail")
    assert np.array_equal(found, exact(x, 1)) and np.array_equal(again, found)
    torch.testing.assert_close(cam.outputs, exact.outputs)


def test_a_method_keeps_no_copy_but_its_last():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    cam = GradCAM(net, "tail", optimize=True)
    cam(x, 1)
    gone = weakref.ref(cam._fast._fast.layers[0])
    net.relu = nn.ReLU()  # another module, so another copy
    cam(x, 1)
    gc.collect()
    assert gone() is None
