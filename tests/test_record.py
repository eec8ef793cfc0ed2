"""One run of a model: where the graph begins and ends, and in what company it works."""

from __future__ import annotations

import copy
import enum
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastcam import AblationCAM, EigenCAM, FullGrad, GradCAM, GuidedBackprop, HiResCAM, LayerCAM, ScoreCAM
from fastcam.record import record, to_cpu

from models import TinyNet, tiny


@pytest.fixture
def x():
    return torch.randn(3, 3, 20, 24)


def expected(x, targets=None):
    return HiResCAM(tiny(), "body")(x, targets)


def test_gradients_are_those_of_a_full_backward_pass(x):
    net, seen = tiny(), {}
    hook = net.body.register_forward_hook(lambda m, i, o: seen.setdefault("A", o).retain_grad() or o.clone())
    net(x)[:, 2].sum().backward()
    hook.remove()
    with record(net, [net.body], x) as run, torch.enable_grad():
        (G,) = run.gradients(run.output[:, 2])
    assert torch.equal(G, seen["A"].grad) and G.abs().max() > 0
    assert torch.equal(run.activations[0], seen["A"].detach())


def test_nothing_before_the_layer_builds_a_graph(x):
    net, graphs = tiny(), {}
    for name in ("stem", "tail"):
        getattr(net, name).register_forward_hook(lambda m, i, o, name=name: graphs.update({name: o.requires_grad}))
    with record(net, [net.body], x) as run:
        assert graphs == {"stem": False, "tail": True}
        assert run.attached(net.body).is_leaf


def test_no_parameter_gets_a_gradient_and_the_users_stay(x):
    net = tiny()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    GradCAM(net, "body")(x)
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert all(p.grad is None for n, p in net.named_parameters() if n != "head.weight")


def test_activation_is_the_layers_own_when_an_in_place_operation_follows(x):
    """The reference keeps the memory that the ReLU overwrites; ours is the network with the ReLU out of place."""
    out_of_place = tiny()
    out_of_place.relu = nn.ReLU()
    for cls in (GradCAM, HiResCAM, LayerCAM, EigenCAM):
        np.testing.assert_array_equal(cls(tiny(), "body")(x), cls(out_of_place, "body")(x))
    overwritten = EigenCAM(tiny(), "relu")(x)
    assert np.abs(overwritten - EigenCAM(tiny(), "body")(x)).max() > 0.05, "the ReLU makes no difference here"


def test_frozen(x):
    net = tiny().requires_grad_(False)
    np.testing.assert_array_equal(GradCAM(net, "body")(x), GradCAM(tiny(), "body")(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_grad_mode(mode, x):
    net = tiny()
    with mode():
        inside = HiResCAM(net, "body")(x * 1)  # the product is an inference tensor in inference mode
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    np.testing.assert_array_equal(inside, expected(x))


def test_autocast_works_and_leaves_its_cache_alone(x):
    net = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        maps = HiResCAM(net, "body")(x)
        net(x).sum().backward()  # weights cast without a graph would get no gradient here
    np.testing.assert_allclose(maps, expected(x), atol=0.1)
    assert all(p.grad is not None for p in net.parameters())


class SwitchedOffBackbone(TinyNet):
    def forward(self, x):
        with torch.no_grad():
            x = self.body(self.stem(x))
        return self.head(self.relu(self.tail(self.relu(x))).mean((2, 3)))


class SwitchedOffForward(TinyNet):
    forward = torch.no_grad()(TinyNet.forward)


class InferenceForward(TinyNet):
    forward = torch.inference_mode()(TinyNet.forward)


@pytest.mark.parametrize("cls", [SwitchedOffBackbone, SwitchedOffForward, InferenceForward])
def test_models_that_switch_gradients_off(cls, x):
    np.testing.assert_array_equal(HiResCAM(tiny(cls), "body")(x), expected(x))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_model_created_in_inference_mode(x):
    with torch.inference_mode():
        net = tiny()
    with pytest.raises(RuntimeError, match=r"TinyNet was created or loaded inside torch.inference_mode\(\)"):
        HiResCAM(net, "body")(x)
    np.testing.assert_allclose(EigenCAM(net, "body")(x), EigenCAM(tiny(), "body")(x), atol=1e-6)
    np.testing.assert_allclose(AblationCAM(net, "body")(x), AblationCAM(tiny(), "body")(x), atol=1e-5)


SCRIPTED = {"scripted": torch.jit.script, "traced": lambda net: torch.jit.trace(net, torch.rand(1, 3, 20, 24))}


@pytest.mark.parametrize("kind", SCRIPTED)
@pytest.mark.filterwarnings("ignore")
def test_scripted_models(kind, x):
    net = torch.nn.Sequential(tiny().stem, torch.nn.Flatten(), torch.nn.Linear(960, 5))
    scripted = SCRIPTED[kind](net.eval())
    for method in (GradCAM, EigenCAM, AblationCAM, FullGrad):
        with pytest.raises(RuntimeError, match="is scripted or traced, .* can't be seen in it: use the Python model"):
            method(scripted, "0.1")(x, 1)
    with pytest.raises(RuntimeError, match="is scripted or traced, its ReLUs can't be seen in it"):
        GuidedBackprop(scripted).attribute(x, 1)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_head_behind_the_layer(x):
    net, other = tiny(), tiny()
    other.head = torch.jit.script(other.head)
    for method in (GradCAM, EigenCAM, ScoreCAM):
        np.testing.assert_allclose(method(other, "body")(x, 1), method(net, "body")(x, 1), atol=1e-5)


def test_layers_on_both_sides_of_switched_off_gradients(x):
    class SwitchedOffStem(TinyNet):
        def features(self, x):
            with torch.no_grad():
                x = self.stem(x)
            return self.relu(self.tail(self.relu(self.body(x)))).mean((2, 3))

    np.testing.assert_array_equal(
        HiResCAM(tiny(SwitchedOffStem), ["stem", "body"])(x), HiResCAM(tiny(), ["stem", "body"])(x)
    )


@pytest.mark.parametrize("layer", ["stem", "body"])
def test_checkpointed_models(layer, x):
    class Checkpointed(TinyNet):
        reentrant = False

        def features(self, x):
            x = checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)
            return self.relu(self.tail(self.relu(x))).mean((2, 3))

    net = tiny(Checkpointed)
    np.testing.assert_array_equal(HiResCAM(net, layer)(x), HiResCAM(tiny(), layer)(x))
    net.reentrant = True
    if layer == "stem":
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            HiResCAM(net, layer)(x)
    else:
        with pytest.warns(UserWarning, match="zero everywhere at layer 'body'"):
            HiResCAM(net, layer)(x)


def test_gradients_switched_off_behind_the_layer_is_an_error(x):
    class Off(TinyNet):
        def forward(self, x):
            features = self.features(x)
            with torch.no_grad():
                return self.head(features)

    with pytest.raises(RuntimeError, match="carries no gradient"):
        GradCAM(tiny(Off), "body")(x)
    assert EigenCAM(tiny(Off), "body")(x).shape == (3, 20, 24)


def test_two_threads_on_one_training_model(x):
    net = tiny().train()
    net.tail.eval()
    before = copy.deepcopy(net.state_dict())
    wanted = {cls: cls(tiny(), "body")(x) for cls in (GradCAM, LayerCAM)}
    wrong: list[str] = []

    def work(cls):
        for _ in range(50):
            if not np.array_equal(cls(net, "body")(x), wanted[cls]):
                wrong.append(cls.__name__)

    threads = [threading.Thread(target=work, args=(cls,)) for cls in wanted]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert net.training and net.stem.training and not net.tail.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@dataclass
class Output:
    logits: torch.Tensor
    other: int = 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, y.sum()),
        lambda y: {"aux": y * 0, "out": y},
        lambda y: {"logits": y},
        lambda y: {"anything": y},
        Output,
    ],
)
def test_outputs_of_every_kind(wrap, x):
    class Wrapped(TinyNet):
        def forward(self, x):
            return wrap(super().forward(x))

    cam = HiResCAM(tiny(Wrapped), "body")
    np.testing.assert_array_equal(cam(x, [1, 2, 3]), expected(x, [1, 2, 3]))
    np.testing.assert_allclose(cam.outputs, tiny()(x).detach(), rtol=1e-5, atol=1e-6)


def test_an_output_that_refers_to_itself(x):
    class Kind(enum.Enum):
        A = 1

    class Result:
        def __init__(self, logits):
            self.itself, self.kind, self.home = [self], Kind.A, threading
            self.logits = logits

    class Wrapped(TinyNet):
        def forward(self, x):
            return Result(super().forward(x))

    np.testing.assert_array_equal(HiResCAM(tiny(Wrapped), "body")(x), expected(x))


def test_running_out_of_memory_stays_what_it_is(x):
    class Full(TinyNet):
        def forward(self, x):
            raise torch.OutOfMemoryError("for this dtype")

    with pytest.raises(torch.OutOfMemoryError):
        HiResCAM(tiny(Full), "body")(x.double())


def test_wrappers_are_unwrapped(x):
    np.testing.assert_array_equal(HiResCAM(nn.DataParallel(tiny()), "body")(x), expected(x))
    compiled = torch.compile(tiny(), backend="eager")
    compiled(x)  # hooks added after the first call are ignored by compiled code
    np.testing.assert_array_equal(HiResCAM(compiled, compiled.body)(x), expected(x))
    in_place = tiny()
    in_place.compile(backend="eager")
    in_place(x)
    np.testing.assert_array_equal(HiResCAM(in_place, "body")(x), expected(x))


def test_distributed_data_parallel(x, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tiny())
        np.testing.assert_array_equal(HiResCAM(wrapped, wrapped.module.body)(x), expected(x))
    finally:
        torch.distributed.destroy_process_group()


def test_layers_in_any_order_and_twice(x):
    net = tiny()
    forwards = HiResCAM(net, ["stem", "tail"]).attribute(x, size=None)
    backwards = HiResCAM(net, ["tail", "stem", "tail"]).attribute(x, size=None)
    assert torch.equal(forwards[0], backwards[1]) and torch.equal(forwards[1], backwards[0])
    assert torch.equal(backwards[0], backwards[2])


def test_a_module_called_twice_counts_its_first_call(x):
    net = tiny()
    np.testing.assert_array_equal(HiResCAM(net, "relu").attribute(x, size=None), _first_relu(net, x))


def _first_relu(net, x):
    A = net.body(net.stem(x)).relu().detach().requires_grad_()
    y = net.head(net.tail(A).relu().mean((2, 3)))
    (G,) = torch.autograd.grad(y.max(1).values.sum(), A)
    maps = (G * A.detach()).sum(1).relu()
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def test_parallel_branches_are_both_cut(x):
    class Branches(TinyNet):
        def __init__(self):
            super().__init__()
            self.side = nn.Conv2d(8, 12, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.tail(self.body(x) * self.side(x)).mean((2, 3)))

    net = tiny(Branches)
    both = HiResCAM(net, ["side", "body"]).attribute(x, size=None)
    for name, low in zip(["side", "body"], both, strict=True):
        assert torch.equal(low, HiResCAM(net, name).attribute(x, size=None))


def test_a_tuple_output_means_its_first_tensor(x):
    class Pair(nn.Sequential):
        def forward(self, x):
            return super().forward(x), "a flag"

    class Paired(TinyNet):
        def __init__(self):
            super().__init__()
            self.body = Pair(*self.body)

        def features(self, x):
            y, flag = self.body(self.stem(x))
            assert flag == "a flag"
            return self.relu(self.tail(self.relu(y))).mean((2, 3))

    torch.manual_seed(3)
    plain = TinyNet().eval()
    torch.manual_seed(3)
    np.testing.assert_array_equal(HiResCAM(Paired().eval(), "body")(x), HiResCAM(plain, "body")(x))


def test_a_method_without_gradients_stops_at_the_layer_when_no_output_is_asked_for(x):
    class Careful(TinyNet):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:  # must not swallow the early end
                return torch.zeros(len(x), 5)

    net, calls = tiny(Careful), []
    net.tail.register_forward_hook(lambda *_: calls.append("tail"))
    cam = EigenCAM(net, "body")
    maps = cam.attribute(x)
    assert calls == [] and cam.outputs is None
    np.testing.assert_array_equal(cam(x), maps)
    assert calls == ["tail"] and cam.outputs.shape == (3, 5)


def test_another_threads_call_of_the_model_is_not_recorded(x):
    class Meeting(TinyNet):
        def forward(self, x):
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=lambda: outputs.append(self(x * 2)))
                other.start()
                other.join()
            return super().forward(x)

    outputs: list[torch.Tensor] = []
    net = tiny(Meeting)
    np.testing.assert_array_equal(HiResCAM(net, "body")(x), expected(x))
    assert outputs[0].requires_grad and outputs[0].grad_fn is not None


def test_what_comes_from_a_gpu_comes_in_pinned_memory_of_its_own(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    empty, asked = torch.empty, []
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: asked.append((pin_memory, k)) or empty(*a, **k))
    t = torch.rand(2, 3)
    first, second = (to_cpu(t.as_subclass(OnGpu), wait) for wait in (True, False))
    assert asked == [(True, {"dtype": torch.float32, "device": "cpu"})] * 2
    assert torch.equal(first, t) and torch.equal(second, t) and first.data_ptr() != second.data_ptr()
    assert to_cpu(t) is t
