"""The command line, run in this process on a small network of the tests and on files of real photographs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fastcam
from fastcam import FasterScoreCAM, GradCAM
from fastcam.cli import main
from fastcam.images import Preprocess
from fastcam.methods import METHODS
from fastcam.models import load_model
from fastcam.visualize import SALIENCY

from models import photographs, tiny


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, image in zip(["a.png", "b.jpg", "more/a.png"], photographs(3, 60, 70), strict=True):
        pixels = ((image * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def explain(*arguments):
    return main(["explain", "--model", "models:tiny", "--size", "32", "--device", "cpu", *map(str, arguments)])


def test_explain_writes_picture_map_and_record(photos, tmp_path):
    out = tmp_path / "out"
    assert explain(photos, "--layer", "body", "--target", 2, "--out", out, "--batch-size", 2) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        f"{stem}.{kind}" for stem in ("a-2", "a", "b") for kind in ("json", "npy", "png")
    ]
    x, _ = Preprocess(37, 32)(photos / "b.jpg")
    cam = GradCAM(tiny(), "body")
    np.testing.assert_allclose(np.load(out / "b.npy"), cam(x[None], 2)[0], atol=1e-6)
    assert np.asarray(Image.open(out / "b.png")).shape == (32, 32, 3)
    record = json.loads((out / "b.json").read_text())
    probabilities = cam.outputs.softmax(1)[0]
    assert record["explained"] == {"class": 2, "score": pytest.approx(probabilities[2].item(), abs=1e-5)}
    assert record["predicted"]["class"] == probabilities.argmax().item()
    assert (record["layer"], record["method"], record["fastcam"]) == (["body"], "gradcam", fastcam.__version__)
    assert record["image"] == str(photos / "b.jpg") and record["dtype"] == "fp32"


def test_options_of_a_method(photos, tmp_path, capsys):
    out = tmp_path / "out"
    chosen = ["--option", "channels=3", "-o", "by=gradient", "-o", "batch_size=5"]
    assert explain(photos / "a.png", "--method", "fasterscorecam", "--layer", "body", *chosen, "--out", out) == 0
    assert json.loads((out / "a.json").read_text())["options"] == {"channels": 3, "by": "gradient", "batch_size": 5}
    x, _ = Preprocess(37, 32)(photos / "a.png")
    expected = FasterScoreCAM(tiny(), "body", channels=3, by="gradient")(x[None])[0]
    np.testing.assert_allclose(np.load(out / "a.npy"), expected, atol=1e-5)
    capsys.readouterr()
    for method, option, message in [
        (
            "sscam",
            "channels=3",
            "sscam has no option 'channels': it has batch_size, interpolation, noise",
        ),
        ("gradcam", "model=3", "gradcam has no option 'model': it has interpolation, sign"),
        ("guidedbackprop", "sign=3", "guidedbackprop has no option 'sign': it has none"),
        ("sscam", "samples=0", "samples must be a whole number of 1 or more, got 0"),
    ]:
        assert explain(photos / "a.png", "--method", method, "-o", option, "--out", out) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        explain(photos / "a.png", "-o", "channels", "--out", out)
    assert "must be NAME=VALUE, got 'channels'" in capsys.readouterr().err


def test_explain_defaults_and_options(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert explain(photos / "a.png", "--method", "eigencam", "--dtype", "bf16", "--out", out) == 0
    record = json.loads((out / "a.json").read_text())
    assert record["layer"] == ["tail"] and record["explained"] is None
    assert explain(photos / "a.png", "--method", "eigencam", "--target", 99, "--out", out) == 0
    assert "eigencam does not depend on the class, --target is ignored" in capsys.readouterr().err
    assert explain(photos / "a.png", "--resize", 32, "--mean", 0, "--std", 1, "--out", out) == 0
    record = json.loads((out / "a.json").read_text())
    assert record["preprocess"] == {
        **{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    }
    x, _ = Preprocess(32, 32, (0, 0, 0), (1, 1, 1))(photos / "a.png")
    np.testing.assert_allclose(np.load(out / "a.npy"), GradCAM(tiny())(x[None])[0], atol=1e-6)
    layers = ("--layer", "body", "--layer", "tail", "--aug-smooth", "--eigen-smooth")
    assert explain(photos / "a.png", *layers, "--out", out) == 0
    assert json.loads((out / "a.json").read_text())["layer"] == ["body", "tail"]


def test_a_broken_image_does_not_stop_the_others(photos, tmp_path, capsys):
    whole = (photos / "b.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("no image")
    assert explain(photos, "--out", tmp_path / "out") == 1
    assert len(list((tmp_path / "out").glob("*.npy"))) == 3
    errors = capsys.readouterr().err
    assert "cut.jpg cannot be read as an image" in errors and "text.png cannot be read" in errors
    assert "2 of 5 images failed" in errors


def test_an_image_whose_results_cannot_be_written_does_not_stop_the_others(photos, tmp_path, capsys):
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    assert explain(photos, "--out", tmp_path / "out") == 1
    assert "a.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.json").exists() and (tmp_path / "out" / "a-2.json").exists()


def test_maps_that_are_not_numbers(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GradCAM, "__call__", _one_nan(GradCAM.__call__))
    assert explain(photos, "--out", tmp_path / "out") == 1
    assert f"{photos / 'a.png'}: its map is not a number" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def _one_nan(call):
    def nan_in_the_first(*arguments, **keywords):
        maps = call(*arguments, **keywords)
        maps[0] = np.nan
        return maps

    return nan_in_the_first


def test_results_are_not_taken_for_images(photos):
    for _ in range(2):
        assert explain(photos, "--out", photos / "maps") == 0
    assert len(list((photos / "maps").glob("*.png"))) == 3


def test_weights_from_a_file(photos, tmp_path, capsys):
    state = {f"module.{k}": v + 1 for k, v in tiny().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    loaded = load_model("models:tiny", str(tmp_path / "w.pt"))
    assert torch.equal(loaded.model.head.bias, tiny().head.bias + 1) and not loaded.model.training
    torch.save(tiny(), tmp_path / "pickle.pt")  # a whole module would run code when unpickled
    assert explain(photos, "--weights", tmp_path / "pickle.pt", "--out", tmp_path / "o") == 2
    assert "cannot be read as a state_dict" in capsys.readouterr().err
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    assert explain(photos, "--weights", tmp_path / "other.pt", "--out", tmp_path / "o") == 2
    assert "do not fit TinyNet, another --model?" in capsys.readouterr().err


def test_torchvision_names(capsys):
    with pytest.warns(UserWarning, match=r"weights of resnet18 are random \(seed 0\): pass --weights"):
        loaded = load_model("resnet18", size=64)
    with pytest.warns(UserWarning):
        again = load_model("resnet18")
    assert loaded.preprocess.crop == 64 and torch.equal(loaded.model.fc.weight, again.model.fc.weight)
    for arguments, message in [
        (["--model", "resnet19"], "no torchvision model 'resnet19'; the nearest names: resnet1"),
        (["--model", "models:nothing"], "has no callable 'nothing'"),
        (["--model", "no_such_module:net"], "No module named 'no_such_module'"),
        (["--model", "models:photographs"], "missing 3 required positional arguments"),
        (["--model", "builtins:dict"], "must return a torch.nn.Module, got dict"),
    ]:
        assert main(["layers", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="neither a file nor one of IMAGENET1K_V1"):
        load_model("resnet18", "IMAGENET")


def test_mistakes_in_the_arguments(photos, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, message in [
        (["nothing.png", "--out", tmp_path / "o"], "no file or folder nothing.png"),
        ([photos, "--out", file / "below"], "cannot be written"),
        ([photos, "--out", tmp_path / "o", "--layer", "bodi"], "no layer 'bodi' in the model TinyNet"),
        ([photos, "--out", tmp_path / "o", "--target", "5"], "target 5 is out of range: the model has 5 classes"),
        ([photos, "--out", photos], "would lie among the images in"),
        ([photos / "a.png", "--out", photos], "a.png is an image to explain: choose another --out"),
        ([photos, "--out", tmp_path / "o", "--mean", "0,0"], "mean must be one value or 3, got 2"),
    ]:
        assert explain(*arguments) == 2
        assert message in capsys.readouterr().err
    for arguments in (["--batch-size", "0"], ["--size", "x"], ["--std", "a"], ["--method", "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            explain(photos, "--out", tmp_path / "o", *arguments)


def test_layers_prints_names_types_shapes_and_a_suggestion(capsys):
    assert main(["layers", "--model", "models:tiny", "--size", "32", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "suggested: tail"
    (row,) = (line.split() for line in lines if line.startswith("body.0"))
    assert row == ["body.0", "Conv2d", "1", "x", "12", "x", "16", "x", "16", "7", "x", "7"]


@pytest.mark.parametrize("twice", [("--method", "gradcam", "layercam"), ("--target", 1, 2)])
def test_what_counts_once_may_not_be_repeated(twice, photos, tmp_path, capsys):
    flag, first, second = twice
    with pytest.raises(SystemExit):
        explain(photos, flag, first, flag, second, "--out", tmp_path / "out")
    assert f"{flag} is given twice" in capsys.readouterr().err


def test_the_command_is_installed():
    command = pathlib.Path(sys.executable).with_name("fastcam")
    version = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert version.stdout == f"fastcam {fastcam.__version__}\n"


@pytest.mark.parametrize("method", [m for m in [*METHODS, *SALIENCY] if m != "cam"])
def test_explain_by_every_method(method, photos, tmp_path, capsys):
    out = tmp_path / "out"
    everywhere = "fullgrad" in method
    layer = [] if method in SALIENCY and method != "guidedgradcam" or everywhere else ["--layer", "body"]
    assert explain(photos / "a.png", photos / "b.jpg", "--method", method, *layer, "--out", out) == 0
    values, record = np.load(out / "a.npy"), json.loads((out / "a.json").read_text())
    assert values.shape == ((3, 32, 32) if method in SALIENCY else (32, 32)) and np.ptp(values) > 0
    assert np.asarray(Image.open(out / "a.png")).shape == (32, 32, 3)
    assert record["method"] == method and record.get("layer") == (["body"] if layer else [] if everywhere else None)
    assert "row" not in capsys.readouterr().err  # a bar is for a terminal


def test_options_that_do_not_apply_to_gradients(photos, tmp_path, capsys):
    assert explain(photos, "--method", "deconvnet", "--layer", "body", "--out", tmp_path / "out") == 2
    assert "deconvnet looks at the input: --layer does not apply" in capsys.readouterr().err
    assert explain(photos, "--method", "guidedgradcam", "--aug-smooth", "--out", tmp_path / "out") == 2
    assert "--aug-smooth and --eigen-smooth are for maps" in capsys.readouterr().err


def test_an_interruption(photos, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(GradCAM, "low_maps", interrupted)
    assert explain(photos, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err == "fastcam: interrupted; what was written so far is complete\n"


def test_timm_models(photos, tmp_path, capsys):
    pytest.importorskip("timm")
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"weights of timm:test_vit are random \(seed 0\): pass --weights"):
        loaded = load_model("timm:test_vit")
    config = loaded.model.pretrained_cfg
    side = config["input_size"][1]
    assert loaded.preprocess == Preprocess(
        *(int(side / config["crop_pct"]), side, config["mean"], config["std"], config["interpolation"])
    )
    command = ["explain", "--device", "cpu", "--out", out, photos / "a.png", "--model"]
    for method, more in [("gradcam", []), ("legrad", []), ("ablationcam", ["--size", "96"])]:
        assert main([str(a) for a in [*command, "timm:test_vit", "--method", method, *more]]) == 0
        values, record = np.load(out / "a.npy"), json.loads((out / "a.json").read_text())
        assert values.shape == ((96, 96) if more else (side, side)) and np.ptp(values) > 0.9
        assert record["model"] == "timm:test_vit" and "norm1" in record["layer"][0]
    assert "weights of timm:test_vit are random" in capsys.readouterr().err
    assert main(["layers", "--model", "timm:test_vit", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("norm1")
    for arguments, message in [
        (["timm:test_vitt"], "no timm model 'test_vitt'; the nearest names: test_vit"),
        (["timm:test_vit", "--weights", "IMAGENET"], "neither a file nor DEFAULT"),
    ]:
        assert main(["layers", "--model", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_timm_weights_from_a_file(kind, tmp_path, recwarn):
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    file = tmp_path / f"weights.{kind}"
    if kind == "pt":
        torch.save(state, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, file)
    loaded = load_model("timm:test_resnet", str(file), size=64)
    assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in state.items())
    assert loaded.preprocess.crop == 64 and not [w for w in recwarn if "random" in str(w.message)]
