"""Maps in one file of a common kind, and as a column of batches, in Ray Data's too."""

from __future__ import annotations

import os
import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fastcam
from fastcam import GradCAM, ImageFiles, LayerCAM, MapBatches, attribute_dataset
from fastcam.images import Preprocess
from fastcam.methods import METHODS

from models import photographs, tiny

KINDS = ["npz", "zarr", "parquet"]
NEEDED = {"zarr": "zarr", "parquet": "pyarrow.parquet"}


def read(path):
    """The columns of an exported file; maps of Parquet in their shapes."""
    kind = path.suffix[1:]
    if kind == "npz":
        return dict(np.load(path))
    if kind == "zarr":
        group = pytest.importorskip("zarr").open_group(str(path), mode="r")
        return {name: group[name][:] for name in group.array_keys()} | {"path": np.array(group.attrs["path"])}
    table = pytest.importorskip("pyarrow.parquet").read_table(path).to_pydict()
    columns = {name: column for name, column in table.items() if not name.endswith("_shape")}
    for name in [name for name in columns if f"{name}_shape" in table]:
        maps = zip(columns[name], table[f"{name}_shape"], strict=True)
        columns[name] = [np.array(values, np.float32).reshape(shape) for values, shape in maps]
    return {name: np.array(c) if name != "path" and not _ragged(c) else c for name, c in columns.items()}


def _ragged(column):
    return isinstance(column[0], np.ndarray) and len({m.shape for m in column}) > 1


def needing(kind):
    if kind in NEEDED:
        pytest.importorskip(NEEDED[kind])
    return kind


@pytest.fixture(params=KINDS)
def kind(request):
    return needing(request.param)


def attributed(cam, data, out, **options):
    return attribute_dataset(cam, data, out, workers=0, **{"shard_size": 2, **options})


def test_an_export_has_every_column(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcam.dataset.exporting._AT_ONCE", 2)  # so that there are several parts
    data = [(image, n) for n, image in enumerate(photographs(5, 20, 24))]
    maps = attributed(GradCAM(tiny(), "body"), data, tmp_path / "out", targets="label")
    for size, expected in [(None, [maps.low(i) for i in range(5)]), ("input", maps[:]), ((7, 9), None)]:
        path = tmp_path / f"maps-{size}.{kind}"
        maps.export(str(path), size)
        found = read(path)
        expected = [maps.read(i, size) for i in range(5)] if expected is None else expected
        np.testing.assert_array_equal(found["map"], np.stack(expected))
        for name, column in [("index", maps.indices), ("class", maps.target), ("predicted", maps.predicted)]:
            np.testing.assert_array_equal(found[name], column)
        np.testing.assert_array_equal(np.float32(found["score"]), maps.score)
        assert np.asarray(found["map"]).dtype == np.float32


def test_several_layers_have_a_column_each(kind, tmp_path):
    maps = attributed(LayerCAM(tiny(), ["stem.0", "body"]), photographs(3, 20, 26), tmp_path / "out")
    maps.export(tmp_path / f"maps.{kind}")
    found = read(tmp_path / f"maps.{kind}")
    assert "map" not in found
    for layer in range(2):
        np.testing.assert_array_equal(found[f"map_{layer}"], np.stack([maps.low(i)[layer] for i in range(3)]))
    maps.export(tmp_path / f"finished.{kind}", (20, 26))
    np.testing.assert_array_equal(read(tmp_path / f"finished.{kind}")["map"], maps[:])


def test_finished_maps_are_exported_as_stored(kind, tmp_path):
    maps = attributed(GradCAM(tiny(), "body"), photographs(3, 20, 24), tmp_path / "out", full=True, store="uint8")
    maps.export(tmp_path / f"maps.{kind}")
    np.testing.assert_array_equal(read(tmp_path / f"maps.{kind}")["map"], maps[:])


def test_maps_that_differ_in_size(kind, tmp_path):
    data = [photographs(1, *size)[0] for size in [(20, 24), (28, 24), (20, 24)]]
    maps = attributed(GradCAM(tiny(), "body"), data, tmp_path / "out")
    path = tmp_path / f"maps.{kind}"
    maps.export(path, (8, 8))
    assert np.asarray(read(path)["map"]).shape == (3, 8, 8)
    if kind == "parquet":
        maps.export(path)
        for found, i in zip(read(path)["map"], range(3), strict=True):
            np.testing.assert_array_equal(found, maps.low(i))
        return
    with pytest.raises(ValueError, match=r"maps of sizes .*\(10, 12\), \(14, 12\).* make no array: pass a size"):
        maps.export(path)


def test_an_export_that_fails_leaves_what_was_there(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcam.dataset.exporting._AT_ONCE", 2)
    maps = attributed(GradCAM(tiny(), "body"), photographs(5, 20, 24), tmp_path / "out")
    path, low = tmp_path / f"maps.{kind}", maps.low
    for there in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(maps, "low", lambda i: low(i) if i < 3 else 1 / 0)  # amid the second part
            with pytest.raises(ZeroDivisionError):
                maps.export(path, None)
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name] * there + ["out"]
        if there:
            np.testing.assert_array_equal(read(path)["map"], maps[:])
        maps.export(path, "input")
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "out"]


def test_a_folder_that_cannot_take_its_name_leaves_what_was_there(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    maps = attributed(GradCAM(tiny(), "body"), photographs(2, 20, 24), tmp_path / "out")
    path, replace = tmp_path / "maps.zarr", os.replace
    maps.export(path, "input")

    def refusing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("no")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr("fastcam.dataset.exporting.os.replace", refusing)
        maps.export(path, "input")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps.zarr", "out"]
    np.testing.assert_array_equal(read(path)["map"], maps[:])


def test_paths_are_exported(kind, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "é 写.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (32, 32), (9, 200, 30)).save(folder / name)
    maps = attributed(GradCAM(tiny(), "body"), ImageFiles(folder, Preprocess(32, 32)), tmp_path / "out")
    maps.export(tmp_path / f"maps.{kind}")
    other = "caf\ufffd.png" if kind == "parquet" else os.fsdecode(b"caf\xe9.png")  # Parquet holds UTF-8 only
    assert sorted(read(tmp_path / f"maps.{kind}")["path"]) == sorted(["a.png", other, "é 写.png"])


@pytest.mark.parametrize("kind", NEEDED)
def test_a_missing_package_is_named(kind, tmp_path, monkeypatch):
    maps = attributed(GradCAM(tiny(), "body"), photographs(1, 20, 24), tmp_path / "out")
    package = NEEDED[kind].split(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"export to .{kind} needs the package {package}: pip install 'fastcam\["):
        maps.export(tmp_path / f"maps.{kind}")
    with pytest.raises(ValueError, match="the name must end in .npz, .zarr, .parquet, got"):
        maps.export(tmp_path / "maps")


def make():
    return GradCAM(tiny(), "body")


def make_for_several_layers():
    return LayerCAM(tiny(), ["stem.0", "body"])


MADE = []


def make_noticed():
    MADE.append(1)
    return make()


def make_without_classes():
    return METHODS["eigencam"](tiny(), "body")


@pytest.fixture
def batch():
    return {"image": photographs(3, 20, 24).numpy(), "name": np.array(["a", "b", "c"]), "label": np.array([4, 0, 2])}


def test_map_batches_adds_columns(batch):
    cam, x = make(), torch.from_numpy(batch["image"])
    for label, targets in [(None, None), ("label", [4, 0, 2])]:
        found = MapBatches(make, label=label, size="input", device="cpu")(batch)
        np.testing.assert_allclose(found["map"], cam(x, targets), rtol=0, atol=1e-6)
        predicted = cam.outputs.argmax(1)
        explained = predicted if targets is None else torch.tensor(targets)
        assert found["predicted"].tolist() == predicted.tolist()
        np.testing.assert_allclose(found["score"], cam.outputs.softmax(1)[range(3), explained], atol=1e-6)
        assert list(found) == ["name", "label", "map", "predicted", "score"] and found["name"] is batch["name"]
        assert [found[name].dtype for name in list(found)[2:]] == [np.float32, np.int64, np.float32]
    found = MapBatches(make_without_classes, device="cpu")(batch)
    assert np.isnan(found["score"]).all() and (found["predicted"] >= 0).all()


def test_sizes_of_map_batches(batch):
    cam, x = make(), torch.from_numpy(batch["image"])
    for given, size in [(None, (10, 12)), ("input", (20, 24)), ((5, 7), (5, 7))]:
        found = MapBatches(make, size=given, device="cpu")(batch)["map"]
        np.testing.assert_allclose(found, cam.attribute(x, size=size), rtol=0, atol=1e-6)
    signed = MapBatches(make, normalize=False, device="cpu")(batch)["map"]
    np.testing.assert_allclose(signed, cam.attribute(x, normalize=False, size=None), rtol=1e-5, atol=1e-9)
    assert signed.min() < 0
    several = MapBatches(make_for_several_layers, size="input", device="cpu")(batch)["map"]
    np.testing.assert_allclose(several, make_for_several_layers()(x), rtol=0, atol=1e-6)
    for wrong in (
        MapBatches(make_for_several_layers, normalize=False),
        MapBatches(make, size="input", normalize=False),
    ):
        with pytest.raises(ValueError, match="signed maps are those of one layer, at its size"):
            wrong(batch)


def test_map_batches_of_other_columns(batch):
    maps = MapBatches(make, size="input", device="cpu")
    expected, images = maps(batch)["map"], batch["image"]
    of_objects = np.empty(3, object)
    of_objects[:] = [*images]
    for column in (of_objects, images.astype(np.float64)):
        np.testing.assert_array_equal(maps({"image": column})["map"], expected)
    nothing = maps({name: column[:0] for name, column in batch.items()})
    assert {name: column.shape for name, column in nothing.items()} == {
        **{"name": (0,), "label": (0,), "map": (0, 0, 0), "predicted": (0,), "score": (0,)}
    }
    of_objects[0] = images[0, :, :7]
    with pytest.raises(ValueError, match=r"images of sizes \[\(3, 7, 24\), \(3, 20, 24\)\] in column 'image' make no"):
        maps({"image": of_objects})
    with pytest.raises(TypeError, match="column 'image' must hold images as arrays of numbers, got <U1"):
        maps({"image": batch["name"]})


def test_what_makes_no_method():
    for wrong in (make(), tiny(), "make"):
        with pytest.raises(TypeError, match=f"must be a function that gives the method, got {type(wrong).__name__}"):
            MapBatches(wrong)
    with pytest.raises(TypeError, match="make must give a method such as GradCAM.model, layers., got TinyNet"):
        MapBatches(tiny, device="cpu")({"image": np.zeros((1, 3, 20, 24), np.float32)})
    with pytest.raises(TypeError, match='size must be "input", None or .H, W., got 32'):
        MapBatches(make, size=32)


def test_map_batches_pickles_without_its_model(batch):
    maps = MapBatches(make, image="pixels", label="label", size=(6, 6), device="cpu")
    batch = {"pixels": batch.pop("image"), **batch}
    expected = maps(batch)
    held = pickle.dumps(maps)
    assert len(held) < 1000
    for name, column in pickle.loads(held)(batch).items():
        np.testing.assert_array_equal(column, expected[name])
    MADE.clear()
    noticed = [MapBatches(make_noticed, image="pixels", device=device) for device in ("cpu", None)]
    for _ in range(3):  # as a framework unpickles them for each task
        for one in noticed:
            pickle.loads(pickle.dumps(one))(batch)
    assert len(MADE) == 2
    for _ in range(2):
        noticed[0](batch)
    assert len(MADE) == 3


def test_a_missing_column_is_named(batch):
    with pytest.raises(ValueError, match="the batch has no column 'pixels': it has image, name, label"):
        MapBatches(make, image="pixels")(batch)
    with pytest.raises(ValueError, match="the batch has no column 'class'"):
        MapBatches(make, label="class")(batch)


def test_ray_data_maps_batches(batch, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    here = pathlib.Path(__file__).parent
    roots = [str(here), str(pathlib.Path(fastcam.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment, logging_level="error", log_to_driver=False)
    try:
        x = photographs(7, 20, 24)
        rows = [{"image": image.numpy(), "place": n} for n, image in enumerate(x)]
        data = ray.data.from_items(rows).map_batches(
            MapBatches(make, size="input", device="cpu"), batch_format="numpy", batch_size=3
        )
        found = sorted(data.take_all(), key=lambda row: row["place"])
        cam = make()
        expected = cam(x)
        assert [row["place"] for row in found] == list(range(7)) and "image" not in found[0]
        assert [row["predicted"] for row in found] == cam.outputs.argmax(1).tolist()
        np.testing.assert_allclose(np.stack([row["map"] for row in found]), expected, rtol=0, atol=1e-5)
        columns = ray.data.from_numpy(x.numpy()).map_batches(
            MapBatches(make, image="data", size="input", device="cpu"), batch_format="numpy", batch_size=4
        )
        maps = np.stack([row["map"] for row in columns.take_all()])
        np.testing.assert_allclose(np.sort(maps, 0), np.sort(expected, 0), rtol=0, atol=1e-5)
    finally:
        ray.shutdown()
