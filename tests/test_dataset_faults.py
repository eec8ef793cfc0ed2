"""A run over a data set that is killed, meets a full disk, a damaged shard or another run's maps."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import fastcam
from fastcam.cli import main
from fastcam.dataset import manifest, whole_files
from fastcam.dataset.maps import open_maps

from forked import (
    POINTS,
    Net,
    attribute,
    command,
    contents,
    data,
    explained,
    net,
    photos_in,
    run_arguments,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The files of a run of 14 samples, in 4 shards."""
    out = tmp_path_factory.mktemp("uninterrupted")
    explained(out)
    files = contents(out)
    assert [*files] == ["manifest.json", *(f"shards/{n:06d}.npz" for n in range(4))]
    return files


@pytest.fixture
def out(tmp_path, uninterrupted):
    """A folder with such a run."""
    explained(tmp_path / "out")
    assert contents(tmp_path / "out") == uninterrupted
    return tmp_path / "out"


def whole_shards(out):
    """How many shards there are; each opens, is what its check sums say, and can be read."""
    try:
        maps = open_maps(out, verify=True)
    except ValueError as error:
        assert "holds no finished shard" in str(error) or "holds no maps" in str(error)
        assert not [*out.glob("shards/[0-9]*")]
        return 0
    assert np.isfinite(maps[:]).all()
    return len(maps.shards)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("file, nth, before", [(".npz", 2, 1), ("manifest.json", 1, 0), ("manifest.json", 2, 4)])
def test_a_killed_run_goes_on(file, nth, before, point, processes, uninterrupted, tmp_path):
    """With a shard in its hands, the new manifest, and the manifest with what has come of it."""
    out = tmp_path / "out"
    killed = processes.start(tmp_path / "log", attribute, out=out, point=point, file=file, nth=nth)
    assert processes.wait(killed) == -signal.SIGKILL
    assert whole_shards(out) == before + (file == ".npz" and point == "after the rename")
    assert explained(out).complete
    assert contents(out) == uninterrupted, "the same bytes, and no other file"


def test_what_is_complete_is_not_made_again(out, uninterrupted, monkeypatch):
    monkeypatch.setattr(Net, "forward", lambda *_: pytest.fail("the model was asked"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("shards/*")}
    assert len(explained(out)) == 14
    assert contents(out) == uninterrupted and before == {path: path.stat().st_mtime_ns for path in before}


def other_weights():
    model = net()
    model.head.weight.data[0, 0] += 1e-6
    return model


def test_another_run_is_refused_and_hears_what_differs(out, uninterrupted):
    changed = TensorDataset(data().tensors[0] + 1e-6, data().tensors[1])
    for options, difference in [
        ({"targets": 1}, 'targets: "predicted" there, 1 now'),
        ({"model": other_weights()}, "model.fingerprint: "),
        ({"dataset": changed}, "dataset.fingerprint: "),
        ({"dataset": data(15)}, "dataset.samples: 14 there, 15 now"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"shard_size": 2}, "shard_size: 4 there, 2 now"),
        ({"store": "fp32"}, 'store: "fp16" there, "fp32" now'),
        ({"full": True}, "full: false there, true now"),
        ({"eigen_smooth": True}, 'smoothing: [] there, ["eigen_smooth"] now'),
    ]:
        with pytest.raises(ValueError, match="holds another run's maps: choose another folder") as error:
            explained(out, **options)
        said = str(error.value).splitlines()[1:]
        assert any(line.strip().startswith(difference) for line in said), said
        assert len(said) == (2 if "samples" in difference else 1), said
        assert contents(out) == uninterrupted and not (out / "claims").exists()


def test_another_method_is_refused(out, uninterrupted):
    for cam, difference in [
        (fastcam.LayerCAM(net(), "features"), 'method.class: "GradCAM" there, "LayerCAM" now'),
        (fastcam.GradCAM(net(), "features[0]"), r'method.layers: \["features"\] there, \["features.0"\] now'),
        (fastcam.GradCAM(net(), "features", interpolation="cubic"), "method.settings.interpolation: "),
    ]:
        with pytest.raises(ValueError, match=difference):
            fastcam.attribute_dataset(cam, data(), out, workers=0, batch_size=2, shard_size=4)
        assert contents(out) == uninterrupted
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="autocast: null there, .torch.bfloat16"),
    ):
        explained(out)


def test_shards_whose_manifest_is_gone(out, uninterrupted):
    """The same run goes on, another says which are in its way before it writes anything."""
    (out / "manifest.json").unlink()
    without = contents(out)
    for options in ({"shard_size": 8}, {"targets": 1}):
        with pytest.raises(ValueError, match="000000.npz to 000003.npz: remove these files, or choose another folder"):
            explained(out, **options)
        assert contents(out) == without
    explained(out)
    assert contents(out) == uninterrupted
    shutil.copy(out / "shards/000003.npz", out / "shards/000004.npz")
    with pytest.raises(ValueError, match="another run's shards, 000004.npz: remove these files"):
        explained(out)


def test_a_start_beside_another_runs_without_links(tmp_path, monkeypatch):
    """The manifest that is there in the end decides, and no shard is another run's."""

    def replaced(path, write, token, write_first=manifest.write_first):
        write_first(path, write, token)
        path.write_text(path.read_text().replace('"store": "fp16"', '"store": "fp32"'))
        return True

    monkeypatch.setattr(manifest, "write_first", replaced)
    with pytest.raises(ValueError, match='store: "fp32" there, "fp16" now'):
        explained(tmp_path)
    assert [*contents(tmp_path)] == ["manifest.json"]


def truncated(shards):
    shards[1].write_bytes(shards[1].read_bytes()[:-100])


def emptied(shards):
    shards[1].write_bytes(b"")


def of_another_place(shards):
    shutil.copy(shards[0], shards[1])


def without_its_records(shards):
    changed = bytearray(shards[1].read_bytes())
    place = changed.index(b"class.npy") + 150  # behind the member's header
    changed[place] ^= 1
    shards[1].write_bytes(changed)


@pytest.mark.parametrize("damage", [truncated, emptied, of_another_place, without_its_records])
def test_a_damaged_shard_is_made_again(damage, out, uninterrupted):
    damage(sorted(out.glob("shards/*")))
    assert contents(out) != uninterrupted
    explained(out)
    assert contents(out) == uninterrupted


def test_no_byte_of_a_shard_can_change_unnoticed(out, uninterrupted):
    """Opening with `verify` names the file, or reads the same from it; a run over it is never stopped by it."""
    expected, path = open_maps(out)[12:], out / "shards/000003.npz"
    record = open_maps(out).record(13)
    for other in range(3):
        (out / f"shards/{other:06d}.npz").unlink()  # which would be read each time
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            maps = open_maps(out, verify=True)
        except ValueError as error:
            assert path.name in str(error)
            noticed += 1
            continue
        assert np.array_equal(maps[:], expected) and maps.record(1) == record, place
    assert noticed > len(whole) / 7 / 2
    path.unlink()
    explained(out)
    assert contents(out) == uninterrupted


class Full(io.FileIO):
    """A file on a disk with room for so many bytes."""

    room = 0

    def write(self, some):
        if self.tell() + len(some) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(some)


@pytest.mark.parametrize("room", [0, 1000, 2000, "unlimited, but it cannot be flushed"])
def test_a_full_disk_stops_cleanly_and_the_run_goes_on_later(room, uninterrupted, tmp_path, monkeypatch):
    def opened(path, mode):
        meets_it = path.name.startswith(".000001")
        return io.BufferedWriter((Full if meets_it else io.FileIO)(path, mode), 64)

    def flushed(handle, fsync=os.fsync):
        if "000001" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        if isinstance(room, int):
            patch.setattr(Full, "room", room)
            patch.setattr(whole_files, "open", opened, raising=False)
        else:
            patch.setattr(os, "fsync", flushed)
        with pytest.raises(OSError, match="the disk is full"):
            explained(tmp_path)
    assert [*contents(tmp_path)] == ["manifest.json", "shards/000000.npz"], "nothing half-written, no claim"
    assert whole_shards(tmp_path) == 1
    explained(tmp_path)
    assert contents(tmp_path) == uninterrupted


@pytest.fixture
def photos(tmp_path):
    return photos_in(tmp_path / "photos")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(disk, photos, processes, tmp_path):
    log, out, large = tmp_path / "log", disk / "out", ("--full", "--store", "fp32")
    assert processes.wait(processes.start(log, command, arguments=run_arguments(photos, out, *large))) == 2
    assert "the disk is full" in log.read_text() and "Traceback" not in log.read_text()
    assert 0 < whole_shards(out) < 6
    assert [p for p in contents(out) if not p.startswith("shards/0")] == ["manifest.json"]
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    assert processes.wait(processes.start(log, command, arguments=run_arguments(photos, out, *large))) == 0
    elsewhere = run_arguments(photos, tmp_path / "out", *large)
    assert processes.wait(processes.start(log, command, arguments=elsewhere)) == 0
    assert contents(out) == contents(tmp_path / "out")


def test_a_limit_to_the_size_of_files(photos, processes, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    arguments = run_arguments(photos, out, "--full", "--store", "fp32", "--shard-size", 24)
    assert processes.wait(processes.start(log, command, arguments=arguments, file_size=6000)) == 2
    assert "File too large" in log.read_text() and "Traceback" not in log.read_text()
    assert [*contents(out)] == ["manifest.json"]


def test_a_folder_that_cannot_be_written(photos, processes, tmp_path, capsys):
    in_the_way, readonly = tmp_path / "file", tmp_path / "readonly"
    in_the_way.write_text("")
    readonly.mkdir(mode=0o555)
    places = [in_the_way, in_the_way / "below", *([] if os.access(readonly, os.W_OK) else [readonly])]
    for place in places:
        assert main(run_arguments(photos, place)) == 2
        assert f"output folder {place} cannot be written" in capsys.readouterr().err
    shards = tmp_path / "out" / "shards"
    shards.parent.mkdir()
    shards.write_text("")
    assert (
        processes.wait(processes.start(tmp_path / "log", command, arguments=run_arguments(photos, shards.parent))) == 2
    )
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert str(shards) in line


def test_a_disk_that_can_only_be_read(disk, photos, capsys):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main(run_arguments(photos, disk)) == 2
    assert f"output folder {disk} cannot be written: Read-only file system" in capsys.readouterr().err


def unread(monkeypatch, *names):
    """Standard streams are pipes whose reader has gone."""
    for name in names:
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, os.fdopen(writer, "w"))


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_of_which_nobody_reads_what_it_says_goes_on(status, photos, tmp_path, monkeypatch):
    if status:
        (photos / "99.png").write_text("none")
    """The start of a reader flushes both streams."""
    with monkeypatch.context() as patch:
        unread(patch, "stdout", "stderr")
        assert main(run_arguments(photos, tmp_path / "out", "--workers", 1)) == status
    assert open_maps(tmp_path / "out").complete


def test_a_command_whose_output_nobody_reads_is_no_success(monkeypatch):
    with monkeypatch.context() as patch:
        unread(patch, "stdout")
        assert main(["layers", "--model", "forked:net", "--size", "12", "--device", "cpu"]) == 141


@pytest.mark.parametrize("error", [MemoryError(), KeyError("of a model"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_a_run_that_stops_has_not_the_status_of_one_that_ends(error, photos, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise error

    monkeypatch.setattr("fastcam.dataset.attribute.attribute_dataset", stopped)
    assert main(run_arguments(photos, tmp_path / "out")) == 2
    assert (str(error) or "MemoryError") in capsys.readouterr().err
