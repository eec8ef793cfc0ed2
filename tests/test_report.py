"""Reports, read without a browser: what is in the file, that no name can break out of it, its size, what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import fastcam
from fastcam import EigenCAM, GradCAM, LayerCAM, attribute_dataset, open_maps, write_report
from fastcam.cli import main
from fastcam.images import Preprocess
from fastcam.report import settings
from fastcam.report.columns import Column
from fastcam.report.pictures import budget, map_side, tile, tile_side

from models import tiny
from reports import CLASSES, HOSTILE, Page, explained, photos

FAST = asdict(fastcam.Optimize(dtype="bf16"))
NET = {"class": "ResNet", "dtype": ["float32"], "fingerprint": "2"}


def column(out, **made):
    return Column(Path(out), "gradcam", ["layer4"], "predicted class", [], None, None, settings=made)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("report") / "photos")


@pytest.fixture(scope="module")
def run(images):
    explained(images, images.parent / "run", shard_size=10)
    return images.parent / "run"


@pytest.fixture(scope="module")
def page(images, run):
    return Page(write_report(run, run.parent / "page.html", images=images, classes=CLASSES))


def test_a_page_holds_every_image_with_its_map_and_record(page, images, run):
    maps, data = open_maps(run), page.data
    assert len(maps) == len(page.lines) == len(data["names"]) == 24 and data["names"] == maps.paths
    (method,) = data["methods"]
    assert (method["name"], method["layers"], method["explained"]) == ("GradCAM", ["tail"], "true class")
    assert method["target"] == data["labels"] == maps.target.tolist()
    assert method["predicted"] == maps.predicted.tolist()
    np.testing.assert_allclose(method["score"], maps.score, atol=1e-6)
    for place in (0, 11, 23):
        np.testing.assert_allclose(page.map(place), maps.read(place, size=None), atol=0.5 / 255 + 1e-6)
        seen = Preprocess(36, 32).pixels(images / maps.paths[place]).movedim(0, -1).numpy()
        assert page.picture(place).size == (32, 32)
        assert np.abs(np.asarray(page.picture(place)).astype(int) - seen).mean() < 6
    assert data["failed"] == [
        {"name": "class-1/broken & <i>.jpg", "reason": maps.failed[0]["reason"]},
    ]
    assert page.title == "GradCAM: 24 images"


def test_names_cannot_break_out_of_the_page(page):
    assert f"class-2/{HOSTILE}" in page.data["names"] and list(page.data["classes"].values()) == CLASSES
    for tag in ("<img src=x", "<script>alert", "<b>elk", "<i>.jpg"):
        assert tag not in page.text
    scripts = [(kind, number) for kind, number in re.findall(r'<script(?: type="(\S+)" id="(\S+)")?>', page.text)]
    assert scripts == [("application/json", "data"), ("", ""), ("text/plain", "part-0")]


def test_a_title_is_text(images, run, tmp_path):
    made = Page(write_report(run, tmp_path / "a.html", images=images, title="<b>{{data}}</b> & {{x}}"))
    assert made.title == "<b>{{data}}</b> & {{x}}" and "<b>" not in made.text


def test_a_page_needs_nothing_from_outside(page):
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in page.text
    own = re.sub(r"<script type=.*?</script>", "", page.text, flags=re.DOTALL)  # without names and pictures
    assert not re.findall(r"https?://|@import|url\(|import\(|fetch\(|<link|<iframe|\ssrc=|\shref=", own)


def test_methods_stand_side_by_side(images, run, tmp_path):
    other, third = tmp_path / "other", tmp_path / "third"
    explained(images, other, LayerCAM, "predicted", layer="body")
    explained(images, third, EigenCAM)
    made = Page(write_report([run, other, third], tmp_path / "page.html", images=images))
    told = [(m["name"], m["layers"], m["explained"]) for m in made.data["methods"]]
    assert [(m["title"], m["settings"]) for m in made.data["methods"]] == [
        (name, ["TinyNet, float32"]) for name, *_ in told
    ]
    assert told == [
        ("GradCAM", ["tail"], "true class"),
        ("LayerCAM", ["body"], "predicted class"),
        ("EigenCAM", ["tail"], "no class"),
    ]
    assert made.data["labels"] == open_maps(run).target.tolist(), "EigenCAM explains none, and hides none"
    np.testing.assert_allclose(made.map(5, 1), open_maps(other).read(5, None), atol=0.5 / 255 + 1e-6)
    assert made.data["methods"][1]["target"] == open_maps(other).predicted.tolist()
    shutil.copytree(images / "class-0", tmp_path / "few" / "class-0")
    explained(tmp_path / "few", tmp_path / "few-maps")
    with pytest.raises(ValueError, match="few-maps is of other images than"):
        write_report([run, tmp_path / "few-maps"], images=images)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([column("a")], ["gradcam"]),
        ([column("exact"), column("fast", optimize=FAST)], ["gradcam", "gradcam (fast mode: dtype=bf16)"]),
        ([column("a", model="resnet18"), column("b", model="resnet50")], ["gradcam (resnet18)", "gradcam (resnet50)"]),
        ([column("a", weights="x/1.pt"), column("b")], ["gradcam (weights 1.pt)", "gradcam"]),
        ([column("a", k=2, eigen_smooth=True), column("b", k=3)], ["gradcam (k=2; eigen_smooth)", "gradcam (k=3)"]),
        (
            [column("runs/18", model=NET | {"fingerprint": "1"}), column("runs/50", model=NET)],
            ["gradcam (18)", "gradcam (50)"],
        ),
        ([column("a/maps"), column("b/maps")], ["gradcam (a/maps)", "gradcam (b/maps)"]),
        ([column("a"), column("a")], ["gradcam (1)", "gradcam (2)"]),
    ],
)
def test_titles_say_what_sets_columns_apart(columns, expected):
    assert settings.titles(columns) == expected


def test_folders_may_be_the_labels(images, tmp_path):
    maps = explained(images, tmp_path / "run", targets="predicted")
    made = Page(write_report(tmp_path / "run", images=images))
    assert made.data["labels"] is None and made.data["classes"] == {}
    made = Page(write_report(tmp_path / "run", images=images, labels=True))
    assert made.data["labels"] == [int(name[len("class-")]) for name in maps.paths]
    assert made.data["classes"] == {str(n): f"class-{n}" for n in range(5)}
    out = tmp_path / "out"
    some = [str(images / "class-0"), str(images / "class-3/photo-3.jpg")]
    assert main(["explain", *some, "--model", "models:tiny", "--size", "32", "--device", "cpu", "--out", str(out)]) == 0
    with pytest.raises(ValueError, match="give that, --images"):
        write_report(out, labels=True)
    with pytest.raises(ValueError, match="class-0, and the images lie in none"):
        write_report(out, images=images / "class-0", labels=True)
    made = Page(write_report(out, images=images, labels=True))
    assert made.data["labels"] == [int(name.split("class-")[1][0]) for name in made.data["names"]]
    assert made.data["classes"] == {str(n): f"class-{n}" for n in range(5)}


def test_what_explain_wrote(images, tmp_path):
    out = tmp_path / "out"
    shared = ["explain", "--model", "models:tiny", "--size", "32", "--device", "cpu", "--out", str(out)]
    (tmp_path / "some").mkdir()
    for n, name in enumerate(["class-0/photo-0.jpg", f"class-2/{HOSTILE}", "class-3/photo-3.jpg"]):
        shutil.copy(images / name, tmp_path / "some" / ("b.png" if n == 2 else name.partition("/")[2]))
    assert main([*shared, str(tmp_path / "some"), "--target", "2"]) == 0
    assert main([*shared, str(images / "class-4/photo-4.jpg"), "--method", "saliency"]) == 0
    with pytest.raises(ValueError, match='out holds maps made in two ways: method "gradcam" and "saliency"'):
        write_report(out)
    for left in out.glob("photo-4.*"):
        left.unlink()
    (out / "notes.json").write_text('{"image": 3}')
    record = json.loads((out / "b.json").read_text())
    (out / "b.json").write_text(json.dumps({**record, "fastcam": "0.0", "device": "cuda", "agreement": {}}))
    made = Page(write_report(out))
    (method,) = made.data["methods"]
    assert (method["name"], method["explained"], method["target"]) == ("gradcam", "class 2", [2, 2, 2])
    assert sorted(name.rpartition("/")[2] for name in made.data["names"]) == [HOSTILE, "b.png", "photo-0.jpg"]
    place = next(n for n, name in enumerate(made.data["names"]) if name.endswith("photo-0.jpg"))
    expected = np.load(out / "photo-0.npy")
    np.testing.assert_allclose(made.map(place), expected, atol=0.5 / 255 + 1e-6)
    assert method["score"][place] == json.loads((out / "photo-0.json").read_text())["explained"]["score"]


def test_gradients_are_shown_by_their_size(images, tmp_path):
    out = tmp_path / "out"
    arguments = [str(images / "class-0"), "--model", "models:tiny", "--size", "32", "--device", "cpu"]
    assert main(["explain", *arguments, "--method", "guidedbackprop", "--out", str(out)]) == 0
    made = Page(write_report(out))
    sizes = np.abs(np.load(out / "photo-0.npy")).max(0)
    np.testing.assert_allclose(made.map(0), (sizes / np.percentile(sizes, 99)).clip(0, 1), atol=0.5 / 255 + 1e-6)


def test_pictures_of_a_data_set_that_reads_no_files(tmp_path):
    pictures = torch.rand(6, 1, 24, 48)
    data = TensorDataset((pictures - 0.5) * 2, torch.arange(6) % 3)
    attribute_dataset(GradCAM(tiny(channels=1), "body"), data, tmp_path / "run", "label", workers=0)
    with pytest.raises(ValueError, match="is of no image files: pass the data set's pictures, images="):
        write_report(tmp_path / "run")
    made = Page(write_report(tmp_path / "run", images=pictures, tile=20))
    assert made.data["names"][4] == "image 4" and made.picture(4).size == (20, 10)
    assert made.map(4).shape == (10, 20)


def test_a_picture_that_is_gone_is_left_out(images, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(images, copied)
    explained(copied, tmp_path / "run")
    (copied / "class-0" / "photo-5.jpg").unlink()
    arguments = ["report", str(tmp_path / "run"), "--images", str(copied), "--file", str(tmp_path / "page.html")]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "class-0/photo-5.jpg: no picture: no such file" in said.err and "1 images are shown without" in said.err
    made = Page(tmp_path / "page.html")
    gone = made.data["names"].index("class-0/photo-5.jpg")
    assert [n for n, line in enumerate(made.lines) if not line[0]] == [gone] and made.map(gone).max() == 1


def test_the_command(images, run, tmp_path, capsys, monkeypatch):
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    arguments = ["report", str(run), "--classes", str(tmp_path / "names.txt"), "--tile", "16"]
    monkeypatch.chdir(images)  # where the recorded paths lead to the images
    assert main([*arguments, "--file", str(tmp_path / "page.html"), "--title", "A title"]) == 0
    assert re.fullmatch(r"wrote \S+page.html, 0.\d MB\n", capsys.readouterr().out)
    made = Page(tmp_path / "page.html")
    assert made.title == "A title" and list(made.data["classes"].values()) == CLASSES
    assert made.picture(0).size == (16, 16)
    assert main(["report", str(run), "--images", str(images)]) == 0 and (run / "report.html").exists()


def test_what_is_no_finished_run(images, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun, mixed = tmp_path / "begun", tmp_path / "mixed"
    begun.mkdir()
    shutil.copy(run / "manifest.json", begun)
    explained(images, mixed, targets=2, shard_size=10)
    shutil.copy(run / "shards" / "000001.npz", mixed / "shards")
    for arguments, message in [
        ([begun], "begun holds no finished shard of maps"),
        ([mixed], "000001.npz is not of the run that manifest.json describes"),
        ([tmp_path / "nothing"], "no folder"),
        ([images], "holds no maps: neither manifest.json of `fastcam run` nor records of `explain`"),
        ([run], "class-0/photo-0.jpg say, are not here: give their folder, --images"),
        ([run, "--images", begun], "are not below"),
        ([run, "--images", tmp_path / "nothing"], "no folder"),
        ([run, "--images", images, "--classes", tmp_path / "nothing"], "cannot be read as names"),
        ([run, "--images", images, "--file", tmp_path / "no/page.html"], f"no folder {tmp_path / 'no'}"),
    ]:
        assert main(["report", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_shards_of_another_run_are_made_again(images, run, tmp_path):
    mixed = tmp_path / "mixed"
    before = explained(images, mixed, targets=2, shard_size=10)[:]
    shutil.copy(run / "shards" / "000001.npz", mixed / "shards")
    np.testing.assert_array_equal(explained(images, mixed, targets=2, shard_size=10)[:], before)


def test_a_page_of_many_images_stays_within_its_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    for count, methods in ((10_000, 1), (10_000, 3), (2_000, 3), (400, 6)):
        side = tile_side(count)
        maps = methods * (2 + map_side(count, side) ** 2)
        made = tile(noise, side, budget(count, maps))
        assert count * 4 / 3 * (len(made) + maps) < 60e6, (count, methods)
        assert max(Image.open(io.BytesIO(made)).size) == side
    assert tile_side(10_000) == 96


def test_notebooks_show_maps_with_a_slider():
    x = torch.rand(3, 3, 20, 24)
    found = fastcam.compare(tiny(), x, {"a<b": "gradcam", "saliency": "saliency"}, [[0, 1], [2, 3], [4, 0]], "body")
    gradient = fastcam.Saliency(tiny())(x, 2)
    for text, rows, columns in ((found._repr_html_(), 6, 2), (gradient._repr_html_(), 3, 1)):
        assert text.count('type="range"') == 1 and text.count("data:image/png;base64,") == rows * columns
        assert text.count("data:image/jpeg;base64,") == rows * (1 + columns)
        assert not re.search(r"\sid=|<script|https?:", text)
    assert "a&lt;b" in found._repr_html_() and "target 3<br>p=" in found._repr_html_()
    answers = fastcam.explain(tiny(), x.repeat(4, 1, 1, 1), ["gradcam", "layercam"], ["body", "tail"], [[0, 1]] * 12)
    signed = fastcam.explain(tiny(), x, "hirescam", "body", 1, normalize=False, size=None)
    text = answers._repr_html_()
    assert text.count("data:image/png;base64,") == 16 * 4 and signed._repr_html_().count("image/png") == 3
    assert "<span>layercam body</span>" in text and "The first 16 of 24." in text
    many = fastcam.Saliency(tiny())(torch.rand(70, 3, 8, 8), 2)._repr_html_()
    assert "The first 64 of 70." in many and many.count("image/png") == 64


def test_notebooks_show_the_first_maps_of_a_run(images, run, monkeypatch):
    maps = open_maps(run)
    assert maps._repr_html_() is None, "the images are not found from here"
    monkeypatch.chdir(images)
    text = maps._repr_html_()
    assert text.count("data:image/png;base64,") == 8 and "The first 8 of 24." in text
    assert f"{maps.paths[7]}<br>target 1<br>p={maps.score[7]:.2f}" in text


def test_notebooks_show_signals_as_text():
    net = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(40, 3))
    found = fastcam.Saliency(net)(torch.rand(2, 1, 12), 1)
    assert found._repr_html_() is None and found._repr_png_() is None and "(2, 1, 12)" in repr(found)
    assert fastcam.explain(net, torch.rand(2, 1, 12), "gradcam", "0")._repr_html_() is None


def test_a_callable_target_has_its_name(images, tmp_path):
    explained(images, tmp_path / "maps", targets=fastcam.ClassifierOutputTarget(2))
    page = Page(fastcam.write_report(tmp_path / "maps", images=images))
    assert page.data["methods"][0]["explained"] == "ClassifierOutputTarget"


def test_a_picture_is_never_its_namesakes(images, run, tmp_path):
    """A file that is gone, and one of the same name in another folder."""
    few = tmp_path / "few"
    shutil.copytree(images, few)
    photo = next((few / "class-1").glob("photo-*.jpg"))
    photo.rename(few / photo.name)
    lost = []
    page = Page(fastcam.write_report(run, images=few, lost=lost.append, file=tmp_path / "a.html"))
    place = page.data["names"].index(f"class-1/{photo.name}")
    assert not page.lines[place][0] and len(lost) == 1 and photo.name in lost[0]


def test_labels_of_a_run_that_goes_on_are_not_known(images, tmp_path):
    maps = explained(images, tmp_path / "maps", targets="predicted", shard_size=4)
    maps.shards[1].path.unlink()
    with pytest.raises(ValueError, match="labels are known when a run is complete"):
        fastcam.write_report(tmp_path / "maps", images=images, labels=True)
