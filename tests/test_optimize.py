"""Fast mode: the same maps from a private copy of the model, which follows the model's weights."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import shutil
import threading
import warnings
import weakref
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import FrozenBatchNorm2d

import fastcam
from fastcam import Agreement, GradCAM, LayerCAM, Optimize
from fastcam.cli import main
from fastcam.fast import settings
from fastcam.fast.agreement import agreement_of
from fastcam.fast.compiled import blocks, compiled_blocks
from fastcam.fast.folding import Folded
from fastcam.methods import ATTENTION, METHODS
from fastcam.methods.fullgrad import FullGrad

from models import LAYERS, TinyNet, build, inputs, photographs, tiny
from test_untouched import assert_same, fragile, snapshot


def fast_copy(cam):
    """The private copy that a method in fast mode has made."""
    return cam._fast._fast.net


def folded(cam):
    return sum(isinstance(m, Folded) for m in fast_copy(cam).modules())


def small(batch=2, dtype=torch.float64):
    """In fp64 a fold changes nothing that a ReLU near 0 could make visible."""
    return build("resnet18").to(dtype), F.interpolate(inputs("resnet18", batch), (64, 64)).to(dtype)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("resnet18", 20),
        ("mobilenet_v3_small", 34),
        ("densenet121", 59),
        ("small_vit", 0),
        ("volume", 3),
    ],
)
def test_maps_are_the_exact_ones(name, pairs):
    net, x = build(name), inputs(name, 2)
    layers = LAYERS[name]["several"]
    cam = LayerCAM(net, layers, optimize=True)
    found, exact = cam(x), LayerCAM(net, layers)(x)
    assert np.abs(found - exact).max() < 1e-3 and exact.max() > 0.5
    assert folded(cam) == pairs
    assert cam.agreement.max_difference == pytest.approx(np.abs(found - exact).max(), abs=1e-6)
    assert cam.agreement.rank_correlation > 0.999 and cam.agreement.maps == 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_it(method):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    before, image = snapshot(net), x.detach().clone()
    layers = [] if issubclass(METHODS[method], FullGrad) else "tail"
    cams = [METHODS[method](net, layers, optimize=o) for o in (True, None)]
    maps = []
    for cam in cams:
        np.random.seed(4)
        torch.manual_seed(4)
        maps.append(cam(x, 1))
    torch.manual_seed(0)
    assert np.abs(maps[0] - maps[1]).max() < 1e-3
    assert folded(cams[0]) == (0 if layers == [] else 2)
    assert cams[0].agreement.max_difference < 1e-3 and cams[1].agreement is None
    torch.testing.assert_close(cams[0].outputs, cams[1].outputs, atol=1e-5, rtol=1e-5)
    torch.set_rng_state(before[3])
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None


@pytest.mark.parametrize("method", ATTENTION)
def test_every_method_of_attention_has_it(method):
    net, x = build("small_vit"), inputs("small_vit", 2)
    cam = ATTENTION[method](net, optimize=True)
    assert np.abs(cam(x) - ATTENTION[method](net)(x)).max() < 1e-4


def test_a_model_in_training_keeps_its_flags_gradients_hooks_and_memory():
    net, x = fragile(), torch.randn(2, 3, 20, 24)
    strides = [p.stride() for p in net.parameters()]
    before = snapshot(net)
    GradCAM(net, "tail", optimize=True)(x)
    assert_same(before, snapshot(net))
    assert strides == [p.stride() for p in net.parameters()] and net.training
    net.broken = True
    before = snapshot(net)
    with pytest.raises(KeyError, match="in forward"):
        GradCAM(net, "tail", optimize=True)(x)
    assert_same(before, snapshot(net))


def test_a_frozen_model_and_one_in_double_precision():
    net, x = small()
    net.requires_grad_(False)
    cam = GradCAM(net, "layer3", optimize=True)
    assert cam.attribute(x).dtype == torch.float64 and 0 < cam.agreement.max_difference < 1e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda net, other: net.load_state_dict(other.state_dict()),
        lambda net, other: net.load_state_dict(other.state_dict(), assign=True),
        lambda net, other: [setattr(p, "data", q.data) for p, q in zip(net.parameters(), other.parameters())],  # noqa: B905
        lambda net, other: setattr(net, "layer2", other.layer2),
        lambda net, other: step(net),
        lambda net, other: net.bn1.running_mean.add_(0.3),
    ],
    ids=["load_state_dict", "assigned", "data", "a module", "an optimizer's step", "a buffer"],
)
def test_new_weights_are_explained(change):
    net, x = small()
    cam = GradCAM(net, "layer3", optimize=True)
    old, other = cam(x), build("resnet18").double()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05 * p.std() * torch.randn_like(p) if p.numel() > 1 else 0)
    with torch.no_grad():
        change(net, other)
    new, exact = cam(x), GradCAM(net, "layer3")(x)
    assert np.abs(new - exact).max() < 1e-3
    assert np.abs(new - old).max() > 1e-2, "the weights make a difference"


@torch.enable_grad()
def step(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    net.train()(inputs("resnet18", 4).double()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    net.eval()


def test_the_copy_is_made_once_and_compared_once(monkeypatch):
    net, x = small()
    cam = GradCAM(net, "layer3", optimize=True)
    cam(x)
    ours, agreement, runs = fast_copy(cam), cam.agreement, []
    net.register_forward_hook(lambda *_: runs.append(1))
    cam(x)
    cam(x.flip(3), 3)
    assert fast_copy(cam) is ours and cam.agreement is agreement and not runs
    with torch.no_grad():
        net.fc.bias.add_(1)
    cam(x)
    assert fast_copy(cam) is ours and runs == [1], "new weights are compared anew"


def test_what_shares_memory_without_a_version_is_not_seen_until_it_is_told():
    net, x = small()
    cam = GradCAM(net, "layer3", optimize=True)
    old = cam(x, 1)
    net.layer4[1].bn2.weight.data.mul_(torch.randn(512))
    assert np.array_equal(cam(x, 1), old)
    torch.autograd.graph.increment_version(list(net.parameters()))
    assert np.abs(cam(x, 1) - GradCAM(net, "layer3")(x, 1)).max() < 1e-3


@pytest.mark.parametrize(
    ("layer", "pairs"), [("layer2[0].conv1", 19), ("layer2[0].bn1", 19), ("layer2[0].relu", 20), ("layer2[0]", 20)]
)
def test_a_layer_shows_what_it_showed(layer, pairs):
    """Below 0 too, where a convolution's own output and that of its batch norm differ most."""
    net, x = small()
    fast, exact = (GradCAM(net, layer, optimize=o).attribute(x, 1, normalize=False, size=None) for o in (True, None))
    torch.testing.assert_close(fast, exact, atol=1e-10, rtol=1e-8)
    cam = GradCAM(net, layer, optimize=True)
    cam(x)
    assert folded(cam) == pairs


class Shared(TinyNet):
    """`body` is called twice and its convolution is read by two; `stem` is used twice in the same way."""

    def __init__(self, reader):
        super().__init__()
        self.reader = reader
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    def forward(self, x):
        x = self.stem(x)
        x = self.twice(self.twice(x).relu())
        z = self.body[0](x)
        y = self.body[1](z)
        if self.reader == "another norm":
            y = y + self.other(z)
        elif self.reader == "a function":
            y = y + z.relu()
        elif self.reader == "caller":
            return self.head(self.tail(y).mean((2, 3))), z
        return self.head(self.tail(y).mean((2, 3)))


@pytest.mark.parametrize(("reader", "pairs"), [("nobody", 3), ("another norm", 2), ("a function", 2), ("caller", 2)])
def test_a_convolution_that_others_read_is_left_alone(reader, pairs):
    net = tiny(Shared, reader=reader).eval()
    net.other = nn.BatchNorm2d(12).eval()
    nn.init.uniform_(net.other.weight)
    for norm in (net.twice[1], net.other):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 3, 20, 24)
    cam = LayerCAM(net, "tail", optimize=True)
    assert np.abs(cam(x, 1) - LayerCAM(net, "tail")(x, 1)).max() < 1e-4
    assert folded(cam) == pairs


def test_a_user_s_hook_still_sees_what_it_saw():
    net, x, seen = tiny(), torch.randn(2, 3, 20, 24), []
    net.body[0].register_forward_hook(lambda module, _, output: seen.append(output.detach().clone()))
    cam = GradCAM(net, "tail", optimize=True)
    cam(x)
    cam(x)
    assert folded(cam) == 1
    torch.testing.assert_close(seen[-1], net.body[0](net.stem(x)), atol=1e-5, rtol=1e-5)


def small_convnext():
    stages = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 1)]
    return torchvision.models.ConvNeXt(stages, layer_scale=0.5, num_classes=5).eval()


@pytest.mark.parametrize(
    ("kind", "layer", "pairs"),
    [("timm", "tail", 2), ("timm", "stem[1].act", 1), ("frozen", "tail", 2), ("convnext", "features[-1]", 0)],
)
def test_other_norms(kind, layer, pairs):
    """timm's batch norm keeps its activation, and stays where that is the layer; one of constants is folded."""
    net = small_convnext() if kind == "convnext" else tiny()
    if kind == "timm":
        net.stem[1] = pytest.importorskip("timm.layers").BatchNormAct2d(8)
    elif kind == "frozen":
        net.stem[1], net.body[1] = FrozenBatchNorm2d(8), FrozenBatchNorm2d(12)
    for name, tensor in net.eval().named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
    net, x = net.double(), torch.randn(2, 3, 40, 48, dtype=torch.float64)
    cam = LayerCAM(net, layer, optimize=True)
    assert np.abs(cam(x, 1) - LayerCAM(net, layer)(x, 1)).max() < 1e-6
    assert folded(cam) == pairs


def test_what_is_kept_for_a_model_does_not_keep_it():
    net, x = small()
    fastcam.explain(net, x, layers="layer3", optimize=True)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_wrapped_model():
    net, x = small()
    found = GradCAM(nn.DataParallel(net), "layer3", optimize=True)(x, 1)
    assert np.abs(found - GradCAM(net, "layer3")(x, 1)).max() < 1e-6
    assert np.abs(GradCAM(torch.compile(net), "layer3", optimize=True)(x, 1) - found).max() < 1e-6


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Answering(TinyNet):
    def forward(self, x):
        return Answer(super().forward(x))


def test_an_output_of_its_own_kind():
    net, x = tiny(Answering), torch.randn(2, 3, 20, 24)
    cam = GradCAM(net, "tail", optimize=True)
    assert np.abs(cam(x, 1) - GradCAM(net, "tail")(x, 1)).max() < 1e-4 and folded(cam) == 2


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.conv(self.norm(x)).relu().mean((2, 3)))


def test_a_model_that_cannot_be_folded_says_so_once():
    net, x = NormFirst().eval(), torch.randn(2, 3, 12, 12)
    cam = GradCAM(net, "conv", optimize=True)
    with pytest.warns(UserWarning, match=r"no batch norm of NormFirst is folded: 'norm'") as caught:
        cam(x)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam(x)
        GradCAM(net, "conv", optimize=Optimize(fold=False))(x)


class Hidden(TinyNet):
    """Calls a batch norm that it has in a list beside its modules, where nothing can be put in its place."""

    def __init__(self):
        super().__init__()
        self.parts = list(self.body)

    def forward(self, x):
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(self.tail(x).mean((2, 3)))


def test_a_fold_that_changes_the_output_is_undone():
    net, x = tiny(Hidden), torch.randn(2, 3, 20, 24)
    cam = GradCAM(net, "tail", optimize=True)
    with pytest.warns(UserWarning, match="Hidden is not folded: with '.*' in '.*', and others like it"):
        found = cam(x, 1)
    assert folded(cam) == 0 and np.abs(found - GradCAM(net, "tail")(x, 1)).max() < 1e-5


def test_two_threads():
    net, x = small()
    cam, maps = GradCAM(net, "layer3", optimize=True), {}
    exact = [GradCAM(net, "layer3")(x, t) for t in range(4)]

    def explain(target):
        for _ in range(3):
            maps[target] = cam(x, target)

    threads = [threading.Thread(target=explain, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for target in range(4):
        assert np.abs(maps[target] - exact[target]).max() < 1e-3


def test_copies_and_pickles_of_a_method():
    net, x = small()
    cam = GradCAM(net, "layer3", optimize=Optimize(channels_last=False))
    found = cam(x, 1)
    assert copy.copy(cam)._fast is cam._fast
    for other in (pickle.loads(pickle.dumps(cam)), copy.deepcopy(cam)):
        assert other.optimize == cam.optimize and other._fast is not cam._fast and other.agreement is None
        assert np.abs(other(x, 1) - found).max() < 1e-5 and other.agreement is not None


def test_a_layer_of_its_own_choice_several_inputs_and_signed_maps():
    net, x = small()
    cam = GradCAM(net, optimize=True)
    assert cam.layer_names(x) == ["layer4"] and np.abs(cam(x) - GradCAM(net)(x)).max() < 1e-3
    (fast,), (exact,) = (GradCAM(net, "layer3", optimize=o).signed_maps(x, [[1, 2]] * 2) for o in (True, None))
    assert fast.shape == exact.shape == (2, 2, 4, 4)
    torch.testing.assert_close(fast, exact, atol=1e-10, rtol=1e-8)
    smooth = GradCAM(net, "layer3", optimize=True)(x, 1, aug_smooth=True, eigen_smooth=True)
    assert np.abs(smooth - GradCAM(net, "layer3")(x, 1, aug_smooth=True, eigen_smooth=True)).max() < 1e-3


def test_the_agreement_is_that_of_the_first_images():
    net, x = small(batch=20)
    cam = fastcam.RandomCAM(net, "layer4", optimize=True)
    np.random.seed(0)
    maps = cam(x)
    assert cam.agreement.maps == 16 and cam.agreement.max_difference < 1e-3, "the same weights are drawn for both"
    np.random.seed(0)
    assert np.abs(fastcam.RandomCAM(net, "layer4")(x) - maps).max() < 1e-3, "as if nothing had been compared"


def test_images_that_are_no_numbers_are_measured_again(recwarn):
    net, x = small()
    cam = GradCAM(net, "layer4", optimize=True)
    cam(x * float("nan"), 1)
    assert np.isnan([cam.agreement.max_difference, cam.agreement.rank_correlation]).all()
    found = cam(x, 1)
    assert cam.agreement.max_difference < 1e-6 and cam.agreement.rank_correlation > 0.999 and folded(cam) == 20
    assert np.abs(found - GradCAM(net, "layer4")(x, 1)).max() < 1e-6
    assert not [w for w in recwarn if "folded" in str(w.message)]


def test_agreement_by_hand():
    a = torch.tensor([[[0.0, 1.0], [0.25, 0.5]], [[0.0, 1.0], [0.25, 0.5]]])
    b = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[0.0, 1.0], [0.25, 0.4]]])
    assert agreement_of([a], [b], 1, True) == Agreement(0.25, pytest.approx(0.8), 2)
    assert agreement_of([3 * a], [7 * a], 1, False).max_difference < 1e-6
    zero = torch.zeros_like(a)
    assert agreement_of([zero], [zero], 1, True).rank_correlation == 1
    assert agreement_of([zero], [a], 1, True).rank_correlation == 0
    assert Agreement(0.1, 0.9, 2).with_worse(Agreement(0.2, 0.95, 3)) == Agreement(0.2, 0.9, 5)


def test_half_precision():
    if not settings._computes(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bf16")
    net, x = small(dtype=torch.float32)
    cam = GradCAM(net, "layer3", optimize=Optimize(dtype="bf16"))
    maps = cam.attribute(x)
    assert next(fast_copy(cam).parameters()).dtype == torch.bfloat16
    assert maps.dtype == torch.float32 and cam.outputs.dtype == torch.float32
    assert 0 < cam.agreement.max_difference < 0.3 and cam.agreement.rank_correlation > 0.9
    with torch.no_grad():
        net.layer3[0].bn1.weight.mul_(1.5)
    cam(x)
    assert next(fast_copy(cam).parameters()).dtype == torch.bfloat16 and cam.agreement.max_difference < 0.3


@pytest.mark.parametrize(
    ("dtype", "known", "computes"),
    [
        (torch.bfloat16, {"avx512_bw": True, "avx512_bf16": False, "amx_bf16": False}, False),
        (torch.bfloat16, {"avx512_bf16": False, "amx_bf16": True}, True),
        (torch.float16, {"avx512_bf16": True, "avx512_fp16": False, "amx_fp16": False}, False),
        (torch.float16, {"avx512_fp16": True}, True),
        (torch.bfloat16, {"architecture": "aarch64", "bf16": True}, True),  # oneDNN has asked
    ],
)
def test_a_cpu_that_would_have_to_convert_lacks_the_type(dtype, known, computes, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    supported = True
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported, raising=False)
    assert settings._computes(torch.device("cpu"), dtype) == computes
    supported = False
    assert not settings._computes(torch.device("cpu"), dtype)


def test_what_is_no_setting_is_an_error(monkeypatch):
    net, x = small()
    with pytest.raises(ValueError, match="dtype must be None, 'bf16' or 'fp16', got 'int8'"):
        Optimize(dtype="int8")
    with pytest.raises(TypeError, match="fold must be True or False, got 'no'"):
        Optimize(fold="no")
    with pytest.raises(TypeError, match="optimize must be True, False or fastcam.Optimize"):
        GradCAM(net, optimize="yes")
    with pytest.raises(ValueError, match="need an NVIDIA GPU, the model is on this CPU"):
        GradCAM(net, optimize=Optimize(cuda_graphs=True))
    monkeypatch.setattr(settings, "_computes", lambda device, dtype: False)
    with pytest.raises(ValueError, match="this CPU does not compute in fp16"):
        GradCAM(net, optimize=Optimize(dtype="fp16"))
    with pytest.raises(ValueError, match="does not compute in bf16"):
        fastcam.explain(net, x, optimize=Optimize(dtype="bf16"))


def test_explain_many_methods_at_once():
    net, x = small()
    asked = ["gradcam", "eigencam", "fullgrad"], ["layer3", "layer4"], 1
    fast, exact = fastcam.explain(net, x, *asked, optimize=True), fastcam.explain(net, x, *asked)
    assert fast.keys() == exact.keys() and exact.agreement == {}
    for method, layers in exact.items():
        for layer, maps in layers.items():
            assert (fast[method][layer] - maps).abs().max() < 1e-3, (method, layer)
    assert [a.maps for a in fast.agreement.values()] == [4, 4, 2]
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    again = fastcam.explain(net, x, *asked, optimize=True)
    assert again.agreement == fast.agreement and not runs, "the copy and the comparison are there"


def test_blocks_are_outside_of_the_layer():
    net = build("resnet18")
    found = [name for name, _ in blocks(net, {net.layer3[0]})]
    assert found == ["layer1", "layer2", "layer3.0", "layer3.1", "layer4"]
    assert [name for name, _ in blocks(net, {net})] == [""]
    net = build("small_vit")
    assert "encoder.layers.encoder_layer_1" in [n for n, _ in blocks(net, {net.encoder.layers[2].ln_1})]


@pytest.fixture
def eager_compiler(monkeypatch):
    """`torch.compile` up to its backend, which runs what was captured: seconds less than with a C++ compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def test_what_is_compiled_gives_the_same_maps(eager_compiler):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    before = snapshot(net)
    cam = GradCAM(net, "body", optimize=Optimize(compile=True))
    found = cam(x, 1)
    assert cam.agreement.max_difference < 1e-4
    assert np.abs(found - GradCAM(net, "body")(x, 1)).max() < 1e-4
    with torch.no_grad():
        net.stem[1].weight.mul_(torch.rand(8) + 0.5)
    assert np.abs(cam(x, 1) - GradCAM(net, "body")(x, 1)).max() < 1e-4
    after = snapshot(net)
    assert before[0] == after[0]


def test_every_block_is_compiled_for_every_size(monkeypatch):
    """PyTorch stops after eight of the same code, here after two, and runs what comes then as it is."""
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    parts = [nn.Sequential(nn.Conv2d(n, n + 1, 1), nn.ReLU()) for n in (3, 4, 5)]
    net = nn.Sequential(*parts, nn.Conv2d(6, 4, 1), nn.Flatten()).eval()
    cam = GradCAM(net, "3", optimize=Optimize(fold=False, compile=True))
    with torch._dynamo.config.patch(recompile_limit=2):
        for n, size in enumerate((2, 3, 4), 1):
            for _ in range(2):
                cam(torch.rand(size, 3, 2, 2), 1)
                assert len(graphs) == 3 * n
    assert compiled_blocks(fast_copy(cam)) == ["0", "1", "2"]
    torch._dynamo.reset()


def broken(*_, **__):
    raise RuntimeError("not here")


@pytest.mark.parametrize(("where", "block"), [("forward", "stem"), ("backward", "body"), ("Python", "stem")])
def test_what_cannot_be_compiled_runs_as_it_is(where, block, monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    net, x = tiny(), torch.randn(2, 3, 20, 24)
    torch._dynamo.reset()
    backend = broken if where == "forward" else aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken)
    compiler = broken if where == "Python" else partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiler)
    cam = GradCAM(net, "stem", optimize=Optimize(compile=True))
    with pytest.warns(UserWarning, match=f"'{block}' is not compiled.*: RuntimeError: not here") as caught:
        found = cam(x, 1)
    assert len(caught) == 1 and caught[0].filename == __file__ and block not in compiled_blocks(fast_copy(cam))
    assert np.abs(found - GradCAM(net, "stem")(x, 1)).max() < 1e-4
    with pytest.warns(UserWarning, match="TinyNet is not compiled: AblationCAM looks inside of it"):
        fastcam.AblationCAM(net, "tail", optimize=Optimize(compile=True))(x, 1)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_by_a_real_compiler():
    net, x = small(dtype=torch.float32)
    cam = GradCAM(net, "layer4[-1]", optimize=Optimize(compile=True))
    assert np.abs(cam(x) - GradCAM(net, "layer4[-1]")(x)).max() < 1e-3
    assert np.abs(cam(x[:1]) - GradCAM(net, "layer4[-1]")(x[:1])).max() < 1e-3, "a batch of another size"
    several = torch.tensor([[0, 1]] * 2)  # two backward passes through the blocks behind the layer
    cam = GradCAM(net, "layer3", optimize=Optimize(compile=True))
    exact, image = small()  # in fp64: in fp32 a ReLU near 0 decides otherwise in the model as it is
    assert np.abs(cam(x, several) - GradCAM(exact, "layer3")(image, several)).max() < 1e-3


@pytest.mark.gpu
def test_half_precision_on_a_gpu():
    net, x = build("resnet18").cuda(), inputs("resnet18", 4).cuda()
    cam = GradCAM(net, "layer4[-1]", optimize=Optimize(dtype="bf16"))
    assert cam.attribute(x).is_cuda and cam.agreement.rank_correlation > 0.9


def test_the_commands(tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for n, image in enumerate(photographs(2, 60, 70)):
        pixels = ((image * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / f"{n}.png")
    common = [str(folder), "--model", "models:tiny", "--size", "32", "--device", "cpu", "--layer", "body"]
    fast = ["--optimize", "--optimize-option", "channels_last=false", "--out"]
    assert main(["explain", *common, *fast, str(tmp_path / "maps")]) == 0
    assert "agreement with the exact maps: largest difference" in capsys.readouterr().out
    record = json.loads((tmp_path / "maps" / "0.json").read_text())
    assert record["optimize"] == {**vars(Optimize()), "channels_last": False} and record["agreement"]["maps"] == 2
    assert main(["run", *common, *fast, str(tmp_path / "run"), "--workers", "0"]) == 0
    assert "agreement with the exact maps" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["method"]["settings"]["optimize"] == record["optimize"]
    assert manifest["result"]["agreement"]["max_difference"] < 1e-3
    assert main(["run", *common, "--out", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "method.settings.optimize" in capsys.readouterr().err
    assert main(["run", *common, *fast, str(tmp_path / "run"), "--workers", "0"]) == 0, "the same run again"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["result"]["agreement"]["maps"] == 2
    for wrong, message in [
        (["--optimize-option", "fold=False"], "--optimize-option is a setting of --optimize"),
        (["--optimize", "--optimize-option", "speed=9"], "no setting 'speed'"),
        (["--optimize", "--optimize-option", "dtype=int8"], "dtype must be None"),
        (["--optimize", "--optimize-option", "fold=no"], "fold must be True or False"),
    ]:
        assert main(["explain", *common, *wrong, "--out", str(tmp_path / "wrong")]) == 2
        assert message in capsys.readouterr().err
    gradients = [*common[:-2], "--method", "saliency", "--optimize", "--out", str(tmp_path / "wrong")]
    assert main(["explain", *gradients]) == 2
    assert "--optimize is for maps" in capsys.readouterr().err


def test_a_first_call_in_inference_mode():
    net, x = small()
    cam = GradCAM(net, "layer4", optimize=True)
    exact = GradCAM(net, "layer4")(x)
    with torch.inference_mode():
        np.testing.assert_allclose(cam(x), exact, atol=1e-6)
    np.testing.assert_allclose(cam(x), exact, atol=1e-6)
    assert folded(cam) == 20


def test_narrow_types_are_folded_too():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.bfloat16, torch.float16):
            net, x = small(dtype=dtype)
            cam = GradCAM(net, "layer4", optimize=True)
            cam(x)
            assert folded(cam) == 20, dtype
        net, x = small(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            cam = GradCAM(net, "layer4", optimize=True)
            cam(x)
        assert folded(cam) == 20


class Recorder:
    """What a hook of the user's sees, kept beside what cannot be copied."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), 0

    def see(self, module, args, output):
        with self.lock:
            self.seen += 1


def test_hooks_and_tensors_that_cannot_be_copied():
    net, x = small()
    recorder = Recorder()
    net.layer1.register_forward_hook(recorder.see)
    net.layer1.kept = (net.fc.weight * 2).sum(1)  # inside of a graph
    cam = GradCAM(net, "layer4", optimize=True)
    maps = cam(x)
    seen = recorder.seen
    assert seen >= 1
    cam(x)
    assert recorder.seen == seen + 1
    np.testing.assert_allclose(maps, GradCAM(net, "layer4")(x), atol=1e-6)


def test_a_hook_before_a_container_sees_what_it_saw():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 4, 3)).double()
    net[1][0].running_mean.fill_(0.5)
    net.append(nn.Flatten()).append(nn.Linear(4 * 144, 3).double())
    x, seen = torch.rand(1, 3, 16, 16, dtype=torch.float64), []
    net[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is folded
        cam = GradCAM(net, "2", optimize=True)
        cam(x)
        seen.clear()
        cam(x)
    torch.testing.assert_close(seen[-1], net[0](x).detach())
