"""Several workers on one data set: together, interrupted, killed and replaced, under torchrun."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastcam.dataset.maps import open_maps

from forked import (
    attribute,
    command,
    contents,
    data,
    explained,
    memory,
    photos_in,
    run_arguments,
    seen_in,
    torchrun,
)

IMAGES = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_in(tmp_path_factory.mktemp("photos") / "photos", IMAGES)


@pytest.fixture(scope="module")
def alone(processes, photos, tmp_path_factory):
    """The files of one worker that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    assert processes.wait(start(processes, photos, folder)) == 0
    assert f"explained {IMAGES} of {IMAGES} images into {folder / 'out'}" in (folder / "log").read_text()
    return contents(folder / "out")


def start(processes, photos, folder, *more, log="log", **environment):
    given = run_arguments(photos, folder / "out", *more)
    return processes.start(folder / log, command, arguments=given, environment=environment)


def until(condition):
    """Wait for what another process does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def passes(folder):
    seen = folder / "seen"
    return len(seen.read_text().splitlines()) if seen.exists() else 0


def loaders_of(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return {*map(int, found.stdout.split())}


@pytest.mark.skipif(not Path("/proc/self").exists() or shutil.which("ps") is None, reason="finds no child processes")
@pytest.mark.parametrize("whom", ["the process", "its group"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_gives_back_its_claims(sent, whom, processes, photos, alone, tmp_path):
    """Ctrl-C, which goes to the readers too, and the end that torchrun or a queue of jobs asks for."""
    (tmp_path / "gate").touch()
    environment = {"GATE": tmp_path / "gate", "AT": 4, "SEEN": tmp_path / "seen"}
    running = start(processes, photos, tmp_path, "--workers", 1, **environment)
    until(lambda: [*tmp_path.glob("out/shards/0*")] and passes(tmp_path) == 4)
    loaders = loaders_of(running)
    assert len(loaders) == 1
    (os.kill if whom == "the process" else os.killpg)(running, sent)
    assert processes.wait(running) == 130
    until(lambda: not any(Path(f"/proc/{loader}").exists() for loader in loaders))
    said = (tmp_path / "log").read_text()
    assert "fastcam: interrupted; what was written so far is complete" in said and "Traceback" not in said
    assert len(open_maps(tmp_path / "out", verify=True).shards) == 1
    assert [*contents(tmp_path / "out")] == ["manifest.json", "shards/000000.npz"]
    assert processes.wait(start(processes, photos, tmp_path)) == 0
    assert contents(tmp_path / "out") == alone


def test_two_workers_share_the_work_and_do_nothing_twice(processes, photos, alone, tmp_path):
    """They agree, too, on what takes the place of the manifest of a run of which nothing came."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"format": 1}')
    seen = tmp_path / "seen"
    options = {"SEEN": seen, "TOGETHER": 2}
    both = [start(processes, photos, tmp_path, log=f"log{n}", **options) for n in range(2)]
    assert [processes.wait(process) for process in both] == [0, 0]
    for n in range(2):
        assert f"explained {IMAGES} of {IMAGES} images" in (tmp_path / f"log{n}").read_text()
    assert contents(tmp_path / "out") == alone
    assert open_maps(tmp_path / "out").indices.tolist() == [*range(IMAGES)]
    taken = seen_in(seen)
    assert len(taken) == 2 and taken.total() == IMAGES


def hung(processes, photos, folder, *more):
    """A worker amid its first shard."""
    (folder / "gate").touch()
    worker = start(processes, photos, folder, *more, log="hung", GATE=folder / "gate", SEEN=folder / "seen")
    until(lambda: passes(folder) == 2)
    assert f"-{worker}-" in (folder / "out/claims/0.claim").read_text()
    return worker


def test_a_killed_worker_is_replaced_by_the_other(processes, photos, alone, tmp_path):
    first, shards = hung(processes, photos, tmp_path), tmp_path / "out/shards"
    other = start(processes, photos, tmp_path)
    until(lambda: len([*shards.glob("0*")]) == 5)
    assert not (shards / "000000.npz").exists()
    os.kill(first, signal.SIGKILL)
    assert processes.wait(first) == -signal.SIGKILL
    assert processes.wait(other) == 0
    assert contents(tmp_path / "out") == alone


def test_a_worker_that_pauses_is_replaced_and_does_no_harm_when_it_goes_on(processes, photos, alone, tmp_path):
    """As one of another machine that is cut off: nothing but its heartbeat says that it is lost."""
    first = hung(processes, photos, tmp_path, "--claim-expiry", 0.4)
    os.kill(first, signal.SIGSTOP)
    assert processes.wait(start(processes, photos, tmp_path, "--claim-expiry", 2)) == 0
    assert contents(tmp_path / "out") == alone
    (tmp_path / "gate").unlink()
    os.kill(first, signal.SIGCONT)
    assert processes.wait(first) == 0
    assert contents(tmp_path / "out") == alone


def test_two_processes_under_torchrun_write_what_one_does(processes, photos, alone, tmp_path):
    given = ["--standalone", "--nproc-per-node", 2, "-m", "fastcam", *run_arguments(photos, tmp_path / "out")]
    environment = {"SEEN": tmp_path / "seen", "TOGETHER": 2}
    launcher = processes.start(tmp_path / "log", torchrun, arguments=given, environment=environment)
    status, said = processes.wait(launcher), (tmp_path / "log").read_text()
    assert status == 0, said
    assert said.count(f"explained {IMAGES} of {IMAGES} images") == 1
    assert contents(tmp_path / "out") == alone
    taken = seen_in(tmp_path / "seen")
    assert len(taken) == 2 and taken.total() == IMAGES


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(processes, tmp_path):
    """20 of them, on one output after another."""
    delays, pace, samples = random.Random(11), 0.004, 200
    explained(tmp_path / "expected", data(samples))
    expected, kills, rounds = contents(tmp_path / "expected"), 0, 0
    while kills < 20:
        out = tmp_path / f"out{rounds}"
        rounds += 1
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            given = {"out": out, "samples": samples, "pace": pace}
            running = processes.start(tmp_path / "log", attribute, **given)
            time.sleep(delays.uniform(0.05, 0.8))
            os.kill(running, signal.SIGKILL)
            status = processes.wait(running)
            kills += status == -signal.SIGKILL
            if [*out.glob("shards/[0-9]*")]:
                open_maps(out, verify=True)
        assert status == 0 and contents(out) == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(processes, tmp_path):
    def resident(name, **given):
        running = processes.start(tmp_path / "log", memory, out=tmp_path / name, **given)
        assert processes.wait(running) == 0
        return json.loads((tmp_path / "log").read_text().splitlines()[-1])

    early, late, end = resident("large", samples=2016, marks=[200, 2000], side=128, shard_size=64, full=True)
    assert late < 1.05 * early and end < 1.05 * early
    early, late, _ = resident("many", samples=24000, marks=[8000, 23000], side=12, shard_size=512)
    assert late - early < 15000 * 200 / 1024  # kB: not as much as a record of each image would take
