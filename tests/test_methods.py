"""The methods beside their formulas, their options, and what must not change a map."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcam import CAM, EigenCAM, EigenGradCAM, GradCAM, HiResCAM, LayerCAM, ops
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM

from models import TinyNet, build, inputs, tiny

GENERAL = [m for m in METHODS if m not in ("cam", "randomcam")]


@pytest.fixture
def x():
    return torch.randn(4, 3, 20, 24)


def min_max(v):
    v = v - v.amin((1, 2), keepdim=True)
    return v / (1e-7 + v.amax((1, 2), keepdim=True))


class Pooled(TinyNet):
    """Nothing but global average pooling and the head behind `tail`."""

    def forward(self, x):
        return self.head(self.tail(self.relu(self.body(self.stem(x)))).mean((2, 3)))


def cam_by_formula(net, x, classes):
    A = net.tail(net.body(net.stem(x)).relu())
    return torch.einsum("bc,bchw->bhw", net.head.weight[classes], A).detach()


def test_plain_cam_is_its_formula(x):
    net, classes = tiny(Pooled), torch.tensor([0, 3, 1, 4])
    raw = cam_by_formula(net, x, classes)
    torch.testing.assert_close(CAM(net, "tail").attribute(x, classes, normalize=False, size=None), raw)
    finished = min_max(F.interpolate(min_max(raw.relu())[:, None], (20, 24), mode="bilinear")[:, 0])
    np.testing.assert_allclose(CAM(net, "tail")(x, classes), finished, atol=1e-6)
    many = CAM(net, "tail").attribute(x, torch.stack([classes, classes * 0 + 2], 1), normalize=False, size=None)
    torch.testing.assert_close(many, torch.stack([raw, cam_by_formula(net, x, 2 + 0 * classes)], 1))


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("signed", [False, True])
def test_many_classes_are_each_as_alone(method, signed, x):
    """At the last layer before pooling and a linear head, where the Grad-CAM family makes no backward pass for them."""
    net, x = tiny(Pooled).double(), x[:2].double()
    if not signed:
        net.tail.register_forward_hook(lambda m, args, output: output.relu())
    targets = torch.tensor([[0, 1, 4], [2, 2, 3]])
    cam = METHODS[method](net, "tail")
    many = cam.attribute(x, targets, normalize=False, size=None)
    assert many.shape[:2] == (2, 3)
    for t, classes in enumerate(targets.T.tolist()):
        alone = cam.attribute(x, classes, normalize=False, size=None)
        assert alone.abs().max() > 1e-6
        torch.testing.assert_close(many[:, t], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcamelementwise"])
def test_one_list_of_classes_serves_all_images_and_is_looked_up_once(method, x, monkeypatch):
    looked_up, maps_of = [], ops.pooled_maps
    monkeypatch.setattr(ops, "pooled_maps", lambda A, W, w: looked_up.append(W.ndim) or maps_of(A, W, w))
    cam = METHODS[method](tiny(Pooled), "tail")
    classes = torch.tensor([[0, 3, 1]])
    shared = cam.attribute(x, classes, normalize=False, size=None)
    each = cam.attribute(x, torch.cat([classes, *[classes.flip(1)] * 3]), normalize=False, size=None)
    assert shared.shape[:2] == (4, 3) and looked_up == [2, 3] and shared.abs().max() > 1e-6
    torch.testing.assert_close(shared, torch.cat([each[:1], each[1:].flip(1)]))


def test_the_gradients_of_one_target_at_a_time_are_held(x):
    net, alive = tiny(), []

    class Watched(GradCAM):
        def gradients(self, run, targets):
            held = []
            for G in super().gradients(run, targets):
                held.append(weakref.ref(G[0]))
                alive.append(sum(ref() is not None for ref in held))
                yield G

    Watched(net, "stem").attribute(x, torch.tensor([[0, 1, 2, 3, 4]] * 4))
    assert len(alive) == 5 and max(alive) <= 2


def test_many_classes_make_no_backward_pass_behind_a_linear_head(x, monkeypatch):
    passes = []
    backward = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or backward(*a, **k))
    targets = torch.tensor([[0, 1, 2, 3]] * 4)
    for method, layer, expected in [("gradcam", "tail", 0), ("gradcam", "body", 4), ("eigengradcam", "tail", 4)]:
        passes.clear()
        METHODS[method](tiny(Pooled), layer).attribute(x, targets)
        assert len(passes) == expected, (method, layer)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_plain_cam_of_a_head_without_bias_and_in_channels_last(memory_format):
    model, x = build("resnet18").to(memory_format=memory_format), inputs("resnet18", 2)
    x = x.contiguous(memory_format=memory_format)
    model.fc.bias = None
    np.testing.assert_allclose(CAM(model, "layer4")(x, [1, 2]), GradCAM(model, "layer4")(x, [1, 2]), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "grey_resnet18"])
def test_plain_cam_is_grad_cam_before_global_pooling(name):
    model, x = build(name), inputs(name, 2)
    layer = {"densenet121": "features.norm5"}.get(name, "layer4")
    if name == "densenet121":  # a ReLU follows norm5: it is asked of the graph, not of the values
        with pytest.raises(ValueError, match="at ReluBackward0"):
            CAM(model, layer)(x)
        return
    np.testing.assert_allclose(CAM(model, layer)(x, [1, 2]), GradCAM(model, layer)(x, [1, 2]), atol=1e-5)


def test_plain_cam_refuses_what_is_not_pooling_and_a_linear_layer(x):
    with pytest.raises(ValueError, match="global average pooling and one linear layer directly behind"):
        CAM(tiny(), "body")(x)
    with pytest.raises(ValueError, match="class indices, got callables"):
        CAM(tiny(Pooled), "tail")(x, lambda row: row[0])

    class Scaled(Pooled):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.raises(ValueError, match="at MulBackward0"):
        CAM(tiny(Scaled), "tail")(x)


def test_eigen_cam_correlates_with_the_mean_activation(x):
    for layer in ("stem", "body", "tail"):
        net = tiny()
        raw = EigenCAM(net, layer).attribute(x, normalize=False, size=None).flatten(1)
        A = getattr(net, layer)
        mean = _activation(net, A, x).mean(1).flatten(1)
        product = (raw * (mean - mean.mean(1, keepdim=True))).sum(1)
        assert (product > 0).all()
        other = EigenCAM(net, layer, sign="lapack").attribute(x, normalize=False, size=None).flatten(1)
        torch.testing.assert_close(raw.abs(), other.abs(), rtol=1e-4, atol=1e-5)


def _activation(net, module, x):
    seen = []
    hook = module.register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    net(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e9, 1e25])
def test_a_principal_component_has_any_scale(scale, x):
    unit, scaled = (ops.principal_component(s * x) for s in (1.0, scale))
    torch.testing.assert_close(scaled / scale, unit, rtol=1e-4, atol=1e-5)


def test_eigen_cam_checks_its_targets_where_there_is_an_output(x):
    with pytest.raises(ValueError, match="target 77 is out of range"):
        EigenCAM(tiny(), "body")(x, 77)
    with pytest.raises(ValueError, match=r"for 4 images, got shape \(3,\)"):
        EigenCAM(tiny(), "body")(x, [1, 2, 3])


def test_eigen_smooth_is_the_component_of_the_weighted_activations(x):
    smooth = HiResCAM(tiny(), "body").attribute(x, 1, eigen_smooth=True)
    torch.testing.assert_close(smooth, EigenGradCAM(tiny(), "body").attribute(x, 1))
    assert not torch.allclose(smooth, HiResCAM(tiny(), "body").attribute(x, 1))


def test_aug_smooth_is_the_mean_over_six_augmentations(x):
    cam = LayerCAM(tiny(), "body")
    maps = []
    for factor in (0.9, 1.0, 1.1):
        maps += [cam(x * factor, 2), cam(x.flip(3) * factor, 2)[:, :, ::-1]]
    smooth = cam(x, 2, aug_smooth=True)
    np.testing.assert_allclose(smooth, np.mean(maps, axis=0), atol=1e-6)
    torch.testing.assert_close(cam.outputs, tiny()(x).detach())
    assert smooth.max() < 0.999  # a mean is not normalised again


def test_sizes(x):
    cam = GradCAM(tiny(), ["stem", "body"])
    low = cam.attribute(x, 1, size=None, normalize=False)
    assert [m.shape for m in low] == [(4, 10, 12), (4, 10, 12)] and min(m.min() for m in low) < 0
    assert [m.min().item() for m in cam.attribute(x, 1, size=None)] == [0, 0]
    assert cam.attribute(x, 1, size=(7, 33)).shape == (4, 7, 33)
    resized = F.interpolate(torch.stack(low, 1), (20, 24), mode="bilinear").mean(1)
    torch.testing.assert_close(cam.attribute(x, 1, normalize=False), resized)
    with pytest.raises(ValueError, match="size must have 2 values"):
        cam.attribute(x, 1, size=(7,))
    with pytest.raises(TypeError, match=r'size must be "input", None or \(H, W\), got 7'):
        cam.attribute(x, 1, size=7)


def test_a_call_and_attribute_agree(x):
    cam = GradCAM(tiny(), "body")
    maps = cam(x)
    assert maps.dtype == np.float32 and maps.min() >= 0 and maps.max() <= 1
    tensor = cam.attribute(x)
    assert tensor.dtype == torch.float32 and not tensor.requires_grad
    np.testing.assert_array_equal(maps, tensor)
    with GradCAM(tiny(), "body") as inside:
        np.testing.assert_array_equal(inside(input_tensor=x, targets=None), maps)
    assert cam.outputs.shape == (4, 5) and not cam.outputs.requires_grad


@pytest.mark.parametrize("method", GENERAL)
def test_what_must_not_change_a_map(method, x):
    cls = METHODS[method]
    expected = cls(tiny(), "body")(x, [0, 1, 2, 3])

    rounding = 1e-4 if issubclass(cls, PerturbationCAM) else 2e-6  # differences of scores, in batches of other sizes
    rounding = 1e-3 if method == "reciprocam" else rounding  # of probabilities, of an untrained head

    def check(actual, tolerance=rounding):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)

    order = [2, 0, 3, 1]
    check(cls(tiny(), "body")(x[order], order)[np.argsort(order)])  # batch order
    check(np.concatenate([cls(tiny(), "body")(x[n : n + 1], [n]) for n in range(4)]))  # batch size
    check(cls(tiny().requires_grad_(False), "body")(x, [0, 1, 2, 3]), 0)  # frozen
    with torch.no_grad():  # grad mode
        check(cls(tiny(), "body")(x, [0, 1, 2, 3]), 0)
    channels_last = tiny().to(memory_format=torch.channels_last)
    check(cls(channels_last, "body")(x.to(memory_format=torch.channels_last), [0, 1, 2, 3]), max(1e-5, rounding))
    # SESS counts the patches above 0 at each position, and at some rounding decides which are.
    check(cls(tiny().double(), "body")(x.double(), [0, 1, 2, 3]), 5e-3 if method == "sess" else max(1e-5, rounding))


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(method, dtype, x):
    maps = METHODS[method](tiny().to(dtype), "body")(x.to(dtype), 1)
    expected = METHODS[method](tiny(), "body")(x, 1)
    assert maps.dtype == np.float32
    least = 0.95 if method in ("groupcam", "reciprocam") else 0.98  # those two are made of small changes of scores
    for ours, exact in zip(maps.reshape(4, -1), expected.reshape(4, -1), strict=True):
        assert np.corrcoef(ours, exact)[0, 1] > least


def test_a_batch_with_one_nan_image(x):
    x[1, 0, 3, 3] = float("nan")
    maps = GradCAM(tiny(), "body")(x, 1)
    assert np.isnan(maps[1]).all() and not np.isnan(maps[[0, 2, 3]]).any()


def test_bad_input(x):
    cam = GradCAM(tiny(), "body")
    with pytest.raises(ValueError, match=r"empty batch: shape \(0, 3, 20, 24\)"):
        cam(x[:0])
    with pytest.raises(
        TypeError, match=r"floating-point tensor \(B, k, H, W\), got torch.uint8 .*pass input_tensor.float"
    ):
        cam(x.to(torch.uint8))
    with pytest.raises(TypeError, match=r"got ndarray; torch.from_numpy\(x\)"):
        cam(x.numpy())
    with pytest.raises(ValueError, match=r"no batch dimension: \(3, 20, 24\); pass x\[None\]"):
        cam(x[0])
    with pytest.raises(ValueError, match=r"is torch.float64, the model torch.float32: pass x.to\(torch.float32\)"):
        cam(x.double())
    with pytest.raises(ValueError, match=r"takes 3 channels, input_tensor has 1: \(4, 1, 20, 24\)"):
        cam(x[:, :1])
    with pytest.raises(ValueError, match="sign must be"):
        EigenCAM(tiny(), "body", sign="positive")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got function"):
        GradCAM(lambda x: x, "body")


def test_layers_that_cannot_be_mapped(x):
    with pytest.raises(ValueError, match=r"target layer 'head', \(4, 5\), has no spatial extent.*reshape_transform"):
        GradCAM(tiny(), "head")(x)
    unused = tiny()
    unused.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="target layer 'spare' did not run"):
        GradCAM(unused, "spare")(x)
    with pytest.raises(ValueError, match=r"reshape_transform must give \(B, C, h, w\), got \(4, 12\)"):
        GradCAM(tiny(), "body", lambda t: t.mean((2, 3)))(x)
    with pytest.raises(ValueError, match="gives 8 maps"):
        GradCAM(tiny(), "body", lambda t: torch.cat([t, t]))(x)
    with pytest.raises(ValueError, match="no spatial extent.*a single position, choose an earlier layer"):
        GradCAM(build("resnet18"), "avgpool")(inputs("resnet18", 1))
    with pytest.raises(ValueError, match="no spatial extent.*choose an earlier layer, or pass"):
        GradCAM(build("small_vit"), "heads")(inputs("small_vit", 1))
