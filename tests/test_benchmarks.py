"""The measuring tools: that they measure what they say. No timing is asserted."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    machine,
    memory,
    problem,
    session,
    settings,
    side_by_side,
)

ROOT = Path(__file__).parent.parent


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


def test_sides_take_turns_at_being_first_in_orders_that_differ():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    comparison = side_by_side.SideBySide(sides, side_by_side.wall_clock("cpu"))
    comparison.warm_up()
    assert order == ["a", "b", "c"]
    comparison.run(Rounds(), 12)
    taken = ["".join(order[n : n + 3]) for n in range(3, len(order), 3)]
    assert [names[0] for names in taken] == [*"abc"] * 4 and all(sorted(names) == [*"abc"] for names in taken)
    assert {names[n : n + 2] for names in taken for n in (0, 1)} == {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert taken == ["".join(side_by_side.order([*"abc"], n)) for n in range(12)]
    assert comparison.summary()["repetitions"] == 12


@pytest.mark.parametrize(
    ("busy", "looks", "unsettled"), [(0, [1, 2, 3], 0), (3, [4, 5, 6], 0), (10**6, [8, 16, 18], 3)]
)
def test_no_side_begins_while_threads_of_the_one_before_compute(monkeypatch, busy, looks, unsettled):
    slept = []
    monkeypatch.setattr(side_by_side.time, "sleep", slept.append)
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: sum(slept))
    monkeypatch.setattr(side_by_side.time, "process_time", lambda: sum(slept[:busy]))
    monkeypatch.setattr(side_by_side, "_AT_MOST", 0.0375)
    monkeypatch.setattr(side_by_side, "_BRIEFLY", 0.0075)
    monkeypatch.setattr(side_by_side.SideBySide, "_never_slept", 0)
    begun = []
    comparison = side_by_side.SideBySide({"a": lambda: begun.append(len(slept))}, side_by_side.wall_clock("cpu"))
    assert comparison.run(Rounds(), 3)["unsettled"] == unsettled
    assert begun == looks  # after two waits in vain the third is short


def test_ratios_are_taken_within_a_repetition():
    seconds = {"slow": iter([2.0, 6.0, 30.0]), "fast": iter([1.0, 2.0, 15.0])}
    sides = {"fast": lambda: "fast", "slow": lambda: "slow"}
    comparison = side_by_side.SideBySide(sides, lambda call: next(seconds[call()]))
    summary = comparison.run(Rounds(), 3)
    assert summary["seconds"]["slow"] == {"median": 6.0, "quartiles": [4.0, 18.0]}
    assert summary["ratios"] == {"slow/fast": {"median": 2.0, "quartiles": [2.0, 2.5]}}


def test_a_side_over_its_cap_is_stopped_and_left_out():
    def endless():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    comparison = side_by_side.SideBySide({"fast": lambda: 1, "slow": endless}, side_by_side.wall_clock("cpu"), cap=0.1)
    assert comparison.warm_up() == {"fast": 1}
    summary = comparison.run(Rounds(), 2)
    assert summary["over_cap"] == {"slow": 0.1} and list(summary["seconds"]) == ["fast"] and summary["ratios"] == {}
    time.sleep(0.15)  # no alarm is left over


def test_the_work_of_the_meter_is_not_under_the_cap():
    @contextlib.contextmanager
    def slow():
        peak = []
        time.sleep(0.25)
        yield peak
        time.sleep(0.25)
        peak.append(7)

    clock = side_by_side.wall_clock("cpu")
    comparison = side_by_side.SideBySide({"fast": lambda: 1}, clock, cap=0.2, meter=slow)
    assert comparison.warm_up() == {"fast": 1} and comparison.peaks == {"fast": 7}


class Gpu:
    """Stands in for one: what is queued is done when somebody waits for it."""

    def __init__(self, monkeypatch, **seconds):
        self.seconds, self.queued, self.called = seconds, 0.0, []
        monkeypatch.setattr(side_by_side.torch.cuda, "synchronize", self.synchronize)

    def call(self, name):
        self.queued += self.seconds[name]
        self.called.append(name)
        return name

    def synchronize(self):
        seconds, self.queued = self.queued, 0.0
        time.sleep(seconds)

    @contextlib.contextmanager
    def meter(self):
        before, peak = len(self.called), []
        yield peak
        peak.append(len(self.called) - before)


def test_on_a_gpu_a_call_ends_when_it_is_done_and_the_first_one_does_not_count(monkeypatch):
    gpu = Gpu(monkeypatch, forward=0, fastcam=0, captum=0.3)
    calls = {name: partial(gpu.call, name) for name in gpu.seconds}
    compiling = [0.3]
    calls["fastcam"] = lambda: time.sleep(compiling.pop() if compiling else 0) or gpu.call("fastcam")
    clock = side_by_side.wall_clock("cuda")
    comparison = side_by_side.SideBySide(calls, clock, cap=0.1, meter=gpu.meter, device="cuda")
    assert comparison.warm_up() == {"forward": "forward", "fastcam": "fastcam"} and comparison.over_cap == ["captum"]
    assert gpu.called == ["forward", "forward", "fastcam", "fastcam", "captum"]
    assert comparison.peaks == {"forward": 1, "fastcam": 1}


def test_where_every_side_is_over_its_cap_the_row_says_so():
    comparison = side_by_side.SideBySide({"slow": lambda: time.sleep(5)}, side_by_side.wall_clock("cpu"), cap=0.05)
    assert comparison.warm_up() == {}
    summary = comparison.run(Rounds(), 2)
    assert summary["over_cap"] == {"slow": 0.05} and summary["seconds"] == {} and summary["repetitions"] == 0


def test_memory_meter_sees_what_a_call_allocates(device):
    size, before = 2**22, torch.zeros(2**22, device=device)

    def call():
        first = torch.zeros(size, device=device)  # 4 bytes each, live together with the second
        second = first + before
        del first
        return second.sum()

    assert memory.peak_bytes(call, device.type) == pytest.approx(2 * 4 * size, rel=0.1)


def test_memory_meter_ignores_the_end_of_what_was_there_before():
    held = [torch.zeros(2**22)]

    def call():
        held.clear()
        return torch.zeros(2**20)

    assert memory.peak_bytes(call, "cpu") == pytest.approx(4 * 2**20, rel=0.1)


def test_only_whole_runs_are_recorded():
    assert settings.parse([]).recorded
    assert settings.parse(["--set", "gpu-short", "--threads", "4"]).recorded
    assert settings.parse(["methods", "--model", "resnet18"]).recorded
    assert not settings.parse(["--repetitions", "5"]).recorded
    assert not settings.parse(["--method", "gradcam"]).recorded
    with pytest.raises(SystemExit):
        settings.parse(["--set", "gpu-short", "--device", "cpu"])


def test_no_case_begins_after_the_time_of_a_run():
    plugin = session.Session(settings.parse(["--minutes", "0"]), {"device": "cpu"})
    with pytest.raises(pytest.skip.Exception, match="the run's 0 minutes were over"):
        plugin.pytest_runtest_setup()
    session.Session(settings.parse(["--minutes", "1"]), {"device": "cpu"}).pytest_runtest_setup()


@pytest.mark.parametrize("name", settings.SETS)
def test_a_set_ends_within_ten_minutes_and_is_recorded(name):
    given = settings.parse(["--set", name])
    assert given.set_name == name and given.recorded and given.device == "cuda"
    assert 60 * given.minutes + given.cap <= 560 and not given.threads


def test_every_network_is_measured_at_the_largest_batch():
    both = [settings.SETS[f"gpu-methods-{n}"] for n in (1, 2)]
    assert both[0].models + both[1].models == settings.MODELS and {s.batches for s in both} == {(256,)}


@pytest.mark.parametrize("name", settings.SETS)
def test_a_set_that_compares_with_grad_cam_needs_it(monkeypatch, capsys, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session, "installed", lambda side: False)
    given = settings.parse(["--set", name])
    if {"methods", "perturbation"} & set(given.cases):
        assert session.run(given) == 2
        assert "grad-cam, which is not installed" in capsys.readouterr().err
    else:
        assert session._impossible(given, given.cases) is None


def test_the_head_says_which_packages_are_there(monkeypatch):
    def version(package):
        if package == "captum":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    head = machine.describe("cpu", settings.parse(["--commit", "abc"]))
    assert head["versions"]["captum"] == "not installed" and head["versions"]["grad-cam"] == "1.0"
    assert head["commit"] == "abc" and "CUDA" not in head["versions"]


def test_the_short_set_has_what_matters_most_first():
    short = settings.parse(["--set", "gpu-short"])
    assert short.minutes == 7 and settings.parse(["--set", "gpu-short", "--minutes", "3"]).minutes == 3
    assert short.cases == ("launches", "operators", "methods") and short.batches_on("cuda") == (256, 1, 32)
    assert short.recorded


def test_a_part_stands_for_its_cases():
    assert settings.parse([]).cases == settings.CASES
    assert settings.parse(["operators", "toolbox"]).cases == ("toolbox", *settings.PARTS["operators"])
    assert settings.parse(["methods"]).cases == settings.PARTS["methods"]
    with pytest.raises(SystemExit):
        settings.parse(["metods"])
    for case in settings.CASES:
        assert (ROOT / "benchmarks" / f"bench_{case}.py").exists()


@pytest.fixture(scope="module")
def toy():
    return problem.Problem.of("toy", 1, "cpu")


def test_a_case_from_end_to_end(tmp_path):
    options = ["methods", "--device", "cpu", "--model", "toy", "--batch", "1"]
    options += ["--method", "gradcam", "--method", "eigencam", "--repetitions", "2", "--threads", "1"]
    command = [sys.executable, "-m", "benchmarks", *options, "--out", str(tmp_path)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["methods-toy.json"]
    text = (tmp_path / "methods-toy.json").read_text()
    result = json.loads(text)
    assert result["failed"] == result["not_begun"] == [] and result["threads"] == 1
    datetime.datetime.strptime(result["date"], "%Y-%m-%d %H:%M")  # of two runs in a day one is the newer
    assert [row["method"] for row in result["rows"]] == ["gradcam", "eigencam"]
    for row in result["rows"]:
        assert row["case"] == "methods" and row["repetitions"] == 2 and row["difference"] < 1e-4
        assert set(row["ratios"]) >= {"fastcam/forward", "grad-cam/forward", "grad-cam/fastcam"}
        assert row["memory"]["grad-cam"] > row["memory"]["fastcam"] >= row["memory"]["forward"] > 0
    assert "### Methods, toy" in done.stdout and "| 1 | fp32 | eigencam |" in done.stdout
    assert str(ROOT) not in text


def test_a_file_names_the_cases_that_its_run_did_not_come_to(tmp_path):
    plugin = session.Session(settings.parse(["--out", str(tmp_path)]), {"device": "cpu"})

    def item(case, method, model):
        parameters = SimpleNamespace(params={"model": model})
        known = {"path": Path(f"bench_{case}.py"), "callspec": parameters, "iter_markers": lambda name: []}
        return SimpleNamespace(name=f"{method}-{model}", funcargs={"row": {"method": method}}, **known)

    def run(item, skipped=False):
        for when in ("setup", "call", "teardown"):
            outcome = SimpleNamespace(when=when, passed=not skipped, failed=False, skipped=skipped, longrepr=None)
            report = plugin.pytest_runtest_makereport(item)
            next(report)
            with contextlib.suppress(StopIteration):
                report.send(outcome)
        plugin.write()

    items = [item("methods", "cam", "toy"), item("methods", "fem", "toy"), item("methods", "cam", "resnet18")]
    nothing = item("scale", "NOTSET", "toy")
    nothing.iter_markers = lambda name: [SimpleNamespace(kwargs={"reason": "got empty parameter set for (model)"})]
    plugin.pytest_collection_finish(SimpleNamespace(items=[*items, nothing]))
    assert plugin.write() == [] == plugin.results()  # what is on record of them stays
    run(items[0])
    (file,) = tmp_path.iterdir()
    assert file.name == "methods-toy.json" and json.loads(file.read_text())["not_begun"] == ["fem-toy"]
    run(items[1])
    assert json.loads(file.read_text())["not_begun"] == [] and [*tmp_path.iterdir()] == [file]
