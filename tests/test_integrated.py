"""Integrated gradients: exact where the integral is known, complete, for every kind of baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastcam import IntegratedGradients, Saliency
from fastcam.methods.masking import blur
from fastcam.visualize.integrated import nodes

from models import grey_resnet18, tiny


def smooth(dtype=torch.float32):
    torch.manual_seed(5)
    layers = nn.Conv2d(2, 6, 3), nn.Softplus(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 3)
    return nn.Sequential(*layers).to(dtype)


def images(count=3, dtype=torch.float32):
    torch.manual_seed(6)
    return torch.randn(count, 2, 10, 10, dtype=dtype)


@pytest.mark.parametrize("quadrature", ["gauss-legendre", "midpoint"])
@pytest.mark.parametrize("steps", [1, 7])
def test_exact_on_a_linear_model(steps, quadrature):
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(200, 3)).double(), images(dtype=torch.float64)
    base = torch.randn(2, 10, 10, dtype=torch.float64)
    method = IntegratedGradients(net, steps=steps, baseline=base, quadrature=quadrature)
    weight = net[1].weight.detach()[1].view(2, 10, 10)
    torch.testing.assert_close(method.attribute(x, 1), weight * (x - base), rtol=1e-12, atol=1e-12)
    assert method.completeness_gap.abs().max() < 1e-12 and method.relative_gap.max() < 1e-11


class Polynomial(nn.Module):
    """y = (sum x², sum x⁴)."""

    def forward(self, x):
        return torch.stack([x.square().flatten(1).sum(1), x.pow(4).flatten(1).sum(1)], 1)


def test_exact_on_polynomials_with_few_points():
    x = images(dtype=torch.float64)
    method = IntegratedGradients(Polynomial(), steps=2)
    torch.testing.assert_close(method.attribute(x, 0), x.square(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(method.attribute(x, 1), x.pow(4), rtol=1e-12, atol=1e-12)
    middle = IntegratedGradients(Polynomial(), steps=2, quadrature="midpoint")
    with pytest.warns(UserWarning, match="the difference of the scores by up to 12.5% with 2 steps") as caught:
        rough = middle.attribute(x, 1)
    assert caught[0].filename == __file__
    torch.testing.assert_close(rough, x.pow(4) * 4 * (0.25**3 + 0.75**3) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(middle.relative_gap, torch.full((3,), 0.125, dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_against_a_fine_sum(batch_size):
    net, x = smooth(torch.float64), images(dtype=torch.float64)
    base = torch.randn(3, 2, 10, 10, dtype=torch.float64)
    found = IntegratedGradients(net, baseline=base, batch_size=batch_size).attribute(x, 2)
    a = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for n in range(3):
        path = base[n] + a[:, None, None, None] * (x[n] - base[n])
        expected = (x[n] - base[n]) * Saliency(net).attribute(path, 2).mean(0)
        torch.testing.assert_close(found[n], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("quadrature", ["gauss-legendre", "midpoint"])
@pytest.mark.parametrize("baseline", [None, "black", "blur", "mean", "noise", ["noise"] * 3, ["black", None, "blur"]])
def test_complete_on_a_smooth_model(baseline, quadrature, recwarn):
    net, x = smooth(), images()
    result = IntegratedGradients(net, baseline=baseline, quadrature=quadrature)(x, [[0, 1], [1, 2], [2, 0]])
    assert result.data.shape == (3, 2, 2, 10, 10)
    gap, relative = result.settings["completeness_gap"], result.settings["relative_gap"]
    assert gap.shape == relative.shape == (3, 2) and relative.max() < 0.01 and not recwarn.list
    if baseline is None:
        with torch.no_grad():
            change = net(x) - net(torch.zeros(1, 2, 10, 10))
        change = change.gather(1, result.target)
        torch.testing.assert_close(result.data.sum((2, 3, 4)) - change, gap, rtol=0, atol=1e-5)
        torch.testing.assert_close(relative, gap.abs() / change.abs())


def test_baselines():
    x = images() * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)

    def made(baseline, **options):
        base = IntegratedGradients(smooth(), baseline=baseline, **options)._at(x)
        return [b.expand(x.shape) for b in base]

    assert torch.equal(*made(None), torch.zeros_like(x))
    assert torch.equal(*made(x[0]), x[:1].expand(x.shape)) and torch.equal(*made(x), x)
    torch.testing.assert_close(*made("black"), low.expand(x.shape))
    black = made("black", mean=[0.5, 0.4], std=[0.25, 0.1])[0]
    torch.testing.assert_close(black[:, 0], torch.full((3, 10, 10), -2.0))
    torch.testing.assert_close(black[:, 1], torch.full((3, 10, 10), -4.0))
    torch.testing.assert_close(made("black", mean=0.5, std=0.5)[0], -torch.ones_like(x))
    torch.testing.assert_close(*made("mean"), x.mean((2, 3), keepdim=True).expand(x.shape))
    torch.testing.assert_close(*made("blur"), blur(x))
    first, second = made(["noise", "noise"])
    assert (first >= low).all() and (first <= high).all() and not torch.allclose(first, second)
    torch.testing.assert_close(made("noise")[0], first)
    torch.testing.assert_close((first[0] - low[0]) / (high - low)[0], (first[1] - low[1]) / (high - low)[1])
    assert not torch.allclose(made("noise", seed=1)[0], first)


def test_several_baselines_are_averaged():
    net, x = smooth(), images()
    bases = [torch.zeros(2, 10, 10), torch.ones(2, 10, 10), "mean"]
    method = IntegratedGradients(net, baseline=bases, steps=20, batch_size=11)
    each = [IntegratedGradients(net, baseline=b, steps=20) for b in bases]
    torch.testing.assert_close(method.attribute(x, 1), sum(m.attribute(x, 1) for m in each) / 3)
    gaps = sum(m.completeness_gap for m in each) / 3
    torch.testing.assert_close(method.completeness_gap, gaps, rtol=0, atol=1e-5)
    described = method(x, 1).settings["baseline"]
    assert described == ["tensor (2, 10, 10)", "tensor (2, 10, 10)", "mean"]


def test_an_image_that_is_its_baseline_has_no_gap(recwarn):
    method = IntegratedGradients(smooth(), baseline="mean")
    assert not method.attribute(torch.ones(1, 2, 10, 10), 0).any()
    assert method.relative_gap.item() < 0.05 and not recwarn.list


def test_nodes_integrate():
    for quadrature in ("gauss-legendre", "midpoint"):
        a, w = nodes(9, quadrature)
        assert sum(w) == pytest.approx(1) and min(a) > 0 and max(a) < 1
        assert np.dot(w, a) == pytest.approx(0.5)
    a, w = np.array(nodes(9, "gauss-legendre"))
    assert np.dot(w, a**17) == pytest.approx(1 / 18, rel=1e-12)


@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.filterwarnings("ignore:integrated gradients miss")
def test_the_tutorials_network(side):
    torch.manual_seed(0)
    result = IntegratedGradients(grey_resnet18(), steps=2, baseline="blur")(torch.rand(1, 1, side, side))
    assert result.data.shape == (1, 1, side, side) and result.data.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a whole number of 1 or more, got 0"),
        ({"quadrature": "simpson"}, ValueError, 'quadrature must be "midpoint" or "gauss-legendre", got \'simpson\''),
        (
            {"baseline": "grey"},
            TypeError,
            "baseline must be None, a tensor, one of black, blur, mean, noise, or a list",
        ),
        ({"baseline": []}, ValueError, "baseline is an empty list"),
        ({"baseline": [3]}, TypeError, "baseline must be None, a tensor, .* got 3"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        IntegratedGradients(smooth(), **arguments)


def test_a_baseline_of_the_wrong_shape():
    method = IntegratedGradients(tiny(), baseline=torch.zeros(2, 3, 20, 24))
    with pytest.raises(
        ValueError, match=r"baseline must be \(3, 20, 24\) as an image, or \(3, 3, 20, 24\) as the batch"
    ):
        method.attribute(torch.randn(3, 3, 20, 24))
