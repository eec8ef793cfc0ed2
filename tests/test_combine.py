"""Finer-CAM and RefineCAM beside grad-cam and beside what they are made of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import pytorch_grad_cam
import torch

import fastcam
from fastcam import (
    SESS,
    AblationCAM,
    ClassifierOutputTarget,
    EigenCAM,
    FinerCAM,
    FinerWeightedTarget,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RefineCAM,
    ScoreCAM,
    ShapleyCAM,
    ops,
)
from fastcam.layers import find_layers

from models import LAYERS, TinyNet, build, inputs, tiny, tokens_to_map

NETWORKS = ["resnet18", "vgg11_bn", "mobilenet_v3_small", "small_vit"]


@pytest.fixture
def x():
    return torch.randn(3, 3, 20, 24)


def both(cls, network, layers, batch, base, **options):
    """(grad-cam's map, ours)."""
    x, layers = inputs(network, batch), LAYERS[network][layers]
    transform = tokens_to_map if network == "small_vit" else None
    model = build(network)
    theirs = getattr(pytorch_grad_cam, cls.__name__)
    expected = theirs(model, find_layers(model, layers), transform, getattr(pytorch_grad_cam, base))(x, **options)
    actual = cls(build(network), layers, transform, getattr(fastcam, base), sign="lapack")(x, **options)
    assert actual.dtype == np.float32 and np.ptp(expected, axis=(1, 2)).max() > 0.1, "a constant map compares nothing"
    return expected, actual


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("layers", "batch", "base", "options"),
    [
        ("last", 3, "GradCAM", {}),
        ("several", 1, "HiResCAM", {"alpha": 0.6, "eigen_smooth": True}),
        ("several", 3, "LayerCAM", {"target_idx": 4, "comparison_categories": [1, 5, 400]}),
    ],
    ids=["last", "several-eigen", "several-target"],
)
def test_same_finer_map_as_grad_cam(network, layers, batch, base, options):
    expected, actual = both(FinerCAM, network, layers, batch, base, **options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("layers", "base"), [("last", "GradCAMPlusPlus"), ("several", "GradCAM")])
@pytest.mark.parametrize("batch", [1, 3])
def test_same_refined_map_as_grad_cam(network, layers, base, batch):
    expected, actual = both(RefineCAM, network, layers, batch, base)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_finer_by_its_equation(x):
    net, x = tiny().double(), x.double()
    A = net.body(net.stem(x)).detach()
    maps = FinerCAM(net, "body").attribute(x, normalize=False, size=None, alpha=0.7, comparison_categories=[1, 3])
    for b in range(len(x)):
        at = A[b : b + 1].clone().requires_grad_()
        y = net.head(net.tail(at.relu()).relu().mean((2, 3)))[0]
        c = int(y.argmax())
        others = sorted((k for k in range(5) if k != c), key=lambda k: y[c] - y[k])
        p = y.exp() / y.exp().sum()
        score = sum(p[k] * (y[c] - 0.7 * y[k]) for k in (others[0], others[2])) / (p[others[0]] + p[others[2]])
        (G,) = torch.autograd.grad(score, at)
        expected = torch.einsum("c,chw->hw", G[0].mean((1, 2)), at[0].detach())
        torch.testing.assert_close(maps[b], expected, rtol=1e-6, atol=1e-12)
    assert maps.std() > 0


def test_the_spellings_of_the_class_that_is_compared(x):
    cam = FinerCAM(tiny(), "body")
    expected = cam(x, target_idx=2)
    assert torch.equal(cam.outputs, tiny()(x).detach())
    for targets in (2, [2, 2, 2], torch.tensor([2, 2, 2])):
        np.testing.assert_array_equal(cam(x, targets), expected)
    np.testing.assert_array_equal(cam.attribute(x, target_idx=2), expected)
    assert np.abs(expected - GradCAM(tiny(), "body")(x, 2)).max() > 1e-2
    many = cam(x, torch.tensor([[2, 0], [2, 1], [2, 4]]), alpha=0.5)
    np.testing.assert_allclose(many[:, 0], cam(x, 2, alpha=0.5), atol=1e-6)
    np.testing.assert_allclose(many[:, 1], cam(x, [0, 1, 4], alpha=0.5), atol=1e-6)


def test_callables_are_explained_as_they_are(x):
    def given(row):
        return row[1] - row[2]

    np.testing.assert_array_equal(FinerCAM(tiny(), "body")(x, given), GradCAM(tiny(), "body")(x, given))
    finer = [FinerWeightedTarget(n, [3, 4], 1) for n in range(3)]
    np.testing.assert_array_equal(FinerCAM(tiny(), "body")(x, finer, alpha=9), GradCAM(tiny(), "body")(x, finer))
    for one in (ClassifierOutputTarget(2), [ClassifierOutputTarget(2)] * 3):
        np.testing.assert_array_equal(FinerCAM(tiny(), "body")(x, one), GradCAM(tiny(), "body")(x, 2))
    mixed = [finer[0], ClassifierOutputTarget(1), ClassifierOutputTarget(2)]
    expected = GradCAM(tiny(), "body")(x, [finer[0], lambda row: row[1], lambda row: row[2]])
    np.testing.assert_array_equal(FinerCAM(tiny(), "body")(x, mixed), expected)


@pytest.mark.parametrize("base", [ScoreCAM, AblationCAM, ShapleyCAM, GradCAMPlusPlus])
@pytest.mark.parametrize("cls", [FinerCAM, RefineCAM])
def test_other_base_methods(cls, base, x):
    """The map is the base method's for the same target; parts of a batch keep their own classes."""
    net = tiny()
    options = {"batch_size": 2} if base in (ScoreCAM, AblationCAM) else {}
    cam = cls(net, "tail", base_method=base, **options)
    targets = [FinerWeightedTarget(2, [0, 1], 1.0)] * 3
    expected = base(net, "tail", **options)(x, targets)
    np.testing.assert_allclose(cam(x, targets), expected, rtol=0, atol=1e-6)
    together = cam(x, [1, 4, 0])
    alone = np.concatenate([cam(x[n : n + 1], c) for n, c in enumerate([1, 4, 0])])
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-4)
    assert np.ptp(together) > 0.5


def test_a_base_method_without_classes(x):
    for cls in (FinerCAM, RefineCAM):
        cam = cls(tiny(), "body", base_method=EigenCAM)
        np.testing.assert_allclose(cam(x), EigenCAM(tiny(), "body")(x), atol=1e-6)
        assert cam.attribute(x).shape == (3, 20, 24) and cam.outputs is None, "stopped at the layer"


class Counting(TinyNet):
    runs = 0

    def forward(self, x):
        Counting.runs += 1
        return super().forward(x)


@pytest.mark.parametrize("eigen_smooth", [False, True])
@pytest.mark.parametrize("base", [GradCAM, LayerCAM])
def test_refine_is_the_product_of_its_layers(base, eigen_smooth, x):
    net, layers = tiny(Counting), ["stem", "body", "tail"]
    expected = np.prod([base(tiny(), layer)(x, 1, eigen_smooth=eigen_smooth) for layer in layers], axis=0)
    Counting.runs = 0
    with RefineCAM(net, layers, base_method=base) as cam:
        maps = cam(x, 1, eigen_smooth)
    assert Counting.runs == 1
    raw = cam.attribute(x, 1, eigen_smooth=eigen_smooth, normalize=False)
    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-6)
    low = expected - expected.min((1, 2), keepdims=True)
    np.testing.assert_allclose(maps, low / (1e-7 + low.max((1, 2), keepdims=True)), rtol=0, atol=1e-5)
    assert np.abs(maps - base(tiny(), layers)(x, 1)).max() > 0.1
    assert torch.equal(cam.outputs, tiny()(x).detach())


def test_refined_maps_of_many_targets_and_sizes(x):
    cam = RefineCAM(tiny(), ["stem", "body"], base_method=GradCAM)
    many = cam(x, torch.tensor([[0, 1], [2, 3], [4, 4]]))
    assert many.shape == (3, 2, 20, 24)
    np.testing.assert_allclose(many[:, 1], cam(x, [1, 3, 4]), atol=1e-6)
    assert cam.attribute(x, 1, size=(7, 9)).shape == (3, 7, 9)
    pooled = TinyNet()
    pooled.body = torch.nn.Sequential(torch.nn.MaxPool2d(2), pooled.body)
    low = RefineCAM(pooled.eval(), ["body", "stem"], base_method=GradCAM).attribute(x, 1, size=None)
    assert low.shape == (3, 10, 12), "the finest of the layers"


@pytest.mark.parametrize("cls", [FinerCAM, RefineCAM])
def test_augmentation(cls, x):
    cam, maps = cls(tiny(), ["stem", "body"]), []
    for factor in (0.9, 1.0, 1.1):
        maps += [cam(x * factor, 2), cam(x.flip(3) * factor, 2)[:, :, ::-1]]
    np.testing.assert_allclose(cam(x, 2, aug_smooth=True), np.mean(maps, axis=0), atol=1e-6)


def test_a_warning_names_the_callers_line(x):
    net = tiny()
    with torch.no_grad():
        net.head.weight.zero_()
    for cls in (GradCAM, FinerCAM, RefineCAM, ShapleyCAM, SESS):
        for call in (lambda c: c(x, 1), lambda c: c(x, 1, aug_smooth=True), lambda c: c.attribute(x, 1)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call(cls(net, "tail"))
            assert caught and all(w.filename == __file__ for w in caught), cls


def test_bad_arguments(x):
    with pytest.raises(ValueError, match=r"none of the places \(1, 2, 3\) is among 1 classes"):
        FinerCAM(tiny(classes=1), "body")(x)
    with pytest.raises(ValueError, match=r"none of the places \(7,\) is among 5 classes"):
        FinerCAM(tiny(), "body")(x, comparison_categories=[7])
    with pytest.raises(ValueError, match="target 5 is out of range"):
        FinerCAM(tiny(), "body")(x, target_idx=5)
    with pytest.raises(TypeError, match="base_method must be a method such as GradCAM, it gives Conv2d"):
        RefineCAM(tiny(), "body", base_method=lambda *_: torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(NotImplementedError, match="SESS"):
        RefineCAM(tiny(), "body", base_method=SESS)(x)
    with pytest.raises(ValueError, match="did not run"):
        net = tiny()
        net.unused = torch.nn.Conv2d(1, 1, 1)
        RefineCAM(net, ["body", "unused"])(x)


def test_binary_models_have_one_class_to_compare_with(x):
    net = tiny(classes=2)
    expected = HiResCAM(net, "body")(x, [FinerWeightedTarget(int(c), [1 - int(c)], 1) for c in net(x).argmax(1)])
    np.testing.assert_allclose(FinerCAM(net, "body", base_method=HiResCAM)(x), expected, atol=1e-6)


def test_the_finish_is_that_of_one_layer(x):
    low = torch.rand(2, 1, 5, 6)
    cam = RefineCAM(tiny(), "body")
    torch.testing.assert_close(cam.finished([low], True, (10, 12))[0], ops.finish([low], (10, 12)), atol=1e-6, rtol=0)
