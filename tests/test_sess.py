"""SESS beside grad-cam and beside a plain loop of its equation."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from torch import nn

import fastcam
from fastcam import SESS, ClassifierOutputSoftmaxTarget, FinerCAM, GradCAM, HiResCAM, LayerCAM, ScoreCAM
from fastcam.layers import find_layers
from fastcam.methods.sess import resampling, resized, sliding_window, window_starts

from models import LAYERS, TinyNet, build, inputs, photographs, tiny, tokens_to_map


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


CASES = {
    "default": ("last", 1, "GradCAM", {"num_scales": 5}),
    "filtered": ("several", 1, "LayerCAM", {"num_scales": 3, "pre_filter_ratio": 0.4}),
    "largest": ("last", 3, "HiResCAM", {"num_scales": 3, "pool": "max", "smooth": False}),
    "raw": ("last", 3, "GradCAM", {"scales": [96, 150], "theta": 0.2, "step_size": 40, "use_softmax_scores": False}),
}


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn", "mobilenet_v3_small", "small_vit"])
@pytest.mark.parametrize("case", CASES)
def test_same_map_as_grad_cam(network, case):
    layers, batch, base, options = CASES[case]
    x, layers = inputs(network, batch), LAYERS[network][layers]
    if network == "vgg11_bn":
        x, options = x[:1], {**options, "num_scales": 2}
    transform = tokens_to_map if network == "small_vit" else None
    with torch.no_grad():
        classes = build(network)(x).argmax(1).tolist()
    model = build(network)
    theirs = pytorch_grad_cam.SESS(
        model, find_layers(model, layers), transform, getattr(pytorch_grad_cam, base), **options
    )
    targets = [ClassifierOutputSoftmaxTarget(c) for c in classes] if case == "raw" else None
    expected = theirs(x, targets)
    cam = SESS(build(network), layers, transform, getattr(fastcam, base), **options)
    np.testing.assert_allclose(cam(x, targets), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.1, "a constant map compares nothing"


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_same_counts_as_grad_cam_where_positions_coincide(layer):
    """Scales of 9 : 7 and 17 : 7 have pixels that lie on one another; there rounding says whether a patch counts."""
    model, x = build("resnet18"), photographs(1, 112, 112)
    options = {"scales": [112, 144, 272], "smooth": False}
    expected = pytorch_grad_cam.SESS(model, [getattr(model, layer)], **options)(x)
    np.testing.assert_allclose(SESS(build("resnet18"), layer, **options)(x), expected, rtol=0, atol=1e-5)


def loop(net, x, c, base, scales, window, step, theta, pool, smooth, kept=1.0):
    """The map of one image `(k, H, W)`, a patch after the other, with OpenCV and torchvision."""
    (H, W), pieces = x.shape[1:], []
    for scale in scales:
        image = torchvision.transforms.functional.resize(x, scale)
        height, width = image.shape[1:]
        for top in {*range(0, height - window, step), height - window}:
            for left in {*range(0, width - window, step), width - window}:
                patch = image[None, :, top : top + window, left : left + window]
                with torch.no_grad():
                    score = net(patch).softmax(1)[0, c].item()
                canvas = np.zeros((height, width), np.float32)
                canvas[top : top + window, left : left + window] = base(net, "tail")(patch, c)[0]
                pieces.append((score, canvas))
    pieces = sorted(pieces, key=lambda piece: -piece[0])[: round(kept * len(pieces))]
    weighted = np.stack([cv2.resize(canvas * np.float32(s / pieces[0][0]), (W, H)) for s, canvas in pieces])
    if pool == "max":
        fused = weighted.max(0).clip(0)
    else:
        above = weighted > theta
        fused = (weighted * above).sum(0) / np.maximum(above.sum(0), 1)
    fused = cv2.GaussianBlur(np.float32(fused), (11, 11), 5.0) if smooth else fused
    return fused


@pytest.mark.parametrize("base", [GradCAM, HiResCAM])
@pytest.mark.parametrize(
    ("theta", "pool", "smooth", "pre_filter_ratio"),
    [(0.1, "mean", True, 0.0), (0.3, "mean", False, 0.5), (0, "max", True, 0.5)],
)
def test_the_equation(base, theta, pool, smooth, pre_filter_ratio, x):
    net = tiny(Sharp)
    options = {"theta": theta, "pool": pool, "smooth": smooth}
    cam = SESS(net, "tail", None, base, [16, 23, 30], window_size=16, step_size=9, batch_size=7, **options,
               pre_filter_ratio=pre_filter_ratio)  # fmt: skip
    raw = cam.attribute(x, [1, 4], normalize=False)
    for image, c, actual in zip(x, [1, 4], raw, strict=True):
        expected = loop(net, image, c, base, [16, 23, 30], 16, 9, kept=1 - pre_filter_ratio, **options)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
        assert np.ptp(expected) > 0.05


class Sharp(TinyNet):
    """Scores that differ from patch to patch."""

    def forward(self, x):
        return super().forward(x) * 20


def test_each_patch_runs_once(x):
    class Counting(Sharp):
        images = 0

        def forward(self, x):
            Counting.images += len(x)
            return super().forward(x)

    cam = SESS(tiny(Counting), "tail", num_scales=3, window_size=12, pre_filter_ratio=0.5)
    patches, places = cam.collect_patches(x, 12, 12)
    cam(x, 1)
    assert len(patches) == len(places) and Counting.images == 2 * (len(patches) + 1)  # and the images themselves
    assert all(p.shape == (2, 3, 12, 12) for p in patches)


def test_what_must_not_change_a_map(x):
    options = {"num_scales": 3, "window_size": 12, "theta": 0.05}
    x = torch.cat([x, x.flip(2), x.flip(3)])  # more images than are held at once
    classes = [0, 1, 2, 3, 4, 0]
    cam = SESS(tiny(Sharp), "tail", **options)
    expected = cam(x, classes)
    assert torch.equal(cam.outputs, tiny(Sharp)(x).detach())
    alone = np.concatenate([cam(x[n : n + 1], c) for n, c in enumerate(classes)])
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(SESS(tiny(Sharp), "tail", batch_size=5, **options)(x, classes), expected, atol=1e-5)
    as_callables = [ClassifierLogit(c) for c in classes]
    np.testing.assert_allclose(cam(x, as_callables), expected, rtol=0, atol=1e-5)
    predicted = tiny(Sharp)(x).argmax(1)
    np.testing.assert_array_equal(cam(x), cam(x, predicted))


class ClassifierLogit:
    """A target of a user's own, on one image's output only."""

    def __init__(self, category):
        self.category = category

    def __call__(self, row):
        assert row.ndim == 1
        return row[self.category]


@pytest.mark.parametrize("pre_filter_ratio", [0.0, 0.4])
def test_many_targets(pre_filter_ratio, x):
    cam = SESS(tiny(Sharp), "tail", num_scales=3, window_size=12, pre_filter_ratio=pre_filter_ratio)
    many = cam(x, torch.tensor([[0, 1, 2], [3, 4, 0]]))
    assert many.shape == (2, 3, 20, 24)
    for t, targets in enumerate([[0, 3], [1, 4], [2, 0]]):
        np.testing.assert_allclose(many[:, t], cam(x, targets), rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", [ScoreCAM, FinerCAM, LayerCAM])
def test_base_methods_and_their_options(base, x):
    options = {"batch_size": 8} if base is ScoreCAM else {}
    net = tiny(Sharp)
    maps = SESS(net, "tail", base_method=base, num_scales=2, window_size=16, pre_filter_ratio=0.3, smooth=False)(x, 1)
    assert maps.shape == (2, 20, 24) and np.ptp(maps) > 0.5
    whole = SESS(net, "tail", base_method=lambda *a: base(*a, **options), num_scales=1, smooth=False, theta=-1.0)
    x = x[:, :, :, :20]  # one patch, the image
    np.testing.assert_allclose(whole(x, 1), base(net, "tail", **options)(x, 1), rtol=0, atol=1e-5)
    smooth = SESS(net, "tail", base_method=base, num_scales=2)(x, 1, aug_smooth=True)
    assert smooth.shape == (2, 20, 20) and not np.array_equal(smooth, maps[:, :, :20])


def test_eigen_smooth_reaches_the_base_method(x):
    whole = SESS(tiny(Sharp), "tail", num_scales=1, smooth=False, theta=-1.0)
    x = x[:, :, :, :20]
    expected = GradCAM(tiny(Sharp), "tail")(x, 1, eigen_smooth=True)
    np.testing.assert_allclose(whole(x, 1, True), expected, rtol=0, atol=1e-5)
    assert np.abs(expected - GradCAM(tiny(Sharp), "tail")(x, 1)).max() > 1e-2


def test_sizes(x):
    cam = SESS(tiny(), "tail", num_scales=2)
    assert cam.attribute(x, 1, size=None).shape == (2, 20, 24)
    assert cam.attribute(x, 1, size=(7, 9)).shape == (2, 7, 9)


@pytest.mark.parametrize(("n", "m"), [(288, 224), (928, 224), (224, 224), (37, 96), (272, 112), (3, 1)])
def test_resampling_is_opencvs(n, m):
    line = torch.randn(5, n)
    expected = cv2.resize(line.numpy(), (m, 5))
    np.testing.assert_allclose(line @ resampling(n, m).T, expected, rtol=0, atol=2e-6)
    columns = cv2.resize(np.eye(n, dtype=np.float32), (m, n)).T
    np.testing.assert_array_equal(resampling(n, m), columns)


@pytest.mark.parametrize("size", [(20, 24), (31, 20), (40, 40)])
@pytest.mark.parametrize("short", [13, 20, 33])
def test_images_are_resized_as_by_torchvision(size, short):
    x = torch.randn(1, 3, *size)
    torch.testing.assert_close(resized(x, short), torchvision.transforms.functional.resize(x, short))
    half = x.bfloat16()
    assert resized(half, short).dtype == torch.bfloat16


def test_windows_cover_the_image():
    assert window_starts(10, 4, 4) == [0, 4, 6] and window_starts(8, 4, 4) == [0, 4] and window_starts(4, 4, 4) == [0]
    assert sliding_window(4, 9, 3, 4) == [(0, 0), (3, 0), (5, 0)]
    for length in range(4, 30):
        for step in (1, 3, 4):
            assert window_starts(length, step, 4) == pytorch_grad_cam.sess.window_starts(length, step, 4)


def test_a_model_without_any_score(x):
    """Where no patch scores above 0 all count the same, as in grad-cam."""
    net = tiny()
    with torch.no_grad():
        net.head.weight.copy_(-net.head.weight.abs())
        net.head.bias.fill_(-1)
    options = {"num_scales": 2, "use_softmax_scores": False, "base_method": fastcam.GradCAMElementWise}
    maps = SESS(net, "stem", **options)(x, 1)
    options["base_method"] = pytorch_grad_cam.GradCAMElementWise
    expected = pytorch_grad_cam.SESS(net, [net.stem], **options)(x, [pytorch_target(1)] * 2)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.1


def pytorch_target(c):
    return pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(c)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "sum"}, 'pool must be "mean" or "max", got \'sum\''),
        ({"pre_filter_ratio": 1.0}, r"pre_filter_ratio must be in \[0, 1\), got 1.0"),
        ({"num_scales": 0}, "num_scales must be 1 or more, got 0"),
        ({"step_size": 0}, "step_size must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SESS(tiny(), "body", **options)


def test_bad_calls(x):
    with pytest.raises(ValueError, match=r"at least the window size 20, got \[10, 20\]"):
        SESS(tiny(), "body", scales=[10, 20])(x)
    with pytest.raises(ValueError, match="got shape"):
        SESS(tiny(), "body")(x, [1, 2, 3])
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"SESS is for images .* and nothing else, got \(\(1, 8, 8, 8\),\)"):
        SESS(volumes, "0")(torch.rand(1, 1, 8, 8, 8))
