"""Deep dream against the same written with a loop over images, and what holds for any model and image."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcam

from models import TinyNet, build, grey_resnet18, photographs, small_vit, tiny
from test_untouched import Fragile, assert_same, fragile, snapshot


def pictures(count=2, height=40, width=48, channels=3):
    return (photographs(count, height, width, channels) * 0.25 + 0.45).clamp(0, 1)


def body(net, x):
    return net.body(net.stem(x))


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def dream_of_one(values, picture, sizes, steps, step_size, jitter, seed):
    """The procedure for one picture `(1, k, H, W)` whose objective is `values`."""
    draws = torch.rand(len(sizes), steps, 2, generator=torch.Generator().manual_seed(seed))
    detail = torch.zeros_like(resized(picture, sizes[0]))
    for octave, size in enumerate(sizes):
        base = resized(picture, size)
        p = (base + resized(detail, size)).clamp(0, 1)
        for step in range(steps):
            reach = [min(jitter, side // 4) for side in size]
            shift = [int(u * (2 * r + 1)) - r for u, r in zip(draws[octave, step].tolist(), reach, strict=True)]
            rolled = p.roll(shift, (2, 3)).requires_grad_()
            (g,) = torch.autograd.grad(values(rolled), rolled)
            g = g.roll([-s for s in shift], (2, 3))
            p = (p + step_size * g / g.abs().mean()).clamp(0, 1)
        detail = p - base
    return p


def test_it_is_the_procedure_of_the_paper():
    net, p = tiny().double(), pictures().double()
    dream = fastcam.deep_dream(net, p, "body", octaves=3, scale=1.5, steps=4, step_size=0.02, jitter=5, seed=7)
    sizes = [(18, 21), (27, 32), (40, 48)]
    assert dream.settings["sizes"] == sizes
    for i in range(2):
        expected = dream_of_one(lambda x: body(net, x).square().mean() / 2, p[i : i + 1], sizes, 4, 0.02, 5, 7)
        torch.testing.assert_close(dream.data[i : i + 1], expected)
        assert not torch.allclose(expected, p[i : i + 1], atol=0.05)
    assert not torch.equal(dream.data, fastcam.deep_dream(net, p, "body", steps=4, jitter=5, seed=8).data)


def test_a_batch_is_its_images_one_at_a_time():
    net, p = tiny().double(), pictures(3).double()
    p[1] = 5 * p[1] - 2  # another range
    together = fastcam.deep_dream(net, p, ["stem", "body"], steps=5, seed=3)
    for i in range(3):
        alone = fastcam.deep_dream(net, p[i : i + 1], ["stem", "body"], steps=5, seed=3)
        torch.testing.assert_close(alone.data, together.data[i : i + 1])
        torch.testing.assert_close(alone.score, together.score[i : i + 1])


@pytest.mark.parametrize(
    ("channels", "value"),
    [
        (None, lambda s, b: s.square().mean((1, 2, 3)) / 2 + b.square().mean((1, 2, 3)) / 2),
        ([None, 3], lambda s, b: s.square().mean((1, 2, 3)) / 2 + b[:, 3].mean((1, 2))),
        ([[0, 2], np.int64(5)], lambda s, b: s[:, [0, 2]].mean((1, 2, 3)) + b[:, 5].mean((1, 2))),
    ],
)
def test_objectives(channels, value):
    net, p = tiny().double(), pictures().double()
    dream = fastcam.deep_dream(net, p, ["stem", "body"], channels, octaves=1, steps=3, jitter=0, step_size=0.01)
    expected = p
    for _ in range(3):
        x = expected.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(net.stem(x), body(net, x)).sum(), x)
        expected = (expected + 0.01 * g / g.abs().mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    torch.testing.assert_close(dream.data, expected)
    for found, images in ((dream.before.score, p), (dream.score, dream.data)):
        torch.testing.assert_close(found, value(net.stem(images), body(net, images)))
    assert (dream.score > dream.before.score).all() and dream.layer == ["stem", "body"]


def test_statistics_give_the_range():
    """Normalised inputs are the dream of the pictures, by a model that normalises them itself."""
    mean, std = torch.tensor([0.4, 0.45, 0.5]), torch.tensor([0.2, 0.25, 0.3])
    net, p = tiny().double(), pictures().double()

    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))

    x = (p - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    dream = fastcam.deep_dream(net, x, "body", steps=4, step_size=0.1, mean=mean, std=std.tolist())
    plain = fastcam.deep_dream(Normalising(), p, "net.body", steps=4, step_size=0.1)
    torch.testing.assert_close(dream.pictures, plain.pictures)
    torch.testing.assert_close(dream.before.pictures, p.float())
    assert dream.data.dtype == torch.float64
    assert plain.data.min() == 0 and plain.data.max() == 1


def test_an_image_outside_the_unit_range_keeps_its_own():
    p = pictures()
    x = torch.stack([p[0], 4 * p[1] - 2])
    dream = fastcam.deep_dream(tiny(), x, "body", steps=20, step_size=0.1)
    for images in (dream, dream.before):
        assert images.pictures.amin() >= 0 and images.pictures.amax() <= 1
    assert dream.data[0].min() == 0 and dream.data[0].max() == 1
    torch.testing.assert_close(dream.data[1].aminmax(), x[1].aminmax())
    torch.testing.assert_close(dream.before.pictures[0], p[0])


class Fixed(TinyNet):
    def forward(self, x):
        assert x.shape[-2:] == (40, 48), "made for 40 x 48"
        return super().forward(x)


def test_octaves_that_the_model_does_not_run_on_are_left_out():
    x = pictures(1)
    assert fastcam.deep_dream(tiny(Fixed), x, "body", steps=1).settings["sizes"] == [(40, 48)]
    with pytest.raises(AssertionError, match="made for 40 x 48"):
        fastcam.deep_dream(tiny(Fixed), x[..., :47], "body", steps=1)
    small = fastcam.deep_dream(tiny(), x[..., :10, :12], "body", steps=2)
    assert small.settings["sizes"] == [(10, 12)] and (small.score > small.before.score).all()


@pytest.mark.parametrize(("side", "sizes"), [(28, [20, 28]), (224, [160, 224])])
def test_the_tutorials_model(side, sizes):
    net = build("grey_resnet18")
    x = photographs(2, side, side, 1)
    dream = fastcam.deep_dream(net, x, "layer3", octaves=2, steps=2, mean=0.45, std=0.25)
    assert dream.settings["sizes"] == [(s, s) for s in sizes]
    assert dream.data.shape == x.shape and (dream.score > 1.1 * dream.before.score).all()


def test_channels_of_tokens_come_last():
    net, x = small_vit().eval(), pictures(2, 64, 64)
    dream = fastcam.deep_dream(net, x, "encoder.layers[1].ln_1", 40, steps=3, jitter=0)
    assert dream.settings["sizes"] == [(64, 64)] and (dream.score > dream.before.score).all()
    seen = []
    handle = net.encoder.layers[1].ln_1.register_forward_hook(lambda m, i, o: seen.append(o))
    net(dream.data)
    handle.remove()
    torch.testing.assert_close(dream.score, seen[0][:, :, 40].mean(1).detach())


def test_k_channels_and_a_linear_layer():
    x = torch.rand(2, 5, 20, 24)
    dream = fastcam.deep_dream(tiny(channels=5), x, "head", 2, steps=3)
    assert dream.data.shape == x.shape and (dream.score > dream.before.score).all()
    torch.testing.assert_close(dream.score, tiny(channels=5)(dream.data)[:, 2].detach(), atol=1e-5, rtol=1e-5)


def test_a_tile_sees_nothing_else():
    """Without neighbourhoods tiles make no difference; with them the model never sees more than a tile."""
    torch.manual_seed(0)
    pointwise = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1)).double()
    x = pictures(2, 37, 50).double()
    whole = fastcam.deep_dream(pointwise, x, "2", octaves=1, steps=1, jitter=0)
    tiled = fastcam.deep_dream(pointwise, x, "2", octaves=1, steps=1, jitter=0, tile=16)
    torch.testing.assert_close(whole.data, tiled.data)
    net, seen = tiny().double(), []
    handle = net.stem.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape[-2:])))
    tiled = fastcam.deep_dream(net, x, "body", steps=4, tile=24)
    handle.remove()
    assert set(seen) == {(19, 24), (24, 24)} and (tiled.score > 1.2 * tiled.before.score).all()
    untiled = fastcam.deep_dream(net, x, "body", steps=4, tile=50)
    torch.testing.assert_close(untiled.data, fastcam.deep_dream(net, x, "body", steps=4).data)
    assert not torch.allclose(tiled.data, untiled.data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision(dtype):
    x = pictures()
    full = fastcam.deep_dream(tiny(), x, "body", steps=4)
    half = fastcam.deep_dream(tiny().to(dtype), x, "body", steps=4)
    assert half.data.dtype == torch.float32
    torch.testing.assert_close(half.score, full.score, rtol=0.05, atol=0)
    assert fastcam.deep_dream(tiny().to(dtype), x.to(dtype), "body", steps=1).data.dtype == dtype


def test_it_stops_at_the_last_layer():
    net, calls = tiny(), []
    net.tail.register_forward_hook(lambda *_: calls.append(1))
    fastcam.deep_dream(net, pictures(), ["stem", "body"], steps=1)
    assert not calls


def test_inference_mode():
    net, x = tiny(), pictures(1)
    expected = fastcam.deep_dream(net, x, "body", steps=2, mean=torch.full((3,), 0.4), std=0.3)
    with torch.inference_mode():
        mean = torch.full((3,), 0.4)
        found = [fastcam.deep_dream(net, y, "body", steps=2, mean=mean, std=0.3) for y in (x, x.clone())]
    for dream in found:
        assert torch.equal(dream.data, expected.data) and torch.equal(dream.score, expected.score)
        assert not dream.data.is_inference() and not dream.data.requires_grad


def test_progress_is_a_bar(capsys):
    fastcam.deep_dream(tiny(), pictures(1), "body", steps=2)
    assert not capsys.readouterr().err
    fastcam.deep_dream(tiny(), pictures(1), "body", steps=2, octaves=2, progress=True)
    assert "deep_dream" in (said := capsys.readouterr().err) and "/4 " in said


def test_where_nothing_is_active_the_image_stays():
    net = tiny()
    with torch.no_grad():
        net.stem[0].weight.zero_()
        net.stem[1].bias.fill_(-1)
        net.stem[1].running_mean.zero_()
    x = pictures()
    torch.testing.assert_close(fastcam.deep_dream(net, x, "stem", octaves=1, steps=2).data, x)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken):
    net, x = fragile(), pictures().requires_grad_()
    assert isinstance(net, Fragile)
    net.broken = broken
    before, image = snapshot(net), x.detach().clone()
    if broken:
        with pytest.raises(KeyError, match="in forward"):
            fastcam.deep_dream(net, x, "tail")
    else:
        fastcam.deep_dream(net, x, ["body", "tail"], steps=2, octaves=2)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None and x.requires_grad


class Detaching(TinyNet):
    def forward(self, x):
        return super().forward(x.detach())


class Windows(TinyNet):
    def forward(self, x):
        return self.tail(self.body(self.stem(x)).view(-1, 12, 4, 6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": "boddy"}, ValueError, "no layer 'boddy'.*body"),
        ({"channels": 12}, ValueError, "layer 'body' has channels 0 to 11, got channels \\[12\\]"),
        ({"channels": []}, ValueError, "layer 'body' has channels 0 to 11, got channels \\[\\]"),
        ({"layers": ["stem", "body"], "channels": [1]}, ValueError, "an entry for each of the 2 layers"),
        ({"octaves": 0}, ValueError, "octaves must be a whole number"),
        ({"scale": 1.0}, ValueError, "scale must be above 1"),
        ({"step_size": 0}, ValueError, "step_size must be above 0"),
        ({"jitter": -1}, ValueError, "jitter must be"),
        ({"tile": 0}, ValueError, "tile must be"),
        ({"std": 0.0}, ValueError, "std must be above 0"),
        ({"mean": [0.1, 0.2]}, ValueError, "mean must be one value or 3"),
        ({"x": torch.rand(3, 40, 48)}, ValueError, r"x must be a batch of images.*pass x\[None\]"),
        ({"x": torch.full((1, 3, 40, 48), torch.nan)}, ValueError, "^x has values that are NaN"),
        ({"x": torch.rand(1, 2, 40, 48)}, ValueError, "takes 3 channels"),
        ({"x": torch.full((1, 3, 40, 48), 7.0)}, ValueError, "one value outside"),
        ({"x": np.zeros((1, 3, 40, 48))}, TypeError, "must be a tensor"),
        ({"model": tiny(Detaching)}, RuntimeError, "Detaching carries no gradient"),
        ({"model": tiny(Windows), "layers": "tail"}, ValueError, "layer 'tail' has not the batch of 1 first"),
    ],
)
def test_errors(change, error, message):
    given = {"model": tiny(), "x": pictures(1), "layers": "body"} | change
    with pytest.raises(error, match=message):
        fastcam.deep_dream(**given)


def test_an_image_divided_twice_is_noticed():
    with pytest.warns(UserWarning, match="nearly no contrast.*divided by 255 twice"):
        fastcam.deep_dream(tiny(), pictures() / 255, "body", steps=1)


def test_the_figure_has_pairs():
    dream = fastcam.deep_dream(tiny(channels=1), pictures(3, channels=1), "body", steps=2)
    axes = dream.plot()
    assert axes.shape == (3, 2)
    for row in range(3):
        for ax, images, name in zip(axes[row], (dream.before, dream), ("before", "after"), strict=True):
            assert ax.get_title() == f"{name}: objective {images.score[row]:.3g}"
            np.testing.assert_array_equal(ax.images[0].get_array(), images.pictures[row, 0].numpy())
            assert ax.images[0].get_clim() == (0, 1)
    axes = dream.plot(columns=2)
    assert axes.shape == (2, 4) and axes[0, 2].get_title().startswith("before") and not axes[1, 3].axison
    plt.close("all")


def test_saving_opens_no_figure(tmp_path):
    dream = fastcam.deep_dream(tiny(), pictures(2), "body", steps=1)
    dream.save(tmp_path / "dream.png")
    dream.save(tmp_path / "dream.pt")
    loaded = torch.load(tmp_path / "dream.pt", weights_only=False)
    assert torch.equal(loaded["before"], dream.before.data) and torch.equal(loaded["data"], dream.data)
    assert torch.equal(loaded["before_score"], dream.before.score)
    assert (tmp_path / "dream.png").read_bytes()[1:4] == dream._repr_png_()[1:4] == b"PNG"
    assert len(dream.save_images(tmp_path / "own")) == 2 and not plt.get_fignums()


def test_an_uncalibrated_network_of_the_tutorial_runs_too():
    dream = fastcam.deep_dream(grey_resnet18(), torch.rand(1, 1, 28, 28), "conv1", 5, steps=1)
    assert dream.data.isfinite().all()
