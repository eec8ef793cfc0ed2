"""Smooth Grad-CAM++ beside torch-cam under the same noise, and beside its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchcam.methods

from fastcam import SmoothGradCAMpp

from models import build, inputs, tiny


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


class SameNoise:
    """In place of torch-cam's distribution: our draws, one after the other, for each image of the batch."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def sample(self, size):
        return next(self.draws).expand(size)


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ("resnet18", ["layer4"]),
        ("resnet18", ["layer3", "layer4"]),
        ("vgg11_bn", ["features.20"]),
        ("mobilenet_v3_small", ["features.12"]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_same_weights_as_torch_cam(network, layers, batch, monkeypatch):
    """Its weights: its map takes the activation of the last noisy image, ours that of the image itself.

    In fp64, for a denominator can vanish.
    """
    x, classes = inputs(network, batch).double(), list(range(1, batch + 1))
    cam, ours = SmoothGradCAMpp(build(network).double(), layers, std=0.2), []
    monkeypatch.setattr(cam, "weighted_map", lambda A, weights, _: ours.append(weights) or A.mean(1, keepdim=True))
    cam(x, classes)
    model = build(network).double()
    with torchcam.methods.SmoothGradCAMpp(model, layers, std=0.2, input_shape=x.shape[1:]) as theirs:
        theirs._distrib = SameNoise(cam.noise(x))
        model(x)
        expected = theirs._get_weights(classes)
    for actual, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-8)
        assert wanted.std() > 0


def test_the_noise_is_that_of_torch_cam_under_the_same_seed(x):
    """torch-cam draws from the global generator: for a single image, what it draws after the seed is what we draw."""
    cam = SmoothGradCAMpp(tiny(), "body", num_samples=3, std=0.3, seed=5)
    torch.manual_seed(5)
    distribution = torch.distributions.normal.Normal(0, 0.3)
    expected = torch.cat([distribution.sample(x[:1].shape) for _ in range(3)])
    torch.testing.assert_close(cam.noise(x), expected)


def test_the_equation(x):
    net, x = tiny().double(), x.double()
    cam = SmoothGradCAMpp(net, "body", num_samples=3, std=0.5, seed=1)

    def run(image, c):
        kept = []

        def keep(_module, _inputs, output):
            kept.append(output.clone().detach().requires_grad_())
            return kept[0].clone()

        hook = net.body.register_forward_hook(keep)
        score = net(image[None])[0, c]
        hook.remove()
        return kept[0].detach()[0], torch.autograd.grad(score, kept[0])[0][0]

    maps = cam.attribute(x, [1, 4], normalize=False, size=None)
    many = cam.attribute(x, torch.tensor([[1, 0], [4, 2]]), normalize=False, size=None)
    for b, c in enumerate([1, 4]):
        A, _ = run(x[b], c)
        G = [run(x[b] + d, c)[1] for d in cam.noise(x)]
        expected = torch.zeros(A.shape[1:], dtype=A.dtype)
        for k in range(A.shape[0]):
            square, cube = (sum(g[k] ** p for g in G) / len(G) for p in (2, 3))
            alpha = square / (2 * square + (cube * A[k]).sum() + 1e-8)
            expected += (alpha * G[-1][k].clamp(min=0)).sum() * A[k]
        torch.testing.assert_close(maps[b], expected)
        torch.testing.assert_close(many[b, 0], expected)
    assert maps.std() > 0


def test_callables_and_the_predicted_class(x):
    cam = SmoothGradCAMpp(tiny(), "body")
    expected = cam(x, [1, 3])
    np.testing.assert_array_equal(cam(x, [lambda row: row[1], lambda row: row[3]]), expected)
    predicted = tiny()(x).argmax(1)
    np.testing.assert_array_equal(cam(x), cam(x, predicted))
    assert np.ptp(expected) > 0.5 and torch.equal(cam.outputs, tiny()(x).detach())
    assert np.abs(SmoothGradCAMpp(tiny(), "body", seed=1)(x, [1, 3]) - expected).max() > 1e-3


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_samples must be 1 or more and std not negative, got 0 and 0.3"):
        SmoothGradCAMpp(tiny(), "body", num_samples=0)
    with pytest.raises(ValueError, match="got 4 and -1"):
        SmoothGradCAMpp(tiny(), "body", std=-1)
