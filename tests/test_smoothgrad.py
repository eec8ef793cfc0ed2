"""SmoothGrad against loops over its own noise, and that what an image gets depends on itself alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastcam import DeconvNet, GuidedBackprop, GuidedGradCAM, InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from fastcam.visualize.sampled import draws

from models import grey_resnet18, tiny


def photos(count=3, dtype=torch.float32):
    torch.manual_seed(8)
    return torch.randn(count, 3, 20, 24, dtype=dtype) * torch.tensor([1.0, 4.0, 0.2])[:count, None, None, None]


def by_loop(net, x, category, cls=Saliency, samples=6, noise=0.15, seed=0):
    """The gradients `(n, B, k, H, W)`, a noisy image at a time."""
    draw = draws("normal", seed, samples, x)
    gradients = []
    for n in range(samples):
        rows = [i + noise * (i.max() - i.min()) * draw(n) for i in x]
        gradients.append(torch.cat([cls(net).attribute(row, category) for row in rows]))
    return torch.stack(gradients)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100, "auto"])
@pytest.mark.parametrize("mode", ["mean", "squared", "variance"])
def test_modes(mode, batch_size):
    net, x = tiny().double(), photos(dtype=torch.float64)
    g = by_loop(net, x, 2)
    expected = {"mean": g.mean(0), "squared": g.square().mean(0), "variance": g.var(0, correction=0)}[mode]
    found = SmoothGrad(net, samples=6, mode=mode, batch_size=batch_size).attribute(x, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", [GuidedBackprop, DeconvNet, InputXGradient])
def test_of_another_gradient(cls):
    net, x = tiny(), photos()
    method = SmoothGrad(net, cls, samples=4)
    torch.testing.assert_close(method.attribute(x, 1), by_loop(net, x, 1, cls, 4).mean(0))
    named = SmoothGrad(net, cls.__name__.lower(), samples=4)
    torch.testing.assert_close(named.attribute(x, 1), method.attribute(x, 1))
    settings = named(x, 1).settings
    assert settings["method"] == "SmoothGrad" and settings["of"] == cls.__name__
    assert named.rectifiers == settings.get("rectifiers", 0) == (0 if cls is InputXGradient else 3)


def test_an_image_gets_the_same_alone_and_in_any_batch():
    net, x = tiny(), photos()
    method = SmoothGrad(net, samples=5, seed=3, batch_size=7)
    together = method.attribute(x, [0, 3, 1])
    for n, target in enumerate([0, 3, 1]):
        torch.testing.assert_close(method.attribute(x[n : n + 1], target)[0], together[n])
    torch.testing.assert_close(method.attribute(x.flip(0), [1, 3, 0]).flip(0), together)


def test_the_noise_is_per_image_and_seeded():
    net, x = tiny(), photos()
    state = torch.get_rng_state()
    first = SmoothGrad(net, seed=1, samples=3).attribute(x, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first, SmoothGrad(net, seed=1, samples=3).attribute(x, 0))
    assert not torch.allclose(first, SmoothGrad(net, seed=2, samples=3).attribute(x, 0))
    torch.testing.assert_close(SmoothGrad(net, samples=3, noise=0.0).attribute(x, 0), Saliency(net).attribute(x, 0))
    assert SmoothGrad(net, samples=3, noise=0.0, mode="variance").attribute(x, 0).abs().max() < 1e-12
    x = torch.zeros(1, 1, 64, 64)
    few, many = draws("normal", 5, 3, x), draws("normal", 5, 50, x)
    assert all(torch.equal(few(n), many(n)) for n in range(3))
    values = torch.cat([many(n) for n in range(50)])
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    correlation = np.corrcoef(values.flatten(1).numpy()) - np.eye(50)
    assert np.abs(correlation).max() < 0.08  # 5 standard deviations of 1 / 64
    even = draws("uniform", 5, 1, x)(0)
    assert 0 <= even.min() < 0.01 and 0.99 < even.max() < 1


def test_predicted_classes_are_those_of_the_image_itself():
    net, x = tiny(), photos()
    method = SmoothGrad(net, samples=3, noise=5.0)
    logits = net(x).detach()
    result = method(x)
    torch.testing.assert_close(method.outputs, logits)
    assert torch.equal(result.target, logits.argmax(1))
    torch.testing.assert_close(result.score, logits.amax(1))
    torch.testing.assert_close(result.data, method.attribute(x, logits.argmax(1)))


def test_several_targets_and_callables():
    net, x = tiny(), photos(2)
    method = SmoothGrad(net, samples=4, batch_size=3)
    result = method(x, [[0, 2], [1, 4]])
    assert result.data.shape == (2, 2, 3, 20, 24) and result.score.shape == (2, 2)
    torch.testing.assert_close(result.data[:, 1], method.attribute(x, [2, 4]))
    own = method(x, [lambda y: y[2], lambda y: y[4]])
    torch.testing.assert_close(own.data, result.data[:, 1])
    assert own.target is None


class Shaken(nn.Module):
    """Memory runs out for more than three images at once."""

    def __init__(self):
        super().__init__()
        self.net, self.rows = tiny(), []

    def forward(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError("not enough memory")
        self.rows.append(len(x))
        return self.net(x)


def test_batches_that_do_not_fit_are_made_smaller():
    x, net = photos(2), Shaken()
    found = SmoothGrad(net, samples=6).attribute(x, 1)
    torch.testing.assert_close(found, SmoothGrad(net.net, samples=6).attribute(x, 1))
    assert max(net.rows) == 2 and sum(net.rows) == 12 + 2
    with pytest.raises(torch.OutOfMemoryError):
        SmoothGrad(net, samples=6, batch_size=5).attribute(x, 1)


def test_half_precision_is_added_up_in_fp32():
    net, x = tiny().bfloat16(), photos().bfloat16()
    found = SmoothGrad(net, samples=5).attribute(x, 1)
    assert found.dtype == torch.float32
    expected = SmoothGrad(net.float(), samples=5).attribute(x.float(), 1)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.95


@pytest.mark.parametrize("side", [28, 224])
def test_the_tutorials_network(side):
    torch.manual_seed(0)
    result = SmoothGrad(grey_resnet18(), samples=2)(torch.rand(1, 1, side, side))
    assert result.data.shape == (1, 1, side, side) and result.data.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be a whole number of 1 or more, got 0"),
        ({"noise": -0.1}, ValueError, "noise must be a share of the image's range, 0 or more, got -0.1"),
        ({"mode": "median"}, ValueError, "mode must be one of mean, squared, variance, got 'median'"),
        ({"seed": -1}, ValueError, "seed must be a whole number of 0 or more, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"method": "gradcam"}, ValueError, "method must be one of saliency, .*guidedbackprop, .* got 'gradcam'"),
        ({"method": IntegratedGradients}, ValueError, "method must be one of saliency"),
        ({"method": GuidedGradCAM}, ValueError, "method must be one of saliency"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SmoothGrad(tiny(), **arguments)


def test_progress_is_shown_if_asked_for(capsys):
    SmoothGrad(tiny(), samples=3).attribute(photos(1))
    assert capsys.readouterr().err == ""
    SmoothGrad(tiny(), samples=3, progress=True).attribute(photos(1))
    assert "SmoothGrad" in capsys.readouterr().err
