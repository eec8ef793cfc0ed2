"""Ablation-CAM and Recipro-CAM, beside plain loops of their equations and beside grad-cam."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.ablation_layer import AblationLayer as TheirLayer
from pytorch_grad_cam.ablation_layer import AblationLayerFasterRCNN as TheirLevelsLayer
from pytorch_grad_cam.ablation_layer import AblationLayerVit as TheirTokenLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from fastcam import (
    AblationCAM,
    AblationLayer,
    AblationLayerFasterRCNN,
    AblationLayerVit,
    GradCAM,
    GroupCAM,
    ReciproCAM,
    ScoreCAM,
    ViTReciproCAM,
)
from fastcam.layers import find_layers

from models import LAYERS, SIGNED, TinyNet, build, inputs, tiny, tokens_to_map

CLASSES = [3, 1]


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


class Pooled(TinyNet):
    """Nothing but global average pooling and the head behind `relu`'s module `out`."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.out = nn.ReLU()

    def forward(self, x):
        return self.head(self.out(self.tail(self.relu(self.body(self.stem(x))))).mean((2, 3)))


def run_with(net, layer, x, changed):
    """The model's output if the layer gives `changed`, by a hook; and without one what the layer gives."""
    seen = []

    def hook(module, inputs, output):
        seen.append(output.detach().clone())
        return changed

    handle = net.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        output = net(x)
    handle.remove()
    return output, seen[0]


def ablated_one_by_one(net, layer, x, classes):
    """The weights `(B, C)`, a full forward pass for each channel."""
    output, A = run_with(net, layer, x, None)
    weights = torch.empty(A.shape[:2], dtype=A.dtype)
    for b, k in enumerate(classes):
        value = 0 if A[b].min() == 0 else A[b].min() - 1e7
        for c in range(A.shape[1]):
            changed = A[b : b + 1].clone()
            changed[:, c] = value
            y = run_with(net, layer, x[b : b + 1], changed)[0][0, k]
            weights[b, c] = (output[b, k] - y) / output[b, k]
    return weights, A


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls, layer", [(Pooled, "out"), (Pooled, "tail"), (TinyNet, "stem"), (TinyNet, "body")])
def test_ablation_cam_is_its_equation(cls, layer, dtype, x):
    """With and without a closed form, with and without activations below 0."""
    net, x = tiny(cls).to(dtype), x.to(dtype)
    weights, A = ablated_one_by_one(net, layer, x, CLASSES)
    expected = torch.einsum("bc,bchw->bhw", weights, A)
    actual = AblationCAM(net, layer, batch_size=5).attribute(x, CLASSES, normalize=False, size=None)
    scale = expected.abs().amax()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize(
    "network", ["resnet18", pytest.param("vgg11_bn", marks=pytest.mark.slow), "mobilenet_v3_small", "small_vit"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_same_map_as_grad_cam(network, batch):
    x, layers = inputs(network, batch), LAYERS[network]["last"]
    if network in ("resnet18", "vgg11_bn"):  # 512 full forward passes an image: small ones
        x = F.interpolate(x, (96, 96) if batch == 1 else (64, 64))
    transform = tokens_to_map if network == "small_vit" else None
    with torch.no_grad():
        classes = build(network)(x).argmax(1).tolist()
    reference = build(network)
    theirs = pytorch_grad_cam.AblationCAM(
        reference,
        find_layers(reference, layers),
        reshape_transform=transform,
        ablation_layer=TheirTokenLayer() if network == "small_vit" else TheirLayer(),
    )
    expected = theirs(x, [ClassifierOutputTarget(c) for c in classes])
    cam = AblationCAM(build(network), layers, transform, reference_batching=network in SIGNED)
    np.testing.assert_allclose(cam(x), expected, rtol=0, atol=1e-4)
    assert (np.ptp(expected, axis=(1, 2)) > 0.1).sum() >= min(2, batch), "a constant map compares nothing"


@pytest.mark.parametrize("size", [5, 64])
def test_same_map_as_grad_cam_on_a_signed_layer_whatever_the_batch_size(size):
    """mobilenet_v3_small's last layer goes below 0, where grad-cam's map depends on the batch size."""
    network, layers = "mobilenet_v3_small", LAYERS["mobilenet_v3_small"]["last"]
    x, reference = inputs(network, 1), build(network)
    theirs = pytorch_grad_cam.AblationCAM(reference, find_layers(reference, layers), batch_size=size)
    expected = theirs(x, [ClassifierOutputTarget(4)])
    actual = AblationCAM(build(network), layers, batch_size=size, reference_batching=True)(x, 4)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.abs(AblationCAM(build(network), layers)(x, 4) - expected).max() > 1e-3


@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("closed_form", [True, False])
def test_same_map_as_grad_cam_for_some_channels(ratio, closed_form):
    torch.manual_seed(5)
    x, reference = torch.randn(2, 3, 40, 44), tiny(Pooled)
    kind = ClassifierOutputTarget if closed_form else ClassifierOutputSoftmaxTarget
    targets = [kind(c) for c in CLASSES]
    theirs = pytorch_grad_cam.AblationCAM(reference, [reference.out], ratio_channels_to_ablate=ratio)
    expected = theirs(x, targets)
    actual = AblationCAM(tiny(Pooled), "out", ratio_channels_to_ablate=ratio)(x, targets)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_a_ratio_above_a_half_takes_no_channel_twice(x):
    layer = AblationLayer()
    chosen = layer.activations_to_be_ablated(torch.randn(10, 6, 6), 0.8)
    assert sorted(chosen) == list(range(10)) and layer.indices is chosen and chosen.dtype == np.int32
    assert len(layer.activations_to_be_ablated(np.random.rand(10, 6, 6), 0.2)) == 4
    np.testing.assert_array_equal(layer.activations_to_be_ablated(np.random.rand(4, 2, 2)), range(4))
    most = AblationCAM(tiny(), "stem", ratio_channels_to_ablate=0.9)(x, 1)
    np.testing.assert_allclose(most, AblationCAM(tiny(), "stem")(x, 1), atol=1e-5)


class Counting(nn.Conv2d):
    """Counts the images that its forward pass really runs on."""

    images = 0

    def forward(self, x):
        self.images += len(x)
        return super().forward(x)


@pytest.mark.parametrize("targets", [None, [ClassifierOutputSoftmaxTarget(1)] * 3])
def test_what_comes_before_the_layer_runs_once_an_image(targets):
    model, x = build("resnet18"), inputs("resnet18", 3)
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Counting
    AblationCAM(model, "layer4[-1]")(x, targets)
    assert {m.images for m in model.modules() if isinstance(m, Counting)} == {3}


def test_the_closed_form_needs_no_second_pass_and_gives_the_same():
    model, x = build("resnet18"), inputs("resnet18", 2)
    passes = []
    model.fc.register_forward_hook(lambda m, i, o: passes.append(len(o)))
    known = AblationCAM(model, "layer4[-1]").attribute(x, CLASSES)
    assert passes == [2]
    picked = [lambda row: row[3], lambda row: row[1]]
    replayed = AblationCAM(model, "layer4[-1]", batch_size=100).attribute(x, picked)
    assert passes == [2, 2, 3, *[100] * 10, 24]  # the recorded run, the check of the replay, then the channels
    torch.testing.assert_close(known, replayed, rtol=0, atol=1e-4)


def test_a_relu_behind_the_layer_rules_out_the_closed_form(x):
    """A second ReLU changes no value and yet the map, where the activation is ablated below 0."""
    net = tiny(Pooled)
    weights, A = ablated_one_by_one(net, "tail", x, CLASSES)
    actual = AblationCAM(net, "tail").attribute(x, CLASSES, normalize=False, size=None)
    torch.testing.assert_close(actual, torch.einsum("bc,bchw->bhw", weights, A), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cam", [AblationCAM, ReciproCAM])
@pytest.mark.parametrize("layer", ["body", "tail"])
def test_the_batch_size_does_not_matter(cam, layer):
    """Float64: 1e-9; float32: 1e-4, a network with SiLU."""
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
        net = tiny().to(dtype)
        net.relu = nn.SiLU()
        with torch.no_grad():
            net.head.weight.mul_(20)
        x = torch.randn(3, 3, 20, 24, dtype=dtype)
        maps = [cam(net, layer, batch_size=n).attribute(x, 1) for n in (1, 7, 64, "auto")]
        for other in maps[1:]:
            torch.testing.assert_close(maps[0], other, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_batch_size_does_not_matter_in_efficientnet(dtype, tolerance):
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.efficientnet_b0(num_classes=10).eval().to(dtype)
    x = inputs("resnet18", 2, square=True).to(dtype)
    for layer in ("features[-1]", "features[5]"):
        maps = [AblationCAM(model, layer, batch_size=n).attribute(x, 1) for n in (1, 7, 64)]
        for other in maps[1:]:
            torch.testing.assert_close(maps[0], other, rtol=0, atol=tolerance)


def test_a_tail_for_tensors_without_a_graph(x):
    class Leaves(Pooled):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).numpy() * 2)

    expected = AblationCAM(tiny(Pooled), "out")(x)
    np.testing.assert_allclose(AblationCAM(tiny(Leaves), "out")(x), expected, atol=1e-5)


def test_no_change_that_moves_the_score_is_a_warning(x):
    net = tiny()
    torch.nn.init.zeros_(net.head.weight)
    for cam in (AblationCAM, ReciproCAM):
        with pytest.warns(UserWarning, match="nothing that is changed at layer 'body' moves the score"):
            assert not cam(net, "body")(x).any()


def test_recipro_cam_of_a_large_map():
    """A map of 72 x 72, whose table of all pairs of positions would hold 27 million numbers."""
    net, x = tiny(), torch.randn(1, 3, 144, 144)
    net.tail.register_forward_pre_hook(lambda m, args: (args[0][..., ::8, ::8],))
    full = ReciproCAM(net, "body", batch_size=200).attribute(x, 1, size=None, normalize=False)
    assert full.shape == (1, 72, 72) and full.isfinite().all()


def test_several_targets_and_layers(x):
    many = AblationCAM(tiny(), ["stem", "body"])(x, torch.tensor([[0, 4], [2, 3]]))
    assert many.shape == (2, 2, 20, 24)
    for t, classes in enumerate([[0, 2], [4, 3]]):
        one = AblationCAM(tiny(), ["body", "stem"])(x, classes)
        np.testing.assert_allclose(many[:, t], one, atol=1e-5)


def test_a_score_of_0_is_left_out_of_the_division(x):
    net = tiny()
    zero = lambda row: row[0] - row[0]  # noqa: E731
    assert np.isfinite(AblationCAM(net, "body")(x, zero)).all()
    raw = AblationCAM(net, "body").attribute(x, lambda row: row[0] - 0.5, normalize=False, size=None)
    assert raw.isfinite().all()


# Other ablation layers: those of grad-cam, somebody's subclass, tokens and pyramids.


class Halved(AblationLayer):
    """As a user would write one: halves a channel."""

    def __call__(self, x):
        for row, channel in enumerate(self.indices[: len(self.activations)]):
            self.activations[row, channel] *= 0.5
        return self.activations


class TheirsHalved(TheirLayer):
    def __call__(self, x):
        for row in range(len(self.activations)):
            self.activations[row, self.indices[row]] *= 0.5
        return self.activations


@pytest.mark.parametrize(
    "ours, theirs", [(Halved, TheirsHalved), (TheirsHalved, TheirsHalved), (TheirLayer, TheirLayer)]
)
@pytest.mark.parametrize("layer", ["stem", "tail"])
def test_ablation_layers_of_others(ours, theirs, layer, x):
    net = tiny(Pooled)  # no operation in place behind these layers: it would overwrite what grad-cam keeps
    reference = pytorch_grad_cam.AblationCAM(net, [net.get_submodule(layer)], ablation_layer=theirs(), batch_size=5)
    expected = reference(x, [ClassifierOutputTarget(c) for c in CLASSES])
    actual = AblationCAM(tiny(Pooled), layer, ablation_layer=ours(), batch_size=5)(x, CLASSES)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_our_layer_called_by_grad_cam(x):
    """The interface is grad-cam's: its own AblationCAM can use our layers."""

    class Module(nn.Module, AblationLayer):
        def __init__(self):
            nn.Module.__init__(self)
            AblationLayer.__init__(self)

        __call__ = AblationLayer.__call__

    expected, actual = (
        pytorch_grad_cam.AblationCAM(net := tiny(), [net.tail], ablation_layer=layer, batch_size=5)(
            x, [ClassifierOutputTarget(c) for c in CLASSES]
        )
        for layer in (TheirLayer(), Module())
    )
    np.testing.assert_array_equal(actual, expected)


def test_tokens_by_themselves_and_by_their_layer():
    network = "small_vit"
    x, layers = inputs(network, 2), LAYERS[network]["last"]
    by_itself = AblationCAM(build(network), layers, tokens_to_map)(x, 1)
    given = AblationCAM(build(network), layers, tokens_to_map, AblationLayerVit())(x, 1)
    np.testing.assert_array_equal(by_itself, given)


class Pyramid(nn.Module):
    """A backbone that returns a feature pyramid, as torchvision's detectors have it, and a head over all levels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.backbone = Levels()
        self.head = nn.Linear(5 * 256, 4)

    def forward(self, x):
        levels = self.backbone(x)
        return self.head(torch.cat([level.relu().mean((2, 3)) for level in levels.values()], 1))


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 256, 3, 2 ** (n + 1), 1) for n in range(5))

    def forward(self, x):
        names = ["0", "1", "2", "3", "pool"]
        return OrderedDict((name, conv(x)) for name, conv in zip(names, self.convs, strict=True))


def levels_to_map(levels):
    size = levels["pool"].shape[2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in levels.values()], 1)


def test_a_feature_pyramid():
    model, x = Pyramid().eval(), torch.randn(2, 3, 64, 64)
    theirs = pytorch_grad_cam.AblationCAM(
        model, [model.backbone], reshape_transform=levels_to_map, ablation_layer=TheirLevelsLayer(), batch_size=100
    )
    targets = [ClassifierOutputTarget(c) for c in CLASSES]
    expected = theirs(x, targets)
    cam = AblationCAM(Pyramid().eval(), "backbone", levels_to_map, AblationLayerFasterRCNN(), batch_size=100)
    np.testing.assert_allclose(cam(x, targets), expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1
    foreign = AblationCAM(Pyramid().eval(), "backbone", levels_to_map, TheirLevelsLayer(), batch_size=100)
    np.testing.assert_allclose(foreign(x, targets), expected, rtol=0, atol=1e-4)


# What cannot be done.


def test_bad_input(x):
    for ratio in (0, -0.1, 1.01):
        with pytest.raises(ValueError, match=r"ratio_channels_to_ablate must be in \(0, 1\], got"):
            AblationCAM(tiny(), "body", ratio_channels_to_ablate=ratio)
    with pytest.raises(ValueError, match="leaves none of 12 channels"):
        AblationCAM(tiny(), "body", ratio_channels_to_ablate=0.01)(x)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        AblationCAM(tiny(), "body", batch_size="auto", reference_batching=True)
    with pytest.raises(ValueError, match="must give a scalar tensor per image, got"):
        AblationCAM(tiny(), "body")(x, lambda row: row)
    with pytest.raises(ValueError, match="must give a scalar tensor per image, got float"):
        AblationCAM(tiny(), "body")(x, lambda row: 1.0)

    with pytest.raises(ValueError, match=r"the 8 channels of layer 'stem' are not in dimension -1 of its output"):
        AblationCAM(tiny(), "stem", ablation_layer=AblationLayerVit())(x)
    with pytest.raises(TypeError, match="ablation_layer must be an instance, got the class AblationLayerVit"):
        AblationCAM(tiny(), "body", ablation_layer=AblationLayerVit)

    class Mixed(TinyNet):
        def forward(self, x):
            return super().forward(x)[:1]

    with pytest.raises(ValueError, match="the model gives 1 outputs for 2 images"):
        AblationCAM(tiny(Mixed), "body")(x)
    with pytest.raises(ValueError, match="eigen_smooth does not apply"):
        ReciproCAM(tiny(), "body")(x, eigen_smooth=True)


def test_a_nan_score_names_image_and_channel(x):
    class Breaks(TinyNet):
        def forward(self, x):
            b = self.body(self.stem(x))
            out = self.head(self.relu(self.tail(b.relu())).mean((2, 3)))
            lost = (b[:, 7] < -1e6).flatten(1).all(1) & (x[:, 0, 0, 0] > 5)
            return torch.where(lost[:, None], torch.nan, out)

    x[1, 0, 0, 0] = 6
    with pytest.raises(ValueError, match="the score of image 1 without channel 7 is nan"):
        AblationCAM(tiny(Breaks), "body")(x, 1)
    overflowing = tiny(Pooled)
    with torch.no_grad():
        overflowing.head.weight[1, 4] = torch.inf
    with pytest.raises(ValueError, match=r"the score of image 0 without channel \d+ is -?(nan|inf)"):
        AblationCAM(overflowing, "out")(x, 1)
    with pytest.raises(ValueError, match=r"the score of image \d is -?(nan|inf)"):
        AblationCAM(overflowing, "out")(x, lambda row: row[1])


def test_a_model_that_keeps_state_between_its_modules(x):
    """What an encoder leaves in an attribute is the recorded run's: the replay is seen to be wrong."""

    class Stateful(TinyNet):
        def forward(self, x):
            self.stem(x)
            return super().forward(x) + 1000 * self.kept[: len(x), None]

    net = tiny(Stateful)
    net.stem.register_forward_hook(lambda m, i, o: setattr(net, "kept", i[0].mean((1, 2, 3))))
    np.testing.assert_array_equal(GradCAM(net, "tail")(x, 1), GradCAM(net, "tail")(x, 1))
    with pytest.raises(RuntimeError, match="running again what follows the layer changes a score by"):
        AblationCAM(net, "tail", batch_size=2)(x.flip(0), lambda row: row[1])


@pytest.mark.parametrize("images", [1, 2])
def test_a_model_whose_modules_tell_the_batch_size(images, x):
    """A number that stands for the batch is the recorded run's, too."""

    class Told(nn.Module):
        def forward(self, x):
            return x, 1.5 * len(x)

    class Net(TinyNet):
        def __init__(self):
            super().__init__()
            self.told = Told()

        def forward(self, x):
            h, number = self.told(self.stem(x))
            h = self.relu(self.tail(self.relu(self.body(h))))
            return self.head(h.mean((2, 3))) * len(x) / number

    with pytest.raises(RuntimeError, match="running again what follows the layer changes a score by"):
        AblationCAM(tiny(Net), "body")(x[:images], 1)


def test_a_model_that_writes_into_its_input(x):
    class Normalising(TinyNet):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.25))

    class Copying(TinyNet):
        def forward(self, x):
            return super().forward((x - 0.5) / 0.25)

    before = x.clone()
    for cls in (AblationCAM, ReciproCAM, ScoreCAM, GroupCAM, GradCAM):
        np.testing.assert_allclose(cls(tiny(Normalising), "body")(x, 1), cls(tiny(Copying), "body")(x, 1), atol=1e-4)
        assert torch.equal(x, before)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("layer", ["body", "tail"])
def test_recipro_cam_is_its_equation(x, gaussian, layer):
    net = tiny()
    with torch.no_grad():
        net.head.weight.mul_(50)
    A = run_with(net, layer, x, None)[1]
    filters = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    maps = torch.empty(2, *A.shape[2:])
    for b, k in enumerate(CLASSES):
        for i, j in np.ndindex(*A.shape[2:]):
            K = torch.zeros(A.shape[2] + 2, A.shape[3] + 2)
            if gaussian:
                K[i : i + 3, j : j + 3] = filters
            else:
                K[i + 1, j + 1] = 1
            changed = A[b : b + 1] * K[1:-1, 1:-1]
            maps[b, i, j] = run_with(net, layer, x[b : b + 1], changed)[0].softmax(1)[0, k]
    expected = maps - maps.amin((1, 2), keepdim=True)
    cam = ReciproCAM(net, layer, gaussian=gaussian, batch_size=50)
    actual = cam.attribute(x, CLASSES, normalize=False, size=None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert expected.max() > 1e-3


@pytest.mark.parametrize("gaussian", [False, True])
def test_vit_recipro_cam_is_its_equation(gaussian):
    model, x, layer = build("small_vit"), inputs("small_vit", 2), "encoder.layers.encoder_layer_2.ln_1"
    tokens = run_with(model, layer, x, None)[1]  # (2, 17, 48), the class token first
    expected = torch.empty(2, 4, 4)
    for b, k in enumerate(CLASSES):
        for i, j in np.ndindex(4, 4):
            kept = torch.zeros(6, 6)
            if gaussian:
                kept[i : i + 3, j : j + 3] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
            else:
                kept[i + 1, j + 1] = 1
            keep = torch.cat([torch.ones(1), kept[1:-1, 1:-1].flatten()])
            changed = tokens[b : b + 1] * keep[None, :, None]
            expected[b, i, j] = run_with(model, layer, x[b : b + 1], changed)[0].softmax(1)[0, k]
    expected -= expected.amin((1, 2), keepdim=True)
    cam = ViTReciproCAM(model, "encoder.layers[-1].ln_1", tokens_to_map, gaussian=gaussian)
    actual = cam.attribute(x, CLASSES, normalize=False, size=None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert expected.max() > 1e-4
    assert ViTReciproCAM(model, layer, tokens_to_map).gaussian


def test_recipro_cam_of_layers_it_cannot_read(x):
    with pytest.raises(ValueError, match=r"ViTReciproCAM is for tokens \(B, N, C\), got \(2, 12, 10, 12\)"):
        ViTReciproCAM(tiny(), "body")(x)
    with pytest.raises(ValueError, match="reshape_transform must lay out the entries"):
        ReciproCAM(tiny(), "body", lambda t: t * 0.3)(x)
