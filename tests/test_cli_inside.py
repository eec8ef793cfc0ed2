"""The commands that look inside a network: `fastcam kernels`, `features`, `saliency`, `maximize`, `dream`."""

from __future__ import annotations

import inspect
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import fastcam
from fastcam.cli import main
from fastcam.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess

from models import photographs, tiny

MODEL = ("--model", "models:tiny", "--size", "32", "--device", "cpu")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in zip(["a.png", "b.png"], photographs(2, 60, 70), strict=True):
        pixels = ((image * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def run(command, *arguments):
    model = [*MODEL[:2], *MODEL[4:]] if command == "kernels" else MODEL
    return main([command, *map(str, arguments), *model])


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), np.float32)


def saved(result, tmp_path, **options):
    result.save(tmp_path / "expected.png", **options)
    return pixels(tmp_path / "expected.png")


def test_kernels(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("kernels", "--layer", "body[0]", "--layer", "stem[0]", "-o", "limit=4", "--out", out) == 0
    assert files(out) == ["body.0.png", "stem.0.png"]
    expected = saved(fastcam.kernel_figure(tiny(), "body.0", limit=4), tmp_path)
    np.testing.assert_array_equal(pixels(out / "body.0.png"), expected)
    assert run("kernels", "--out", out / "first") == 0 and files(out / "first") == ["stem.0.png"]
    assert "wrote the pictures of 1 figure" in capsys.readouterr().out
    assert run("kernels", "--layer", "relu", "--out", out) == 2 and "has no weights" in capsys.readouterr().err
    assert run("kernels", "-o", "colours=3", "--out", out) == 2
    assert "fastcam.kernel_figure has no option 'colours': it has batch_norm, " in capsys.readouterr().err


def test_features(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("features", photos, "--layer", "tail", "--layer", "s*.0", "--out", out) == 0
    assert files(out) == ["a-stem.0.png", "a-tail.png", "b-stem.0.png", "b-tail.png"]
    x = torch.stack([Preprocess(37, 32)(photos / name)[0] for name in ("a.png", "b.png")])
    maps = fastcam.feature_maps(tiny(), x, ["tail"])
    np.testing.assert_array_equal(pixels(out / "b-tail.png"), saved(maps["tail"], tmp_path, image=1))
    assert run("features", photos, "--layer", "head", "--out", out) == 2
    assert "is a value a channel and no map" in capsys.readouterr().err


def test_features_that_go_in(photos, tmp_path):
    assert run("features", photos / "a.png", "--layer", "tail", "--which", "input", "--out", tmp_path / "in") == 0
    x = Preprocess(37, 32)(photos / "a.png")[0][None]
    expected = saved(fastcam.feature_maps(tiny(), x, "tail", which="input"), tmp_path)
    np.testing.assert_array_equal(pixels(tmp_path / "in" / "a-tail.png"), expected)


@pytest.mark.parametrize(("method", "options"), [("saliency", {}), ("smoothgrad", {"samples": 3})])
def test_saliency(photos, tmp_path, method, options):
    out = tmp_path / "out"
    given = [text for name, value in options.items() for text in ("-o", f"{name}={value}")]
    assert run("saliency", photos, "--method", method, "--target", "2", *given, "--out", out) == 0
    assert files(out) == [f"a-{method}.png", f"b-{method}.png"]
    x = torch.stack([Preprocess(37, 32)(photos / name)[0] for name in ("a.png", "b.png")])
    found = fastcam.visualize.SALIENCY[method](tiny(), **options)(x, 2)
    expected = saved(found, tmp_path, image=1, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    np.testing.assert_array_equal(pixels(out / f"b-{method}.png"), expected)


def test_maximize(tmp_path, capsys):
    out = tmp_path / "out"
    texts = ["tail:3", "logit:1"]
    assert run("maximize", *texts, "--steps", "3", "--seed", "5", "-o", "size=20", "--out", out) == 0
    assert files(out) == ["maximize-0.png", "maximize-1.png", "maximize.png"]
    found = fastcam.maximize(tiny(), texts, size=20, steps=3, seed=5, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = (found.pictures[1] * 255).round().byte().movedim(0, -1).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "maximize-1.png")), expected)
    assert run("maximize", "tail:16", "--out", out) == 2 and "16" in capsys.readouterr().err


def test_dream(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("dream", photos, "--layer", "tail", "--channel", "2", "-o", "steps=2", "--out", out) == 0
    assert files(out) == ["a-dream.png", "b-dream.png"]
    assert Image.open(out / "a-dream.png").size == (70, 60)
    x = Preprocess(None, None)(photos / "a.png")[0][None]
    dream = fastcam.deep_dream(tiny(), x, "tail", 2, steps=2, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = (dream.pictures[0] * 255).round().byte().movedim(0, -1).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a-dream.png")), expected)
    assert run("dream", photos, "--layer", "tail", "--out", photos) == 2
    assert "the results would lie among the images" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named_and_the_others_are_drawn(photos, tmp_path, capsys):
    (photos / "c.png").write_text("no image")
    assert run("saliency", photos, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "c.png cannot be read" in said.err and "1 of 3 images failed" in said.err
    assert files(tmp_path / "out") == ["a-saliency.png", "b-saliency.png"]


def test_results_never_replace_an_image_nor_one_another(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("saliency", photos / "a.png", "--out", out) == 0
    assert run("dream", photos / "a.png", "--layer", "tail", "-o", "steps=1", "--out", out) == 0
    assert files(out) == ["a-dream.png", "a-saliency.png"]
    (photos / "a.png").rename(photos / "{a}.png")
    (photos / "b.png").rename(photos / "{a}-dream.png")
    assert run("dream", photos / "{a}.png", "--layer", "tail", "-o", "steps=1", "--out", out) == 0
    assert "{a}-dream.png" in files(out)
    both = [photos / "{a}.png", photos / "{a}-dream.png"]
    assert run("dream", *both, "--layer", "tail", "-o", "steps=1", "--out", photos) == 2
    assert "is an image to explain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        (["saliency"], "samples=3", "saliency has no option 'samples': it has none; smoothgrad"),
        (["saliency", "--method", "smoothgrad"], "sample=3", "smoothgrad has no option 'sample': it has"),
        (["features", "--layer", "tail"], "image=1", "fastcam.FeatureMaps.plot has no option 'image': it has"),
        (["features", "--layer", "tail"], "colormap=no", "no"),
        (["features", "--layer", "tail"], "channels=x", "x"),
        (["dream", "--layer", "tail"], "channels=1", "fastcam.deep_dream has no option 'channels'"),
        (["dream", "--layer", "tail"], "jitter=much", "jitter must be"),
        (["dream", "--layer", "tail"], "mean=dark", "TypeError: .*; is an option wrong\\? -o mean='dark'"),
    ],
)
def test_wrong_options_are_explained_without_a_traceback(photos, tmp_path, capsys, command, given, message):
    name, *more = command
    assert run(name, photos / "a.png", *more, "-o", given, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


def test_wrong_options_of_maximize(tmp_path, capsys):
    assert run("maximize", "tail:3", "--steps", "2", "-o", "start=photo.png", "--out", tmp_path) == 2
    said = capsys.readouterr().err
    assert "start='photo.png'" in said and "Traceback" not in said
    for given in ("size=big", "transforms=some", "batch_size=x", "learning_rate=x", "history=3", "seed=x"):
        assert run("maximize", "tail:3", "--steps", "2", "-o", given, "--out", tmp_path) == 2, given


def test_an_error_that_no_option_explains_is_not_hidden(photos, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("of the model")

    broken.__signature__ = inspect.signature(fastcam.deep_dream)
    monkeypatch.setattr(fastcam, "deep_dream", broken)
    assert run("dream", photos, "--layer", "tail", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "KeyError: 'of the model'" in said
    assert run("dream", photos, "--layer", "tail", "-o", "steps=1", "--out", tmp_path / "out") == 2
    assert "KeyError: 'of the model'; is an option wrong? -o steps=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "behind"),
    [("kernels", "fastcam.kernel_figure"), ("features", "fastcam.FeatureMaps.plot"), ("saliency", "the method's class"),
     ("maximize", "fastcam.maximize"), ("dream", "fastcam.deep_dream")],
)  # fmt: skip
def test_help_names_what_takes_the_options(command, behind, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert behind in said.replace("- ", "") and ("--mean" in said) == (command != "kernels")


def test_no_figure_stays_open(photos, tmp_path):
    plt.close("all")
    run("kernels", "--out", tmp_path / "k")
    run("features", photos, "--layer", "tail", "--out", tmp_path / "f")
    run("saliency", photos, "--out", tmp_path / "s")
    assert plt.get_fignums() == []
