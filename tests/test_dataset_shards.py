"""What a shard keeps of a map, and how maps are read from a folder, a damaged one too."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fastcam
from fastcam import GradCAM, attribute_dataset, ops
from fastcam.dataset.shards import STORED, Sample, Shard, StoredShard

from models import photographs, tiny


def written(maps, path, store):
    """Maps through a shard on disk."""
    shard = Shard(0, 0, len(maps), [Sample(n, 0, 0, 0.5, m.shape, [m]) for n, m in enumerate(maps)])
    with open(path, "wb") as file:
        shard.write(file, store, {}, {})
    return StoredShard(path).maps(0)


def kinds():
    """Maps of every kind, by name."""
    rng = np.random.default_rng(0)
    signed = rng.normal(size=(7, 9)).astype(np.float32)
    positive = np.abs(signed)
    rare = np.where(signed > 1, signed, 0).astype(np.float32)
    found = {"signed": signed, "positive": positive, "rare": rare, "below 0": -positive - 1, "at most 0": -rare}
    found |= {"one value": np.full((7, 9), 0.3, np.float32), "zeros": np.zeros((7, 9), np.float32)}
    found |= {"shifted": positive + 1000, "far below": signed - 1000, "one negative": np.full((7, 9), -0.7, np.float32)}
    found |= {
        "one pixel": np.full((1, 1), 2.5, np.float32),
        "mostly below": np.where(signed > 0, signed * 1e-5, signed),
    }
    scales = {"": 1, ", tiny": 1e-9, ", huge": 1e30, ", odd": 0.7318}
    return {
        f"{name}{how}": (m * scale).astype(np.float32) for name, m in found.items() for how, scale in scales.items()
    }


KINDS = kinds()


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("name", KINDS)
def test_a_stored_map_is_as_near_as_is_promised(name, store, tmp_path):
    m = KINDS[name].astype(np.float64)
    (found,) = written([KINDS[name]], tmp_path / "shard.npz", store)
    low, high = m.min(), m.max()
    rounding = 2**-23 * np.abs(m).max()
    bound = {"fp32": 0, "fp16": 2**-11 * np.abs(m if low < 0 else m - low).max(), "uint8": (high - low) / 510}[store]
    assert found.dtype == np.float32 and found.shape == m.shape
    assert np.abs(found - m).max() <= bound + (rounding if store != "fp32" else 0)
    assert found.min() >= np.float32(low) and found.max() <= np.float32(high)


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("name", KINDS)
def test_a_finished_map_is_as_near_as_is_promised(name, store, tmp_path):
    m = KINDS[name]
    (found,) = written([m], tmp_path / "shard.npz", store)
    given, read = (ops.finish([torch.from_numpy(t)[None, None]], m.shape)[0].numpy() for t in (m, found))
    share = (m.max() - min(0, m.min())) / m.max() if m.max() > 0 else 1
    rounding = 2**-22 * np.abs(m).max() / (1e-7 + np.ptp(m.clip(0))) if m.max() > 0 else 0  # of numbers far from 0
    bound = {"fp32": 0, "fp16": 0.002, "uint8": 0.004 * share}[store]
    np.testing.assert_allclose(read, given, rtol=0, atol=bound + (rounding if store != "fp32" else 0))


@pytest.mark.parametrize("store", STORED)
def test_a_map_without_a_value_above_0_stays_one(store, tmp_path):
    """Whatever its smallest value: a positive rest of a rounding would be blown up to a map of ones."""
    lows = np.random.default_rng(0).uniform(255 / 256, 1, 300).astype(np.float32) * 1024  # where 255 * (x / 255) != x
    maps = [np.array([[-low, 0]], np.float32) for low in lows]
    assert max(m.max() for m in written(maps, tmp_path / "shard.npz", store)) == 0


@pytest.mark.parametrize("store", STORED)
def test_a_shard_of_many_maps_is_that_of_each(store, tmp_path):
    alike = [m for m in KINDS.values() if m.shape == (7, 9)]
    for maps in (alike, list(KINDS.values()), [alike[0].T, alike[1], alike[2][:3]]):
        for found, m in zip(written(maps, tmp_path / "all.npz", store), maps, strict=True):
            np.testing.assert_array_equal(found, written([m], tmp_path / "one.npz", store)[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, method and images of a run of seven images in three shards."""
    out, cam, x = tmp_path_factory.mktemp("maps"), GradCAM(tiny(), "body"), photographs(7, 20, 24)
    attribute_dataset(cam, list(x), out, workers=0, shard_size=3, store="fp32")
    return out, cam, x


@pytest.fixture
def copied(finished, tmp_path):
    """The same folder, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "maps")


def test_maps_are_a_sequence(finished):
    out, cam, x = finished
    maps, expected = fastcam.open_maps(str(out)), cam(x)
    assert len(maps) == 7 and maps.complete and repr(maps) == "Maps(GradCAM, 7 of 7 images)"
    for given in (slice(None), slice(2, 5), slice(-3, None), slice(None, None, -2), slice(6, 1, -1)):
        np.testing.assert_allclose(maps[given], expected[given], rtol=0, atol=1e-6)
    assert len(maps[3:3]) == 0 and len(maps[9:]) == 0
    for n in range(-7, 7):
        np.testing.assert_allclose(maps[n], expected[n], rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(maps), expected, rtol=0, atol=1e-6)
    for n in (7, -8):
        with pytest.raises(IndexError, match=f"there are 7 maps, got index {n}"):
            maps[n]
    for wrong in ("a", [0, 1]):
        with pytest.raises(TypeError, match="an index must be a whole number, or a slice in . ., got"):
            maps[wrong]


def test_maps_at_other_sizes(finished):
    out, cam, x = finished
    maps = fastcam.open_maps(out)
    for size, wanted in [("input", "input"), ((9, 30), (9, 30)), (None, (10, 12))]:
        np.testing.assert_allclose(maps.read(-2, size), cam.attribute(x, size=wanted)[5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(maps.low(4), cam.attribute(x, normalize=False, size=None)[4], rtol=0, atol=1e-6)
    for wrong in (96, "big"):
        for ask in (lambda size: maps.read(0, size), lambda size: maps.export("maps.npz", size)):
            with pytest.raises(TypeError, match=f'size must be "input", None or .H, W., got {wrong!r}'):
                ask(wrong)


def test_a_record_is_of_plain_values(finished):
    out, cam, x = finished
    cam(x)
    record = fastcam.open_maps(out).record(-1)
    predicted = cam.outputs[6].argmax().item()
    score = pytest.approx(cam.outputs[6].softmax(0).max().item(), abs=1e-6)
    of_image = {"index": 6, "path": None, "class": predicted, "predicted": predicted, "score": score, "size": (20, 24)}
    assert record == of_image and {type(value) for value in record.values()} == {int, type(None), float, tuple}


def test_maps_pickle_and_load_in_batches(finished):
    maps = fastcam.open_maps(finished[0])
    again = pickle.loads(pickle.dumps(maps))
    np.testing.assert_array_equal(again[:], maps[:])
    assert again.record(3) == maps.record(3)
    batches = list(DataLoader(maps, batch_size=3, num_workers=1))
    assert [tuple(b.shape) for b in batches] == [(3, 20, 24), (3, 20, 24), (1, 20, 24)]
    np.testing.assert_array_equal(torch.cat(batches), maps[:])


def test_a_run_that_has_not_finished_is_read_as_far_as_it_is(finished, copied):
    (copied / "shards" / "000001.npz").unlink()
    maps = fastcam.open_maps(copied)
    assert not maps.complete and len(maps) == 4 and maps.indices.tolist() == [0, 1, 2, 6]
    assert repr(maps) == "Maps(GradCAM, 4 of 7 images)"
    np.testing.assert_array_equal(maps[:], fastcam.open_maps(finished[0])[:][[0, 1, 2, 6]])


def test_folders_without_maps(copied, tmp_path):
    for folder, message in [
        (tmp_path / "nothing", "nothing holds no maps: it has no manifest.json"),
        (tmp_path, "holds no maps: it has no manifest.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            fastcam.open_maps(folder)
    manifest = copied / "manifest.json"
    given = json.loads(manifest.read_text())
    for text, message in [
        ("{", "manifest.json cannot be read"),
        (b"\xff\xfe", "manifest.json cannot be read"),
        ("[1]", "manifest.json is no manifest of fastcam's"),
        ('{"format": "else"}', "manifest.json is no manifest of fastcam's"),
        (json.dumps({**given, "format": 99}), "or of a later version"),
        (json.dumps({**given, "dataset": {"samples": 5}}), "000000.npz is not of the run that manifest.json describes"),
    ]:
        manifest.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            fastcam.open_maps(copied)
    manifest.write_text(json.dumps(given))
    for shard in (copied / "shards").iterdir():
        shard.rename(shard.with_name(f".{shard.name}.tmp"))
    with pytest.raises(ValueError, match="holds no finished shard of maps"):
        fastcam.open_maps(copied)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "another npz"])
def test_a_shard_that_is_not_whole_is_named(damage, copied):
    shard = copied / "shards" / "000001.npz"
    whole = shard.read_bytes()
    shard.write_bytes({"cut": whole[:-30], "empty": b"", "text": b"no shard"}.get(damage, whole))
    if damage == "another npz":
        np.savez(shard, x=np.arange(3))
    with pytest.raises(ValueError, match="000001.npz is no whole shard of maps .* remove it and run again") as error:
        fastcam.open_maps(copied)
    assert "pickle" not in str(error.value)


def test_no_flipped_byte_goes_unseen(copied):
    """Of every 23rd byte of thousands, and of all near the end, where the file says what it holds."""
    maps, shard = fastcam.open_maps(copied), copied / "shards" / "000001.npz"
    expected, whole = maps[3:6], shard.read_bytes()
    seen = 0
    directory = whole.index(b"PK\1\2")
    places = [*range(0, directory, 23), *range(directory, len(whole), 3)]
    for place in places:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            maps = fastcam.open_maps(copied, verify=True)
        except ValueError as error:
            assert "000001.npz is" in str(error)
            seen += 1
            continue
        np.testing.assert_array_equal(maps[3:6], expected)  # a byte that says nothing, a time stamp's say
    assert seen > 0.6 * len(places)


def test_a_damaged_map_is_not_read_as_a_good_one(copied):
    shard = copied / "shards" / "000001.npz"
    whole = shard.read_bytes()
    place = whole.index(b"maps_0.npy") + 300
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    maps = fastcam.open_maps(copied)
    assert maps[2].shape == (20, 24)
    with pytest.raises(ValueError, match="000001.npz is no whole shard of maps .* remove it and run again"):
        maps[3]
