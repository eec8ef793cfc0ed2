"""The benchmarks of methods of many passes, of the toolbox and of looking inside: their checks see wrong outputs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import fastcam
from benchmarks import (
    bench_inside,
    bench_optimize,
    bench_perturbation,
    bench_toolbox,
    changed,
    definitions,
    memory,
    problem,
    rows,
    settings,
    side_by_side,
)
from fastcam.methods import METHODS


@pytest.fixture(scope="module")
def whole():
    return problem.Problem.of("toy", 2, "cpu")


@pytest.fixture(scope="module")
def toy(whole):
    """An image of 32 pixels at a layer of 64 channels, 8 x 8."""
    return replace(whole, layer="layer1", x=whole.x[:1, :, :32, :32].contiguous(), targets=whole.targets[:1])


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


def outputs_of(sides):
    return {name: call() for name, call in sides.items() if name != bench_perturbation.PASSES}


PERTURBATION = {
    "scorecam": {"grad-cam", "torch-cam", "masked forward passes"},
    "iscam": {"torch-cam"},
    "sscam": {"torch-cam"},
    "smoothgradcam++": {"torch-cam"},
    "groupcam": set(),
    "ablationcam": {"grad-cam"},
    "simplefullgrad": set(),
}


@pytest.mark.parametrize("method", PERTURBATION)
def test_methods_of_many_passes_are_checked_side_by_side(toy, whole, method, monkeypatch):
    toy = whole if method == "smoothgradcam++" else toy  # in early layers its denominators are differences
    monkeypatch.setattr(bench_perturbation, "masked_passes", lambda problem: None)
    for package in ("pytorch_grad_cam", "torchcam"):
        pytest.importorskip(package)
    sides = bench_perturbation.sides(toy, method)
    assert set(sides) == {"forward", "fastcam", *PERTURBATION[method]}
    outputs = outputs_of(sides)
    found = bench_perturbation.check(toy, method, outputs, 1e-4)
    assert found["difference"] <= 1e-4 and set(found["differences"]) == {"fastcam", "torch-cam"} & set(sides)
    for side in found["differences"]:
        with pytest.raises(AssertionError, match="maps differ by"):
            bench_perturbation.check(toy, method, {**outputs, side: outputs[side] * 0.9}, 1e-4)


@pytest.mark.parametrize("method", ["scorecam", *changed.MAPS])
def test_without_grad_cam_it_says_what_maps_were_checked_against(toy, method):
    maps = bench_perturbation.ours(toy.copied(), method)()
    found = bench_perturbation.check(toy, method, {"fastcam": maps}, 1e-4)
    assert found["difference"] <= 1e-4
    assert found["checked_against"] == "its formula"
    with pytest.raises(AssertionError, match="maps differ by"):
        bench_perturbation.check(toy, method, {"fastcam": maps * 0.99}, 1e-4)
    if method == "scorecam":  # without fastcam, grad-cam's
        assert bench_perturbation.check(toy, method, {"grad-cam": maps}, 1e-4)["differences"].keys() == {"grad-cam"}


@pytest.mark.parametrize("method", ["fullgrad", "simplefullgrad", "smoothfullgrad"])
def test_full_gradients_by_their_formula(toy, method):
    maps = METHODS[method](toy.net)(toy.x, toy.targets)
    np.testing.assert_allclose(definitions.full_grad(toy, method), maps, atol=1e-5)


def test_integrated_gradients_by_their_formula(toy):
    found = fastcam.IntegratedGradients(toy.net).attribute(toy.x, toy.targets)
    expected = definitions.integrated_gradients(toy)
    assert (found - expected).abs().mean() < 1e-4 * expected.abs().mean()


def test_maps_in_bfloat16_are_compared_by_their_ranks(toy):
    halved = toy.cast(torch.bfloat16)
    outputs = {"fastcam": bench_perturbation.ours(halved, "scorecam")()}
    assert bench_perturbation.check(toy, "scorecam", outputs, 1e-4, reduced=True)["rank_correlation"]["fastcam"] > 0.9
    with pytest.raises(AssertionError, match="ranks otherwise than in fp32"):
        bench_perturbation.check(toy, "scorecam", {"fastcam": 1 - outputs["fastcam"]}, 1e-4, reduced=True)
    with pytest.raises(AssertionError, match="most of the maps are empty"):
        bench_perturbation.check(toy, "scorecam", {"fastcam": outputs["fastcam"] * 0.1}, 1e-4)


def test_masked_passes_are_as_many_as_score_cam_makes(whole):
    one, rows_seen = replace(whole.copied(), x=whole.x[:1], targets=whole.targets[:1]), []
    passes, explain = bench_perturbation.masked_passes(one), bench_perturbation.ours(one, "scorecam")
    one.net.register_forward_hook(lambda m, inputs, o: rows_seen.append(len(inputs[0])))
    passes()
    masked = sum(rows_seen)
    assert 256 < masked <= 512 and max(rows_seen) <= 64
    explain()
    assert sum(rows_seen) - masked == 1 + masked


def test_memory_of_queued_rows_is_that_of_full_batches(toy):
    found = bench_perturbation.of_full_batches(toy, "reciprocam", "cpu")
    assert found["memory"].keys() == {"forward", "fastcam"} and found["memory_ratios"].keys() == {"fastcam/forward"}
    assert found["memory"]["fastcam"] > 32 * toy.x[0].numel() * 4
    assert found["memory_images"] == 32
    assert found["memory_ratios"]["fastcam/forward"] == found["memory"]["fastcam"] / found["memory"]["forward"]
    assert bench_perturbation.of_full_batches(toy, "groupcam", "cpu")["memory_images"] == len(toy.x)


@pytest.mark.parametrize("name", bench_toolbox.CASES)
def test_toolbox_cases_check_themselves(whole, name):
    pytest.importorskip("pytorch_grad_cam")
    case = bench_toolbox.CASES[name](whole)
    outputs = outputs_of(case.sides)
    assert case.check(outputs)["difference"] <= 1e-4
    worse = {**outputs, "fastcam": np.asarray(outputs["fastcam"], dtype=np.float32) * 0.9 + 0.05}
    with pytest.raises(AssertionError, match="differ"):
        case.check(worse)


def test_every_class_is_looked_at_by_its_own_place(whole):
    case = bench_toolbox.CASES["1000 classes at layer resolution"](whole)
    maps = case.sides["fastcam"]()
    assert maps.shape == (2, 10, 2, 2)
    with pytest.raises(AssertionError, match="a class among others differs"):
        case.check({"fastcam": maps.flip(1)})
    with pytest.raises(AssertionError, match="are not the maps of 10 classes"):
        case.check({"fastcam": maps[:, :9]})


def test_a_toolbox_case_without_grad_cam_has_nothing_to_compare_with(toy, monkeypatch):
    monkeypatch.setattr(bench_toolbox.peers, "installed", lambda side: False)
    case = bench_toolbox.CASES["Sobel"](toy)
    assert list(case.sides) == ["fastcam"]
    with pytest.raises(pytest.skip.Exception, match="nothing to compare it with"):
        case.check(outputs_of(case.sides))


@pytest.mark.parametrize("name", ["integrated gradients", "SmoothGrad"])
def test_gradients_at_many_points_check_themselves(toy, name):
    pytest.importorskip("captum")
    sides = bench_inside.CASES[name](toy)
    assert set(sides) == {"forward", "fastcam", "captum"}
    outputs = outputs_of(sides)
    assert abs(bench_inside.check(name, toy, outputs)) < 0.2
    wrong = {"integrated gradients": outputs["fastcam"] * 1.01, "SmoothGrad": torch.randn_like(toy.x)}[name]
    with pytest.raises(AssertionError, match="differs by|correlates by"):
        bench_inside.check(name, toy, {**outputs, "fastcam": wrong})
    with pytest.raises(AssertionError, match="differs by|correlates by"):  # without captum too
        bench_inside.check(name, toy, {"fastcam": wrong})


def test_without_captum_smooth_grad_is_compared_with_a_plain_loop(toy):
    ours = fastcam.SmoothGrad(toy.net, samples=25).attribute(toy.x, toy.targets)
    assert abs(bench_inside.check("SmoothGrad", toy, {"fastcam": ours})) < 0.2
    of_another = fastcam.SmoothGrad(toy.net, samples=25).attribute(toy.x, [(t + 1) % 10 for t in toy.targets])
    with pytest.raises(AssertionError, match="correlates by"):
        bench_inside.check("SmoothGrad", toy, {"fastcam": of_another})


@pytest.mark.parametrize(
    ("case", "name", "parameters"),
    [
        ("perturbation", "reciprocam", ("toy", 1, "reciprocam", "float32")),
        ("toolbox", "Sobel", ("toy", "Sobel")),
        ("inside", "SmoothGrad", ("toy", "SmoothGrad")),
    ],
)
def test_a_row_is_kept_where_fastcam_is_over_the_cap(case, name, parameters, monkeypatch):
    module = {"perturbation": bench_perturbation, "toolbox": bench_toolbox, "inside": bench_inside}[case]

    def over():
        raise side_by_side.OverCap

    slow = {"fastcam": over}
    if case == "perturbation":
        monkeypatch.setattr(module, "ours", lambda problem, method, **options: slow["fastcam"])
    else:
        with_slow = {
            "toolbox": lambda p: bench_toolbox.Case(slow, lambda outputs: {}),
            "inside": lambda p: {"forward": problem.forward(p), **slow},
        }[case]
        monkeypatch.setitem(module.CASES, name, with_slow)
    row, chosen = {}, settings.Settings(device="cpu", repetitions=2)
    getattr(module, f"bench_{case}")(Rounds(), row, chosen, *parameters)
    assert row["over_cap"] == {"fastcam": 30} and row["difference"] is None
    assert "forward" in row["seconds"] and "fastcam" not in row["memory"]


def test_images_that_maximise_are_checked(toy, monkeypatch):
    monkeypatch.setattr(bench_inside, "CHANNELS", 2)
    monkeypatch.setattr(bench_inside, "STEPS", 2)
    monkeypatch.setattr(bench_inside, "SIZE", 48)
    sides = bench_inside.maximisation(toy)
    outputs = {side: sides[side]() for side in ("fastcam", "one at a time")}
    assert bench_inside.check("maximize", toy, outputs) < 1e-4
    best = fastcam.maximize(
        toy.net, ["layer3.0.conv1:0-1"], size=48, steps=20, mean=bench_inside.MEAN, std=bench_inside.STD
    )
    with pytest.raises(AssertionError, match="below FlashTorch's"):
        bench_inside.check("maximize", toy, {**outputs, "FlashTorch": [[image[None]] for image in best.data]})
    with pytest.raises(AssertionError, match="activations that differ by"):
        bench_inside.check("maximize", toy, {**outputs, "one at a time": outputs["one at a time"][::-1]})


def test_a_row_has_rates_and_the_memory_of_metered_sides():
    calls = {"forward": lambda: torch.zeros(2**20), "fastcam": lambda: torch.zeros(2**21)}
    comparison = side_by_side.SideBySide(calls, lambda call: 0.5, meter=partial(memory.meter, "cpu"))
    comparison.warm_up()
    row = rows.timed(Rounds(), comparison, 2, batch=8)
    assert row["images_per_second"] == {"forward": 16, "fastcam": 16}
    assert row["memory"] == {"forward": 4 * 2**20, "fastcam": 8 * 2**20}
    assert row["memory_ratios"] == {"fastcam/forward": 2} and rows.memory({"fastcam": 3})["memory_ratios"] == {}
    assert rows.memory({"forward": 2, "fastcam": 3})["memory_ratios"] == {"fastcam/forward": 1.5}


@pytest.mark.parametrize(
    ("case", "parameters"),
    [
        ("perturbation", ("toy", 1, "reciprocam", "float32")),
        ("toolbox", ("toy", "Sobel")),
        ("inside", ("toy", "SmoothGrad")),
    ],
)
def test_cases_fill_their_rows(case, parameters, monkeypatch):
    monkeypatch.setattr(bench_inside, "BATCH", 1)
    module = {"perturbation": bench_perturbation, "toolbox": bench_toolbox, "inside": bench_inside}[case]
    row, chosen = {"case": case, "model": "toy"}, settings.Settings(device="cpu", repetitions=2)
    getattr(module, f"bench_{case}")(Rounds(), row, chosen, *parameters)
    assert row["dtype"] == "float32" and row["batch"] >= 1 and row["repetitions"] == 2 and row["over_cap"] == {}
    assert row["difference"] < 1
    for key in ("seconds", "memory", "images_per_second"):
        assert {"forward", "fastcam"} <= row[key].keys(), key
    assert "fastcam/forward" in row["ratios"] and row["memory_ratios"]["fastcam/forward"] >= 0


def test_fast_mode_checks_itself(toy):
    """Also its sides that are compiled, which are not run here."""
    sides = {name: call for name, call in bench_optimize.sides(toy, graphs=False).items() if "compiled" not in name}
    outputs = {name: call() for name, call in sides.items()}
    found = bench_optimize.check(outputs)
    assert found["difference"] == found["differences"]["fast"] < 1e-4 and found["rank_correlation"]["fast"] > 0.999
    with pytest.raises(AssertionError, match="fast differs by"):
        bench_optimize.check({**outputs, "fast": outputs["fast"][:, ::-1]})
    with pytest.raises(AssertionError, match="maps are empty"):
        bench_optimize.check({**outputs, "exact": 0 * outputs["exact"]})


@pytest.mark.parametrize("method", ["sscam", "iscam"])
def test_several_samples_by_their_formula(toy, method):
    maps = METHODS[method](toy.net, toy.layer, samples=3)(toy.x, toy.targets)
    np.testing.assert_allclose(changed.MAPS[method](toy, samples=3), maps, atol=1e-5)


def test_a_side_that_is_not_compiled_is_left_out(toy, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("not here")

    monkeypatch.setattr(torch, "compile", broken)
    sides = bench_optimize.sides(toy, graphs=False)
    sides = {name: sides[name] for name in ("fast", "fast compiled")}
    comparison = side_by_side.SideBySide(sides, side_by_side.wall_clock("cpu"), may_fail=["fast compiled"])
    assert comparison.warm_up().keys() == {"fast"}
    assert "is not compiled" in comparison.not_supported["fast compiled"] and sides["fast compiled"].blocks == 0
