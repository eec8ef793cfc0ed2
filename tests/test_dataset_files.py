"""Image files as a data set, and the command that explains a folder of them, odd ones among them."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split
from torchvision.datasets import ImageFolder

from fastcam import GradCAM, ImageFiles, LayerCAM, attribute_dataset, open_maps
from fastcam.cli import main
from fastcam.images import Preprocess

from forked import contents
from models import TinyNet, photographs, tiny

PREPROCESS = Preprocess(37, 32)


def picture(n=0, height=60, width=70):
    pixels = ((photographs(n + 1, height, width)[n] * 0.25 + 0.45).clamp(0, 1) * 255).byte()
    return Image.fromarray(pixels.movedim(0, -1).numpy())


def saved(folder, *names):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(n).save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path):
    return saved(tmp_path / "photos", "a.png", "b.jpg", "more/c.png")


@pytest.fixture(autouse=True)
def same_handler():
    """`fastcam run` leaves its own for SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments):
    command = ["run", "--model", "models:tiny", "--size", "32", "--device", "cpu", "--workers", "0"]
    return main([*command, *map(str, arguments)])


def test_pixels_become_the_very_inputs_of_a_call(photos):
    for preprocess in (Preprocess(), PREPROCESS, Preprocess(None, None), Preprocess(40, 32, (0.4,), (0.3,), "bicubic")):
        files = ImageFiles(photos, preprocess)
        for n, path in enumerate(files.paths):
            pixels, label = files[n]
            x, seen = preprocess(path)
            assert pixels.dtype == torch.uint8 and torch.equal(pixels, (seen * 255).round().byte())
            assert torch.equal(files.inputs(pixels[None])[0], x) and label == (0 if "more" in files.names[n] else -1)


def test_labels_of_folders_are_those_of_torchvision(tmp_path):
    names = ["b c/2.png", "b c/10.png", "b/1.jpg", "a/deep/er/1.png", "a/0.png", "Z/x.png", "b-/x.png"]
    files, theirs = ImageFiles(saved(tmp_path, *names)), ImageFolder(str(tmp_path))
    assert len(files) == 7
    assert dict(zip(map(str, files.paths), files.labels, strict=True)) == dict(theirs.samples)
    assert sorted(files.names) == sorted(names) and files.root == tmp_path
    saved(tmp_path, "top.png")
    assert dict(zip(*(vars(ImageFiles(tmp_path))[k] for k in ("names", "labels")), strict=True))["top.png"] == -1


def test_a_folder_can_be_left_out_and_one_image_be_given(photos):
    assert ImageFiles(photos, skip=photos / "more").names == ["a.png", "b.jpg"]
    one = ImageFiles(photos / "more" / "c.png")
    assert (one.names, one.labels, len(one)) == (["c.png"], [-1], 1)
    (photos / "b.jpg").unlink()
    (photos / "a.png").unlink()
    with pytest.raises(ValueError, match="no image in folder"):
        ImageFiles(photos, skip=photos / "more")


def test_lists_of_files(photos, tmp_path):
    aside = saved(tmp_path / "aside", "d.png") / "d.png"
    listed = photos / "list.txt"
    for text in (
        "a.png\t2\nmore/c.png\t0\n",
        "a.png\t2\r\n\r\nmore/c.png\t0\r\n",
        "\n  \na.png\t2\n\n\nmore/c.png\t 0 ",
    ):
        listed.write_bytes(text.encode())
        files = ImageFiles(listed, PREPROCESS)
        assert files.names == ["a.png", "more/c.png"] and files.labels == [2, 0] and files[0][1] == 2
        assert torch.equal(files[1][0], PREPROCESS.pixels(photos / "more" / "c.png"))
    listed.write_text(f"b.jpg\n{aside}\n../photos/a.png\nb.jpg\t4\n", encoding="utf-8")
    files = ImageFiles(listed)
    assert files.labels == [-1, -1, -1, 4] and files.paths[1] == aside
    assert files.names == ["b.jpg", str(aside), "../photos/a.png", "b.jpg"]
    listed.write_text("with  spaces é 写.png\n".replace("  ", " "), encoding="utf-8-sig")  # as Windows' Notepad
    assert ImageFiles(listed).names == ["with spaces é 写.png"]


def test_lists_that_are_none(photos, tmp_path):
    listed = tmp_path / "list.txt"
    for content, message in [
        (b"a.png\t1\nb.png\tcat\n", r"list.txt, line 2: the class must be an index, got 'cat'"),
        (b"a.png\t-1\n", r"line 1: the class must be an index, got '-1'"),
        (b"a.png\t\n", r"line 1: the class must be an index, got ''"),
        (b"\n \r\n", "no image in list"),
        ((photos / "b.jpg").read_bytes(), "is neither a folder, nor an image, nor a list of paths"),
    ]:
        listed.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ImageFiles(listed)
    with pytest.raises(ValueError, match="no file or folder .*nothing"):
        ImageFiles(tmp_path / "nothing")


def test_a_listed_file_that_is_not_there_is_recorded(photos, tmp_path):
    (photos / "list.txt").write_text("a.png\t1\nmissing.png\t3\nmore/c.png\t2\n")
    files = ImageFiles(photos / "list.txt", PREPROCESS)
    maps = attribute_dataset(GradCAM(tiny(), "body"), files, tmp_path / "out", "label", workers=0, shard_size=2)
    assert maps.paths == ["a.png", "more/c.png"] and maps.target.tolist() == [1, 2] and maps.complete
    reason = "[Errno 2] No such file or directory: 'missing.png'"
    assert maps.failed == [{"index": 1, "path": "missing.png", "reason": reason}]
    for shard in maps.shards:
        assert str(tmp_path).encode() not in shard.path.read_bytes()


def test_a_file_may_be_mended_until_it_has_a_map(photos, tmp_path):
    whole, out = (photos / "b.jpg").read_bytes(), tmp_path / "out"
    (photos / "b.jpg").write_bytes(whole[:500])
    (photos / "list.txt").write_text("a.png\nb.jpg\nmore/c.png\nmissing.png\na.png\n")

    def explained(out=out, **options):
        files = ImageFiles(photos / "list.txt", PREPROCESS)
        return attribute_dataset(GradCAM(tiny(), "body"), files, out, workers=0, shard_size=2, **options)

    assert [f["path"] for f in explained().failed] == ["b.jpg", "missing.png"]
    before = contents(out)
    for name in ("b.jpg", "missing.png"):
        (photos / name).write_bytes(whole)
    assert len(explained().failed) == 2 and contents(out) == before
    assert not explained(retry_failed=True).failed
    explained(tmp_path / "fresh")
    after = contents(out)
    assert after == contents(tmp_path / "fresh")
    assert [name for name in after if after[name] == before[name]] == ["shards/000002.npz"]
    (photos / "missing.png").unlink()
    assert explained().complete
    (photos / "missing.png").write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="that have changed since, missing.png: remove their shards, 000001.npz, or"):
        explained()
    (out / "shards/000001.npz").unlink()
    assert explained().complete


def test_parts_and_sequences_of_image_files(photos, tmp_path):
    """Names, inputs and reasons are those of the files, each prepared in its own way."""
    cam, other = GradCAM(tiny(), "body"), Preprocess(37, 32, (0.4,) * 3, (0.3,) * 3)
    (photos / "bad.png").write_text("none")
    files = [ImageFiles(photos, PREPROCESS), ImageFiles(photos, other)]
    tensors = TensorDataset(torch.stack([PREPROCESS(photos / "b.jpg")[0]]))
    data = ConcatDataset([Subset(files[0], [3, 1]), tensors, Subset(Subset(files[1], torch.tensor([2, 0, 3])), [0, 1])])
    maps = attribute_dataset(cam, data, tmp_path / "out", workers=0, store="fp32", shard_size=8)
    assert maps.paths == ["more/c.png", "b.jpg", None, "a.png"] and maps.indices.tolist() == [0, 1, 2, 4]
    assert [f["path"] for f in maps.failed] == ["bad.png"] and str(photos) not in maps.failed[0]["reason"]
    x = [*(PREPROCESS(photos / name)[0] for name in ("more/c.png", "b.jpg")), tensors[0][0], other(photos / "a.png")[0]]
    np.testing.assert_allclose(maps[:], cam(torch.stack(x)), rtol=0, atol=1e-6)
    split = random_split(files[0], [3, 1], torch.Generator().manual_seed(0))[0]
    maps = attribute_dataset(cam, split, tmp_path / "split", workers=0)
    assert sorted([*maps.paths, *(f["path"] for f in maps.failed)]) == sorted(files[0].names[i] for i in split.indices)


@pytest.mark.parametrize("part", [False, True])
def test_where_the_folders_of_torchvision_lie_is_no_part_of_a_shard(part, tmp_path):
    cam, held = GradCAM(tiny(), "body"), []
    for place in ("here", "there"):
        folder = saved(tmp_path / place, "a/1.png", "b/2.png")
        (folder / "b/3.png").write_text("none")
        data = ImageFolder(str(folder), transform=lambda image: PREPROCESS(image)[0])
        data = Subset(data, [2, 0]) if part else data
        maps = attribute_dataset(cam, data, tmp_path / f"{place} out", "label", workers=0)
        assert maps.failed[0]["path"] == "b/3.png" and "a/1.png" in maps.paths
        held.append([shard.path.read_bytes() for shard in maps.shards])
    assert held[0] == held[1]


def odd_ones(folder):
    """A folder of what a user's folder has: good images, and four that are none."""
    saved(folder, "good.jpg", "with spaces é 写.png", "sub/good.png")
    whole = (folder / "good.jpg").read_bytes()
    upright = picture(1)
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    with Image.open(folder / "turned.jpg") as turned:
        turned.transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    upright.convert("CMYK").save(folder / "cmyk.jpg")
    upright.convert("L").save(folder / "grey.png")
    deep = np.asarray(upright.convert("L")).astype(np.uint16)
    Image.fromarray(deep * 256 + 77).save(folder / "deep.png")
    Image.new("RGB", (1, 1), (200, 30, 90)).save(folder / "dot.png")
    upright.resize((1, 20000)).save(folder / "thin.png")
    frames = [picture(n).quantize(64) for n in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    with Image.open(folder / "moving.gif") as moving:
        moving.convert("RGB").save(folder / "frame.png")
    upright.save(os.fsencode(folder) + b"/caf\xe9.png")
    bad = {"cut.jpg": whole[: len(whole) // 2], "sub/text.jpg": b"no image", "empty.png": b""}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    with open(os.fsencode(folder) + b"/bad\xff.jpg", "wb") as file:
        file.write(b"none")
    return folder, sorted([*bad, os.fsdecode(b"bad\xff.jpg")])


def test_odd_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastcam.images._MOST_PIXELS", 10**6)  # as thin.png has for larger models
    folder, bad = odd_ones(tmp_path / "photos")
    out = tmp_path / "out"
    assert run(folder, "--layer", "body", "--shard-size", "4", "--out", out) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"explained 13 of 17 images into {out}; 4 failed, see {out / 'manifest.json'}"
    result = json.loads((out / "manifest.json").read_text())["result"]
    assert sorted(f["path"] for f in result["failed"]) == bad and result["explained"] == 13 and result["complete"]
    assert all("cannot be read as an image" in f["reason"] for f in result["failed"])
    assert all(f["reason"].count(f["path"]) == 1 for f in result["failed"])
    for shard in (out / "shards").iterdir():  # where the folder lies is no part of it
        assert str(tmp_path).encode() not in shard.read_bytes()
    assert all(name in told.err for name in bad if name.isascii())
    maps, cam = open_maps(out), GradCAM(tiny(), "body")
    of_path = dict(zip(maps.paths, maps, strict=True))
    assert os.fsdecode(b"caf\xe9.png") in of_path and "with spaces é 写.png" in of_path
    for name, found in of_path.items():
        np.testing.assert_allclose(found, cam(PREPROCESS(folder / name)[0][None])[0], rtol=0, atol=0.002)
    for one, same in [("turned.jpg", "upright.png"), ("moving.gif", "frame.png"), ("deep.png", "grey.png")]:
        np.testing.assert_array_equal(of_path[one], of_path[same])
    assert np.ptp(of_path["cmyk.jpg"]) > 0.5 and len(of_path) == 13
    _explained_the_same(folder, of_path, tmp_path / "explained", capsys)


def _explained_the_same(folder, of_path, out, capsys):
    """By `fastcam explain`, too."""
    command = ["explain", str(folder), "--model", "models:tiny", "--size", "32", "--device", "cpu", "--layer", "body"]
    assert main([*command, "--out", str(out)]) == 1
    assert "4 of 17 images failed" in capsys.readouterr().err
    for name in ("turned", "cmyk", "moving", "dot", "thin", "with spaces é 写"):
        (path,) = (p for p in of_path if p.startswith(f"{name}."))
        np.testing.assert_allclose(of_path[path], np.load(out / f"{name}.npy"), rtol=0, atol=0.002)


@pytest.mark.parametrize("kind", ["files", "folders of torchvision"])
def test_a_disk_that_is_unmounted_stops_the_run(kind, tmp_path):
    photos = saved(tmp_path / "photos", *(f"{n % 2}/{n}.png" for n in range(6)))
    passes = []

    def ready(image):
        return PREPROCESS(image)[0]

    class Unmounting(TinyNet):
        def forward(self, x):
            passes.append(len(x))
            if len(passes) == 2:
                photos.rename(tmp_path / "elsewhere")
                photos.mkdir()  # as the place of a disk is left
            return super().forward(x)

    def explained():
        data = ImageFiles(photos, PREPROCESS)
        if kind != "files":
            folders = ImageFolder(str(photos), ready)
            data = torch.utils.data.ConcatDataset([torch.utils.data.Subset(folders, r) for r in ([0, 1], [2, 3, 4, 5])])
        cam = GradCAM(tiny(Unmounting), "body")
        return attribute_dataset(cam, data, tmp_path / "out", workers=0, batch_size=1, shard_size=1)

    with pytest.raises(FileNotFoundError):
        explained()
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2
    photos.rmdir()
    (tmp_path / "elsewhere").rename(photos)
    assert explained().complete and not open_maps(tmp_path / "out").failed and len(passes) == 6


def test_good_images(photos, capsys):
    out = photos / "maps"
    for _ in range(2):  # a second time there is nothing to do, and the results are no images
        assert run(photos, "--out", out) == 0
        assert capsys.readouterr().out == f"explained 3 of 3 images into {out}\n"
    maps = open_maps(out)
    assert maps.paths == ["a.png", "b.jpg", "more/c.png"] and maps.manifest["method"]["layers"] == ["tail"]
    assert maps.manifest["dataset"]["preprocess"]["crop"] == 32 and maps.manifest["store"] == "fp16"
    assert str(photos) not in (out / "manifest.json").read_text()


def test_options(tmp_path, capsys):
    folder = saved(tmp_path / "classes", "a/1.png", "a/2.png", "b/3.png")
    x = torch.stack([PREPROCESS(path)[0] for path in ImageFiles(folder).paths])
    net, several = tiny(), ["--layer", "body", "--layer", "tail"]
    for name, options, expected, bound in [
        ("label", ["--target", "label"], GradCAM(net, "tail")(x, [0, 0, 1]), 0.002),
        ("index", ["--target", "3", "--store", "fp32"], GradCAM(net, "tail")(x, 3), 1e-6),
        ("full", ["--full", "--store", "uint8", *several], GradCAM(net, ["body", "tail"])(x), 1 / 510 + 1e-6),
        ("layers", ["--method", "layercam", *several], LayerCAM(net, ["body", "tail"])(x), 0.002),
        ("smooth", ["--full", "--aug-smooth", "--eigen-smooth"], GradCAM(net)(x, None, True, True), 2**-11),
        ("option", ["-o", "interpolation=cubic"], GradCAM(net, interpolation="cubic")(x), 0.002),
    ]:
        out = tmp_path / name
        assert run(folder, *options, "--out", out, "--batch-size", "3") == 0
        np.testing.assert_allclose(open_maps(out)[:], expected, rtol=0, atol=bound)
    assert open_maps(tmp_path / "label").target.tolist() == [0, 0, 1]
    assert open_maps(tmp_path / "option").manifest["method"]["settings"]["interpolation"] == "cubic"
    capsys.readouterr()
    assert run(folder, "--method", "eigencam", "--target", "1", "--out", tmp_path / "eigen") == 0
    assert "eigencam does not depend on the class, --target is ignored" in capsys.readouterr().err


def test_mistakes(photos, tmp_path, capsys):
    assert run(photos, "--out", tmp_path / "there") == 0
    out, there = tmp_path / "out", tmp_path / "there"
    (tmp_path / "bare").mkdir()
    saved(tmp_path / "flat", "a.png")
    (tmp_path / "file").write_text("")
    for arguments, message in [
        ([photos, "--out", there, "--method", "layercam"], 'method.class: "GradCAM" there, "LayerCAM" now'),
        ([photos, "--out", there, "--target", "1", "--full"], 'targets: "predicted" there, 1 now\n  full: false there'),
        ([photos / "more", "--out", there], "dataset.samples: 3 there, 1 now"),
        ([photos, "--out", there, "--size", "40"], "dataset.preprocess.resize: 37 there, 46 now"),
        ([photos, "--out", out, "-o", "channels=3"], "gradcam has no option 'channels'"),
        ([photos, "--out", out, "--layer", "bodi"], "no layer 'bodi' in the model TinyNet"),
        ([photos, "--out", out, "--target", "5"], "target 5 is out of range: the model has 5 classes"),
        ([tmp_path / "flat", "--out", out, "--target", "label"], "has none: neither folders of classes nor a column"),
        ([photos, "--out", out, "--aug-smooth"], "--aug-smooth is a mean of finished maps: give --full, too"),
        ([tmp_path / "bare", "--out", out], "no image in folder"),
        ([tmp_path / "nothing", "--out", out], "no file or folder"),
        ([photos, "--out", tmp_path / "file" / "below"], "cannot be written"),
        ([photos, "--out", out, "--claim-expiry", "0"], "claim_expiry must be more than 0 seconds"),
    ]:
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert run(photos, "--out", there) == 0
    for arguments, message in [
        (["--target", "cat"], "must be predicted, label or a class index, got 'cat'"),
        (["--target", "1", "--target", "2"], "--target is given twice"),
        (["--store", "fp8"], "invalid choice: 'fp8'"),
        (["--shard-size", "0"], "must be a whole number of 1 or more"),
        (["--workers", "-1"], "must be a whole number of 0 or more, got '-1'"),
        (["--no-such"], "unrecognized arguments: --no-such"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            run(photos, "--out", out, *arguments)
        assert message in capsys.readouterr().err


def test_export_command(photos, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "maps.npz"
    assert run(photos, "--layer", "body", "--shard-size", "1", "--out", out) == 0
    capsys.readouterr()
    for size, shape in [([], (3, 16, 16)), (["--size", "input"], (3, 32, 32)), (["--size", "20"], (3, 20, 20))]:
        assert main(["export", str(out), str(file), *size]) == 0
        assert capsys.readouterr().out == f"wrote 3 maps to {file}\n" and np.load(file)["map"].shape == shape
    (out / "shards" / "000001.npz").unlink()
    assert main(["export", str(out), str(file)]) == 0
    assert f"warning: {out} is not complete, 2 images are there" in capsys.readouterr().err
    assert np.load(file)["path"].tolist() == ["a.png", "more/c.png"]
    for arguments, message in [
        ([out, tmp_path / "maps.csv"], "the name must end in .npz, .zarr, .parquet, got"),
        ([photos, file], "holds no maps: it has no manifest.json"),
        ([out, tmp_path / "no" / "maps.npz"], f"no folder {tmp_path / 'no'}"),
    ]:
        assert main(["export", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(out), str(file), "--size", "0"])


def test_a_folder_of_which_nothing_can_be_explained(tmp_path, capsys):
    for n in range(2):
        (tmp_path / f"{n}.png").write_text("none")
    out = tmp_path / "out"
    assert run(tmp_path, "--out", out) == 1
    assert "explained 0 of 2 images" in capsys.readouterr().out
    maps = open_maps(out)
    assert len(maps) == 0 and maps.complete and len(maps.failed) == 2 and list(maps) == []
    for ending in ("npz", "parquet", "zarr"):
        assert main(["export", str(out), str(tmp_path / f"maps.{ending}")]) == 2
        assert f"{out} holds no map to export" in capsys.readouterr().err
