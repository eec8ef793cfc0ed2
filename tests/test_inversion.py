"""Inversion: layers that keep the image give it back, rows are what they are alone, the priors are their formulas."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import fastcam
from fastcam.scenes import load_network, make_scenes
from fastcam.visualize.inversion import total_variation

from models import TinyNet, build, photographs, tiny
from test_untouched import assert_same, fragile, snapshot


def pictures(count=2, height=20, width=24, channels=3):
    return (photographs(count, height, width, channels) * 0.25 + 0.45).clamp(0, 1)


def relative(found, wanted):
    return (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)


def by_formula(p, beta):
    """Total variation, pixel by pixel."""
    total = np.zeros(len(p))
    n, k, height, width = p.shape
    for b, c, i, j in np.ndindex(n, k, height, width):
        down = p[b, c, i + 1, j] - p[b, c, i, j] if i + 1 < height else 0
        right = p[b, c, i, j + 1] - p[b, c, i, j] if j + 1 < width else 0
        total[b] += (down**2 + right**2) ** (beta / 2)
    return total / (k * height * width)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_total_variation(beta):
    p = torch.rand(2, 2, 5, 6, dtype=torch.float64)
    np.testing.assert_allclose(total_variation(p, beta), by_formula(p.numpy(), beta), rtol=1e-4)
    flat = torch.full((1, 1, 4, 4), 0.3, requires_grad=True)
    assert torch.autograd.grad(total_variation(flat, beta).sum(), flat)[0].isfinite().all()


def test_steps_are_momentum_descent_of_the_papers_loss():
    net, p = tiny().double(), pictures(1).double()
    options = {
        "steps": 3,
        "learning_rate": 0.03,
        "alpha": 4.0,
        "beta": 1.5,
        "lambda_alpha": 0.2,
        "lambda_tv": 0.3,
        "seed": 5,
    }
    found = fastcam.invert(net, p, "body", **options)
    noise = torch.randn(p.shape[1:], generator=torch.Generator().manual_seed(5))
    picture, velocity = 0.5 + 0.01 * noise[None].double(), torch.zeros_like(p)
    wanted = net.body(net.stem(p)).detach()
    for step in range(3):
        x = picture.clone().requires_grad_()
        error = (net.body(net.stem(x)) - wanted).square().sum() / wanted.square().sum()
        squares = torch.zeros_like(x)
        squares[:, :, :-1] += (x[:, :, 1:] - x[:, :, :-1]).square()
        squares[..., :-1] += (x[..., 1:] - x[..., :-1]).square()
        loss = error + 0.2 * (2 * x - 1).abs().pow(4).mean() + 0.3 * (squares + 1e-8).pow(0.75).mean()
        (g,) = torch.autograd.grad(loss, x)
        rate = 0.03 * (1 + np.cos(np.pi * step / 3)) / 2
        velocity = 0.9 * velocity - rate * g / g.square().mean().sqrt()
        picture = (picture + velocity).clamp(0, 1)
    torch.testing.assert_close(found.data, picture)
    torch.testing.assert_close(found.score, relative(net.body(net.stem(picture)), wanted).detach())


def test_a_layer_that_keeps_everything_gives_the_image_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 4, 3))
    p = pictures(2)
    found = fastcam.invert(net, p, "1", lambda_tv=0.0, lambda_alpha=0.0)
    error = (found.data - p).square().mean((1, 2, 3)).sqrt()
    assert (error < 0.01).all() and (p.std((1, 2, 3)) > 0.15).all(), error
    assert (found.score < 0.01).all()


@pytest.mark.parametrize("layers", [["stage1", "stage2", "stage3", "stage4"], ["head"]])
def test_a_trained_network(layers):
    """Features come close to those of the image, from those of the grey that it begins with."""
    net, x = load_network(), make_scenes(2).images
    found = fastcam.invert(net, x, layers, steps=60, lambda_tv=0.1)
    grey = fastcam.invert(net, x, layers, steps=1, learning_rate=1e-6)
    limits = {"stage1": 0.15, "stage2": 0.2, "stage3": 0.33, "stage4": 0.25, "head": 0.25}
    assert (found.score < torch.tensor([limits[n] for n in layers * 2]) * grey.score).all(), found.score / grey.score


def test_rows_are_what_they_are_alone():
    net, p = tiny().double(), pictures(2).double()
    p[1] = 3 * p[1] - 1  # another range
    layers = ["head", "stem", "body"]
    together = fastcam.invert(net, p, layers, steps=15, seed=4)
    assert together.titles == layers * 2 and together.data.shape == (6, 3, 20, 24)
    for image in range(2):
        for n, layer in enumerate(layers):
            alone = fastcam.invert(net, p[image : image + 1], layer, steps=15, seed=4)
            row = 3 * image + n
            torch.testing.assert_close(alone.data, together.data[row : row + 1])
            torch.testing.assert_close(alone.score, together.score[row : row + 1])
    torch.testing.assert_close(together.of("stem"), together.data[1::3])
    parts = fastcam.invert(net, p, layers, steps=15, seed=4, batch_size=4)
    torch.testing.assert_close(parts.data, together.data)
    assert not torch.allclose(together.data[0], together.data[1], atol=0.01)


def test_one_pass_a_step_for_all_rows_as_far_as_the_last_layer():
    net, batches, behind = tiny(), [], []
    net.stem.register_forward_hook(lambda m, i, o: batches.append(len(i[0])))
    net.tail.register_forward_hook(lambda *_: behind.append(1))
    fastcam.invert(net, pictures(2), ["stem", "body", "stem.0"], steps=5)
    assert batches == [2] + 5 * [6] + [6] and not behind  # the image's features, the steps, the score


def test_statistics_give_the_range():
    mean, std = torch.tensor([0.4, 0.45, 0.5]), torch.tensor([0.2, 0.25, 0.3])
    p = pictures()
    x = (p - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    found = fastcam.invert(tiny(), x, "stem", steps=60, lambda_tv=0.01, mean=mean, std=std)
    torch.testing.assert_close(found.original.pictures, p)
    shown = found.data * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert shown.min() > -1e-5 and shown.max() < 1 + 1e-5
    torch.testing.assert_close(found.pictures, shown.clamp(0, 1))
    assert (found.score < 0.3).all()


@pytest.mark.parametrize("side", [28, 224])
def test_the_tutorials_model(side):
    x = photographs(1, side, side, 1)
    layers = ["layer1", "layer4.1.bn2", "fc"]
    found = fastcam.invert(build("grey_resnet18"), x, layers, steps=2, mean=0.45, std=0.25)
    assert found.data.shape == (3, 1, side, side) and found.layer == layers
    grey = fastcam.invert(build("grey_resnet18"), x, layers, steps=1, learning_rate=1e-6, mean=0.45, std=0.25)
    assert (found.score < grey.score).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision(dtype):
    x = pictures()
    full = fastcam.invert(tiny(), x, ["stem", "head"], steps=40)
    half = fastcam.invert(tiny().to(dtype), x, ["stem", "head"], steps=40)
    assert half.data.dtype == half.score.dtype == torch.float32
    assert (half.score < full.score + 0.03).all() and (full.score < 0.3).all(), (half.score, full.score)
    assert fastcam.invert(tiny().to(dtype), x.to(dtype), "stem", steps=1).data.dtype == dtype


def test_k_channels_and_a_dead_layer():
    net = tiny(channels=5)
    with torch.no_grad():
        net.body[0].weight.zero_()
        net.body[0].bias.zero_()
        net.body[1].bias.zero_()
        net.body[1].running_mean.zero_()
    found = fastcam.invert(net, torch.rand(1, 5, 20, 24), ["stem", "body"], steps=10)
    assert found.data.shape == (2, 5, 20, 24) and found.data.isfinite().all() and found.score[1] == 0


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken):
    net, x = fragile(), pictures().requires_grad_()
    net.broken = broken
    before, image = snapshot(net), x.detach().clone()
    if broken:
        with pytest.raises(KeyError, match="in forward"):
            fastcam.invert(net, x, "tail")
    else:
        fastcam.invert(net, x, ["body", "tail"], steps=2)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None and x.requires_grad


class Detaching(TinyNet):
    def forward(self, x):
        return super().forward(x.detach())


class Windows(TinyNet):
    def forward(self, x):
        return self.tail(self.body(self.stem(x)).view(-1, 12, 2, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": "boddy"}, ValueError, "no layer 'boddy'.*body"),
        ({"steps": 0}, ValueError, "steps must be a whole number"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be above 0"),
        ({"alpha": -1}, ValueError, "alpha must be above 0"),
        ({"lambda_tv": -1}, ValueError, "lambda_tv must be 0 or more"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"x": torch.rand(3, 20, 24)}, ValueError, r"x must be a batch of images.*pass x\[None\]"),
        ({"x": torch.full((1, 3, 20, 24), torch.nan)}, ValueError, "^x has values that are NaN"),
        ({"layers": []}, ValueError, "the list of target layers is empty"),
        ({"x": torch.rand(1, 2, 20, 24)}, ValueError, "takes 3 channels"),
        ({"model": tiny(Detaching)}, RuntimeError, "Detaching carries no gradient"),
        ({"model": tiny(Windows), "layers": "tail"}, ValueError, "layer 'tail' has not the batch of 1 first"),
    ],
)
def test_errors(change, error, message):
    given = {"model": tiny(), "x": pictures(1), "layers": "body"} | change
    with pytest.raises(error, match=message):
        fastcam.invert(**given)


def test_inference_mode():
    net, x = tiny(), pictures(1)
    expected = fastcam.invert(net, x, ["stem", "head"], steps=2, mean=torch.full((3,), 0.4), std=0.3)
    with torch.inference_mode():
        mean = torch.full((3,), 0.4)
        found = [fastcam.invert(net, y, ["stem", "head"], steps=2, mean=mean, std=0.3) for y in (x, x.clone())]
    for inversion in found:
        assert torch.equal(inversion.data, expected.data) and torch.equal(inversion.score, expected.score)
        assert not inversion.data.is_inference() and not inversion.data.requires_grad


def test_repeated_layers_are_one():
    found = fastcam.invert(tiny(), pictures(2), ["stem", "body", "stem"], steps=1)
    assert found.layer == ["stem", "body"] and found.data.shape[0] == 4
    torch.testing.assert_close(found.of("body"), found.data[1::2])


def test_progress_is_a_bar(capsys):
    fastcam.invert(tiny(), pictures(1), "body", steps=2)
    assert not capsys.readouterr().err
    fastcam.invert(tiny(), pictures(2), ["stem", "body"], steps=3, progress=True)
    assert "invert" in (said := capsys.readouterr().err) and "/12 " in said


def test_the_layer_asked_for_must_be_among_them():
    with pytest.raises(ValueError, match="no layer 'stem' among those inverted: body"):
        fastcam.invert(tiny(), pictures(1), "body", steps=1).of("stem")


def test_the_figure_is_a_strip_an_image(tmp_path):
    found = fastcam.invert(tiny(channels=1), pictures(2, channels=1), ["stem", "body"], steps=2)
    axes = found.plot()
    assert axes.shape == (2, 3)
    titles = [f"{name}: error {e:.2f}" for name, e in zip(found.titles, found.score.tolist(), strict=True)]
    for b in range(2):
        assert [ax.get_title() for ax in axes[b]] == ["input", *titles[2 * b : 2 * b + 2]]
        drawn = [found.original.pictures[b], *found.pictures[2 * b : 2 * b + 2]]
        for ax, picture in zip(axes[b], drawn, strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), picture[0].numpy())
            assert ax.images[0].get_clim() == (0, 1)
    plt.close("all")
    found.save(tmp_path / "inversion.png")
    found.save(tmp_path / "inversion.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "inversion.npz")["original"], found.original.numpy())
    names = [path.name for path in found.save_images(tmp_path / "own", "{index}_{title}.png")]
    assert names == ["0_stem.png", "1_body.png", "2_stem.png", "3_body.png"]
    assert found._repr_png_()[1:4] == b"PNG" and not plt.get_fignums()
