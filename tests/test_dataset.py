"""A data set through a method: what is read back, of which samples and targets, and the bytes that hold it."""

from __future__ import annotations

import json
import random
import socket
import zipfile
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from fastcam import GradCAM, LayerCAM, RefineCAM, attribute_dataset
from fastcam.methods import ATTENTION, METHODS
from fastcam.model_targets import ClassifierOutputSoftmaxTarget

from models import TinyNet, VolumeNet, build, photographs, tiny

FEW = {  # passes
    "sess": {"num_scales": 2},
    "smoothfullgrad": {"samples": 2},
    "smoothgradcam++": {"num_samples": 2},
    "sscam": {"samples": 2},
    "iscam": {"samples": 2},
}


def pooled() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def made(name):
    """The method on a small network, and three images for it."""
    if name in ATTENTION:
        return ATTENTION[name](build("small_vit")), photographs(3, 64, 64)
    net, layer = (pooled(), "1") if name == "cam" else (tiny(), "body")
    layers = [] if "fullgrad" in name else [layer]
    return METHODS[name](net, *layers, **FEW.get(name, {})), photographs(3, 20, 24)


def attributed(cam, data, out, targets="predicted", **options):
    return attribute_dataset(cam, data, out, targets, **{"workers": 0, "shard_size": 2, **options})


@pytest.fixture
def cam():
    return GradCAM(tiny(), "body")


@pytest.fixture
def x():
    return photographs(5, 20, 24)


@pytest.mark.parametrize("name", [*METHODS, *ATTENTION])
def test_what_is_read_back_is_what_the_method_gives(name, tmp_path):
    cam, x = made(name)

    def drawn_for(index):
        np.random.seed(index)  # RandomCAM draws from it, and a run from one that begins so at a batch of that index
        return cam(x[index : index + 2])

    expected = np.concatenate([drawn_for(0), drawn_for(2)])
    assert (np.ptp(expected, (1, 2)) > 0.5).all()
    for store, tolerance in [("fp32", 1e-6), ("fp16", 0.002), ("uint8", 0.004)]:
        maps = attributed(cam, x, tmp_path / store, store=store)
        largest = np.array([[m.max(), m.max() - min(0, m.min())] for m in map(maps.low, range(3))])
        assert maps[:].dtype == np.float32 and maps.complete and maps.manifest["method"]["class"] == type(cam).__name__
        for found, wanted, (high, span) in zip(maps, expected, largest, strict=True):
            share = span / high if store == "uint8" else 1
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * share)
    maps = attributed(cam, x, tmp_path / "full", full=True, store="fp16")
    np.testing.assert_allclose(maps[:], expected, rtol=0, atol=2**-11)


def test_records_say_what_was_explained(cam, x, tmp_path):
    classes = [4, 1, 0, 1, 3]
    cam(x)
    probabilities = cam.outputs.softmax(1)
    predicted = probabilities.argmax(1).tolist()
    for targets, explained in [("predicted", predicted), ("label", classes), (2, [2] * 5)]:
        maps = attributed(cam, TensorDataset(x, torch.tensor(classes)), tmp_path / str(targets), targets, store="fp32")
        assert maps.target.tolist() == explained and maps.predicted.tolist() == predicted
        assert maps.indices.tolist() == list(range(5)) and maps.paths == [None] * 5 and maps.failed == []
        np.testing.assert_allclose(maps.score, probabilities[range(5), explained], atol=1e-6)
        np.testing.assert_allclose(maps[:], cam(x, explained), rtol=0, atol=1e-6)


def test_a_callable_target_has_its_value_for_a_score(cam, x, tmp_path):
    maps = attributed(cam, list(x), tmp_path, ClassifierOutputSoftmaxTarget(3), store="fp32")
    np.testing.assert_allclose(maps[:], cam(x, ClassifierOutputSoftmaxTarget(3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(maps.score, cam.outputs.softmax(1)[:, 3], atol=1e-6)
    assert maps.target.tolist() == [-1] * 5 and maps.predicted.tolist() == cam.outputs.argmax(1).tolist()
    assert maps.manifest["targets"] == {
        "class": "fastcam.model_targets.ClassifierOutputSoftmaxTarget",
        "attributes": {"category": 3},
    }


def test_a_method_that_looks_at_no_class_records_none(x, tmp_path):
    maps = attributed(METHODS["eigencam"](tiny(), "body"), list(x), tmp_path)
    assert maps.target.tolist() == [-1] * 5 and np.isnan(maps.score).all() and (maps.predicted >= 0).all()


@pytest.mark.parametrize("store", ["fp32", "fp16", "uint8"])
def test_finished_maps_and_smoothing(store, cam, x, tmp_path):
    bound = {"fp32": 1e-6, "fp16": 2**-11, "uint8": 1 / 510 + 1e-6}[store]
    for name, smoothing in [("plain", {}), ("eigen", {"eigen_smooth": True}), ("aug", {"aug_smooth": True})]:
        maps = attributed(cam, list(x), tmp_path / name, 1, full=True, store=store, **smoothing)
        np.testing.assert_allclose(maps[:], cam(x, 1, **smoothing), rtol=0, atol=bound)
        assert maps.manifest["smoothing"] == [f"{name}_smooth"] * bool(smoothing)
        with pytest.raises(ValueError, match="there are no signed ones"):
            maps.low(0)
    maps = attributed(cam, list(x), tmp_path / "low", 1, eigen_smooth=True, store="fp32")
    np.testing.assert_allclose(maps[:], cam(x, 1, eigen_smooth=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [LayerCAM, RefineCAM])
def test_several_layers(method, x, tmp_path):
    cam = method(tiny(), ["stem.0", "body", "tail"])
    for store, bound in [("fp32", 2e-6), ("fp16", 0.002)]:
        maps = attributed(cam, list(x), tmp_path / store, store=store)
        np.testing.assert_allclose(maps[:], cam(x), rtol=0, atol=bound)
    lows = cam.signed_maps(x)
    assert len(maps.low(3)) == 3 and maps.manifest["method"]["layers"] == ["stem.0", "body", "tail"]
    for found, low in zip(maps.low(3), lows, strict=True):
        np.testing.assert_allclose(found, low[3].detach(), rtol=0, atol=2**-11 * low[3].abs().max().item())


def test_signals_and_volumes(tmp_path):
    torch.manual_seed(2)
    signals = nn.Sequential(nn.Conv1d(2, 6, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    volumes = VolumeNet().eval()
    for name, cam, x in [
        ("signals", GradCAM(signals, "0"), torch.randn(3, 2, 40)),
        ("volumes", GradCAM(volumes, "second"), photographs(36, 16, 20, 1).view(3, 1, 12, 16, 20)),
    ]:
        for full in (False, True):
            maps = attributed(cam, list(x), tmp_path / f"{name}{full}", full=full, store="fp32")
            assert maps.record(2)["size"] == maps[2].shape == tuple(x.shape[2:])
            np.testing.assert_allclose(maps[:], cam(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_samples_of_different_sizes_share_a_shard(full, cam, tmp_path):
    data = [photographs(1, *size)[0] for size in [(20, 24), (28, 24), (20, 24), (40, 30), (28, 24)]]
    for store, bound in [("fp32", 1e-6), ("fp16", 0.002)]:
        maps = attributed(cam, data, tmp_path / store, shard_size=5, full=full, store=store)
        assert len(maps.shards) == 1 and maps.indices.tolist() == [0, 1, 2, 3, 4]
        assert [m.shape for m in maps[:]] == [tuple(image.shape[1:]) for image in data]
        for found, image in zip(maps, data, strict=True):
            np.testing.assert_allclose(found, cam(image[None])[0], rtol=0, atol=bound)


def test_a_layer_that_the_method_finds_is_named(x, tmp_path):
    maps = attributed(GradCAM(tiny()), list(x), tmp_path, store="fp32")
    assert maps.manifest["method"]["layers"] == ["tail"]
    np.testing.assert_allclose(maps[:], GradCAM(tiny(), "tail")(x), rtol=0, atol=1e-6)


def test_every_kind_of_data_set_gives_the_same(cam, x, tmp_path):
    data = {"tensors": TensorDataset(x), "list": list(x), "pairs": [(image, 3) for image in x], "tensor": x}
    data["lists"] = [[image, torch.tensor(3)] for image in x]
    found = {name: attributed(cam, given, tmp_path / name, 3) for name, given in data.items()}
    shards = {name: [arrays_of(s.path) for s in maps.shards] for name, maps in found.items()}
    assert len(shards["list"]) == 3 and all(arrays == shards["list"] for arrays in shards.values())


def arrays_of(shard):
    """What a shard holds but for which run it is of."""
    with np.load(shard) as file:
        arrays = {name: file[name].tobytes() for name in file.files}
    return arrays | {"meta": json.loads(arrays["meta"]) | {"run": None}}


def test_samples_without_a_label_are_recorded(cam, x, tmp_path):
    data = [(x[0], 1), x[1], (x[2], -1), (x[3], torch.tensor(2)), (x[4], None)]
    maps = attributed(cam, data, tmp_path / "some", "label", shard_size=5)
    assert maps.indices.tolist() == [0, 3] and maps.target.tolist() == [1, 2] and maps.complete
    reason = "it has no label, and targets are labels"
    assert maps.failed == [{"index": i, "path": None, "reason": reason} for i in (1, 2, 4)]
    assert maps.manifest["result"]["failed"] == maps.failed and maps.manifest["result"]["explained"] == 2
    np.testing.assert_allclose(maps[1], cam(x[3:4], 2)[0], rtol=0, atol=0.002)
    assert len(attributed(cam, list(x), tmp_path / "none", "label").failed) == len(x)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(3, 3, 20, 24))


def test_what_is_no_data_set(cam, x, tmp_path):
    for data, error, message in [
        (Stream(), TypeError, "dataset must have __len__ and __getitem__, got Stream"),
        ((image for image in x), TypeError, "dataset must have __len__ and __getitem__, got generator"),
        ([], ValueError, "dataset is empty"),
        ("photos", TypeError, "dataset is a path: pass ImageFiles\\('photos'\\)"),
    ]:
        with pytest.raises(error, match=message):
            attributed(cam, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_items_of_another_type_stop_at_once(workers, cam, x, tmp_path):
    wrongs = [(x[0].numpy(), "ndarray"), ((x[0], 1, "name"), "tuple of 3"), ({"image": x[0]}, "dict of 1")]
    for wrong, got in wrongs[: 1 if workers else 3]:
        with pytest.raises(TypeError, match=f"must be a tensor .k, H, W., or it and its class, got {got}"):
            attributed(cam, [x[0], wrong], tmp_path / got, workers=workers)
        assert not active_children()
    for label in ("cat", 1.5, {"box": 1}) if workers == 0 else ():
        with pytest.raises(TypeError, match=f"class of a sample must be an index, got {type(label).__name__}"):
            attributed(cam, [(x[0], 1), (x[1], label)], tmp_path / type(label).__name__)


def test_wrong_arguments(cam, x, tmp_path):
    for options, message in [
        ({"targets": "labels"}, 'targets must be "predicted", "label", a class index or a callable, got \'labels\''),
        ({"targets": -1}, "targets must be"),
        ({"targets": True}, "targets must be"),
        ({"targets": [1, 2]}, "targets must be"),
        ({"store": "fp8"}, "store must be one of fp16, uint8, fp32, got 'fp8'"),
        ({"aug_smooth": True}, "aug_smooth is a mean of finished maps: pass full=True"),
        ({"workers": -1}, "workers must be a whole number of 0 or more, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        ({"shard_size": 0}, "shard_size must be a whole number of 1 or more"),
        ({"claim_expiry": 0}, "claim_expiry must be more than 0 seconds"),
    ]:
        with pytest.raises(ValueError, match=message):
            attributed(cam, list(x), tmp_path / "out", **options)
    assert not list(tmp_path.rglob("manifest.json"))
    with pytest.raises(TypeError, match="cam must be a method such as"):
        attributed(tiny(), list(x), tmp_path / "out")
    with pytest.raises(RuntimeError, match="none of the first 2 images: target 5 is out of range: the model has 5"):
        attributed(cam, list(x), tmp_path / "out", 5)


def test_another_run_in_the_folder_says_what_differs(cam, x, tmp_path):
    attributed(cam, TensorDataset(x, torch.zeros(5, dtype=torch.int64)), tmp_path)
    other = TensorDataset(x + 1, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="holds another run's maps") as error:
        attributed(LayerCAM(tiny(), "tail"), other, tmp_path, 1, store="uint8", batch_size=3)
    lines = str(error.value).splitlines()[1:]
    differing = [line.split(":")[0].strip() for line in lines]
    assert differing == ["method.class", "method.layers", "targets", "store", "batch_size", "dataset.fingerprint"]
    assert '  targets: "predicted" there, 1 now' in lines


def shards(out):
    return {p.name: p.read_bytes() for p in (out / "shards").iterdir()}


def test_the_bytes_depend_on_nothing_but_the_run(cam, x, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "the-host-of-this-test")
    data = [(image, n) for n, image in enumerate(x)]
    for name, workers in [("one", 0), ("another", 0), ("workers", 2)]:
        attributed(cam, data, tmp_path / name, "label", workers=workers, batch_size=1)
    one = shards(tmp_path / "one")
    assert sorted(one) == ["000000.npz", "000001.npz", "000002.npz"]
    assert shards(tmp_path / "another") == one and shards(tmp_path / "workers") == one
    for name, held in one.items():
        assert b"the-host" not in held and str(tmp_path).encode() not in held
        with zipfile.ZipFile(tmp_path / "one" / "shards" / name) as file:
            assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    manifests = [(tmp_path / name / "manifest.json").read_text() for name in ("one", "another", "workers")]
    assert len(set(manifests)) == 1 and "the-host" not in manifests[0] and str(tmp_path) not in manifests[0]
    assert not (tmp_path / "one" / "claims").exists()


def test_batches_do_not_cross_shards(tmp_path):
    seen = []

    class Watched(TinyNet):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    maps = attributed(GradCAM(tiny(Watched), "body"), photographs(11, 20, 24), tmp_path, shard_size=5, batch_size=3)
    assert seen == [3, 2, 3, 2, 1] and list(map(len, maps.shards)) == [5, 5, 1]
    assert json.loads((tmp_path / "manifest.json").read_text())["result"]["batch_size"] == 3


class Noisy(TinyNet):
    def forward(self, x):
        return super().forward(x * (1 + random.random() * torch.rand_like(x)))


def test_what_is_drawn_depends_on_the_samples_alone(x, tmp_path):
    """Not on where a run goes on; the numbers that the user draws are those that come without a run."""
    for name, cam in [("random", METHODS["randomcam"](tiny(), "body")), ("noisy", GradCAM(tiny(Noisy), "body"))]:
        expected = None
        for seed in (1, 2):
            np.random.seed(seed), torch.manual_seed(seed), random.seed(seed)
            before = np.random.rand(), torch.rand(1), random.random()
            np.random.seed(seed), torch.manual_seed(seed), random.seed(seed)
            attributed(cam, x, tmp_path / name, batch_size=1)
            assert (np.random.rand(), torch.rand(1), random.random()) == before
            expected = expected or shards(tmp_path / name)
            (tmp_path / name / "shards" / "000001.npz").unlink()
        attributed(cam, x, tmp_path / name, batch_size=1)
        assert shards(tmp_path / name) == expected


def test_no_time_decides_on_a_methods_rows(tmp_path, monkeypatch):
    """A faster or slower machine, or a run that goes on, gives the same bytes."""
    x = photographs(4, 20, 24)
    clock = iter(range(10**6))
    cam = METHODS["scorecam"](tiny(), "body")
    attributed(cam, x, tmp_path / "a", shard_size=1)
    monkeypatch.setattr("fastcam.batches.time.perf_counter", lambda: next(clock) ** 2)
    cam(x[:1])  # the user's own call finds a size
    attributed(cam, x, tmp_path / "b", shard_size=1)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert not cam.steady


def test_a_video_has_its_own_size(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )

    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    cam = GradCAM(Video(), "net.0", reshape_transform=lambda t: t.unflatten(0, (-1, 5)).movedim(1, 2))
    x = torch.rand(2, 5, 3, 16, 16)
    maps = attributed(cam, x, tmp_path / "a", store="fp32")
    np.testing.assert_allclose(maps[:], cam(x), atol=1e-6)


def test_finished_maps_have_the_same_records(x, tmp_path):
    cam = METHODS["eigencam"](tiny(), "body")
    low, full = attributed(cam, x, tmp_path / "a"), attributed(cam, x, tmp_path / "b", full=True)
    assert low.predicted.tolist() == full.predicted.tolist() and (low.predicted >= 0).all()
