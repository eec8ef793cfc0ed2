"""Images that maximise: a batch equals its images alone, within the range, past FlashTorch, at the price of a stub."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcam import Objective, maximize
from fastcam.layers import find_layers
from fastcam.scenes import load_network, make_scenes
from fastcam.visualize.forward import differentiable
from fastcam.visualize.rectifiers import Rectifiers
from fastcam.visualize.transforms import Moves

from models import build, tiny
from test_untouched import assert_same, snapshot

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("parametrization", ["pixel", "fourier", "maco"])
def test_a_batch_equals_its_images_one_at_a_time(parametrization):
    net = tiny().double()
    goals = ["body:3", "stem:2", "logit:1", 2 * Objective("body:0") - "logit:4", "body:5"]
    options = {"size": (20, 25), "steps": 6, "parametrization": parametrization, "transforms": True, "seed": 7}
    together = maximize(net, goals, batch_size=5, **options)
    assert together.data.dtype == torch.float64
    for n, goal in enumerate(goals):
        alone = maximize(net, goal, **options)
        torch.testing.assert_close(alone.data[0], together.data[n], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.score[0], together.score[n], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.transparency[0], together.transparency[n], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.curve[0], together.curve[n], rtol=1e-9, atol=1e-9)
    chunks = maximize(net, goals, batch_size=2, **options)
    torch.testing.assert_close(chunks.data, together.data, rtol=1e-9, atol=1e-9)


def test_the_bar_is_on_stderr(capsys):
    maximize(tiny(), "body:1", size=20, steps=2)
    assert capsys.readouterr().err == ""
    maximize(tiny(), ["body:1", "body:2"], size=20, steps=2, progress=True)
    assert "maximize" in capsys.readouterr().err


def test_variants_have_seeds_of_their_own():
    net = tiny().double()
    made = maximize(net, ["body:3", "body:4"], variants=3, size=20, steps=4, transforms=True, seed=5)
    assert made.target == ["body:3"] * 3 + ["body:4"] * 3
    alone = maximize(net, "body:4", size=20, steps=4, transforms=True, seed=7)
    torch.testing.assert_close(made.data[5], alone.data[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(made.data[3], made.data[4])


def test_diversity_drives_variants_apart():
    net = tiny()
    plain = maximize(net, "body:3", variants=3, size=24, steps=40, parametrization="fourier")
    apart = Objective("body:3") + 3 * Objective.diversity("body")
    made = maximize(net, apart, variants=3, size=24, steps=40, parametrization="fourier", batch_size=1)
    alike = [Objective.diversity("body")]
    shown = [maximize(net, alike, variants=3, start=m.data, size=24, steps=1, learning_rate=0.0) for m in (plain, made)]
    assert shown[1].score.mean() > shown[0].score.mean() + 0.05


@pytest.mark.parametrize("parametrization", ["pixel", "fourier", "maco"])
def test_the_score_is_that_of_the_image_in_the_valid_range(parametrization):
    net = tiny()
    made = maximize(net, "body:3", size=24, steps=70, parametrization=parametrization, **IMAGENET)
    mean, std = (torch.tensor(IMAGENET[n]).view(3, 1, 1) for n in ("mean", "std"))
    pictures = made.data * std + mean
    assert pictures.min() >= -1e-6 and pictures.max() <= 1 + 1e-6
    torch.testing.assert_close(made.pictures, pictures.clamp(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(made.score[0], net.body(net.stem(made.data))[0, 3].mean())
        grey = net.body(net.stem((torch.full((1, 3, 24, 24), 0.5) - mean) / std))[0, 3].mean()
    assert made.score[0] > grey + 0.05 and made.curve.shape == (1, 70)
    assert made.transparency.shape == (1, 24, 24) and made.transparency.amax().item() == pytest.approx(1)
    assert made.layer == "body" and made.settings["parametrization"] == parametrization


def flashtorch(net, layer, channel, mean, std, size, channels, steps=30):
    """What FlashTorch 0.1.3 does, in as many words; its last image clamped to the valid range."""
    x = torch.randint(150, 180, (1, channels, size, size), generator=torch.Generator().manual_seed(0)) / 255
    x = (x - mean) / std
    with differentiable(net, [layer]) as run:
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(run(x).activations[layer][:, channel].mean(), x)
            x = x + g / (g.square().mean().sqrt() + 1e-5)
        x = x.detach().minimum((1 - mean) / std).maximum((0 - mean) / std)
        return run(x).activations[layer][:, channel].mean().item()


@pytest.mark.parametrize("name, layers", [
    ("grey_resnet18", ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer4.1.conv1"]),
    ("resnet18", ["layer1.0.conv1", "layer4.1.conv1"]),
])  # fmt: skip
def test_as_high_as_flashtorch_in_as_many_steps(name, layers):
    net, grey = build(name), name.startswith("grey")
    about = {} if grey else IMAGENET
    mean, std = (torch.tensor(about.get(n, [d])).view(-1, 1, 1) for n, d in (("mean", 0.0), ("std", 1.0)))
    for layer in layers:
        made = maximize(net, layer, channels=[3, 20], size=28, steps=30, **about)
        module = find_layers(net, layer)[0]
        theirs = [flashtorch(net, module, k, mean, std, 28, 1 if grey else 3) for k in (3, 20)]
        assert made.score[0] >= theirs[0] - 1e-5 and made.score[1] >= theirs[1] - 1e-5, (layer, made.score, theirs)


def test_operations_are_those_of_a_network_cut_off_at_the_layer():
    net = build("resnet18")
    spent = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            maximize(net, "layer1.0.conv1:3", steps=steps, size=224)
        spent.append(counter.get_total_flops())
    assert 0.9e9 < spent[1] - spent[0] <= 1.0e9


def test_the_model_is_untouched():
    net = tiny().train()
    net.body[0].weight.grad = torch.ones_like(net.body[0].weight)
    before = snapshot(net)
    maximize(net, ["body:1", "logit:2"], size=20, steps=3, transforms=True)
    assert_same(before, snapshot(net))
    net.head.register_forward_hook(lambda *_: 1 / 0)
    before = snapshot(net)
    with pytest.raises(ZeroDivisionError):
        maximize(net, "logit:2", size=20, steps=3)
    assert_same(before, snapshot(net))


def test_runs_repeat_and_seeds_differ():
    net = tiny()
    first, again, other = (maximize(net, "body:3", size=20, steps=5, transforms=True, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.data, again.data) and not torch.equal(first.data, other.data)


class Dead(nn.Module):
    """Two rectifiers that no picture near grey brings to life."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.conv.weight.fill_(0.1)
            self.conv.bias.fill_(-0.6)

    def forward(self, x):
        return self.relu(self.conv(x))


def test_redirected_gradients_get_away_from_a_dead_start():
    net = Dead()
    assert maximize(net, "relu:2", size=12, steps=40, parametrization="fourier").score[0] > 0.1
    with pytest.warns(UserWarning, match="no step had a gradient for relu:2"):
        dead = maximize(net, ["relu:2", "conv:1"], size=12, steps=40, redirect=0)
    assert dead.score[0] == 0 and dead.score[1] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maximize(net, ["relu:2", "conv:1"], size=12, steps=20)


@pytest.mark.parametrize("high", [None, 6.0])
def test_redirection_by_hand(high):
    """A dead image's gradient passes where it brings the rectifier's input nearer to what it lets through."""
    x = torch.tensor([[-1.0, -2.0, 8.0 if high else -3.0], [-1.0, 2.0, 1.0]], requires_grad=True)
    g = torch.tensor([[0.5, -0.5, -0.25], [0.5, -0.5, 0.0]])
    with Rectifiers("redirect"):
        y = x.clamp(min=0) if high is None else torch.nn.functional.relu6(x)
    (found,) = torch.autograd.grad(y, x, g)
    assert found.tolist() == [[0.5, 0, -0.25 if high else 0], [0, -0.5, 0]]


def test_dead_and_living_images_share_a_batch():
    """The redirection is decided for each image by itself."""
    net = Dead().double()
    bright = torch.cat([torch.full((1, 1, 12, 12), 0.95), torch.full((1, 1, 12, 12), 0.3)]).double()
    options = {"size": 12, "steps": 5, "parametrization": "pixel", "learning_rate": 0.02}
    both = maximize(net, ["relu:0", "relu:0"], start=bright, **options)
    for n in (0, 1):
        alone = maximize(net, "relu:0", start=bright[n : n + 1], **options)
        torch.testing.assert_close(alone.data[0], both.data[n])


def test_neurons_get_a_canvas_of_what_they_see():
    net = build("resnet18")
    goals = ["layer1.0.conv1:3@30,20", "layer1.0.conv1:9@30,20", "layer1.0.conv1:9@0,55"]
    made = maximize(net, goals, size=224, steps=10, **IMAGENET)
    height, width = made.shape[2:]
    assert 19 <= height <= 40 and 19 <= width <= 40, "it sees 19 pixels"
    for n, (place, channel) in enumerate((((30, 20), 3), ((30, 20), 9), ((0, 55), 9))):
        top, left = made.settings["origins"][n]
        whole = torch.randn(1, 3, 224, 224)  # whatever is around it
        whole[0, :, top : top + height, left : left + width] = made.data[n]
        with differentiable(net, [net.layer1[0].conv1]) as run, torch.no_grad():
            value = run(whole).activations[net.layer1[0].conv1][0, channel, place[0], place[1]]
        assert value.item() == pytest.approx(made.score[n].item(), rel=1e-4)
    assert maximize(net, "layer1.0.conv1:3@center", size=64, steps=1, canvas="full").shape[2:] == (64, 64)
    assert maximize(net, "layer4.1.conv1:0@center", size=64, steps=1).shape[2:] == (64, 64), "it sees everything"


def test_one_channel_and_five_with_images_of_their_own():
    for channels in (1, 5):
        net = tiny(channels=channels)
        for kind in ("fourier", "maco"):
            own = torch.rand(3, channels, 30, 22)
            made = maximize(net, "body:1-2", size=(21, 18), steps=4, parametrization=kind, images=own)
            assert made.shape == (2, channels, 21, 18) and torch.isfinite(made.data).all()
    with pytest.raises(ValueError, match=r"images must be \(M, 5, H, W\), got \(3, 1, 8, 8\)"):
        maximize(net, "body:1", size=20, images=torch.rand(3, 1, 8, 8))


def test_history_start_and_callables():
    net = tiny()
    start = torch.rand(1, 3, 20, 24)
    seen = []

    def flipped(pictures):
        seen.append(len(pictures))
        return pictures.flip(3)

    options = {"size": (20, 24), "start": start, "transforms": flipped, "learning_rate": 1e-6}
    made = maximize(net, ["body:1", "body:2"], steps=16, history=[1, 16], **options)
    assert made.history.shape == (2, 2, 3, 20, 24) and seen == [2] * 16
    torch.testing.assert_close(made.history[:, 1], made.data)
    torch.testing.assert_close(made.history[0, 0], start[0], atol=1e-4, rtol=0)
    strong = maximize(net, "body:1", size=20, steps=3, transforms=Moves(jitter=0.3))
    assert strong.settings["transforms"].jitter == 0.3


def test_memory_that_is_short_halves_the_batch(monkeypatch):
    net, batches = tiny(), []

    def limited(module, args):
        batches.append(len(args[0]))
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("too much")

    net.stem[0].register_forward_pre_hook(limited)
    made = maximize(net, "body:0-6", size=20, steps=2)
    assert len(made) == 7 and max(batches) == 7 and made.score.shape == (7,) and made.curve.shape == (7, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    made = maximize(copy.deepcopy(tiny()).to(dtype), "body:3", size=20, steps=4)
    assert made.data.dtype == dtype and torch.isfinite(made.score).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"variants": 0}, "variants must be"),
        ({"parametrization": "wavelet"}, "parametrization must be one of 'pixel', 'fourier', 'maco' or 'auto'"),
        ({"transforms": "all"}, "transforms must be"),
        ({"canvas": 3}, "canvas must be"),
        ({"size": 0}, "size must be"),
        ({"mean": [0.1, 0.2]}, "mean must be one number or 3, one a channel, got 2"),
        ({"start": torch.rand(1, 3, 9, 9)}, r"start must be \(1, 3, 20, 20\), got \(1, 3, 9, 9\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        maximize(tiny(), "body:1", **{"size": 20, **options})
    with pytest.raises(ValueError, match="begins with a Conv2d, Sequential has no convolution"):
        maximize(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "1:0", size=2)


def test_a_model_that_lets_no_gradient_through():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.conv(x.detach())

    with pytest.raises(RuntimeError, match="no gradient back to the input of Cut"):
        maximize(Cut(), Objective.of(None, lambda y: y.mean()), size=8, steps=2)


def test_the_figure():
    import matplotlib.pyplot as plt

    made = maximize(tiny(channels=1), "body:0-2", size=16, steps=3)
    opened = plt.get_fignums()
    assert made._repr_png_()[:4] == b"\x89PNG"
    assert plt.get_fignums() == opened
    axes = made.plot(columns=2, transparency=True)
    assert axes.shape == (2, 2) and [ax.get_title() for ax in axes.flat] == ["body:0", "body:1", "body:2", ""]
    assert [ax.get_xlabel() for ax in axes.flat[:3]] == [f"{v:.4g}" for v in made.score.tolist()]
    assert axes[0, 0].images[0].get_array().shape == (16, 16) and axes[0, 0].images[0].get_clim() == (0, 1)
    assert axes[0, 0].images[0].get_alpha().shape == (16, 16) and not axes[1, 1].axison
    plt.close(axes[0, 0].figure)


def test_digits_that_a_trained_network_sees():
    """The picture for a digit is that digit to the network, though it was made under moves."""
    net = load_network()
    made = maximize(net, "logit:0-9", size=64, steps=64)
    with torch.no_grad():
        assert net(made.data).argmax(1).tolist() == list(range(10))
        assert (made.score > net(make_scenes(200).images).amax()).all()
