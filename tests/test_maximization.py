"""Images that maximise: a batch equals its images alone, within the range, past FlashTorch, at the price of a stub."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcam import Objective, maximize
from fastcam.layers import find_layers
from fastcam.scenes import load_network, make_scenes
from fastcam.visualize.ascent import Ascent
from fastcam.visualize.forward import differentiable
from fastcam.visualize.rectifiers import Rectifiers
from fastcam.visualize.transforms import Moves

from models import build, photographs, tiny
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
    shown = [
        maximize(net, alike, variants=3, start=m.data, size=24, steps=1, learning_rate=1e-9) for m in (plain, made)
    ]
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


EARLY = ["conv1", "layer1.0.conv1", "layer2.0.conv1"]


@pytest.mark.parametrize("name, layers, steps", [
    ("grey_resnet18", [*EARLY, "layer4.1.conv1"], 30),
    ("grey_resnet18", [*EARLY, "layer4.1.conv1"], 10),
    ("grey_resnet18", EARLY, 100),
    ("grey_resnet18", EARLY, 128),
    ("grey_resnet18", ["conv1", "layer1.0.conv1"], 256),
    ("resnet18", ["layer1.0.conv1", "layer4.1.conv1"], 30),
    ("resnet18", ["layer1.0.conv1"], 128),
])  # fmt: skip
def test_as_high_as_flashtorch_in_as_many_steps(name, layers, steps):
    """Behind a first layer, which is linear, both end in the same picture of black and white: to 1e-5 of rounding."""
    net, grey = build(name), name.startswith("grey")
    about = {} if grey else IMAGENET
    mean, std = (torch.tensor(about.get(n, [d])).view(-1, 1, 1) for n, d in (("mean", 0.0), ("std", 1.0)))
    channels = [3, 20] if steps <= 30 else [3]
    for layer in layers:
        made = maximize(net, layer, channels=channels, size=28, steps=steps, **about)
        module = find_layers(net, layer)[0]
        theirs = [flashtorch(net, module, k, mean, std, 28, 1 if grey else 3, steps) for k in channels]
        assert (made.score >= torch.tensor(theirs) - 1e-5).all(), (layer, made.score, theirs)


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
    assert made.settings["history"] == [1, 16] and made.settings["transforms"] == "flipped"
    strong = maximize(net, "body:1", size=20, steps=3, transforms=Moves(jitter=0.3))
    assert strong.settings["transforms"] == "Moves(jitter=0.3, scale=0.1, rotate=10.0)"


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
        ({"size": 20.0}, "size must be a whole number of pixels or \\(H, W\\), got 20.0"),
        ({"size": "big"}, "size must be"),
        ({"size": (20, 20, 3)}, "size must be"),
        ({"size": True}, "size must be"),
        ({"std": [0.2, 0.0, 0.2]}, "std must be above 0"),
        ({"std": -1.0}, "std must be above 0"),
        ({"std": float("nan")}, "std must be finite"),
        ({"settle": 1.5}, "settle must be a number from 0 to 1, got 1.5"),
        ({"settle": float("nan")}, "settle must be"),
        ({"settle": "all"}, "settle must be"),
        ({"history": [0]}, "history must be several whole numbers from 1 to 4, the steps, got \\[0\\]"),
        ({"history": [5]}, "history must be"),
        ({"history": [1.5]}, "history must be"),
        ({"history": 3}, "history must be"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": "a"}, "seed must be"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0"),
        ({"redirect": -1}, "redirect must be a whole number of 0 or more, got -1"),
        ({"variants": 1.5}, "variants must be"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"batch_size": "large"}, "batch_size must be"),
        ({"transforms": 1}, "transforms must be"),
        ({"start": torch.full((1, 3, 20, 20), float("nan"))}, "start must be finite"),
        ({"images": 3}, "images must be .*, got int"),
        ({"mean": [0.1, 0.2]}, "mean must be one number or 3, one a channel, got 2"),
        ({"start": torch.rand(1, 3, 9, 9)}, r"start must be \(1, 3, 20, 20\), got \(1, 3, 9, 9\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        maximize(tiny(), "body:1", **{"size": 20, "steps": 4, **options})
    with pytest.raises(TypeError, match="std must be one number or 3, one a channel, got 'wide'"):
        maximize(tiny(), "body:1", size=20, std="wide")
    with pytest.raises(ValueError, match="begins with a Conv2d, Sequential has no convolution"):
        maximize(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "1:0", size=2)


@pytest.mark.parametrize("start", [3, "photo.jpg", torch.ones(1, 3, 20, 20, dtype=torch.int64)])
def test_a_start_that_is_no_tensor_of_floats(start):
    with pytest.raises(TypeError, match="start must be a floating-point tensor, got"):
        maximize(tiny(), "body:1", size=20, steps=1, start=start)


def test_a_start_of_nearly_no_contrast():
    with pytest.warns(UserWarning, match="start has nearly no contrast") as found:
        maximize(tiny(), "body:1", size=20, steps=1, start=torch.rand(1, 3, 20, 20) / 255)
    assert found[0].filename == __file__


def test_numpy_numbers_are_numbers():
    net, one = tiny(), np.int64(1)
    made = maximize(
        net, "body:1", size=np.int64(20), steps=2 * one, seed=one, variants=one, history=[one], redirect=one
    )
    plain = maximize(net, "body:1", size=(20, 20), steps=2, seed=1, history=torch.tensor([1]), redirect=1)
    assert torch.equal(made.data, plain.data) and made.history.shape == (1, 1, 3, 20, 20)
    assert all(type(made.settings[n]) is int for n in ("steps", "seed", "variants", "redirect"))


@pytest.mark.parametrize(
    "steps, settle, moved", [(12, 0, 12), (12, 1, 0), (12, 2 / 3, 4), (1, 0, 1), (1, 1, 0), (3, 0.1, 3)]
)
@pytest.mark.parametrize("parametrization", ["pixel", "fourier", "maco"])
def test_pictures_stand_still_in_the_settled_part(monkeypatch, parametrization, steps, settle, moved):
    calls, call = [], Moves.__call__
    monkeypatch.setattr(Moves, "__call__", lambda self, x, matrices: calls.append(1) or call(self, x, matrices))
    options = {"parametrization": parametrization, "steps": steps, "settle": settle, "transforms": True}
    made = maximize(tiny(), "body:3", size=20, redirect=0, **options)
    assert len(calls) == moved and torch.isfinite(made.data).all() and made.settings["settle"] == settle
    assert torch.isfinite(made.curve).all() and made.data.min() >= 0 and made.data.max() <= 1


def test_what_is_not_moved_is_scored_as_it_is():
    """Behind the last move the curve is that of the images in the history, and ends at the score."""
    net = tiny().double()
    made = maximize(net, "body:3", size=20, steps=12, settle=0.5, transforms=True, history=range(1, 13))
    with torch.no_grad():
        still = net.body(net.stem(made.history[0]))[:, 3].mean((1, 2))
    torch.testing.assert_close(made.curve[0, 6:], still[5:-1])
    torch.testing.assert_close(made.score[0], still[-1])
    assert not torch.isclose(made.curve[0, 1:6], still[:5]).any()


def test_the_rate_falls_to_0_in_both_parts():
    shared = {"net": None, "layers": (), "complete": False, "frame": None, "parametrization": None, "moves": Moves()}
    for steps, moved in ((12, 4), (12, 0), (12, 12), (1, 0), (1, 1), (2, 1)):
        ascent = Ascent(**shared, steps=steps, moved=moved, rate=1.0, redirect=0)
        found = [ascent._share(n) for n in range(steps)]
        parts = [found[:moved], found[moved:]]
        for part in filter(None, parts):
            expected = (1 + np.cos(np.pi * np.arange(len(part)) / len(part))) / 2
            np.testing.assert_allclose(part, expected)


@pytest.mark.parametrize("parametrization", ["pixel", "fourier", "maco"])
def test_inside_inference_mode(parametrization):
    net, options = tiny(), {"size": 20, "steps": 3, "parametrization": parametrization, "transforms": True}
    start, own, v = torch.rand(1, 3, 20, 20), torch.rand(2, 3, 24, 24), torch.rand(12)
    goals = ["body:1", "body:1@center", "logit:2"]
    expected = maximize(net, [*goals, Objective.direction("body", v)], start=start, images=own, **options)
    with torch.inference_mode():
        copies = start + 0, own + 0, v + 0
        assert copies[0].is_inference()
        direction = Objective.direction("body", copies[2])
        found = maximize(net, [*goals, direction], start=copies[0], images=copies[1], **options)
        maximize(net, "body:1@center", size=40, steps=2)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.data, expected.data) and not found.data.is_inference() and not found.data.requires_grad
    with torch.no_grad():
        assert torch.equal(maximize(net, [*goals, direction], start=start, images=own, **options).data, expected.data)


@pytest.mark.parametrize("steps", [20, 40])
def test_a_start_can_still_be_recognised(steps):
    net, photo = build("resnet18"), (0.45 + 0.25 * photographs(1, 48, 48)).clamp(0, 1)
    made = maximize(net, ["conv1:1", "layer2.0.conv1:3"], size=48, steps=steps, start=photo)
    for image, score, first in zip(made.data, made.score, made.curve[:, 0], strict=True):
        assert torch.corrcoef(torch.stack([image.flatten(), photo.flatten()]))[0, 1] > 0.9 and score > first
    free = maximize(net, "conv1:1", size=48, steps=steps, start=photo, learning_rate=0.05)
    assert torch.corrcoef(torch.stack([free.data.flatten(), photo.flatten()]))[0, 1] < 0.7


def test_a_score_that_fell_is_told():
    """What is linear falls as far as its negative rises."""
    net, options = nn.Conv2d(1, 4, 3), {"size": 20, "steps": 6}
    goals = [Objective.channel(net, k) for k in range(2)]
    with pytest.warns(UserWarning, match="below where the run began for :0, :1: try transforms=None or param") as found:
        made = maximize(net, goals, transforms=lambda pictures: 1 - pictures, **options)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maximize(tiny(), ["body:3", "body:4", "logit:1"], **options)
        maximize(
            net, goals, start=made.data[:1], learning_rate=1e-9, transforms=True, **options
        )  # moved it scores less


def test_files_hold_all_tensors_and_plain_settings(tmp_path):
    made = maximize(tiny(), ["body:3", "body:1@center"], size=20, steps=4, transforms=True, history=[2, 4])
    made.save(tmp_path / "m.pt")
    made.save(tmp_path / "m.npz")
    kept = torch.load(tmp_path / "m.pt", weights_only=True)
    arrays = np.load(tmp_path / "m.npz")
    for name in ("data", "score", "transparency", "curve", "history"):
        assert torch.equal(kept[name], getattr(made, name))
        np.testing.assert_array_equal(arrays[name], getattr(made, name).numpy())
    assert kept["settings"] == made.settings and kept["target"] == made.target
    assert json.loads(str(arrays["about"]))["settings"]["transforms"] == repr(Moves())
    maximize(tiny(), "body:3", size=20, steps=1).save(tmp_path / "short.npz")
    assert "history" not in np.load(tmp_path / "short.npz")


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
