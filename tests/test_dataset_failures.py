"""Images of a data set that cannot be explained, short memory, and the user's model after a run."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import fastcam
from fastcam.dataset.claims import Claims

from forked import Net, contents, data, explained, net
from test_untouched import assert_same, fragile, snapshot


class Short(Net):
    """With memory for three images."""

    def forward(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_short_memory_halves_the_batch_and_the_run_goes_on(tmp_path):
    expected = explained(tmp_path / "a", store="fp32", batch_size=8, shard_size=8)
    maps = explained(tmp_path / "b", model=net(Short), store="fp32", batch_size=8, shard_size=8)
    assert maps.complete and not maps.failed
    np.testing.assert_allclose(maps[:], expected[:], atol=1e-6)
    assert maps.manifest["batch_size"] == 8 and maps.manifest["result"]["batch_size"] == 2
    assert expected.manifest["result"]["batch_size"] == 8


class Choosy(Net):
    """Takes no image that begins with 9."""

    def forward(self, x):
        if (x[:, 0, 0, 0] == 9).any():
            raise ValueError("an image begins with 9")
        return super().forward(x)


def with_first_pixel(value, *places):
    images, labels = data().tensors
    images = images.clone()
    images[list(places), 0, 0, 0] = value
    return TensorDataset(images, labels)


def test_an_image_that_the_model_rejects_is_recorded_and_the_others_are_explained(tmp_path):
    expected = explained(tmp_path / "a", store="fp32")
    options = {"model": net(Choosy), "store": "fp32", "batch_size": 4, "shard_size": 8}
    maps = explained(tmp_path / "b", with_first_pixel(9.0, 5, 12), **options)
    assert maps.failed == [{"index": i, "path": None, "reason": "an image begins with 9"} for i in (5, 12)]
    assert maps.complete and maps.manifest["result"]["failed"] == maps.failed
    others = [i for i in range(14) if i not in (5, 12)]
    assert maps.indices.tolist() == others
    np.testing.assert_allclose(maps[:], expected[:][others], atol=1e-6)


def test_a_model_that_takes_nothing_stops_the_run(tmp_path):
    """Its folder is then any run's, unless a worker is still at it."""
    with pytest.raises(RuntimeError, match="takes none of the first 2 images: an image begins with 9"):
        explained(tmp_path, with_first_pixel(9.0, *range(14)), net(Choosy))
    before = contents(tmp_path)
    assert [*before] == ["manifest.json"]
    with Claims(tmp_path / "claims") as other:
        assert other.take(other.token)
        with pytest.raises(ValueError, match="holds another run's maps"):
            explained(tmp_path)
    assert contents(tmp_path) == before
    assert explained(tmp_path).complete


def test_a_manifest_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match="is no manifest of fastcam's"):
        explained(tmp_path)
    assert contents(tmp_path) == {"manifest.json": b'{"name": "an app"}'}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_run_may_begin_with_images_that_are_all_rejected(batch_size, tmp_path):
    maps = explained(tmp_path, with_first_pixel(9.0, *range(9)), net(Choosy), batch_size=batch_size)
    assert [f["index"] for f in maps.failed] == [*range(9)] and maps.indices.tolist() == [*range(9, 14)]


def test_a_run_goes_on_at_images_that_are_all_rejected(tmp_path):
    dataset, model = with_first_pixel(9.0, 4, 5, 6, 7), net(Choosy)
    explained(tmp_path, dataset, model)
    before = contents(tmp_path)
    for n in (1, 2, 3):
        (tmp_path / f"shards/{n:06d}.npz").unlink()
    explained(tmp_path, dataset, model)
    assert contents(tmp_path) == before


def test_a_map_that_is_not_a_number_is_recorded(tmp_path):
    maps = explained(tmp_path, with_first_pixel(float("nan"), 6))
    (failure,) = maps.failed
    assert failure["index"] == 6 and "its map is not a number" in failure["reason"]
    assert len(maps) == 13 and np.isfinite(maps[:]).all()


def test_a_label_out_of_range_is_recorded(tmp_path):
    images, labels = data().tensors
    labels = labels.clone()
    labels[5] = 4
    maps = explained(tmp_path, TensorDataset(images, labels), targets="label")
    (failure,) = maps.failed
    assert failure["index"] == 5 and "out of range: the model has 4 classes" in failure["reason"]
    assert maps.target.tolist() == [c for i, c in enumerate(labels.tolist()) if i != 5]


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_what_it_was(broken, tmp_path):
    model, images = fragile(), torch.randn(5, 3, 20, 24, requires_grad=True)
    model.broken = broken
    before, given = snapshot(model), images.detach().clone()
    dataset = TensorDataset(images, torch.arange(5))
    for workers in (0, 1):
        cam = fastcam.GradCAM(model, "tail")
        options = {"targets": "label", "batch_size": 2, "workers": workers}
        if broken:
            with pytest.raises(RuntimeError, match="takes none of the first 2 images"):
                fastcam.attribute_dataset(cam, dataset, tmp_path / str(workers), **options)
        else:
            assert fastcam.attribute_dataset(cam, dataset, tmp_path / str(workers), **options).complete
    assert_same(before, snapshot(model))
    assert torch.equal(images, given) and images.grad is None


class OnSomeDisk:
    """Samples of which some cannot be read, each for a reason of its own, as long as the disk is away."""

    def __init__(self, error, *places):
        self.samples_of = data()
        self._errors = dict.fromkeys(places or range(7, 14), error)
        self._read = []

    def __len__(self):
        return len(self.samples_of)

    def __getitem__(self, index):
        self._read.append(index)
        if index in self._errors:
            raise self._errors[index]
        return self.samples_of[index]


def test_a_mistake_that_not_every_sample_meets_is_recorded(tmp_path):
    assert len(explained(tmp_path, OnSomeDisk(UnboundLocalError("x")), shard_size=4).failed) == 7


FAULTS = [
    *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ENODEV, errno.EHOSTUNREACH)),
    *(MemoryError(), ModuleNotFoundError("No module named 'decoder'"), NameError("name 'decode' is not defined")),
    RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, ..."),
]


@pytest.mark.parametrize("error", FAULTS, ids=repr)
def test_what_keeps_all_samples_from_being_read_stops_the_run(error, tmp_path):
    disk = OnSomeDisk(error)
    with pytest.raises(type(error)):
        explained(tmp_path / "a", disk, shard_size=4)
    disk._errors.clear()
    maps = explained(tmp_path / "a", disk, shard_size=4)
    assert maps.complete and not maps.failed and len(maps) == len(disk)


def test_what_failed_is_tried_again_when_asked(tmp_path, monkeypatch):
    disk = OnSomeDisk(ValueError("no picture"))
    assert len(explained(tmp_path / "a", disk, shard_size=4).failed) == len(disk) - 7
    disk._errors.clear()
    assert len(explained(tmp_path / "a", disk, shard_size=4).failed) == len(disk) - 7
    monkeypatch.setenv("RANK", "5")  # of how many is not said
    maps = explained(tmp_path / "a", disk, shard_size=4, retry_failed=True)
    assert not maps.failed and not maps.manifest["result"]["failed"] and len(maps) == len(disk)
    explained(tmp_path / "b", disk, shard_size=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_retry_loses_nothing_and_makes_each_shard_once(tmp_path):
    """Stopped, another goes on: a shard whose samples failed again is done all the same."""
    disk = OnSomeDisk(ValueError("no picture"), 1, 5, 9)
    explained(tmp_path, disk)
    before = contents(tmp_path)
    disk._errors |= {8: OSError(errno.EIO, "Input/output error")}
    with pytest.raises(OSError, match="Input/output error"):
        explained(tmp_path, disk, retry_failed=True)
    assert contents(tmp_path).items() > before.items(), "the shards from before are there"
    del disk._errors[8], disk._errors[9]
    for again in [range(8, 12), range(8)]:
        disk._read.clear()
        maps = explained(tmp_path, disk, retry_failed=True)
        assert disk._read == [*again] and [f["index"] for f in maps.failed] == [1, 5]
    assert [*contents(tmp_path)] == [*before]


def test_one_large_image_does_not_make_the_batches_of_others_smaller(tmp_path):
    images, _ = data().tensors
    large = torch.rand(1, *images.shape[2:]).expand(images.shape[1], -1, -1).repeat(1, 3, 3)
    passes = []

    class Narrow(Net):
        def forward(self, x):
            passes.append(len(x))
            if x.shape[-1] > images.shape[-1]:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    dataset = [*images[:2], large, large, *images[2:8]]
    maps = explained(tmp_path / "a", dataset, model=net(Narrow), batch_size=4, shard_size=4)
    assert [f["index"] for f in maps.failed] == [2, 3] and "out of memory" in maps.failed[0]["reason"]
    assert [shard.meta["batch_size"] for shard in maps.shards] == [1, 4, 4]
    assert passes == [2, 2, 1, 1, 4, 2]


class Listing(Net):
    """Gives a list with an output for each image, as detectors do."""

    def forward(self, x):
        return list(super().forward(x))


def test_a_model_that_lists_its_outputs_is_explained_by_a_callable(tmp_path):
    images = data().tensors[0]
    maps = explained(tmp_path / "a", list(images), model=net(Listing), targets=lambda y: y[1], store="fp32")
    expected = explained(tmp_path / "b", list(images), targets=lambda y: y[1], store="fp32")
    assert not maps.failed and (maps.predicted == -1).all() and np.isnan(maps.score).all()
    np.testing.assert_allclose(maps[:], expected[:], atol=1e-6)
