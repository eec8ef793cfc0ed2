"""Who works on which shard of a data set: claims of workers that live, that are lost and that pause."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fastcam.dataset import claims as claiming
from fastcam.dataset.claims import Claims
from fastcam.dataset.whole_files import temporary_name, write_whole

from forked import data, explained


def gone_process():
    finished = subprocess.Popen(["true"])
    finished.wait()
    return finished.pid


@pytest.fixture
def pair(tmp_path):
    with Claims(tmp_path, 30.0) as one, Claims(tmp_path, 30.0) as other:
        yield one, other


def test_a_claim_is_taken_once(pair, tmp_path):
    one, other = pair
    assert one.take("0") and not other.take("0") and not one.take("0")
    assert other.take("1")
    other.release("0")  # not its own
    assert not other.take("0")
    one.release("0")
    assert other.take("0") and not one.take("0")


def test_claims_are_given_back_at_the_end(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder) as one:
        with Claims(folder) as other:
            assert one.take("0") and other.take("1")
        assert one.take("1") and not one.take("0")
    assert not folder.exists()


@pytest.mark.parametrize("expiry", [0, -1.0, float("nan")])
def test_an_expiry_must_be_positive(expiry, tmp_path):
    with pytest.raises(ValueError, match="claim_expiry must be more than 0 seconds"):
        Claims(tmp_path, expiry)
    with pytest.raises(ValueError, match="claim_expiry must be more than 0 seconds"):
        explained(tmp_path / "out", claim_expiry=expiry)


def lost(folder, kind):
    """A worker's token, with claim 0 and an unfinished file; of another machine unless its process is gone."""
    token = f"{claiming._host()}-{gone_process()}-00" if kind == "its process is gone" else "elsewhere-1-00"
    heartbeat, claim = folder / f"{token}.alive", folder / "0.claim"
    claim.write_text("" if kind == "killed amid its claim" else token)
    if kind != "no heartbeat":
        heartbeat.touch()
    if kind != "its process is gone":
        age(*folder.glob("*"))
    temporary_name(folder / "a.npz", token).write_text("half")
    return token


def age(*paths):
    for path in paths:
        os.utime(path, (time.time() - 31, time.time() - 31))


LOST = ["its process is gone", "silent", "no heartbeat"]


@pytest.mark.parametrize("kind", LOST)
def test_the_claim_of_a_lost_worker_is_taken_over_by_one(kind, tmp_path):
    for n in range(20):
        folder = tmp_path / str(n)
        folder.mkdir()
        lost(folder, kind)
        with Claims(folder, 30.0) as one, Claims(folder, 30.0) as other:
            ready, won = threading.Barrier(2), []

            def contend(claims, ready=ready, won=won):
                ready.wait()
                if claims.take("0"):
                    won.append(claims)

            threads = [threading.Thread(target=contend, args=(c,)) for c in (one, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (winner,) = won or [one if one.take("0") else other]
            assert (folder / "0.claim").read_text() == winner.token
            assert not one.take("0") and not other.take("0")


def test_a_claim_without_an_owner_expires(pair, tmp_path):
    """Where files cannot be linked, a worker can be killed before its claim has its name."""
    lost(tmp_path, "killed amid its claim")
    one, other = pair
    assert one.take("0") and not other.take("0")


def test_claims_where_files_cannot_be_linked(pair, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    one, other = pair
    assert one.take("0") and not other.take("0")
    assert (tmp_path / "0.claim").read_text() == one.token and not [*tmp_path.glob("0.claim.*")]


@pytest.mark.parametrize("kind", LOST)
def test_a_claim_that_another_took_over_in_the_meantime_is_not_lost(kind, pair, tmp_path, monkeypatch):
    """The slower one saw the lost worker's claim, and moves away the faster one's."""
    one, other = pair
    lost(tmp_path, kind)
    rename = os.rename

    def late_rename(*names):
        monkeypatch.setattr(os, "rename", rename)
        assert one.take("0")
        rename(*names)

    monkeypatch.setattr(os, "rename", late_rename)
    assert not other.take("0")
    assert (tmp_path / "0.claim").read_text() == one.token and not [*tmp_path.glob("0.claim.*")]


def test_a_living_worker_keeps_its_claim(pair, tmp_path):
    one, other = pair
    one.take("0")
    (tmp_path / "1.claim").write_text("elsewhere-1-00")
    (tmp_path / "elsewhere-1-00.alive").touch()
    (tmp_path / "2.claim").touch()  # about to be written
    assert not any(other.take(name) for name in "012")


@pytest.mark.parametrize("kind", LOST)
def test_what_lost_workers_left_is_removed(kind, pair, tmp_path):
    one, other = pair
    token = lost(tmp_path, kind)
    (tmp_path / f"7.claim.{token}").write_text("elsewhere-1-01")  # it was killed as it took over a claim
    kept = [temporary_name(tmp_path / "b.npz", other.token), tmp_path / ".of.somebody.tmp"]
    for path in kept:
        path.write_text("half")
    other.take("1")
    kept += [tmp_path / f"{c.token}.alive" for c in pair] + [tmp_path / "1.claim"]
    one.tidy(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_worker_that_was_taken_for_lost_goes_on(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder, 30.0) as paused:
        assert paused.take("0")
        age(*folder.iterdir())
        (folder / f"{paused.token}.alive").rename(folder / "elsewhere-1-00.alive")
        (folder / "0.claim").write_text("elsewhere-1-00")
        with Claims(folder, 30.0) as other:
            assert other.take("0")
            other.tidy(tmp_path)
        assert not folder.exists()
        paused.release("0")
        assert paused.take("1")
    assert not folder.exists()


@pytest.mark.parametrize("own, of_the_other", [(60.0, 20.0), (20.0, 60.0)])
def test_a_worker_is_lost_after_the_time_that_it_was_given(own, of_the_other, tmp_path):
    with Claims(tmp_path, own) as one, Claims(tmp_path, of_the_other) as other:
        assert one.take("0")
        age(tmp_path / f"{one.token}.alive")
        assert other.take("0") == (own < 31)


def test_a_worker_that_paused_amid_a_write_writes_again(tmp_path):
    path, tidied = tmp_path / "a.npz", []
    with Claims(tmp_path / "claims", 30.0) as paused, Claims(tmp_path / "claims", 30.0) as other:

        def write(file):
            file.write(b"whole")
            if not tidied:
                age(*(tmp_path / "claims").iterdir())
                other.tidy(tmp_path)
                tidied.append(not temporary_name(path, paused.token).exists())

        write_whole(path, write, paused.token)
    assert tidied == [True] and path.read_bytes() == b"whole" and [*tmp_path.iterdir()] == [path]


def test_a_worker_that_paused_as_it_claimed_goes_on(pair, monkeypatch):
    link = os.link

    def late_link(aside, path):
        monkeypatch.setattr(os, "link", link)
        aside.unlink()
        link(aside, path)

    monkeypatch.setattr(os, "link", late_link)
    one, other = pair
    assert one.take("0") and not other.take("0")


def test_what_a_worker_left_that_was_killed_meanwhile_is_removed(tmp_path):
    class Watched(list):
        def __getitem__(self, index):
            temporary_name(tmp_path / "manifest.json", f"{claiming._host()}-{gone}-00").write_text("half")
            return super().__getitem__(index)

    gone = gone_process()
    explained(tmp_path, Watched(data().tensors[0]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shards"]


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_no_claim_without_an_owner(links, pair, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "write_text") if links else (os, "fdopen")), full)
        if not links:
            patch.setattr(os, "link", full)
        with pytest.raises(OSError, match="No space"):
            pair[0].take("0")
    assert sorted(tmp_path.iterdir()) == before
    assert pair[1].take("0")
