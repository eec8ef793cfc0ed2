"""Gradients of the input: batches, targets, surroundings and errors. The rules themselves are in test_rectifiers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import pytorch_grad_cam
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastcam
from fastcam import GradCAM, feature_maps
from fastcam.results import Result
from fastcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from fastcam.visualize import SALIENCY, DeconvNet, GuidedBackprop, GuidedGradCAM, InputXGradient, Saliency
from fastcam.visualize.saliency import GuidedBackpropReLUModel

from models import TinyNet, build, grey_resnet18, inputs, photographs, tiny

GRADIENTS = [GuidedBackprop, DeconvNet]


RULES = ["guidedbackprop", "deconvnet", "guidedgradcam"]
pytestmark = pytest.mark.filterwarnings("ignore:integrated gradients miss")


def methods(net):
    """All on a model, by name; Guided Grad-CAM at the layer `tail`, and rows in batches that do not depend on time."""
    options = {"smoothgrad": {"samples": 4, "batch_size": 5}, "integratedgradients": {"steps": 4, "batch_size": 5}}
    layer = {"guidedgradcam": ["tail"]}
    return {n: cls(net, *layer.get(n, []), **options.get(n, {})) for n, cls in SALIENCY.items()}


def photos(count=3):
    return torch.randn(count, 3, 20, 24)


@pytest.mark.parametrize("name", SALIENCY)
@pytest.mark.parametrize("targets", [None, 2, [0, 3, 1]], ids=["predicted", "one", "each"])
def test_a_batch_equals_its_images(name, targets):
    x, method = photos(), methods(tiny())[name]
    batch = method.attribute(x, targets)
    assert batch.shape == x.shape and batch.any() and not batch.requires_grad
    for n in range(3):
        alone = method.attribute(x[n : n + 1], targets[n] if isinstance(targets, list) else targets)
        torch.testing.assert_close(batch[n : n + 1], alone)


@pytest.mark.parametrize(
    "targets", [None, 1, [2, 0], [[1, 2, 0], [0, 3, 3]]], ids=["predicted", "one", "each", "several"]
)
@pytest.mark.parametrize("name", SALIENCY)
def test_what_a_call_gives(name, targets):
    net, x = tiny(), photos(2)
    method = methods(net)[name]
    result, logits = method(x, targets), net(x).detach()
    assert torch.equal(result.data, method.attribute(x, targets))
    classes = logits.argmax(1) if targets is None else torch.tensor(targets).expand(2, *torch.tensor(targets).shape[1:])
    assert torch.equal(result.target, classes) and result.target.shape == result.score.shape
    torch.testing.assert_close(result.score, logits.gather(1, classes.view(2, -1)).view(classes.shape))
    assert result.layer == ("tail" if name == "guidedgradcam" else None)
    assert result.settings["method"] == SALIENCY[name].__name__ and not result.data.requires_grad
    assert method.rectifiers == result.settings.get("rectifiers", 0) == (3 if name in RULES else 0)
    assert torch.equal(result.image, x) and torch.equal(result.outputs, logits) and torch.equal(method.outputs, logits)
    own = method(x, lambda y: y[0])
    assert own.target is None and own.score.shape == (2,)


def test_saliency_is_the_gradient_in_finite_differences():
    net, x = tiny().double(), photos(2).double()
    gradient = Saliency(net).attribute(x, [1, 4])
    for n, target in enumerate([1, 4]):
        direction = torch.randn(3, 20, 24, dtype=torch.float64)
        ahead, behind = (net((x[n] + s * 1e-7 * direction)[None])[0, target] for s in (1, -1))
        torch.testing.assert_close((gradient[n] * direction).sum(), (ahead - behind) / 2e-7, rtol=1e-5, atol=1e-8)
    pixel = torch.zeros_like(x)
    pixel[:, 1, 7, 9] = 1e-6
    with torch.no_grad():
        step = (net(x + pixel) - net(x - pixel)).gather(1, torch.tensor([[1], [4]]))[:, 0] / 2e-6
    torch.testing.assert_close(gradient[:, 1, 7, 9], step, rtol=1e-5, atol=1e-9)


def test_saliency_and_input_x_gradient_are_those_of_autograd():
    net, x = tiny(), photos()
    needing = x.clone().requires_grad_()
    net(needing)[torch.arange(3), [0, 3, 1]].sum().backward()
    torch.testing.assert_close(Saliency(net).attribute(x, [0, 3, 1]), needing.grad)
    torch.testing.assert_close(InputXGradient(net).attribute(x, [0, 3, 1]), x * needing.grad)


def test_input_x_gradient_of_a_network_without_biases_is_complete():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18 * 22, 4, bias=False))
    result = InputXGradient(net)(photos(), 2)
    torch.testing.assert_close(result.map("sum").sum((1, 2)), result.score)


@pytest.mark.parametrize("name", SALIENCY)
@pytest.mark.parametrize("side", [28, 224])
def test_the_tutorials_network(name, side):
    torch.manual_seed(0)
    few = {"smoothgrad": {"samples": 1}, "integratedgradients": {"steps": 1}}.get(name, {})
    result = SALIENCY[name](grey_resnet18(), **few)(torch.rand(1, 1, side, side))
    assert result.data.shape == (1, 1, side, side) and result.map().shape == (1, side, side) and result.data.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    net, x = tiny().to(dtype), photos().to(dtype)
    gradient = Saliency(net).attribute(x, 1)
    assert gradient.dtype == dtype
    expected = Saliency(net.float()).attribute(x.float(), 1)
    assert torch.cosine_similarity(gradient.float().flatten(), expected.flatten(), 0) > 0.98


@pytest.mark.parametrize("given", [{}, {"targets": [[0, 1], [2, 3]]}])
def test_reductions(given):
    result = Saliency(tiny())(photos(2), **given)
    g = result.data.numpy()
    expected = {
        "max": np.abs(g).max(-3),
        "sum": g.sum(-3),
        "norm": np.sqrt((g**2).sum(-3)),
        "positive": g.clip(0).sum(-3),
        "negative": -g.clip(max=0).sum(-3),
    }
    for reduce, values in expected.items():
        np.testing.assert_allclose(result.map(reduce).numpy(), values, rtol=1e-5, atol=1e-7)
    assert torch.equal(result.map(), result.map("max"))
    with pytest.raises(ValueError, match="reduce must be one of max, sum, norm, positive, negative, got 'mean'"):
        result.map("mean")


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_its_figure(channels, tmp_path):
    net, x = tiny(channels=channels), torch.rand(3, channels, 20, 24)
    result = Saliency(net)(x, 2)
    open_figures = plt.get_fignums()
    result.save(tmp_path / "a.png", image=[0, 2])
    assert result._repr_png_().startswith(b"\x89PNG") and plt.get_fignums() == open_figures
    axes = result.plot(image=0, class_names=["a", "b", "c", "d", "e"])
    figure = axes.flat[0].figure
    assert axes.shape == (1, 3 if channels == 1 else 4) and plt.get_fignums() != open_figures
    title = figure.get_suptitle()
    p, predicted = net(x[:1]).softmax(1)[0, 2].item(), net(x[:1]).argmax().item()
    assert title.isascii() and title.startswith(f"target 2 c p={p:.2f} (predicted: ")
    assert title.endswith("same)" if predicted == 2 else f"{predicted} {'abcde'[predicted]})")
    picture = axes[0, 0].images[0].get_array()
    assert picture.min() == pytest.approx(0, abs=0.3) and picture.max() <= 1
    limit = np.percentile(np.abs(result.data[0].sum(0).numpy()), 99)
    if channels == 3:
        values = result.data[0].movedim(0, -1).numpy()
        drawn = np.clip(0.5 + values / (2 * np.percentile(np.abs(values), 99)), 0, 1)
        np.testing.assert_allclose(axes[0, 1].images[0].get_array(), drawn, atol=1e-6)
    else:
        assert axes[0, 1].images[0].get_clim() == pytest.approx((-limit, limit))
    top = np.percentile(result.map()[0].numpy(), 99)
    maps = [axes[0, -1].images[1], *([axes[0, 2].images[0]] if channels > 1 else [])]
    for drawn in maps:
        assert drawn.get_clim() == pytest.approx((0, top))
        np.testing.assert_allclose(drawn.get_array(), result.map()[0].numpy())
    bars = [ax for ax in figure.axes if ax not in axes]
    assert len(bars) == {1: 2, 2: 3, 3: 2}[channels]
    assert {label.get_text() for label in bars[-1].get_yticklabels()} == {"0", f"{top:.3g}"}
    plt.close(figure)


def test_the_figure_of_several_images_and_targets():
    result = GuidedBackprop(tiny())(photos(3), [[0, 1], [2, 3], [4, 0]])
    pictures = [np.full((20, 24, 3), value) for value in (0.1, 0.2, 0.3)]
    axes = result.plot(image=[2, 0], class_names={4: "cat"}, picture=pictures)
    labels = [row[0].get_ylabel() for row in axes]
    starts = ["target 4 cat\np=", "target 0\np=", "target 0\np=", "target 1\np="]
    assert all(label.startswith(start) for label, start in zip(labels, starts, strict=True))
    assert [round(float(row[0].images[0].get_array().mean()), 3) for row in axes] == [0.3, 0.3, 0.1, 0.1]
    assert [ax.get_title() for ax in axes[0]] == ["input", "GuidedBackprop", "max |g| over channels", "overlay"]
    assert not any(ax.get_title() for ax in axes[1:].flat)
    shown = result.plot(mean=0.5, std=0.25)[0, 0].images[0].get_array()
    np.testing.assert_allclose(shown, (result.image[0] * 0.25 + 0.5).clamp(0, 1).movedim(0, -1), atol=1e-6)
    figure, given = plt.subplots(1, 4)
    assert GuidedBackprop(tiny())(photos(1), 0).plot(given)[0, 0] is given[0]
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": 3}, "image must be among the 2 of the batch, got 3"),
        ({"image": []}, "image is empty"),
        ({"image": True}, "image must be among the 2 of the batch, got True"),
        ({"picture": torch.zeros(3, 20, 24)}, "picture must be one for each of the 2 images of the batch, got 1"),
        ({"picture": [torch.zeros(20, 24)] * 3, "image": 1}, "must be one picture, or one for each of the 2 .*, got 3"),
        ({"picture": torch.zeros(2, 3, 8, 8)}, r"picture must be of the input's size \(20, 24\), got \(8, 8\)"),
        ({"clip": 0}, "clip must be a percentile"),
        ({"reduce": "mean"}, "reduce must be one of"),
    ],
)
def test_a_figure_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        Saliency(tiny())(photos(2), 0).plot(**options)
    plt.close("all")


def test_what_is_no_image_is_not_drawn():
    net = nn.Sequential(nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3))
    result = Saliency(net)(torch.randn(2, 1, 12), 1)
    assert result.map().shape == (2, 12)
    with pytest.raises(ValueError, match=r"plot draws images \(B, k, H, W\), these are \(2, 1, 12\): take .map"):
        result.plot()


def test_scores_in_the_title():
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = Saliency(net)(photos(1), 0)
    assert result.plot()[0, 0].figure.get_suptitle() == f"target 0 score {result.score.item():.3g}"
    own = Saliency(net)(photos(1), lambda y: y[0] * 2)
    assert own.plot()[0, 0].figure.get_suptitle() == f"score {own.score.item():.3g}"
    plt.close("all")


@pytest.mark.parametrize("name", SALIENCY)
def test_several_targets_an_image(name):
    x, method = photos(2), methods(tiny())[name]
    targets = torch.tensor([[0, 1, 4], [2, 2, 3]])
    several = method.attribute(x, targets)
    assert several.shape == (2, 3, 3, 20, 24)
    for t in range(3):
        torch.testing.assert_close(several[:, t], method.attribute(x, targets[:, t]))
    assert method.attribute(x, targets[:, :1]).shape == (2, 1, 3, 20, 24)


@pytest.mark.parametrize("name", SALIENCY)
def test_callables_are_targets(name):
    x, method = photos(2), methods(tiny())[name]
    torch.testing.assert_close(method.attribute(x, [lambda y: y[1], lambda y: y[3]]), method.attribute(x, [1, 3]))
    torch.testing.assert_close(method.attribute(x, ClassifierOutputTarget(2)), method.attribute(x, 2))
    assert not torch.equal(method.attribute(x, ClassifierOutputSoftmaxTarget(2)), method.attribute(x, 2))


def test_none_is_the_predicted_class():
    net, x = tiny(), photos()
    method = GuidedBackprop(net)
    predicted = net(x).argmax(1)
    assert torch.equal(method.attribute(x), method.attribute(x, predicted))
    assert torch.equal(method.outputs, net(x)) and not method.outputs.requires_grad
    assert method.rectifiers == 3


@pytest.mark.parametrize("name", SALIENCY)
def test_where_it_is_called_does_not_matter(name):
    net, x = tiny(), photos(2)
    expected = methods(net)[name].attribute(x, 1)
    with torch.no_grad():
        assert torch.equal(methods(net)[name].attribute(x, 1), expected)
    with torch.inference_mode():
        assert torch.equal(methods(net)[name].attribute(x.clone(), 1), expected)
    needing = x.clone().requires_grad_()
    assert torch.equal(methods(net)[name].attribute(needing, 1), expected)
    assert needing.grad is None and needing.requires_grad
    assert torch.equal(methods(net.train())[name].attribute(x, 1), expected) and net.training
    assert torch.equal(methods(net.requires_grad_(False))[name].attribute(x, 1), expected)
    with methods(net)[name] as method:
        assert torch.equal(method.attribute(x, 1), expected)


@pytest.mark.parametrize("cls", GRADIENTS)
def test_an_operation_in_place_on_the_input(cls):
    x = photos(1)
    image = x.clone()
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(1440, 2))
    assert cls(net).attribute(x, 0).any() and torch.equal(x, image)


@pytest.mark.parametrize("rectifier", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.Identity()], ids=repr)
@pytest.mark.parametrize("cls", GRADIENTS)
def test_no_rectifier_is_an_error_that_names_the_model(cls, rectifier):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), rectifier, nn.Flatten(), nn.Linear(1584, 2))
    with pytest.raises(ValueError, match=f"Sequential met no ReLU in its forward pass: {cls.__name__} would be"):
        cls(net).attribute(photos(1))


class WithoutGradient(TinyNet):
    def features(self, x):
        return super().features(x).detach()


class Cut(TinyNet):
    """Only the parameters, not the input, have a gradient."""

    def features(self, x):
        return super().features(x.detach())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [WithoutGradient, Cut])
@pytest.mark.parametrize("cls", GRADIENTS)
def test_an_output_without_gradient_is_an_error(cls, kind, frozen):
    net = tiny(kind).requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=f"the output of {kind.__name__} carries no gradient back to the input"):
        cls(net).attribute(photos(1), 0)


class Checkpointed(TinyNet):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=False)


@pytest.mark.parametrize("cls", GRADIENTS)
def test_checkpointed_activations(cls):
    """They would be computed again by the usual rule, in the middle of the backward pass."""
    with pytest.raises(RuntimeError, match="Checkpointed checkpoints activations.*switch that off"):
        cls(tiny(Checkpointed)).attribute(photos(2), 1)


@pytest.mark.parametrize("name", SALIENCY)
def test_arguments_of_the_wrong_kind(name):
    method = methods(tiny())[name]
    with pytest.raises(TypeError, match="input_tensor must be a tensor"):
        method(np.zeros((1, 3, 20, 24)))
    with pytest.raises(ValueError, match="first convolution takes 3 channels"):
        method(torch.rand(1, 4, 20, 24))
    with pytest.raises(ValueError, match="target 5 is out of range"):
        method(photos(1), 5)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        SALIENCY[name]("resnet18")


@pytest.mark.parametrize("targets", [None, [1, 0], torch.tensor([[1, 0], [2, 3]])], ids=["predicted", "each", "two"])
def test_guided_grad_cam_is_map_times_gradient(targets):
    net, x = tiny(), photos(2)
    method = GuidedGradCAM(net, "body")
    result = method.attribute(x, targets)
    maps = torch.as_tensor(GradCAM(net, "body")(x, targets))
    gradient = GuidedBackprop(net).attribute(x, targets)
    for channel in range(3):
        torch.testing.assert_close(result.select(-3, channel), gradient.select(-3, channel) * maps)
    assert torch.equal(method.outputs, net(x)) and result.any()


def test_guided_grad_cam_of_a_sequence():
    """One spatial dimension: each image's map goes to its own gradient."""
    net = nn.Sequential(nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    x, method = torch.randn(2, 1, 12), GuidedGradCAM(net, "2")
    maps = GradCAM(net, "2").attribute(x, 1)
    torch.testing.assert_close(method.attribute(x, 1), GuidedBackprop(net).attribute(x, 1) * maps[:, None])


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn"])
def test_under_the_name_of_pytorch_grad_cam(network):
    net, x = build(network), inputs(network, 3)
    ours = GuidedBackpropReLUModel(net)
    batch = ours(x, 4)
    assert batch.shape == (3, *x.shape[2:], 3) and batch.dtype == np.float32
    theirs = pytorch_grad_cam.GuidedBackpropReLUModel(build(network), device="cpu")
    for n, category in enumerate([4, None]):
        image = x[n : n + 1]
        expected = theirs(image.clone(), category)
        found = ours(image, category)
        assert found.shape == expected.shape == (*x.shape[2:], 3)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(batch[0] - ours(x[:1], 4)).max() <= 1e-5 * np.abs(batch[0]).max()


def test_two_threads_give_what_one_gives():
    net, x = tiny(), photos()
    expected = {c: methods(net)["guidedbackprop"].attribute(x, c) for c in range(2)} | {"plain": net(x).detach()}
    wrong, both = [], threading.Barrier(3)

    def explain(category):
        method = GuidedBackprop(net)
        both.wait()
        wrong.extend(category for _ in range(15) if not torch.equal(method.attribute(x, category), expected[category]))

    def forward():
        both.wait()
        for _ in range(15):
            y = net(x)
            nodes, names = [y.grad_fn], set()
            while nodes:
                node = nodes.pop()
                names.add(node.name())
                nodes.extend(child for child, _ in node.next_functions if child is not None)
            wrong.extend(["plain"] if "_RectifyBackward" in names or not torch.equal(y, expected["plain"]) else [])

    threads = [threading.Thread(target=explain, args=(c,)) for c in range(2)] + [threading.Thread(target=forward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not net.training


@pytest.mark.parametrize("name", SALIENCY)
def test_a_compiled_part_runs_uncompiled(name):
    """What `submodule.compile()` leaves in a module is set by hand here: code in which no ReLU is seen."""
    net, x = tiny(), photos(2)
    expected = methods(net)[name].attribute(x, 1)
    seen = []

    def hiding(h):
        seen.append(h)
        with torch._C.DisableTorchFunction():
            return net.stem._call_impl(h)

    vars(net.stem)["_compiled_call_impl"] = hiding
    assert torch.equal(methods(net)[name].attribute(x, 1), expected)
    assert not seen or name == "guidedgradcam"  # Grad-CAM itself may run it
    assert vars(net.stem)["_compiled_call_impl"] is hiding
    with pytest.raises(ValueError, match="out of range"):
        methods(net)[name].attribute(x, 9)
    assert vars(net.stem)["_compiled_call_impl"] is hiding
    net(x)
    assert seen


def test_an_image_divided_twice_is_noticed():
    x = photographs(2, 24, 32) * 0.25 + 0.45
    for look in (Saliency(tiny()), lambda x: feature_maps(tiny(), x, "tail")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            look(x)
        with pytest.warns(UserWarning, match="nearly no contrast.*divided by 255 twice") as caught:
            look(x / 255)
        assert caught[0].filename == __file__


def test_all_images_are_drawn_unless_some_are_chosen():
    result = Saliency(tiny())(photos(3), 2)
    assert result.plot().shape == (3, 4)
    for one in (1, np.int64(1), -2, np.array([1]), torch.tensor([1])):
        assert np.array_equal(result.plot(image=one)[0, 3].images[1].get_array(), result.map()[1])
    plt.close("all")


def test_one_picture_for_the_one_image_drawn():
    result, pixels = Saliency(tiny())(photos(3), 2), np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    tensor, grey = torch.from_numpy(pixels).movedim(-1, 0), pixels.mean(2) / 255
    for given in (pixels, pixels / 255, tensor, PIL.Image.fromarray(pixels), [pixels * 0, pixels, pixels * 0]):
        shown = result.plot(image=1, picture=given)[0, 0].images[0].get_array()
        np.testing.assert_allclose(shown, pixels / 255, atol=1e-6)
    for given in (grey, grey[..., None], np.stack([grey * 0, grey, grey * 0])):
        shown = result.plot(image=1, picture=given)[0, 0].images[0].get_array()
        np.testing.assert_allclose(shown, np.repeat(grey[..., None], 3, 2), atol=1e-6)
    plt.close("all")


def test_files_of_it_hold_all_its_tensors(tmp_path):
    result = Saliency(tiny())(photos(3), 2)
    result.settings |= {"of": len, "part": slice(2), "noise": np.float32(0.5), "sizes": (1, np.int64(2))}
    result.save(tmp_path / "a.pt")
    result.save(tmp_path / "a.npz")
    read, arrays = torch.load(tmp_path / "a.pt"), np.load(tmp_path / "a.npz")
    for name in ("data", "score", "image", "outputs"):
        assert torch.equal(read[name], getattr(result, name)), name
        assert np.array_equal(arrays[name], getattr(result, name)), name
    assert torch.equal(read["target"], result.target) and read["layer"] is None
    plain = {"of": str(len), "part": "slice(None, 2, None)", "noise": 0.5, "sizes": [1, 2], "method": "Saliency"}
    assert read["settings"] == plain | {"sizes": (1, 2)}
    assert json.loads(str(arrays["about"])) == {"target": [2, 2, 2], "layer": None, "settings": plain}


def test_a_file_of_a_part_holds_no_more_than_that(tmp_path):
    Result(torch.zeros(1000, 1000)[:2]).save(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 20_000


def test_tensors_are_written_without_matplotlib(tmp_path):
    code = (
        "import sys, torch; from fastcam.results import Result;"
        "from fastcam.visualize.maps import FeatureMaps, LayerMaps;"
        "r = Result(torch.ones(2)); m = LayerMaps(a=FeatureMaps(torch.ones(1, 2, 3, 3), lambda t: t));"
        "[x.save(sys.argv[1] + s) for x in (r, m) for s in ('.pt', '.npz')];"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False).returncode == 0


def test_a_suffix_that_names_no_format(tmp_path):
    result = Saliency(tiny())(photos(1), 2)
    for name in ("o.npy", "o"):
        with pytest.raises(ValueError, match=rf"\.pt or \.npz, which hold the tensor, .*\.png.*got '{name}'"):
            result.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_option_that_is_none(tmp_path):
    result, opened = Saliency(tiny())(photos(1), 2), plt.get_fignums()
    with pytest.raises(TypeError, match="Attribution.plot has no option 'foo': its options are image, reduce, clip"):
        result.save(tmp_path / "a.png", foo=1)
    with pytest.raises(TypeError, match="Result.plot has no option 'foo': it has none"):
        Result(torch.ones(1)).plot(foo=1)
    assert plt.get_fignums() == opened


@pytest.mark.parametrize("method", [Saliency, GuidedBackprop])
def test_class_indices_made_in_inference_mode(method):
    net, x = tiny(), photos(2)
    expected = method(net)(x, [1, 3]).data
    with torch.inference_mode():
        target = torch.tensor([1, 3])
        torch.testing.assert_close(method(net)(x, target).data, expected)
        assert method(net)(x).data.shape == expected.shape
    found = method(net)(x, target)
    torch.testing.assert_close(found.data, expected)
    assert not found.target.is_inference()
    maps = fastcam.explain(net, x, ["gradcam"], "body", targets=target)["gradcam"]["body"]
    torch.testing.assert_close(maps, fastcam.explain(net, x, ["gradcam"], "body", targets=[1, 3])["gradcam"]["body"])
