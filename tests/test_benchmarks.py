"""The measuring tools: that they measure what they say. No timing is asserted."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastcam import ops

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import (  # noqa: E402
    bench_operators,
    memory,
    problem,
    report,
    session,
    settings,
    side_by_side,
)

sys.path.remove(str(ROOT))


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


def test_sides_alternate_and_take_turns_at_being_first():
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    comparison = side_by_side.SideBySide(sides, side_by_side.wall_clock("cpu"))
    comparison.warm_up()
    assert order == ["a", "b", "c"]
    comparison.run(Rounds(), 4)
    assert "".join(order[3:]) == "abcbcacababc"
    assert comparison.summary()["repetitions"] == 4


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


def spread(value):
    return {"median": value, "quartiles": [0.9 * value, 1.1 * value]}


def recorded_run():
    ratios = {"fastcam/forward": spread(3.0), "grad-cam/forward": spread(2.4), "grad-cam/fastcam": spread(0.8)}
    method = {
        **{"case": "methods", "model": "resnet18", "batch": 8, "method": "layercam", "ratios": ratios},
        "seconds": {"forward": spread(0.1234)},
        "memory_ratios": {"fastcam/forward": 1.0, "grad-cam/forward": 7.77},
    }
    alone = {
        **{"case": "methods", "model": "resnet18", "batch": 8, "method": "cam"},
        "ratios": {"fastcam/forward": spread(1.05)},
        "seconds": {"forward": spread(0.1234)},
        "memory_ratios": {"fastcam/forward": 1.0},
    }
    perturbation = {
        **{"case": "perturbation", "model": "resnet18", "batch": 1, "method": "scorecam"},
        "ratios": {
            **{"fastcam/forward": spread(380.0), "fastcam/masked forward passes": spread(1.02)},
            **{"grad-cam/fastcam": spread(0.98), "grad-cam/fastcam bf16": spread(12.0)},
        },
        "seconds": {"forward": spread(0.0234)},
        "memory_ratios": {"fastcam/forward": 1.09},
    }
    operator = {
        **{"case": "operators", "operator": "finish", "shape": [256, 2048, 7, 7], "dtype": "float32"},
        "seconds": {"kernel": spread(2e-5)},
        "ratios": {"definition/kernel": spread(5.0)},
        **{"copy_share": spread(0.85), "call_seconds": {"kernel": spread(4e-5)}, "gigabytes_per_second": 2550.2},
    }
    return {
        **{"device": "cpu", "set": None, "date": "2026-01-02", "commit": "0123abc", "dirty": True, "threads": 2},
        **{"hardware": {"cpu": "A CPU", "cores": 2}, "versions": {"torch": "2.15.0"}, "repetitions": 7, "tf32": False},
        **{"failed": ["bench_method[x]"], "left_out": [{"case": "bench_method[y]", "reason": "too slow"}]},
        "rows": [method, alone, perturbation, operator],
    }


def test_results_survive_the_file_and_the_tables_show_losses():
    text = session.dumped(recorded_run())
    assert json.loads(text)["rows"][0]["model"] == "resnet18"
    shown = report.tables(json.loads(text))
    assert "A CPU, 2 cores; torch 2.15.0; 2026-01-02, commit 0123abc with changes; 7 repetitions" in shown
    times = "123 | 3.00 (2.70–3.30) | 2.40 (2.16–2.64) | 0.800 (0.720–0.880) slower"
    assert f"| resnet18 | 8 | layercam | {times} | 1.00 | 7.77 |" in shown
    assert "| resnet18 | 8 | cam | 123 | 1.05 (0.945–1.16) | – | – | 1.00 | – |" in shown
    ours = "23.4 | 380 (342–418) | 1.02 (0.918–1.12) | 0.980 (0.882–1.08) slower | 12.0 (10.8–13.2) | 1.09 |"
    assert f"| resnet18 | 1 | scorecam | {ours}" in shown
    assert "| finish | 256 × 2048 × 7 × 7 | float32 | 20.0 | 2550 | 85% | 5.00 (4.50–5.50) | 40.0 |" in shown
    assert "Failed: bench_method[x]" in shown and "Left out: too slow: bench_method[y]" in shown


def test_report_replaces_its_part_of_the_readme_and_check_sees_a_stale_one(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    (results / "cpu.json").write_text(session.dumped(recorded_run()))
    arguments = ["--readme", str(readme), "--results", str(results)]
    readme.write_text(f"# Title\n{report.BEGIN}\nold\n{report.END}\nthe end\n")
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    first = readme.read_text()
    assert first.startswith("# Title\n") and first.endswith("the end\n") and "old" not in first
    assert report.main([*arguments, "--check"]) == 0
    assert report.main(arguments) == 0 and readme.read_text() == first
    (results / "cpu.json").write_text(session.dumped({**recorded_run(), "commit": "456def"}))
    assert report.main([*arguments, "--check"]) == 1 and readme.read_text() == first


def test_report_without_markers_goes_to_the_screen(tmp_path, capsys):
    arguments = ["--readme", str(tmp_path / "README.md"), "--results", str(tmp_path)]
    assert report.main(arguments) == 0
    assert "No run is on record yet" in capsys.readouterr().out
    assert report.main([*arguments, "--check"]) == 1


def test_only_whole_runs_are_recorded():
    assert settings.parse([]).recorded
    assert settings.parse(["--set", "gpu-short", "--threads", "4"]).recorded
    assert settings.parse(["methods", "--model", "resnet18"]).recorded
    assert not settings.parse(["--repetitions", "5"]).recorded
    assert not settings.parse(["--method", "gradcam"]).recorded
    with pytest.raises(SystemExit):
        settings.parse(["--set", "gpu-short", "--device", "cpu"])


def test_a_part_stands_for_its_cases():
    assert settings.parse([]).cases == settings.CASES
    assert settings.parse(["operators", "toolbox"]).cases == ("toolbox", "operators")
    assert settings.parse(["methods"]).cases == settings.PARTS["methods"]
    with pytest.raises(SystemExit):
        settings.parse(["metods"])
    for case in settings.CASES:
        assert (ROOT / "benchmarks" / f"bench_{case}.py").exists()


@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_operator_cases_check_themselves(weighting):
    operation = bench_operators.channel_reduce((2, 4, 3, 3), "float32", weighting, "cpu")
    sets = bench_operators.input_sets(operation, 2000)
    assert bench_operators.floor_bytes(operation, sets[0]) == 2 * 2 * 4 * 9 * 4 + 2 * 9 * 4
    assert len(sets) == 4
    assert bench_operators.check(operation, sets[0]) < 1e-6
    wrong = dataclasses.replace(operation, define=lambda A, G: A * A.dtype.itemsize)
    with pytest.raises(AssertionError, match="off its fp64 definition"):
        bench_operators.check(wrong, sets[0])


@pytest.mark.parametrize("shape", [(2, 8, 3, 3), (2, 3, 4, 4)])
def test_cases_of_the_other_operators(shape):
    for operation in (
        bench_operators.finish(shape, "cpu", (8, 8)),
        bench_operators.principal_component(shape, "bfloat16", "cpu"),
        bench_operators.masked_inputs(3, shape[2], "float32", "cpu"),
        bench_operators.overlay(shape[0], "bfloat16", "cpu", (24, 20)),
    ):
        sets = bench_operators.input_sets(operation, 0)
        assert bench_operators.check(operation, sets[0]) < (1e-3 if operation.operator == "overlay" else 1e-4)
        for call in bench_operators.sides(operation, sets).values():
            call()


def test_definitions_replace_the_kernels_for_a_while():
    decide = ops._on_kernel
    with bench_operators.definitions():
        assert ops._on_kernel is not decide
    assert ops._on_kernel is decide


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
    assert result["failed"] == [] and result["threads"] == 1
    assert [row["method"] for row in result["rows"]] == ["gradcam", "eigencam"]
    for row in result["rows"]:
        assert row["case"] == "methods" and row["repetitions"] == 2 and row["difference"] < 1e-4
        assert set(row["ratios"]) >= {"fastcam/forward", "grad-cam/forward", "grad-cam/fastcam"}
        assert row["memory"]["grad-cam"] > row["memory"]["fastcam"] >= row["memory"]["forward"] > 0
    assert "| toy | 1 | eigencam |" in done.stdout
    assert str(ROOT) not in text
