"""Several methods on the same images: the maps of each are its own, the figure shows them in rows and columns."""

from __future__ import annotations

import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from fastcam import EigenCAM, GradCAM, GuidedGradCAM, LayerCAM, Saliency, SmoothGrad, compare

from models import grey_resnet18, tiny
from test_untouched import assert_same, snapshot


def photos(count=2, channels=3):
    torch.manual_seed(8)
    return torch.randn(count, channels, 20, 24)


@pytest.mark.parametrize("targets", [None, 2, [1, 4], [[0, 1, 2], [3, 4, 0]]], ids=str)
def test_maps_are_those_of_the_methods(targets):
    net, x = tiny(), photos()
    options = {"smoothgrad": {"samples": 3, "mode": "squared"}}
    names = ["gradcam", "EigenCAM", "saliency", SmoothGrad, GuidedGradCAM, LayerCAM]
    before = snapshot(net)
    result = compare(net, x, names, targets, "body", options=options)
    assert_same(before, snapshot(net))
    explained = net(x).argmax(1) if targets is None else targets
    expected = {
        "gradcam": GradCAM(net, "body").attribute(x, explained),
        "eigencam": EigenCAM(net, "body").attribute(x, explained),
        "saliency": Saliency(net)(x, explained).map(),
        "smoothgrad": SmoothGrad(net, samples=3, mode="squared")(x, explained).map(),
        "guidedgradcam": GuidedGradCAM(net, "body")(x, explained).map(),
        "layercam": LayerCAM(net, "body").attribute(x, explained),
    }
    assert list(result.maps) == list(expected) == result.settings["methods"]
    assert result.layer == "body" and result.settings["layers"] == ["body"] and result.settings["options"] == options
    for place, (name, maps) in enumerate(expected.items()):
        torch.testing.assert_close(result.maps[name], maps, rtol=1e-4, atol=1e-5)
        assert torch.equal(result.data.select(-3, place), result.maps[name])
    several = isinstance(targets, list) and isinstance(targets[0], list)
    assert result.data.shape == ((2, 3, 6, 20, 24) if several else (2, 6, 20, 24))
    saliency = Saliency(net)(x, explained)
    assert torch.equal(result.target, saliency.target)
    torch.testing.assert_close(result.score, saliency.score)
    torch.testing.assert_close(result.outputs, net(x).detach())


def test_cams_share_a_forward_pass():
    net, calls = tiny(), []
    handle = net.stem.register_forward_hook(lambda *_: calls.append(1))
    compare(net, photos(), ["gradcam", "layercam", "hirescam", "eigencam"], 1, "body")
    handle.remove()
    assert len(calls) == 2  # one of them for scores and titles


def test_callables_instances_and_names_of_ones_own():
    net, x = tiny(), photos()
    seen = []

    def brightness(given, targets):
        seen.append((given is x, targets.tolist()))
        return given.mean(1).numpy()

    methods = {
        "light": brightness,
        "smooth guided": SmoothGrad(net, "guidedbackprop", samples=2),
        "grad": GradCAM(net, "tail"),
        "squares": "smoothgrad",
        "mean": "smoothgrad",
        "early": "layercam",
        "late": "LayerCAM",
    }
    options = {"squares": {"mode": "squared", "samples": 2}, "mean": {"samples": 2}, "late": {"interpolation": "cubic"}}
    result = compare(net, x, methods, [1, 2], "body", options=options, reduce="norm")
    assert seen == [(True, [1, 2])] and list(result.maps) == list(methods)
    torch.testing.assert_close(result.maps["light"], x.mean(1))
    torch.testing.assert_close(result.maps["smooth guided"], methods["smooth guided"](x, [1, 2]).map("norm"))
    torch.testing.assert_close(result.maps["grad"], GradCAM(net, "tail").attribute(x, [1, 2]))
    torch.testing.assert_close(result.maps["squares"], SmoothGrad(net, **options["squares"])(x, [1, 2]).map("norm"))
    late = LayerCAM(net, "body", interpolation="cubic").attribute(x, [1, 2])
    torch.testing.assert_close(result.maps["late"], late)
    assert not torch.allclose(result.maps["early"], late)
    assert list(compare(net, x, [brightness, GradCAM(net, "tail")]).maps) == ["brightness", "gradcam"]


def test_callables_as_targets_and_several_layers():
    net, x = tiny(), photos()
    result = compare(net, x, ["gradcam", "saliency", "fullgrad"], lambda y: y[1] - y[0], ["body", "tail"])
    assert list(result.maps) == ["gradcam body", "gradcam tail", "saliency", "fullgrad"] and result.target is None
    assert result.layer == ["body", "tail"]
    axes = result.plot()
    assert axes[0, 0].get_ylabel() == f"score {result.score[0].item():.3g}"
    plt.close("all")


def test_its_figure(tmp_path):
    net, x = tiny(), photos(3)
    methods = {"gradcam": "gradcam", "saliency": "saliency", "signed": lambda x, _: x.mean(1)}
    result = compare(net, x, methods, 2, "body")
    open_figures = plt.get_fignums()
    result.save(tmp_path / "a.png")
    assert result._repr_png_().startswith(b"\x89PNG") and plt.get_fignums() == open_figures
    axes = result.plot(class_names={2: "two"})
    assert axes.shape == (3, 4)
    assert [ax.get_title() for ax in axes[0]] == ["input", "gradcam", "saliency", "signed"]
    assert all(row[0].get_ylabel().startswith("target 2 two\np=") for row in axes)
    top, both = (np.percentile(np.abs(result.maps[n].numpy()), 99) for n in ("saliency", "signed"))
    for n, row in enumerate(axes):
        assert [len(ax.images) for ax in row] == [1, 2, 2, 2]
        limits = [ax.images[1].get_clim() for ax in row[1:]]
        np.testing.assert_allclose(limits, [(0, 1), (0, top), (-both, both)], rtol=1e-6)
        for ax, maps in zip(row[1:], result.maps.values(), strict=True):
            np.testing.assert_allclose(ax.images[1].get_array(), maps[n], atol=1e-6)
    bars = [child for ax in axes[-1] for child in ax.child_axes]
    labels = [[t.get_text() for t in bar.get_xticklabels()] for bar in bars]
    assert labels == [["0", "1"], ["0", f"{top:.2g}"], [f"{-both:.2g}", "0", f"{both:.2g}"]]
    alone = result.plot(overlay=False, colormap="magma")
    assert all(len(ax.images) == 1 for ax in alone.flat) and alone[0, 1].images[0].get_cmap().name == "magma"
    plt.close("all")


def test_the_figure_of_one_image_and_of_several_targets():
    axes = compare(tiny(), photos(1), ["gradcam", "saliency"], 1).plot()
    assert axes.shape == (1, 3) and axes[0, 0].figure.get_suptitle().startswith("target 1 p=")
    axes = compare(tiny(), photos(2), ["gradcam", "eigencam"], [[0, 1], [2, 3]]).plot()
    assert axes.shape == (4, 3)
    assert [row[0].get_ylabel()[:8] for row in axes] == ["target 0", "target 1", "target 2", "target 3"]
    pictures = [row[0].images[0].get_array() for row in axes]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])
    plt.close("all")


@pytest.mark.parametrize("side", [28, 224])
def test_the_tutorials_network(side):
    torch.manual_seed(0)
    x = torch.rand(1, 1, side, side)
    result = compare(grey_resnet18(), x, ["gradcam", "saliency", "guidedgradcam"])
    assert result.data.shape == (1, 3, side, side) and result.data.isfinite().all()


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny()

        def forward(self, image, gain, shift=0.0):
            return self.net(image) * gain + shift

    x, gain = photos(), torch.tensor([[2.0], [3.0]])
    methods, options = ["gradcam", "saliency", "smoothgrad"], {"smoothgrad": {"samples": 2}}
    alone = compare(tiny(), x, methods, 1, options=options)
    result = compare(Two(), (x, gain), methods, 1, options=options, forward_kwargs={"shift": 1.0})
    torch.testing.assert_close(result.maps["gradcam"], alone.maps["gradcam"], rtol=1e-3, atol=1e-5)
    for name in ("saliency", "smoothgrad"):
        torch.testing.assert_close(result.maps[name], alone.maps[name] * gain[:, :, None])


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ([], None, "methods is empty"),
        (["gradcan"], None, "no method is 'gradcan'; the nearest names: gradcam, "),
        ([3], None, "methods must be names, classes or callables, got 3"),
        (["gradcam", GradCAM], None, "methods has 'gradcam' twice: a mapping gives them names"),
        (["gradcam"], {"saliency": {}}, "options are given for 'saliency', which is not among the methods"),
        ([lambda x, t: x], None, r"the maps of '<lambda>' must be \(2, 20, 24\), got \(2, 3, 20, 24\)"),
        ({"f": lambda x, t: x}, {"f": {"a": 1}}, "options are for classes"),
    ],
)
def test_wrong_arguments(methods, options, message):
    with pytest.raises(ValueError, match=message):
        compare(tiny(), photos(), methods, options=options)


def test_what_is_no_image():
    with pytest.raises(ValueError, match=r"input_tensor must be images \(B, k, H, W\), got \(2, 1, 12\)"):
        compare(tiny(), torch.rand(2, 1, 12))


def test_in_inference_mode():
    net, x, methods = tiny(), photos(), ["gradcam", "saliency", "guidedgradcam"]
    expected = compare(net, x, methods)
    with torch.inference_mode():
        found = compare(net, x, methods)
    torch.testing.assert_close(found.data, expected.data)


def test_layers_that_were_looked_at():
    net, x = tiny(), photos()
    assert compare(net, x, ["saliency"]).layer is None
    assert compare(net, x, [GuidedGradCAM]).layer == compare(net, x, ["gradcam"]).layer == "tail"
    mixed = compare(net, x, {"a": GradCAM(net, "body"), "b": GuidedGradCAM(net, "tail")}, 1)
    assert mixed.layer == ["body", "tail"]


def test_it_warns_once_at_the_callers_line():
    net, x = tiny(), torch.rand(2, 3, 20, 24) / 255
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compare(net, x, ["gradcam", "saliency", SmoothGrad(net, samples=2)], 1)
    assert [(w.filename, "contrast" in str(w.message)) for w in caught] == [(__file__, True)]


def test_its_files(tmp_path):
    result = compare(tiny(), photos(), {"a": "gradcam", "light": lambda x, _: x.mean(1)}, 1, options={"a": {}})
    result.save(tmp_path / "a.pt")
    read = torch.load(tmp_path / "a.pt")
    for name in ("data", "score", "image", "outputs", "target"):
        assert torch.equal(read[name], getattr(result, name)), name
    assert read["layer"] == "tail" and read["settings"]["methods"] == ["a", "light"]
