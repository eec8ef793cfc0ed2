"""The methods of one pass beside their peers: that each output is checked, and that a wrong one is found."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models import VisionTransformer

from benchmarks import (
    agreement,
    bench_methods,
    memory,
    models,
    peers,
    plain,
    rewritten,
    settings,
    side_by_side,
)
from benchmarks.problem import Problem
from benchmarks.report.figures import ON_DEVICE
from fastcam.layers import find_layers
from fastcam.methods import ATTENTION

STAGES = ("layer1[-1]", "layer2[-1]")
METHODS = (
    *("gradcam", "gradcam++", "layercam", "eigencam", "cam", "fem", "finercam", "refinecam"),
    *("saliency", "inputxgradient", "guidedbackprop", "deconvnet", "guidedgradcam", "randomcam"),
)


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


@pytest.fixture(autouse=True)
def _random_state():
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)


@pytest.fixture(scope="module")
def toy():
    return Problem.of("toy", 2, "cpu")


@pytest.fixture(scope="module")
def tokens():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)
    x = models.images(2, 32)
    models.calibrate(net, models.images(16, 32, seed=1))
    return Problem(net, "encoder.layers[-1].ln_1", x, models.predicted(net, x))


def fine(problem, method):
    """The problem at layers whose maps have more than four positions, where the method allows."""
    layers = {"refinecam": STAGES, "cam": "layer4[-1]"}
    return replace(problem, layer=layers.get(method, "layer2[-1]"))


def outputs_of(problem, method):
    return {side: call() for side, call in bench_methods.sides(problem, method).items()}


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("method", METHODS)
def test_every_output_is_checked(toy, method):
    problem = fine(toy, method)
    outputs = outputs_of(problem, method)
    row = agreement.check(problem, method, outputs, 1e-4)
    assert row["difference"] == max(row["differences"].values()) <= row["tolerance"] <= 1e-2
    assert row["tolerance"] == 1e-4 or method in ("fem", "smoothgradcam++")
    assert set(outputs) == {"forward", "fastcam", *peers.calls(problem, method)}
    for side in outputs.keys() - {"forward"}:
        wrong = {**outputs, side: outputs[side] * 0.5 + 0.1 * abs(outputs[side]).max()}
        if side in ("torch-cam", "captum") and "torch-cam" not in row.get("notes", ()):  # in whatever unit
            wrong[side] = outputs[side].flip(-1)
        with pytest.raises(AssertionError, match="differs by"):
            agreement.check(problem, method, wrong, 1e-4)


@pytest.mark.parametrize("method", ["saliency", "inputxgradient", "guidedbackprop", "deconvnet", "guidedgradcam"])
def test_without_peers_gradients_are_those_of_a_rewritten_network(toy, method):
    problem = fine(toy, method)
    gradient = bench_methods.ours(problem.copied(), method)()
    assert agreement.check(problem, method, {"fastcam": gradient}, 1e-4)["differences"]["fastcam"] < 1e-4
    with pytest.raises(AssertionError, match=f"{method} differs by"):
        agreement.check(problem, method, {"fastcam": gradient * 1.01}, 1e-4)


def test_the_rewritten_network_has_other_rules(toy):
    plain, guided, deconvolved = (rewritten.gradient(toy, rule) for rule in (None, "guided", "deconvolve"))
    assert not np.allclose(plain, guided, rtol=0.1) and not np.allclose(guided, deconvolved, rtol=0.1)


def test_empty_maps_are_no_evidence(toy):
    empty = {"fastcam": np.zeros((2, 64, 64), np.float32), "grad-cam": np.zeros((2, 64, 64), np.float32)}
    with pytest.raises(AssertionError, match="empty"):
        agreement.check(toy, "gradcam", empty, 1e-4)


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "layercam", "legrad"])
def test_tokens_are_laid_out_for_every_peer(tokens, method):
    outputs = outputs_of(tokens, method)
    assert "captum" not in outputs
    assert agreement.check(tokens, method, outputs, 1e-4)["difference"] <= 1e-4
    reasons = peers.left_out(tokens, method)
    assert reasons == ({"captum": "takes tokens for channels"} if method == "gradcam" else {}) or not has("captum")


def has(side):
    return peers.installed(side)


def test_what_cannot_be_asked_has_its_reason(toy):
    assert "first image" in peers.left_out(toy, "guidedbackprop")["grad-cam"]
    assert not peers.left_out(replace(toy, x=toy.x[:1]), "guidedbackprop")
    assert "grad-cam" not in peers.calls(toy, "guidedbackprop")


def test_a_side_whose_package_is_not_here_is_absent(toy, monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda side: side == "grad-cam")
    assert list(peers.calls(toy, "gradcam")) == ["grad-cam"] and not peers.calls(toy, "saliency")


def test_options_have_one_name_for_all(toy):
    one = replace(toy, layer="layer1[-1]", x=toy.x[:1], targets=toy.targets[:1])
    for side, call in peers.calls(one, "scorecam", batch_size=64).items():
        assert call().shape[0] == 1, side
    if has("torch-cam"):
        (call,) = peers.calls(toy, "smoothgradcam++", num_samples=1).values()
        assert call().shape == (2, 2, 2)


def test_a_peers_error_is_kept_and_our_own_raised():
    def broken():
        raise TypeError("no such type")

    clock = side_by_side.wall_clock("cpu")
    comparison = side_by_side.SideBySide({"fastcam": lambda: 1, "captum": broken}, clock, may_fail=peers.PACKAGES)
    assert comparison.warm_up() == {"fastcam": 1}
    assert comparison.run(Rounds(), 2)["not_supported"] == {"captum": "TypeError: no such type"}
    with pytest.raises(TypeError, match="no such type"):
        side_by_side.SideBySide({"fastcam": broken}, clock, may_fail=peers.PACKAGES).warm_up()


def test_half_precision_is_compared_with_single(toy):
    single = fine(toy, "gradcam")
    half = single.cast(torch.bfloat16)
    assert half.net.fc.weight.dtype == half.x.dtype == torch.bfloat16 != single.net.fc.weight.dtype
    assert single.cast(torch.float32) is single
    calls = bench_methods.sides(half, "gradcam")
    comparison = side_by_side.SideBySide(calls, side_by_side.wall_clock("cpu"), may_fail=peers.PACKAGES)
    outputs = comparison.warm_up()
    assert "BFloat16" in comparison.not_supported["grad-cam"]
    exact = bench_methods.ours(single.copied(), "gradcam")()
    row = agreement.check(single, "gradcam", outputs, 1e-4, exact)
    assert row["rank_correlation"].keys() == outputs.keys() - {"forward"} == row["differences"].keys()
    assert 0 < row["difference"] < 0.5 and min(row["rank_correlation"].values()) > 0.8
    with pytest.raises(AssertionError, match="ranks otherwise"):
        agreement.check(single, "gradcam", {**outputs, "fastcam": 1 - outputs["fastcam"]}, 1e-4, exact)


def test_ranks_of_equal_values_are_equal():
    assert agreement.rank_correlation(np.array([[0.0, 0, 1, 2]]), np.array([[0.0, 0, 3, 5]])) == pytest.approx(1)
    a, b = np.array([[0.0, 0, 1]]), np.array([[0.0, 1, 0]])
    assert agreement.rank_correlation(a, b) == pytest.approx(agreement.rank_correlation(b, a)) == pytest.approx(-0.5)


def test_the_first_run_of_a_call_is_metered():
    sides, clock = {"forward": lambda: torch.zeros(2**20).numpy()}, side_by_side.wall_clock("cpu")
    comparison = side_by_side.SideBySide(sides, clock, meter=partial(memory.meter, "cpu"))
    comparison.warm_up()
    assert comparison.peaks == {"forward": pytest.approx(4 * 2**20, rel=0.1)}


def test_where_fastcam_is_over_the_cap_the_others_are_checked_and_timed(toy, monkeypatch):
    def slow():
        raise side_by_side.OverCap

    pytest.importorskip("pytorch_grad_cam")
    monkeypatch.setattr(bench_methods, "ours", lambda problem, method: slow)
    row = {}
    bench(row, "gradcam")
    assert row["over_cap"] == {"fastcam": 30} and {"forward", "grad-cam"} <= row["seconds"].keys()
    assert row["checked_against"] == "its formula" and row["differences"]["grad-cam"] < 1e-4
    assert "grad-cam/forward" in row["ratios"] and "fastcam" not in row["memory"]
    problem = fine(toy, "gradcam")
    theirs = peers.calls(problem, "gradcam")["grad-cam"]()
    with pytest.raises(AssertionError, match="differs by"):
        agreement.check(problem, "gradcam", {"grad-cam": theirs * 0.9}, 1e-4)


@pytest.mark.parametrize("method", plain.METHODS)
def test_without_peers_maps_are_those_of_the_plain_formulas(toy, method):
    problem = replace(fine(toy, method), x=toy.x[:1], targets=toy.targets[:1])
    maps = bench_methods.ours(problem.copied(), method)()
    row = agreement.check(problem, method, {"fastcam": maps}, 1e-4)
    assert row["checked_against"] == "its formula" and row["difference"] < 1e-4
    with pytest.raises(AssertionError, match="differs by"):
        agreement.check(problem, method, {"fastcam": maps * 0.99}, 1e-4)


def test_rounding_may_decide_on_the_sign_of_a_component_of_tokens(toy, monkeypatch):
    monkeypatch.setattr(agreement, "_written_down", lambda *_: False)
    same, opposite = agreement.signed(toy, "eigencam")
    assert np.abs(same - opposite).max() > 0.5
    for maps in (same, opposite):
        row = agreement.check(toy, "eigencam", {"fastcam": maps}, 1e-4)
        assert row["checked_against"] == "fastcam in fp64, up to its sign"
    with pytest.raises(AssertionError, match="eigencam differs"):
        agreement.check(toy, "eigencam", {"fastcam": same[:, ::-1].copy()}, 1e-4)


def test_where_no_formula_is_written_down_fastcam_is_compared_with_itself_in_fp64(toy):
    problem = fine(toy, "fem")
    row = agreement.check(problem, "fem", {"fastcam": bench_methods.ours(problem.copied(), "fem")()}, 1e-4)
    assert row["checked_against"] == "fastcam in fp64"


@pytest.mark.parametrize("method", ATTENTION)
def test_attention_is_compared_with_its_formula(tokens, method):
    maps = bench_methods.ours(tokens.copied(), method)()
    row = agreement.check(tokens, method, {"fastcam": maps}, 1e-4)
    assert row["checked_against"] == "its formula"
    with pytest.raises(AssertionError, match="differs by"):
        agreement.check(tokens, method, {"fastcam": maps * 0.99}, 1e-4)


def test_a_map_in_half_precision_fails_where_it_is_not_the_same_at_all(toy):
    problem = fine(toy, "gradcam")
    exact = bench_methods.ours(problem.copied(), "gradcam")()
    half = bench_methods.ours(problem.cast(torch.bfloat16), "gradcam")()
    one = np.stack([1 - exact[0], exact[1]])  # rounding may turn one image's map round
    assert agreement.check(problem, "gradcam", {"fastcam": one}, 1e-4, exact)["rank_correlation"]["fastcam"] < -0.9
    with pytest.raises(AssertionError, match="ranks otherwise"):
        agreement.check(problem, "gradcam", {"fastcam": 1 - exact, "grad-cam": 1 - exact}, 1e-4, exact)
    # nor is it the fault of a map that it is far from the one in fp32, where the formula in bf16 gives the same
    assert agreement.check(problem, "gradcam", {"fastcam": half}, 1e-4, 1 - exact)["rank_correlation"]["fastcam"] < 0
    gradient, halved = (bench_methods.ours(p, "saliency")() for p in (problem.copied(), problem.cast(torch.bfloat16)))
    row = agreement.check(problem, "saliency", {"fastcam": halved}, 1e-4, -gradient)
    assert row["rank_correlation"]["fastcam"] < 0
    flat = {"fastcam": np.zeros_like(exact)}
    with pytest.raises(AssertionError, match="ranks otherwise"):
        agreement.check(problem, "gradcam", flat, 1e-4, exact)


def bench(row, method, **options):
    asked = settings.Settings(device="cpu", repetitions=2, **options)
    bench_methods.bench_method(Rounds(), row, asked, "toy", 1, method, "float32")


def test_a_row_has_what_the_report_reads():
    row = {}
    bench(row, "gradcam")
    sides = {"forward", "fastcam", "grad-cam"}
    assert {"batch", "method", "dtype", "seconds", "ratios", "over_cap", "difference", "not_supported"} <= row.keys()
    for key in ("seconds", "memory", "images_per_second"):
        assert sides <= row[key].keys()
    assert row["memory"]["fastcam"] < row["memory"]["grad-cam"] and row["memory_ratios"]["fastcam/forward"] < 2
    rate = row["images_per_second"]["fastcam"] * row["seconds"]["fastcam"]["median"]
    assert rate == pytest.approx(1)


def test_a_method_that_a_model_cannot_have_is_left_out_with_the_reason():
    with pytest.raises(pytest.skip.Exception, match="toy: no attention was met"):
        bench({}, "legrad")


@pytest.mark.parametrize(("method", "told"), [("legrad", "shapes do not fit"), ("gradcam", "no attention was met")])
def test_another_error_is_no_reason_to_leave_a_method_out(monkeypatch, method, told):
    def broken():
        raise ValueError(told)

    monkeypatch.setattr(bench_methods, "sides", lambda problem, method: {"fastcam": broken})
    with pytest.raises(ValueError, match=told):
        bench({}, method)


def test_on_a_gpu_the_map_is_also_left_on_the_device(toy, monkeypatch):
    problem = fine(toy, "gradcam")
    assert ON_DEVICE not in bench_methods.sides(problem, "gradcam")
    outputs = {
        "fastcam": bench_methods.ours(problem.copied(), "gradcam")(),
        ON_DEVICE: bench_methods.ours(problem.copied(), "gradcam", on_device=True)(),
    }
    assert torch.is_tensor(outputs[ON_DEVICE])
    row = agreement.check(problem, "gradcam", outputs, 1e-4)
    assert row["differences"][ON_DEVICE] == 0 and row["checked_against"] == "its formula"
    monkeypatch.setattr(bench_methods, "forward", lambda problem: None)
    monkeypatch.setattr(bench_methods.peers, "calls", lambda *args, **options: {"grad-cam": None})
    there = replace(problem, x=SimpleNamespace(is_cuda=True))
    assert [*bench_methods.sides(there, "gradcam")] == ["forward", "fastcam", ON_DEVICE, "grad-cam"]
    assert [*bench_methods.sides(there, "saliency")] == ["forward", "fastcam", "grad-cam"]


def test_methods_of_many_rows_or_layers_are_elsewhere():
    chosen = {*bench_methods.ONE_PASS}
    assert {"cam", "randomcam", "refinecam", "legrad", "guidedgradcam"} <= chosen
    assert not {"scorecam", "ablationcam", "sess", "fullgrad", "smoothgradcam++", "integratedgradients"} & chosen


def test_every_model_has_its_recipe():
    assert {*settings.MODELS} < {*models.RECIPES}
    recipe = models.RECIPES["efficientnet_b0"]
    net = recipe.build()
    assert len({*find_layers(net, [recipe.layer, *recipe.stages])}) == 4


def test_calibration_scales_the_logits(tokens):
    x = models.images(16, 32, seed=1)
    with torch.no_grad():
        logits = tokens.net(x)
    assert logits.mean(0).abs().max() < 1e-4 and logits.std() == pytest.approx(1, rel=1e-3)
    toy = models.network("toy", "cpu")
    assert not any(m.training for m in toy.modules()) and toy.bn1.momentum == 0.1


def test_a_network_without_norms_is_scaled_layer_by_layer():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5), torch.nn.Linear(5, 3)
    )
    x = models.images(16, 8)
    models.calibrate(net, x)
    with torch.no_grad():
        features, hidden, logits = net[0](x).transpose(0, 1).flatten(1), net[:4](x).T, net(x)
    for values in (features, hidden):
        assert values.mean(1).abs().max() < 1e-4 and torch.allclose(values.std(1), torch.ones(len(values)), rtol=1e-3)
    assert logits.mean(0).abs().max() < 1e-4 and logits.std() == pytest.approx(1, rel=1e-3)
    assert not any(m._forward_hooks for m in net)


def test_types_are_a_setting():
    assert settings.parse([]).dtypes_on("cuda") == ("float32", "bfloat16")
    assert settings.parse([]).dtypes_on("cpu") == ("float32",)
    asked = settings.parse(["--dtype", "bfloat16"])
    assert asked.dtypes_on("cpu") == ("bfloat16",) and not asked.recorded
    short = settings.parse(["--set", "gpu-short"])
    assert short.models == ("resnet50",) and short.dtypes_on("cuda") == ("float32", "bfloat16")
    assert {*short.methods} <= {*bench_methods.ONE_PASS}
