"""The benchmarks' report: what it says of results made up here, and what it notices. No run is recorded."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks import (
    bench_dataset,
    bench_launches,
    bench_methods,
    bench_operators,
    bench_optimize,
    bench_perturbation,
    bench_toolbox,
    peers,
    session,
    settings,
)
from benchmarks.report import goals, main, plans, plots, summary, tables, wanting
from benchmarks.report.figures import ON_DEVICE
from benchmarks.report.losses import losses
from benchmarks.report.pictures import Picture, pictures, shown_by
from benchmarks.report.runs import devices, plain, ratio

ROOT = Path(__file__).parent.parent


def spread(value):
    return {"median": value, "quartiles": [0.9 * value, 1.1 * value]}


def timed(**seconds):
    """Entries of a row that times these sides, in this order: `grad_cam` stands for `grad-cam`."""
    sides = {side.replace("_", "-"): value for side, value in seconds.items()}
    return {
        "seconds": {side: spread(value) for side, value in sides.items()},
        "ratios": {f"{b}/{a}": spread(sides[b] / sides[a]) for a, b in combinations(sides, 2)},
        "over_cap": {},
    }


def method(name, model="resnet50", batch=8, case="methods", **seconds):
    known = {"case": case, "model": model, "batch": batch, "method": name, "dtype": "float32"}
    return {**known, **timed(**{"forward": 0.1, **seconds})}


def operator(name="finish", shape=(256, 2048, 7, 7), dtype="float32", share=0.95, **seconds):
    sides = {"copy": 1e-3, **(seconds or {"kernel": 2e-5, "definition": 1e-4, "compiled": 3e-5})}
    return {
        **{"case": "operators", "kind": "operator", "operator": name, "shape": list(shape), "dtype": dtype},
        **timed(**sides),
        **{"bytes": 50_000_000, "flops": 100_000_000, "copy_gigabytes_per_second": 2900.0},
        **{"gigabytes_per_second": {"kernel": 2550.2}, "copy_share": {"kernel": spread(share)}},
        **{"call_seconds": {"kernel": spread(4e-5)}},
    }


def sweep(x, seconds, memory, **of):
    known = {"case": "scale", "model": "resnet18", "sweep": "batch", "unit": "images", "method": "gradcam", **of}
    sides = timed(forward=0.9 * seconds, fastcam=seconds)
    return {**known, "x": x, **sides, "memory": {"forward": memory, "fastcam": memory}}


def recorded(*rows, gpu=None, **head):
    hardware = {"cpu": "A CPU", "cores": 2} | ({"gpu": gpu, "driver": "570.1"} if gpu else {})
    return {
        **{"device": "cuda" if gpu else "cpu", "set": None, "date": "2026-01-02", "commit": "0123abc", "dirty": False},
        **{"hardware": hardware, "versions": {"torch": "2.15.0"}, "threads": 2, "repetitions": 7, "tf32": False},
        **{"failed": [], "left_out": [], "rows": list(rows), **head},
    }


def family(**seconds):
    """A row of each method of the family."""
    return [method(name, **seconds) for name in goals.FAMILY]


def on(*rows, **head):
    (device,) = devices([recorded(*rows, **head)])
    return device


def outcome(text, *rows, gpu=None, **head):
    """The one outcome of a goal that has words in its text, on the device of these rows."""
    device = on(*rows, gpu=gpu, **head)
    (found,) = [o for o in goals.outcomes([device]) if text in o.goal.text and o.device is device]
    return found


def verdicts(*found):
    return {o.goal.text: o.verdict for o in goals.outcomes(devices(found))}


def test_results_survive_the_file_and_the_tables_show_losses():
    row = method("layercam", fastcam=0.3, grad_cam=0.24, captum=0.6)
    row["memory_ratios"] = {"fastcam/forward": 1.0, "grad-cam/forward": 7.77}
    text = session.dumped(recorded(row, dirty=True))
    shown = tables.of_runs([json.loads(text)])
    assert "A CPU, 2 cores, 2 threads; torch 2.15.0; 7 repetitions, TF32 off: 2026-01-02" in shown
    assert "commit 0123abc with changes (methods)" in shown
    times = "100 | 300 | 3.00 (2.70–3.30) | 0.800 (0.720–0.880) slower | 2.00 (1.80–2.20)"
    assert f"| 8 | fp32 | layercam | {times} | 1.00 | 7.77 |" in shown
    assert "torch-cam" not in shown  # which no row has


def test_what_was_stopped_failed_or_left_out_is_named():
    row = method("eigencam", fastcam=0.1)
    row |= {"over_cap": {"grad-cam": 30.0}, "not_supported": {"captum": "no such method."}}
    row["notes"] = {"torch-cam": "maps before the ReLU"}
    left = [{"case": "bench_method[y]", "reason": "too slow"}, {"case": "bench_method[z]", "reason": "too slow"}]
    shown = tables.of_runs([recorded(row, failed=["bench_method[x]"], left_out=left)])
    assert "| eigencam | 100 | 100 | 1.00 (0.900–1.10) | > 30 s |" in shown
    assert "- failed: `bench_method[x]`.\n" in shown
    assert "- left out, too slow: `bench_method[y]`; `bench_method[z]`.\n" in shown
    assert "- captum, no such method: eigencam, resnet50, batch 8.\n" in shown
    assert "- torch-cam, maps before the ReLU: eigencam, resnet50, batch 8.\n" in shown


def test_rows_without_a_type_or_with_old_names_are_read():
    row = method("10 classes", case="toolbox", one_class=0.1, fastcam=0.11)
    row["ratios"] = {"fastcam/forward": spread(1.1), "fastcam/one class": spread(1.01)}
    del row["dtype"], row["over_cap"]
    assert "| 8 | fp32 | 10 classes | 100 | 110 | 1.10 (0.990–1.21) | 1.01 (0.909–1.11) |" in tables.of_device(on(row))


def test_operators_kernels_and_launches():
    whole = {"case": "operators", "kind": "explanation", "method": "gradcam", "network": "resnet50", "batch": 1}
    whole |= timed(kernel=3e-5, call=6e-5, fastcam=2e-3, forward=1e-3)
    compiled = {"case": "compiled", "kernel": "finish", "variant": "bf16", "arch": 90, "registers": 40}
    compiled |= {
        "launch": "1 of 2",
        "shared_bytes": 512,
        "spilled_bytes": 0,
        "loads": {"16": 4, "8": 0, "4": 2},
        "stores": {"4": 1},
    }
    compiled |= {"bytes_per_element": 8.02, "floor_bytes_per_element": 8.0, "element": "an activation"}
    launches = {"case": "launches", "model": "vgg16", "method": "gradcam", "batch": 1}
    launches |= {"ours": 2, "total": 170, "forward": 160}
    shown = tables.of_device(on(operator(), whole, compiled, launches, gpu="A GPU"))
    times = "20.0 | 100 | 30.0 | 2550 | 95% (86%–104%) | 5.00 (4.50–5.50) | 1.50 (1.35–1.65) | 40.0"
    assert f"| finish | 256 × 2048 × 7 × 7 | fp32 | {times} |" in shown
    assert "| resnet50 | 1 | fp32 | gradcam | 30.0 | 60.0 | 2000 | 1000 | 2.00 (1.82–2.22) |" in shown
    assert "### Kernels, compiled ahead of time, not run" in shown
    assert (
        "| finish | bf16 | 1 of 2 | sm_90 | 40 | 512 | 0 | 4 of 16, 2 of 4 | 1 of 4 | 8.02 | 8 | an activation |"
        in shown
    )
    assert "| vgg16 | 1 | gradcam | 2 | 170 | 160 |" in shown


def test_operators_without_a_kernel_show_the_definition():
    row = operator(definition=1e-4, compiled=5e-5)
    row["copy_share"], row["gigabytes_per_second"] = {"definition": spread(0.5)}, {"definition": 4.5}
    row["call_seconds"] = {"definition": spread(1.2e-4)}
    shown = tables.of_device(on(row))
    assert "| fp32 | 100 | 50.0 | 4.50 | 50% (45%–55%) | 0.500 (0.450–0.550) slower | 120 |" in shown


def test_a_sweep_is_straight_or_not():
    straight = [sweep(x, 0.01 + 0.02 * x, 2**20 * x) for x in (1, 2, 4, 8)]
    bent = [sweep(x, 0.01 * x**2, 2**20 * x, method="eigencam") for x in (1, 2, 4, 8)]
    shown = tables.of_device(on(*straight, *bent))
    assert "| gradcam | time | 1 | 8 | 30.0 ms | 170 ms | 10 + 20 x | 0% | straight |" in shown
    assert "| gradcam | memory | 1 | 8 | 1.00 MiB | 8.00 MiB |" in shown
    (line,) = [line for line in shown.splitlines() if "| eigencam | time |" in line]
    assert "| no: " in line and "straight" not in line
    two = tables.of_device(on(*straight[:2]))
    assert "| – | – | too few points |" in two


def test_a_newer_row_and_a_whole_run_count():
    old, new = (method("gradcam", fastcam=seconds) for seconds in (0.2, 0.11))
    older = recorded(old, date="2026-01-01", commit="old")
    short = recorded(method("gradcam", fastcam=0.5), set="gpu-short", date="2026-02-02", commit="short")
    (device,) = devices([recorded(new), older, short])
    assert device.rows == [new] and [result["commit"] for result in device.results] == ["0123abc"]
    half = {**new, "dtype": "bfloat16"}
    (device,) = devices([older, recorded(half)])
    assert device.rows == [old, half]


def test_devices_are_told_apart_and_models_ordered():
    found = devices([recorded(gpu="A GPU 80GB"), recorded(method("x", "vgg16"), method("x", "resnet18"))])
    assert [(device.slug, device.kind, device.name) for device in found] == [
        ("cpu", "cpu", "CPU"),
        ("a-gpu-80gb", "cuda", "A GPU 80GB"),
    ]
    assert [row["model"] for row in found[0].rows] == ["resnet18", "vgg16"]


def test_a_ratio_is_read_either_way():
    row = method("gradcam", fastcam=0.2, captum=0.1)
    assert ratio(row, "captum", "fastcam") == spread(0.5)
    turned = ratio(row, "fastcam", "captum")
    assert turned["median"] == 2 and turned["quartiles"] == pytest.approx([1 / 0.55, 1 / 0.45])
    assert ratio(row, "fastcam", "torch-cam") is None


def test_a_goal_holds_fails_or_is_not_measured():
    text = "ResNet-50, batch 8: the Grad-CAM family"
    rows = [*family(fastcam=0.105), method("fullgrad", fastcam=0.9)]
    held = outcome(text, *rows)
    assert held.verdict == "holds" and len(held.rows) == 10 and held.missed == []
    failed = outcome(text, *(row for row in rows if row["method"] != "gradcam++"), method("gradcam++", fastcam=0.106))
    assert failed.verdict == "does not hold"
    assert [row["method"] for row in failed.missed] == ["gradcam++"] == [failed.rows[0]["method"]]
    others = [method("gradcam", "vgg16", fastcam=0.2), method("gradcam", batch=1, fastcam=0.2)]
    assert outcome(text, *others).verdict == "not measured yet"
    line = summary.of_goals([failed])
    assert "| fastcam / forward ≤ 1.05 | 1.060 (0.954–1.166): gradcam++, resnet50, batch 8 | 9 of 10 |" in line
    assert "| **does not hold**, within noise |" in line


def test_fast_mode_has_its_table_and_its_goals():
    row = method("gradcam", batch=4, case="optimize", exact=0.101, fast=0.083) | {"difference": 2e-5}
    row |= {"rank_correlation": {"fast": 1.0, "fast bf16": 0.97123}, "differences": {"fast": 2e-5}}
    held = outcome("ResNet-50, batch 4: Grad-CAM in fast mode", row)
    assert held.verdict == "holds" and "largest difference 2e-05" in summary.of_goals([held])
    assert "| resnet50 | 4 | 100 | 83.0 | 1.01 (0.909–1.11) | 0.830 (0.747–0.913) |" in tables.of_device(on(row))
    assert "| 2.0e-05 | 0.971 |" in tables.of_device(on(row))


def test_a_side_that_was_stopped_misses_its_goal():
    row = method("fullgrad") | {"over_cap": {"fastcam": 30.0}}
    found = outcome("FullGrad", row)
    assert found.verdict == "does not hold" and "| > 30 s: fullgrad" in summary.of_goals([found])
    beside = method("gradcam", captum=0.1) | {"over_cap": {"fastcam": 30.0}}
    assert [loss.figure.name for loss in losses(on(beside))] == ["fastcam / captum"]


def test_goals_of_names_written_otherwise():
    rows = [
        method("FullGrad", case="toolbox", fastcam=0.25),
        method("1000 classes at layer resolution", case="toolbox", fastcam=0.109),
    ]
    assert outcome("FullGrad", *rows).verdict == "does not hold"
    assert outcome("1,000 classes", *rows).verdict == "holds"


def test_goals_of_a_gpu():
    sides = {"fastcam": 0.104, ON_DEVICE: 0.102}
    fast, *others = (method(n, batch=256, **sides, grad_cam=1.2) for n in goals.FAMILY)
    fast["memory_ratios"] = {"fastcam/forward": 1.2}
    stopped = method("eigencam", batch=256, **sides) | {"over_cap": {"grad-cam": 1.2}}
    launches = {"case": "launches", "model": "resnet50", "method": "gradcam", "batch": 1}
    launches |= {"ours": 3, "total": 170, "forward": 160}
    slow = operator(share=0.85, kernel=2.2e-5, compiled=2e-5)
    small = operator("channel_reduce[gradcam]", (8, 2048, 7, 7), share=0.2)
    component = operator("principal_component", share=0.1, kernel=1.0, compiled=0.1)
    rows = [fast, *others, stopped, launches, slow, small, component]
    found = {o.goal.text: o for o in goals.outcomes([on(*rows, gpu="A GPU")]) if o.kind == "cuda"}
    whole = found["batch 256: the Grad-CAM family, maps left on the device"]
    assert whole.verdict == "holds" and len(whole.rows) == 10
    assert "1.020 (0.918–1.122): gradcam, resnet50, batch 256; with the copy to the host 1.040 (" in summary.of_goals(
        [whole]
    )
    faster = found["batch 256: the Grad-CAM family and EigenCAM, faster than grad-cam"]
    assert faster.verdict == "holds" and len(faster.rows) == 11 and faster.rows[0]["method"] != "eigencam"
    assert goals.Goal.excess(faster.goal, stopped) == pytest.approx(10 / (1.2 / 0.104))
    assert summary._measured(faster.goal.figure, stopped, at_least=True) == "> 11.5"
    assert found["batch 256: the Grad-CAM family and EigenCAM, peak memory"].missed == [fast]
    bound = "channel reduction, finish, masking, overlay"
    assert found[f"batch 256: {bound}"].rows == found[f"batch 256: {bound}"].missed == [slow]
    assert found[f"every size: {bound}"].missed == [slow] and small in found[f"every size: {bound}"].rows
    started = found["batch 1: launches of ours after the backward pass"]
    assert "| 3: gradcam, resnet50, batch 1; 170 launches in all, 160 of the forward pass |" in summary.of_goals(
        [started]
    )


class Metafunc:
    """Stands in for pytest's: keeps what a benchmark's file parametrizes."""

    def __init__(self, run, *fixtures):
        asked = settings.parse(run)
        self.config = SimpleNamespace(stash={session.SETTINGS: replace(asked, device=asked.device or "cpu")})
        self.fixturenames, self.cases = fixtures, []

    def parametrize(self, names, cases, ids=None):
        self.cases = list(cases)


def rows_to_come(run):
    """What the benchmark's files will call their rows."""

    def cases(module, *fixtures):
        asked = Metafunc(run, *fixtures)
        module.pytest_generate_tests(asked)
        return asked.cases

    for model, batch, name, dtype in cases(bench_methods):
        yield {"case": "methods", "model": model, "batch": batch, "method": name, "dtype": dtype}
    for model, batch, name, dtype in cases(bench_perturbation):
        shown = bench_perturbation.named(name)
        yield {"case": "perturbation", "model": model, "batch": batch, "method": shown, "dtype": dtype}
    for model, name in cases(bench_toolbox):
        batch = bench_toolbox.BATCHES.get(name, bench_toolbox.BATCH)
        yield {"case": "toolbox", "model": model, "batch": batch, "method": name, "dtype": "float32"}
    for model, name in cases(bench_launches):
        yield {"case": "launches", "model": model, "batch": 1, "method": name}
    for model, batch in cases(bench_optimize):
        yield {"case": "optimize", "model": model, "batch": batch, "method": "gradcam", "dtype": "float32"}
    for kind, fixtures in (("throughput", ["benchmark"]), ("resident memory", [])):
        for model, batch in cases(bench_dataset, *fixtures):
            yield {"case": "dataset", "kind": kind, "model": model, "batch": batch, "method": bench_dataset.METHOD}
    for o in cases(bench_operators, "operation"):
        known = {"case": "operators", "kind": "operator", "operator": o.name}
        yield {**known, "shape": list(o.shape), "dtype": o.dtype}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_goal_is_asked_of_rows_that_the_benchmarks_make(kind):
    rows = list(rows_to_come(["--device", kind]))
    for goal in (g for g in goals.GOALS if g.on in (kind, "any")):
        wanted = [row for row in rows if goal.wanted(row)]
        assert wanted, goal.text
        named = {row.get("method", row.get("operator", "").partition("[")[0]) for row in wanted}
        assert wanting.never_asked(goal.members, wanted) == []
        if "family" in goal.text:
            assert named >= set(goals.FAMILY), goal.text
        if "overlay" in goal.text:
            assert named == set(goals.LINEAR), goal.text
    if kind == "cuda":
        (launches,) = [g for g in goals.GOALS if g.figure is goals.LAUNCHES]
        assert {row["method"] for row in rows if launches.beside(row)} == {"eigencam"}


def test_launches_without_a_backward_pass_are_stated_aside():
    known = {"case": "launches", "model": "resnet50", "batch": 1, "total": 170, "forward": 160}
    rows = [{**known, "method": name, "ours": 2} for name in goals.FAMILY] + [
        {**known, "method": "eigencam", "ours": 4}
    ]
    found = outcome("launches", *rows, gpu="A GPU")
    assert found.verdict == "holds" and "of the forward pass; aside 4: eigencam" in summary.of_goals([found])


def test_rows_whose_compilation_failed_are_counted():
    broken = operator(kernel=1e-5, definition=1e-4) | {"not_compiled": "ValueError: no"}
    found = outcome("every size", broken, *(operator(name) for name in goals.LINEAR), gpu="A GPU")
    assert "| 5 of 5; 1 more without figure, since `torch.compile` failed | **not all measured** |" in summary.of_goals(
        [found]
    )
    alone = summary.of_goals([outcome("every size", broken, gpu="A GPU")])
    assert "1 more without figure" in alone and "not measured yet" in alone


def test_a_row_that_misses_its_goal_against_a_peer_has_a_plan():
    rows = [method("saliency", fastcam=0.2, captum=0.1), method("xgradcam", fastcam=0.102, torch_cam=0.1)]
    rows.append(method("smoothgrad", fastcam=0.2, captum=0.1))
    shown = summary.block([on(*rows)], lambda device: "", "x.md").split("Losses")[1]
    planned = {line.split(",")[0][2:]: line.split(" | ")[-1] for line in shown.splitlines() if "resnet50" in line}
    assert planned["saliency"].startswith("FullGrad's own graph") and planned["xgradcam"] == "– |"
    assert planned["smoothgrad"] == "no plan on record |"


def test_every_plan_is_of_a_row_that_there_is():
    of = {"torch-cam": peers.TORCH_CAM, "captum": peers.CAPTUM}
    for (peer, name, model), text in plans.PLANS.items():
        assert name in map(plain, of[peer]) and model in ("", *settings.MODELS) and text
    assert plans.plan("torch-cam", "sscam, 1 sample", "resnet18") != plans.NONE
    assert plans.plan("captum", "sobel", "resnet18") == plans.NONE


def test_curves_without_a_reason_are_counted():
    straight = [sweep(x, 0.01 + 0.02 * x, 2**20 * x) for x in (1, 2, 4, 8)]
    bent = [sweep(x, 0.01 * x, 2**20 * x**2, method="eigencam") for x in (1, 2, 4, 8)]
    said = "1 of 4 curves are no straight lines, with no reason on record: eigencam, resnet18, batch, memory."
    device = on(*straight, *bent, gpu="A GPU")
    assert said in tables.of_device(device) and said in summary.block([device], lambda device: "", "x.md")
    assert "no straight lines" not in tables.of_device(on(*straight, *bent))  # a CPU's oneDNN explains it
    assert "no straight lines" not in tables.of_device(on(*straight, gpu="A GPU"))


def test_images_a_second_of_the_fastest_peer_and_megabytes():
    row = method("gradcam", fastcam=0.1, captum=0.2, grad_cam=0.4)
    row |= {"images_per_second": {"forward": 99.0, "fastcam": 80.0, "captum": 40.0, "grad-cam": 20.0}}
    row |= {"memory": {"forward": 40_000_000, "fastcam": 50_000_000}, "memory_ratios": {"fastcam/forward": 1.25}}
    assert "| 80.0 | 40.0 (captum) | 50.0 | 1.25 |" in tables.of_device(on(row))


def test_every_goal_is_named_without_any_run_of_its_kind():
    found = goals.outcomes(devices([recorded(method("gradcam", fastcam=0.1, torch_cam=0.2))]))
    assert {o.goal for o in found} == set(goals.GOALS)
    peers = [(o.kind, o.verdict) for o in found if "torch-cam" in o.goal.text]
    assert peers == [("cpu", "holds"), ("cuda", "not measured yet")]
    assert {o.verdict for o in found if o.kind == "cuda"} == {"not measured yet"}


def test_losses_are_all_there_beside_the_wins():
    rows = [
        method("gradcam", fastcam=0.2, grad_cam=0.4, torch_cam=0.16, captum=0.196),
        method("saliency", "resnet18", fastcam=0.1, captum=0.2),
        method("fullgrad", fastcam=0.3),
    ]
    block = summary.block(devices([recorded(*rows)]), lambda device: "", "docs/benchmarks.md")
    assert "| resnet50 | 8 | 2.00 / **0.800** / **0.980** |" in block
    assert "| gradcam, resnet50, batch 8 | fastcam / torch-cam | 1.250 (1.136–1.389) | misses ≤ 1.05 |" in block
    assert "| gradcam, resnet50, batch 8 | fastcam / captum | 1.020 (0.928–1.134) | – |" in block
    assert "| fullgrad, resnet50, batch 8 | fastcam / forward ≤ 2.3 | 3.000 (2.700–3.300) |" in block
    assert "saliency" not in block.split("Losses")[1]
    assert "[docs/benchmarks.md](docs/benchmarks.md)" in block
    won = summary.block(devices([recorded(rows[1])]), lambda device: "", "x.md")
    assert "No row is slower than a peer's." in won and "Losses" not in won


def test_a_kernel_that_is_slower_than_something_else_is_a_loss():
    device = on(operator(kernel=3e-5, definition=2e-5, compiled=4e-5), gpu="A GPU")
    assert [(loss.figure.name, loss.median) for loss in losses(device)] == [("kernel / definition", pytest.approx(1.5))]
    found = losses(on(operator(definition=3e-5, compiled=2e-5)))
    assert [(loss.figure.name, loss.median) for loss in found] == [("definition / compiled", pytest.approx(1.5))]
    assert losses(on(operator(kernel=1e-5, definition=3e-5, compiled=2e-5), gpu="A GPU")) == []


@pytest.fixture
def place(tmp_path):
    """A folder with results of a CPU, a README to write in, and the arguments that say so."""
    results = tmp_path / "results"
    results.mkdir()
    (results / "cpu.json").write_text(json.dumps(recorded(method("gradcam", fastcam=0.11, captum=0.2))))
    (tmp_path / "README.md").write_text(f"# Title\n{main.BEGIN}\nold\n{main.END}\nthe end\n")
    return tmp_path


def report(place, *options):
    arguments = ["--readme", place / "README.md", "--results", place / "results", "--docs", place / "docs"]
    return main.main([*map(str, arguments), *options])


def test_report_writes_all_and_check_sees_a_stale_readme(place, capsys):
    assert report(place, "--check") == 1 and not (place / "docs").exists()
    assert report(place) == 0 and report(place, "--check") == 0
    readme, page = (place / name for name in ("README.md", "docs/benchmarks.md"))
    text = readme.read_text()
    assert text.startswith("# Title\n") and text.endswith("the end\n") and "\nold\n" not in text
    assert "![Speed-up over the peers, CPU, fp32](docs/benchmarks/cpu-speed-up-fp32.png)" in text
    assert "(benchmarks/cpu-cost-fp32.png)" in page.read_text() and "### Methods, resnet50" in page.read_text()
    assert report(place) == 0 and readme.read_text() == text
    (place / "results" / "cpu.json").write_text(json.dumps(recorded(method("gradcam", fastcam=0.11), commit="456def")))
    capsys.readouterr()
    assert report(place, "--check") == 1 and readme.read_text() == text
    said = capsys.readouterr().err
    assert "README.md" in said and "benchmarks.md" in said and "cpu-speed-up-fp32.png" in said


def test_check_sees_stale_pages_and_pictures(place):
    report(place)
    folder = place / "docs" / "benchmarks"
    assert sorted(file.name for file in folder.iterdir()) == ["cpu-cost-fp32.png", "cpu-speed-up-fp32.png"]
    for file in (place / "docs" / "benchmarks.md", folder / "cpu-cost-fp32.png"):
        kept = file.read_bytes()
        file.unlink()
        assert report(place, "--check") == 1
        file.write_bytes(kept)
        assert report(place, "--check") == 0
    other = {"points": [point("gradcam", 1.5)]}
    Picture("cpu-cost-fp32.png", "costs", "", "", other).write(folder)  # the name is the same, the data are not
    assert report(place, "--check") == 1
    assert report(place) == 0 and report(place, "--check") == 0
    Picture("cpu-old.png", "costs", "", "", other).write(folder)
    Image.new("RGB", (2, 2)).save(folder / "by-hand.png")
    assert report(place, "--check") == 1
    assert report(place) == 0
    assert not (folder / "cpu-old.png").exists() and (folder / "by-hand.png").exists()


def point(name, ratio, model="resnet18", batch=1):
    return {"model": model, "method": name, "batch": batch, "ratio": ratio}


def test_other_bytes_of_the_same_data_are_not_stale(place):
    report(place)
    file = place / "docs" / "benchmarks" / "cpu-cost-fp32.png"
    said = shown_by(file)
    with Image.open(file) as image:
        texts = PngInfo()
        texts.add_text("fastcam data", said)
        half = image.convert("RGB").resize((400, 300))
    half.save(file, pnginfo=texts)
    assert report(place, "--check") == 0


def test_report_without_markers_goes_to_the_screen(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert report(tmp_path) == 0
    assert "No run is on record yet" in capsys.readouterr().out
    assert "No run is on record yet" in (tmp_path / "docs" / "benchmarks.md").read_text()
    assert not (tmp_path / "docs" / "benchmarks").exists()
    assert report(tmp_path, "--check") == 1


def rows_of_all_kinds():
    for model in ("resnet18", "vit_b_16"):
        for batch in (1, 8):
            yield method("gradcam", model, batch, fastcam=0.105, grad_cam=0.4, torch_cam=0.09)
            yield method("scorecam", model, batch, case="perturbation", fastcam=30.0, grad_cam=30.5)
    yield from (operator(name, dtype=kind) for name in ("finish", "overlay") for kind in ("float32", "bfloat16"))
    yield {"case": "operators", "kind": "peak", "method": "product of matrices", "flops_per_second": 5e13}
    yield from (sweep(x, 0.01 + 0.02 * x, 2**20 * x) for x in (1, 2, 4))
    yield from (sweep(x, 0.01 * x, 2**21, sweep="classes") for x in (1, 10))


def test_every_picture_can_be_drawn_small_and_says_what_it_shows(tmp_path):
    found = pictures(on(*rows_of_all_kinds(), gpu="A GPU"))
    assert [picture.kind for picture in found] == ["speed_ups", "costs", "roofline", "scale"]
    for picture in found:
        picture.write(tmp_path)
        file = tmp_path / picture.name
        assert shown_by(file) == picture.digest and file.stat().st_size < 150_000
        with Image.open(file) as image:
            assert image.width == 1600
    assert pictures(on()) == []
    assert found[2].data["peak"] == 5e4 and found[2].data["points"][0]["rate"] == pytest.approx(0.1 / 1e-4)  # GFLOP/s


def test_a_loss_has_another_colour():
    points = [point("gradcam", 2.0) | {"peer": "captum"}, point("layercam", 0.9) | {"peer": "captum"}]
    figure = plots.speed_ups({"points": points, "peers": ["captum"]})
    marks = [line for line in figure.axes[0].get_lines() if line.get_marker() == "^"]
    assert [(line.get_xdata()[0], line.get_color()) for line in marks] == [(2.0, plots.BLUE), (0.9, plots.RED)]


def test_check_needs_no_matplotlib(place):
    report(place)
    code = "import sys; from benchmarks.report.main import main; assert main(sys.argv[1:]) == 0; "
    code += "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    arguments = ["--check", "--readme", place / "README.md", "--results", place / "results", "--docs", place / "docs"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_prints_its_tables_and_the_goals_it_measured():
    shown = summary.of_run([recorded(method("eigencam", fastcam=0.104))])
    assert "| 8 | fp32 | eigencam |" in shown
    ending = shown.split("## Goals")[1]
    assert "ResNet-50, batch 8: EigenCAM" in ending and "FullGrad" not in ending


def test_a_figure_whose_quartiles_straddle_the_limit_is_within_noise():
    def verdict(*rows):
        return summary.of_goals([outcome("EigenCAM", *rows)]).splitlines()[-1].split(" | ")[-1]

    wide, sure = method("eigencam", fastcam=0.1045), method("eigencam", fastcam=0.1045)
    sure["ratios"]["fastcam/forward"]["quartiles"] = [1.04, 1.049]
    assert verdict(wide) == "**holds**, within noise |" and verdict(sure) == "**holds** |"
    assert verdict(method("eigencam", fastcam=0.11)) == "**does not hold**, within noise |"
    assert verdict(method("eigencam", fastcam=0.15)) == "**does not hold** |"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"failed": ["bench_method[resnet50-8-finercam-float32]"]}, "failed 1: finercam, resnet50, batch 8"),
        (
            {
                "left_out": [
                    {
                        "case": "bench_method[resnet50-8-finercam-float32]",
                        "reason": f"the run's 7 {settings.TIME_IS_UP}",
                    }
                ]
            },
            "not measured 1: finercam, resnet50, batch 8",
        ),
        ({"not_begun": ["bench_method[resnet50-8-finercam-float32]"]}, "not measured 1: finercam, resnet50, batch 8"),
        ({}, "not measured 1: finercam, resnet50, batch 8"),  # nobody asked for it
    ],
)
def test_no_goal_holds_while_a_case_is_missing(head, said):
    text, rows = "ResNet-50, batch 8: the Grad-CAM family", family(fastcam=0.102)
    most = [row for row in rows if row["method"] != "finercam"]
    found = outcome(text, *most, **head)
    assert found.verdict == "not all measured" and f"| 9 of 9; {said} |" in summary.of_goals([found])
    assert outcome(text, *rows, **head).verdict == "holds"  # another run has measured it
    assert outcome(text, method("layercam", fastcam=0.2), **head).verdict == "does not hold"


def test_a_case_of_a_method_that_a_peer_lacks_is_none_of_its_goal():
    rows = [method("gradcam", fastcam=0.1, torch_cam=0.2), method("fem", fastcam=0.1)]
    text, of = "every row that torch-cam has", "bench_method[vgg16-8-{}-float32]"
    assert outcome(text, *rows, failed=[of.format("fem")]).verdict == "holds"
    assert outcome(text, *rows, failed=[of.format("gradcam")]).verdict == "not all measured"
    lacking = {"case": of.format("gradcam"), "reason": "vgg16: no attention was met"}
    assert outcome(text, *rows, left_out=[lacking]).verdict == "holds"


def test_a_side_that_was_stopped_too_early_leaves_its_goal_open():
    rows = [method(name, batch=256, fastcam=0.1, grad_cam=1.2) for name in (*goals.FAMILY, "eigencam")]
    rows[0] = method("gradcam", batch=256, fastcam=0.6) | {"over_cap": {"grad-cam": 5.0}}
    found = outcome("faster than grad-cam", *rows, gpu="A GPU")
    assert found.stopped == [rows[0]] and found.verdict == "not all measured"
    assert "10 of 10; in 1 more grad-cam was stopped at its cap |" in summary.of_goals([found])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (
            "bench_perturbation[resnet50-16-scorecam-bfloat16]",
            {"case": "perturbation", "model": "resnet50", "batch": 16, "method": "scorecam", "dtype": "bfloat16"},
        ),
        ("bench_toolbox[resnet50-10 classes]", {"case": "toolbox", "model": "resnet50", "method": "10 classes"}),
        ("bench_launches[vgg16-gradcam]", {"case": "launches", "model": "vgg16", "method": "gradcam", "batch": 1}),
        (
            "bench_operator[channel_reduce[gradcam]-8x64x7x7-float32-contiguous]",
            {
                **{"case": "operators", "kind": "operator", "operator": "channel_reduce[gradcam]"},
                **{"shape": [8, 64, 7, 7], "dtype": "float32"},
            },
        ),
        ("bench_optimize[resnet50-4]", {"case": "optimize", "model": "resnet50", "batch": 4, "method": "gradcam"}),
        (
            "bench_resident_memory[resnet18-gradcam-16]",
            {"case": "dataset", "kind": "resident memory", "model": "resnet18", "method": "gradcam", "batch": 16},
        ),
        ("bench_peak", None),
    ],
)
def test_cases_are_read_off_their_names(name, row):
    assert wanting.row_of(name) == row
    assert row is None or all(isinstance(goal.wanted(row), bool) for goal in goals.GOALS)


def test_what_a_run_did_not_come_to_is_named():
    shown = tables.of_runs([recorded(method("gradcam", fastcam=0.1), not_begun=["bench_method[a]", "bench_method[b]"])])
    assert "- not begun, the run ended before: `bench_method[a]`; `bench_method[b]`.\n" in shown
