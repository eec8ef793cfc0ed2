"""Score-CAM and its relatives, beside a plain loop of each one's equation and beside grad-cam."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch.nn import functional as F

from fastcam import ISCAM, SSCAM, AblationCAM, FasterScoreCAM, GroupCAM, ReciproCAM, ScoreCAM
from fastcam.layers import find_layers
from fastcam.methods.masking import blur

from models import LAYERS, TinyNet, build, inputs, tiny, tokens_to_map

CLASSES = [3, 1]


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


def sharp(cls=TinyNet):
    """A `TinyNet` whose scores differ enough to matter in a softmax."""
    net = tiny(cls)
    with torch.no_grad():
        net.head.weight.mul_(50)
    return net


def activations(net, layer, x):
    seen = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    output = net(x)
    hook.remove()
    return seen[0], output.detach()


def mask(low, size, align_corners=True):
    """A low map `(h, w)` at the input's size, scaled to [0, 1]; 0 if it is constant."""
    u = F.interpolate(low[None, None].double(), size, mode="bilinear", align_corners=align_corners)[0, 0]
    return (u - u.min()) / (u.max() - u.min() + 1e-8) if low.max() > low.min() else torch.zeros_like(u)


def loop(net, x, classes, score_of_mask, chosen=None):
    """The low map of a Score-CAM: softmax over the channels' scores, one channel after the other."""
    A, _ = activations(net, "tail", x)
    maps = []
    for b, c in enumerate(classes):
        channels = range(A.shape[1]) if chosen is None else chosen[b]
        with torch.no_grad():
            y = torch.stack([score_of_mask(x[b], mask(A[b, k], x.shape[2:]).to(x.dtype), c) for k in channels])
        maps.append(torch.einsum("c,chw->hw", y.softmax(0), A[b, list(channels)]))
    return torch.stack(maps)


def low(cls, net, x, **options):
    return cls(net, "tail", batch_size=7, **options).attribute(x, CLASSES, normalize=False, size=None)


@pytest.mark.parametrize(
    "network", ["resnet18", pytest.param("vgg11_bn", marks=pytest.mark.slow), "mobilenet_v3_small", "small_vit"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_same_map_as_grad_cam(network, batch):
    x, layers = inputs(network, batch), LAYERS[network]["last"]
    if network in ("resnet18", "vgg11_bn"):  # 512 forward passes an image: small ones
        x = F.interpolate(x, (96, 96) if batch == 1 else (64, 64))
    transform = tokens_to_map if network == "small_vit" else None
    with torch.no_grad():
        classes = build(network)(x).argmax(1).tolist()
    reference = build(network)
    theirs = pytorch_grad_cam.ScoreCAM(reference, find_layers(reference, layers), reshape_transform=transform)
    expected = theirs(x, [ClassifierOutputTarget(c) for c in classes])
    actual = ScoreCAM(build(network), layers, transform)(x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.1, "a constant map compares nothing"


def test_same_map_as_grad_cam_with_several_layers_and_callables():
    network, targets = "mobilenet_v3_small", [ClassifierOutputSoftmaxTarget(c) for c in (2, 5)]
    x, reference = inputs(network, 2), build(network)
    layers = ["features[-1]", "features[-3]"]
    expected = pytorch_grad_cam.ScoreCAM(reference, find_layers(reference, layers))(x, targets)
    np.testing.assert_allclose(ScoreCAM(build(network), layers)(x, targets), expected, rtol=0, atol=1e-5)


def test_score_cam_is_its_equation(x):
    net = sharp()
    expected = loop(net, x, CLASSES, lambda image, m, c: net(image[None] * m)[0, c])
    torch.testing.assert_close(low(ScoreCAM, net, x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5, 99])
def test_faster_score_cam_takes_the_channels_of_largest_variance(x, n):
    net = sharp()
    A, _ = activations(net, "tail", x)
    chosen = A.flatten(2).var(2).argsort(1, descending=True)[:, :n].sort(1).values.tolist()
    expected = loop(net, x, CLASSES, lambda image, m, c: net(image[None] * m)[0, c], chosen)
    torch.testing.assert_close(low(FasterScoreCAM, net, x, channels=n), expected, rtol=0, atol=1e-5)


def test_faster_score_cam_takes_the_channels_of_largest_gradient():
    """At `body`, where the gradient depends on the position."""
    net, x = sharp(), torch.randn(2, 3, 20, 24)
    A, _ = activations(net, "body", x)
    leaf = A.clone().requires_grad_()
    y = net.head(net.relu(net.tail(leaf.relu())).mean((2, 3)))
    G = torch.autograd.grad(y[[0, 1], CLASSES].sum(), leaf)[0]
    chosen = G.mean((2, 3)).abs().argsort(1, descending=True)[:, :4]
    maps = []
    for b, c in enumerate(CLASSES):
        with torch.no_grad():
            scores = torch.stack([net(x[b : b + 1] * mask(A[b, k], (20, 24)).float())[0, c] for k in chosen[b]])
        maps.append(torch.einsum("c,chw->hw", scores.softmax(0), A[b, chosen[b]]))
    cam = FasterScoreCAM(net, "body", channels=4, by="gradient")
    actual = cam.attribute(x, CLASSES, normalize=False, size=None)
    torch.testing.assert_close(actual, torch.stack(maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", ["activation", "input"])
def test_ss_cam_is_its_equation(x, noise):
    net, n, std = sharp(), 3, 0.5
    draws = SSCAM(net, "tail", samples=n, std=std, noise=noise).draws(x)
    assert draws.shape == (n, 3 if noise == "input" else 1, 20, 24) and 0.45 < draws.std() < 0.55

    def score(image, m, c):
        noisy = [image * m + d if noise == "input" else image * (m + d) for d in draws]
        return torch.stack([net(v[None])[0, c] for v in noisy]).mean()

    actual = low(SSCAM, net, x, samples=n, std=std, noise=noise)
    torch.testing.assert_close(actual, loop(net, x, CLASSES, score), rtol=0, atol=1e-5)
    assert not torch.allclose(actual, low(ScoreCAM, net, x), atol=1e-3)
    assert not torch.allclose(actual, low(SSCAM, net, x, samples=n, std=std, noise=noise, seed=1), atol=1e-4)


def test_is_cam_is_its_equation(x):
    net, n = sharp(), 4

    def score(image, m, c):
        factors = [sum(j / n for j in range(1, i + 1)) for i in range(1, n + 1)]
        return torch.stack([net((f * image * m)[None])[0, c] for f in factors]).mean()

    actual = low(ISCAM, net, x, samples=n)
    torch.testing.assert_close(actual, loop(net, x, CLASSES, score), rtol=0, atol=1e-5)
    assert not torch.allclose(actual, low(ScoreCAM, net, x), atol=1e-3)


@pytest.mark.parametrize("groups", [1, 5, 16])
def test_group_cam_is_its_equation(x, groups):
    net = sharp()
    A, output = activations(net, "body", x)
    leaf = A.clone().requires_grad_()
    y = net.head(net.relu(net.tail(leaf.relu())).mean((2, 3)))
    w = torch.autograd.grad(y[[0, 1], CLASSES].sum(), leaf)[0].mean((2, 3))
    blurred, maps = blur(x), []
    with torch.no_grad():
        for b, c in enumerate(CLASSES):
            total = torch.zeros(A.shape[2:])
            for weighted in (w[b, :, None, None] * A[b]).chunk(groups):
                M = weighted.sum(0).relu()
                M = M * (np.percentile(M.numpy(), 70) < M)
                u = F.interpolate(M[None, None], (20, 24), mode="bilinear", align_corners=False)[0, 0]
                if u.max() == u.min():
                    continue
                seen = (u - u.min()) / (u.max() - u.min() + 1e-8)
                picture = x[b] * seen + blurred[b] * (1 - seen)
                gain = net(picture[None]).softmax(1)[0, c] - net(blurred[b : b + 1]).softmax(1)[0, c]
                total += gain * (M - u.min()) / (u.max() - u.min())
            maps.append(total)
    cam = GroupCAM(net, "body", groups=groups, batch_size=3)
    actual = cam.attribute(x, CLASSES, normalize=False, size=None)
    torch.testing.assert_close(actual, torch.stack(maps), rtol=0, atol=1e-5)
    assert actual.abs().max() > 1e-4 and torch.equal(cam.outputs, output)


def test_blur_is_a_gaussian_mirrored_at_the_edges():
    x = torch.randn(1, 2, 70, 90, dtype=torch.float64)
    at = np.arange(-25, 26)
    kernel = np.exp(-(at**2) / (2 * 50.0**2))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (25, 25), (25, 25)), mode="reflect")
    rows = sum(k * padded[:, :, i : i + 70] for i, k in enumerate(kernel / kernel.sum()))
    expected = sum(k * rows[..., i : i + 90] for i, k in enumerate(kernel / kernel.sum()))
    np.testing.assert_allclose(blur(x), expected, atol=1e-12)
    assert blur(torch.randn(1, 1, 4, 1)).shape == (1, 1, 4, 1)


class Counting(TinyNet):
    """Counts the images of its forward passes, and has half of `tail`'s channels constant."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return super().forward(x)


def with_constant_channels():
    net = tiny(Counting)
    with torch.no_grad():
        net.tail.weight[::2] = 0
        net.tail.bias[2] = net.tail.bias[0]
    return net


def test_constant_channels_share_one_pass(x):
    net = with_constant_channels()
    cam = ScoreCAM(net, "tail", batch_size=100)
    actual = cam.attribute(x, CLASSES, normalize=False, size=None)
    assert net.batches == [2, 2 * (8 + 1)]  # 8 of 16 channels vary
    expected = loop(net, x, CLASSES, lambda image, m, c: net(image[None] * m)[0, c])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_full_batches_over_images_and_channels():
    net = tiny(Counting)
    ScoreCAM(net, "tail", batch_size=10)(torch.randn(3, 3, 20, 24))
    assert net.batches == [3, 10, 10, 10, 10, 8]


def test_long_batches_go_in_parts_and_give_the_same():
    x, classes = torch.randn(7, 3, 20, 24), [0, 1, 2, 3, 4, 0, 1]
    whole, net = ScoreCAM(tiny(), "tail", batch_size=64), tiny(Counting)
    parts = ScoreCAM(net, "tail", batch_size=3)
    np.testing.assert_allclose(parts(x, classes), whole(x, classes), atol=1e-5)
    torch.testing.assert_close(parts.outputs, whole.outputs)
    assert max(net.batches) == 3
    with pytest.raises(ValueError, match="targets must be one or 7 for 7 images, got 2"):
        parts(x, [1, 2])
    with pytest.raises(ValueError, match="one or .7,. or .7, T. for 7 images|one or 7 for 7 images"):
        parts(x, torch.tensor([[1, 2]] * 3))
    np.testing.assert_allclose(parts(x, [4]), whole(x, 4), atol=1e-5)


METHODS = {
    **{cls.__name__: cls for cls in (ScoreCAM, FasterScoreCAM, SSCAM, ISCAM, GroupCAM, ReciproCAM, AblationCAM)},
    "FasterScoreCAM-5": partial(FasterScoreCAM, channels=5),
    "FasterScoreCAM-by-gradient": partial(FasterScoreCAM, channels=5, by="gradient"),
}


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_are_each_as_alone(method, x):
    targets = torch.tensor([[0, 1, 4], [2, 2, 3]])
    cam = METHODS[method](tiny().double(), "body", batch_size=16)
    many = cam.attribute(x.double(), targets, normalize=False, size=None)
    assert many.shape == (2, 3, 10, 12)
    for t, classes in enumerate(targets.T.tolist()):
        alone = cam.attribute(x.double(), classes, normalize=False, size=None)
        assert (alone.amax((1, 2)) - alone.amin((1, 2))).min() > 1e-6
        torch.testing.assert_close(many[:, t], alone, rtol=1e-9, atol=0)


def test_several_targets_share_the_passes(x):
    net = tiny(Counting)
    ScoreCAM(net, "tail", batch_size=16)(x, torch.tensor([[0, 1, 4], [2, 2, 3]]))
    assert sum(net.batches) == 2 + 32


@pytest.mark.parametrize("cls", [ScoreCAM, FasterScoreCAM, SSCAM, ISCAM, GroupCAM])
def test_the_batch_size_does_not_matter(cls):
    """Float64: 1e-9; float32: 1e-4, a network with SiLU."""
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-4)]:
        net = sharp().to(dtype)
        net.relu = torch.nn.SiLU()
        x = torch.randn(3, 3, 20, 24, dtype=dtype)
        maps = [cls(net, "body", batch_size=n).attribute(x, 1) for n in (1, 7, 64, "auto")]
        for other in maps[1:]:
            torch.testing.assert_close(maps[0], other, rtol=0, atol=tolerance)


def test_any_number_of_spatial_dimensions():
    for rank, conv in [(1, torch.nn.Conv1d), (3, torch.nn.Conv3d)]:
        net = torch.nn.Sequential(conv(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(3)).eval()
        x = torch.randn(2, 1, *[8] * rank)
        net(x)
        assert ScoreCAM(net, "0").attribute(x, 1, size=None).shape == (2, *[6] * rank)


def test_bad_input(x):
    net = tiny()
    with pytest.raises(ValueError, match=r'by must be "variance" or "gradient", got .size.'):
        FasterScoreCAM(net, "tail", by="size")
    with pytest.raises(ValueError, match="channels must be a whole number of 1 or more, got 0"):
        FasterScoreCAM(net, "tail", channels=0)
    with pytest.raises(ValueError, match="noise must be"):
        SSCAM(net, "tail", noise="salt")
    for cls in (SSCAM, ISCAM):
        with pytest.raises(ValueError, match="samples must be a whole number of 1 or more"):
            cls(net, "tail", samples=0)
    with pytest.raises(ValueError, match="channels must be a whole number of 1 or more, got 2.5"):
        FasterScoreCAM(net, "tail", channels=2.5)
    with pytest.raises(ValueError, match="groups must be a whole number of 1 or more"):
        GroupCAM(net, "tail", groups=0)
    with pytest.raises(ValueError, match="eigen_smooth does not apply"):
        GroupCAM(net, "tail")(x, eigen_smooth=True)
    for wrong in (0, -1, 2.5, "big", True):
        with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more"):
            ScoreCAM(net, "tail", batch_size=wrong)
        cam = ScoreCAM(net, "tail")
        cam.batch_size = wrong
        with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more"):
            cam(x)
    with pytest.raises(ValueError, match="must give a scalar tensor per image"):
        ScoreCAM(net, "tail")(x, lambda row: row)

    class Pooled(TinyNet):
        def forward(self, x):
            return super().forward(x).mean(0, keepdim=True)

    with pytest.raises(ValueError, match="the model gives 1 outputs for 2 images"):
        ScoreCAM(tiny(Pooled), "tail")(x)

    class Total(TinyNet):
        def forward(self, x):
            return super().forward(x).sum()

    with pytest.raises(ValueError, match="the model gives a scalar for 2 images"):
        ScoreCAM(tiny(Total), "tail")(x)


@pytest.mark.parametrize("cls", [ScoreCAM, GroupCAM, AblationCAM])
def test_an_image_whose_own_score_is_nan_is_named_without_a_channel(cls, x):
    x[1, 0, 3, 4] = float("nan")
    net = tiny()
    net.relu = torch.nn.Hardtanh(0, 1)  # which keeps a NaN
    with pytest.raises(ValueError, match="the score of image 1 is nan"):
        cls(net, "body")(x, [ClassifierOutputSoftmaxTarget(1)] * 2)


def test_a_nan_score_names_image_and_channel(x):
    class Breaks(TinyNet):
        seen = 0

        def forward(self, x):
            out = super().forward(x)
            for row in range(len(x)):
                if self.seen == 2 + 16 + 5:  # the original pass, then image 0, then channel 5 of image 1
                    out[row] = float("nan")
                self.seen += 1
            return out

    with pytest.raises(ValueError, match="the score of image 1 masked by channel 5 is nan"):
        ScoreCAM(tiny(Breaks), "tail", batch_size=4)(x, 1)
    with pytest.raises(ValueError, match="the score of image 1 masked by channel 5 is nan"):
        ScoreCAM(tiny(Breaks), "tail", batch_size=1)(x, 1)  # in parts of one image
