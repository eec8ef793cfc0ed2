"""ShapleyCAM beside grad-cam and beside finite differences of the gradient."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from torch import nn

from fastcam import ClassifierOutputReST, ClassifierOutputSoftmaxTarget, GradCAM, ShapleyCAM
from fastcam.layers import find_layers
from fastcam.methods.shapley import _plain_attention

from models import LAYERS, TinyNet, build, inputs, tiny, tokens_to_map

ATTENTION = (
    torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.math_sdp_enabled,
    torch.backends.cuda.cudnn_sdp_enabled,
)


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn", "mobilenet_v3_small"])
@pytest.mark.parametrize("layers", ["last", "middle"])
@pytest.mark.parametrize(
    ("batch", "options"),
    [(1, {"aug_smooth": True}), (3, {}), (1, {"eigen_smooth": True})],
    ids=["aug", "plain", "eigen"],
)
def test_same_map_as_grad_cam(network, layers, batch, options):
    x, layers = inputs(network, batch), LAYERS[network][layers]
    with torch.no_grad():
        targets = [ClassifierOutputReST(int(c)) for c in build(network)(x).argmax(1)]
    model = build(network)
    for module in model.modules():  # whose second derivative torch does not have
        if isinstance(module, nn.Hardsigmoid):
            module.forward = lambda t: nn.functional.relu6(t + 3) / 6
    expected = pytorch_grad_cam.ShapleyCAM(model, find_layers(model, layers))(x, targets, **options)
    actual = ShapleyCAM(build(network), layers, sign="lapack")(x, targets, **options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.1, "a constant map compares nothing"


def differences(net, layer, x, target, step=1e-4):
    """Activations A, gradients G and H A of one layer, where H A = (G at A + s A - G at A - s A) / 2 s."""

    def gradient(factor):
        seen = []

        def scale(_module, _inputs, output):
            A = output.detach()
            seen.append(A)
            seen.append((A * factor).requires_grad_())
            return seen[1].clone()

        hook = net.get_submodule(layer).register_forward_hook(scale)
        try:
            score = torch.stack([target(row) for row in net(x)]).sum()
        finally:
            hook.remove()
        return seen[0], torch.autograd.grad(score, seen[1])[0]

    A, G = gradient(1.0)
    return A, G, (gradient(1 + step)[1] - gradient(1 - step)[1]) / (2 * step)


class Curved(TinyNet):
    """What follows the layers bends: a GELU, an attention, a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def features(self, x):
        x = self.tail(nn.functional.gelu(self.body(self.stem(x))))
        t = x.flatten(2).mT
        return self.attention(t, t, t, need_weights=False)[0].mean(1)


@pytest.mark.parametrize("target", [ClassifierOutputSoftmaxTarget(1), lambda row: row[2]], ids=["softmax", "logit"])
def test_the_equation_at_several_layers(target, x):
    net, x = tiny(Curved).double(), x.double()
    cam = ShapleyCAM(net, ["tail", "stem", "body"])
    maps = cam.attribute(x, target, normalize=False, size=None)
    for layer, actual in zip(["tail", "stem", "body"], maps, strict=True):
        A, G, HA = differences(net, layer, x, target)
        expected = torch.einsum("bc,bchw->bhw", (G - HA / 2).mean((2, 3)), A)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
        assert HA.abs().max() > 1e-3 * G.abs().max(), "without curvature it is Grad-CAM"


@pytest.mark.parametrize("layers", ["last", "several"])
def test_tokens_of_a_transformer(layers):
    x, names = inputs("small_vit", 2).double(), LAYERS["small_vit"][layers]
    net, target = build("small_vit").double(), ClassifierOutputSoftmaxTarget(3)
    maps = ShapleyCAM(net, names, tokens_to_map).attribute(x, target, normalize=False, size=None)
    for name, actual in zip(names, maps if len(names) > 1 else [maps], strict=True):
        path = name.replace("[-1]", "[2]").replace("layers[", "layers.encoder_layer_").replace("]", "")
        A, G, HA = (tokens_to_map(t) for t in differences(net, path, x, target))
        expected = torch.einsum("bc,bchw->bhw", (G - HA / 2).mean((2, 3)), A)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)
        assert HA.abs().max() > 1e-2 * G.abs().max()


def test_behind_a_linear_head_it_is_grad_cam(x):
    model, x = build("resnet18"), inputs("resnet18", 2)
    classes = model(x).argmax(1)
    plain = ShapleyCAM(model, "layer4")(x)
    np.testing.assert_allclose(plain, GradCAM(model, "layer4")(x), rtol=0, atol=1e-6)
    curved = [ClassifierOutputReST(int(c)) for c in classes]
    assert np.ptp(plain) > 0.5
    assert np.abs(ShapleyCAM(model, "layer4")(x, curved) - GradCAM(model, "layer4")(x, curved)).max() > 1e-3


def test_many_targets(x):
    cam = ShapleyCAM(tiny(Curved), "body")
    many = cam(x, torch.tensor([[0, 1, 2], [2, 3, 4]]))
    assert many.shape == (2, 3, 20, 24)
    for t, targets in enumerate([[0, 2], [1, 3], [2, 4]]):
        np.testing.assert_allclose(many[:, t], cam(x, targets), rtol=0, atol=1e-5)


def test_the_attention_setting_is_as_before(x):
    before = [enabled() for enabled in ATTENTION]
    inside = []

    def target(row):
        inside.append([enabled() for enabled in ATTENTION])
        if len(inside) == 3:
            raise KeyError("in target")
        return row[0]

    cam = ShapleyCAM(tiny(Curved), "body")
    cam(x, target)
    assert [enabled() for enabled in ATTENTION] == before
    with pytest.raises(KeyError):
        cam(x, target)
    assert [enabled() for enabled in ATTENTION] == before and before[0]
    assert inside[0][:3] == [False, False, True]


def test_the_attention_setting_after_overlapping_runs():
    before = [enabled() for enabled in ATTENTION]
    first, second = _plain_attention(), _plain_attention()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not ATTENTION[0]()
    second.__exit__(None, None, None)
    assert [enabled() for enabled in ATTENTION] == before


def test_the_attention_setting_when_another_thread_is_the_last_out():
    before = [enabled() for enabled in ATTENTION]
    first, second = _plain_attention(), _plain_attention()
    first.__enter__()
    with ThreadPoolExecutor(1) as other:
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert [enabled() for enabled in ATTENTION] == [False, False, True, False]
        other.submit(second.__exit__, None, None, None).result()
    assert [enabled() for enabled in ATTENTION] == before


def test_an_operation_without_a_second_derivative_is_an_error(x):
    class Net(TinyNet):
        def features(self, x):
            return torch.ops.aten.hardsigmoid(self.tail(self.body(self.stem(x)))).mean((2, 3))

    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
        ShapleyCAM(tiny(Net), "body")(x, lambda row: row.softmax(0)[1])
