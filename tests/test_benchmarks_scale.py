"""The benchmark's part on scale: straight lines, the sweeps, and checks that see a wrong output."""

from dataclasses import replace
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench_scale, lines, memory, sweeps
from benchmarks.session import SETTINGS
from benchmarks.settings import MADE, Settings, parse
from fastcam import ops


def test_a_line_is_found_and_called_straight():
    line = lines.fit([1, 2, 8, 32], [5.0, 7.0, 19.0, 67.0])
    assert (line.slope, line.intercept) == pytest.approx((2, 3)) and line.worst < 1e-9 and line.straight
    assert line.at(10) == pytest.approx(23)
    flat = lines.fit([4096, 65536, 200704], [7.0, 7.0, 7.0])
    assert flat.straight and flat.slope == pytest.approx(0, abs=1e-12) and flat.intercept == pytest.approx(7)


def test_distances_count_relative_to_the_value():
    xs, ys = [1, 10, 100, 1000], [2.0, 11.0, 101.0, 1101.0]  # the last 10 % above 1 + x
    line = lines.fit(xs, ys)
    assert line.slope == pytest.approx(1.05, abs=0.05) and abs(line.at(1) / 2 - 1) < 0.05
    assert line.worst == pytest.approx(max(abs(line.at(x) / y - 1) for x, y in zip(xs, ys, strict=True)))


@pytest.mark.parametrize("power", [0.5, 1.5, 2])
def test_a_curve_is_not_straight(power):
    xs = [1, 2, 4, 8, 16, 32]
    line = lines.fit(xs, [x**power for x in xs])
    assert not line.straight and line.worst > lines.TOLERANCE


def test_a_jump_at_the_end_is_not_straight():
    xs = [1, 2, 4, 8, 16, 32]
    assert not lines.fit(xs, [*xs[:-1], 48.0]).straight


def test_quartiles_excuse_what_they_reach():
    xs, ys = [1, 2, 3, 4], [1.0, 2.0, 4.5, 4.0]
    assert not lines.fit(xs, ys).straight
    wide, narrow = [[0.7 * y, 1.3 * y] for y in ys], [[0.99 * y, 1.01 * y] for y in ys]
    assert lines.fit(xs, ys, wide).straight and not lines.fit(xs, ys, narrow).straight
    assert lines.fit(xs, ys, wide).worst == lines.fit(xs, ys).worst
    assert lines.fit(xs, ys, tolerance=0.5).straight


@pytest.mark.parametrize(
    ("xs", "ys", "told"),
    [([1, 2], [1, 2], "3 different x"), ([1, 1, 2], [1, 2, 3], "3 different x"), ([1, 2, 3], [1, 0, 2], "positive")],
)
def test_what_gives_no_line(xs, ys, told):
    with pytest.raises(ValueError, match=told):
        lines.fit(xs, ys)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="do not go together"):
        lines.fit([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="do not go together"):
        lines.fit([1, 2, 3], [1, 2, 3], [[1, 2]])


def sweep_of(name, method):
    return next((s, c) for s in sweeps.SWEEPS for c in s.curves if (s.name, c.method) == (name, method))


def point(name, method, value, model="toy", **changes):
    sweep, curve = sweep_of(name, method)
    sweep = replace(sweep, batch={"cpu": 2}) if name in ("channels", "image size") else sweep
    return bench_scale.Point.of(model, sweep, replace(curve, **changes), value, "cpu")


POINTS = {
    "batch": lambda: point("batch", "gradcam", 3),
    "batch of EigenCAM": lambda: point("batch", "eigencam", 3),
    "batch of ScoreCAM": lambda: point("batch", "scorecam", 2, MADE),
    "image size": lambda: point("image size", "gradcam", 96**2),
    "layers": lambda: point("layers", "layercam", 4),
    "classes": lambda: point("classes", "gradcam", 6, low=False),
    "classes, layer resolution": lambda: point("classes", "gradcam", 6),
    "classes, a pass each": lambda: point("classes", "gradcam", 6, low=False, layer="layer3[0]"),
    "channels": lambda: point("channels", "layercam", 128, MADE),
    "channels of EigenCAM": lambda: point("channels", "eigencam", 256, MADE),
    "ScoreCAM channels": lambda: point("ScoreCAM channels", "scorecam", 128, MADE),
}


@pytest.mark.parametrize("name", POINTS)
def test_points_check_themselves(name):
    p = POINTS[name]()
    maps = p.sides()["fastcam"]()
    assert bench_scale.check(p, maps, 1e-4) < 1e-4
    flat = maps.reshape(-1, *maps.shape[-2:])
    last = flat.copy()
    last[-1] *= 0.99
    wrong = [last, flat[::-1], np.full_like(flat, np.nan)] if len(flat) > 1 else [last, flat[:, ::-1]]
    for maps in wrong:
        with pytest.raises(AssertionError, match="differ from plain"):
            bench_scale.check(p, np.ascontiguousarray(maps), 1e-4)


@pytest.mark.parametrize(
    ("name", "method", "value", "model", "instead"),
    [
        ("layers", "layercam", 4, "toy", {"layers": ["layer4.0"]}),  # a layer forgotten
        ("layers", "layercam", 4, "toy", {"curve": sweeps.Curve("gradcam")}),
        ("ScoreCAM channels", "scorecam", 64, MADE, {"curve": sweeps.Curve("gradcam"), "rows": None}),
    ],
)
def test_maps_of_something_else_are_seen(name, method, value, model, instead):
    p = point(name, method, value, model)
    with pytest.raises(AssertionError, match="differ from plain"):
        bench_scale.check(p, replace(p, **instead).sides()["fastcam"](), 1e-4)


def test_the_plain_maps_are_of_the_same_batch():
    p = point("batch", "gradcam", 2)
    p = replace(p, problem=p.problem.copied())
    p.problem.net.register_forward_pre_hook(lambda module, given: (given[0] / len(given[0]),))
    assert bench_scale.check(p, p.sides()["fastcam"](), 1e-4) < 1e-4


def test_empty_maps_say_nothing():
    p = point("batch", "gradcam", 1)
    p = replace(p, problem=p.problem.copied())
    with torch.no_grad():
        p.problem.net.fc.weight.zero_()
    with pytest.raises(AssertionError, match="are empty"):
        bench_scale.check(p, np.zeros((1, 64, 64), dtype=np.float32), 1e-4)


def test_what_grows_grows_and_all_else_stays():
    assert [len(point("batch", "gradcam", n).problem.x) for n in (1, 5)] == [1, 5]
    assert point("image size", "gradcam", 128**2).problem.x.shape[2:] == (128, 128)
    assert point("layers", "gradcam", 2).layers == ["layer3.0", "layer4.0"]
    many = point("classes", "gradcam", 10)
    assert sorted(many.classes[0].tolist()) == list(range(10)) and many.classes[0, 0] == many.problem.targets[0]
    narrow, wide = (point("channels", "gradcam", n, MADE).problem for n in (64, 512))
    assert [p.net.wide[0].out_channels for p in (narrow, wide)] == [64, 512]
    assert torch.equal(narrow.x, wide.x) and narrow.net.trunk(narrow.x).shape == wide.net.trunk(wide.x).shape
    before = torch.random.get_rng_state()
    bench_scale.widening(64, 7, "cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_memory_of_score_cam_does_not_grow_with_channels():
    sizes = [
        memory.peak_bytes(point("ScoreCAM channels", "scorecam", n, MADE).sides()["fastcam"], "cpu") for n in (64, 256)
    ]
    assert sizes[1] < 1.1 * sizes[0]
    p = point("ScoreCAM channels", "scorecam", 64, MADE)
    assert p.rows == 32 and memory.peak_bytes(p.pass_of_full_batch(), "cpu") > 0.5 * sizes[0]


def test_finishing_maps_holds_little_more_than_the_maps():
    lows = [torch.rand(100, 1, 7, 7), torch.rand(100, 1, 5, 9), torch.rand(100, 1, 3, 3)]
    before = [low.clone() for low in lows]
    maps = 100 * 96 * 96 * 4
    assert memory.peak_bytes(lambda: ops.finish(lows[:1], (96, 96)), "cpu") < 1.1 * maps
    assert memory.peak_bytes(lambda: ops.finish(lows, (96, 96)), "cpu") < 2.1 * maps
    assert all(torch.equal(low, old) for low, old in zip(lows, before, strict=True))


def test_early_layers_are_reduced_with_one_copy_of_the_activations():
    A, G = torch.rand(2, 64, 28, 28), torch.randn(2, 64, 28, 28)
    before = A.clone(), G.clone()
    for weighting in ("layercam", "gradcamelementwise"):
        assert memory.peak_bytes(lambda w=weighting: ops.channel_reduce(A, G, w), "cpu") < 1.1 * A.nbytes
    assert torch.equal(A, before[0]) and torch.equal(G, before[1])
    assert ops.channel_reduce(A.double(), G, "layercam").dtype == torch.float64


def test_every_reason_is_of_a_curve_there_is():
    curves = {(s.name, c.name) for s in sweeps.SWEEPS for c in s.curves}
    for (device, sweep, quantity), known in sweeps.REASONS.items():
        assert device in ("cpu", "cuda") and quantity in ("time", "memory")
        for begin, why in known.items():
            assert any(s == sweep and name.startswith(begin) for s, name in curves) and why
    assert sweeps.reason("cpu", "channels", "eigencam", "time").startswith("the principal component")
    assert sweeps.reason("cpu", "channels", "gradcam", "time") == "no reason on record"
    assert sweeps.reason("cuda", "batch", "gradcam", "memory") == "no reason on record"  # oneDNN is not there


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_curve_has_points_enough_for_a_line(device):
    for sweep in sweeps.SWEEPS:
        for curve in sweep.curves:
            for model in set(sweep.models[device]) - {"toy"}:
                values = sweep.values(curve, model, device)
                assert len(set(values)) >= lines.FEWEST and list(values) == sorted(values)
    batch, curve = sweep_of("batch", "gradcam")
    assert batch.values(curve, "toy", "cpu", (1, 3)) == (1, 3)


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


def test_a_point_from_end_to_end():
    sweep, curve = sweep_of("layers", "layercam")
    row, settings = {}, Settings(device="cpu", repetitions=2)
    bench_scale.bench_point(Rounds(), row, settings, "toy", sweep, curve, 2)
    assert (row["sweep"], row["method"], row["x"], row["batch"]) == ("layers", "layercam", 2, 1)
    assert row["difference"] < 1e-4 and set(row["ratios"]) == {"fastcam/forward"} and row["over_cap"] == {}
    assert row["memory"]["fastcam"] >= row["memory"]["forward"] > 0 and row["repetitions"] == 2


def test_a_side_over_its_cap_leaves_a_row(monkeypatch):
    sweep, curve = sweep_of("batch", "gradcam")
    monkeypatch.setattr(bench_scale.Point, "sides", lambda self: {"forward": lambda: 1, "fastcam": lambda: sleep(5)})
    row = {}
    bench_scale.bench_point(Rounds(), row, Settings(device="cpu", repetitions=2, cap=0.2), "toy", sweep, curve, 1)
    assert row["over_cap"] == {"fastcam": 0.2} and list(row["seconds"]) == list(row["memory"]) == ["forward"]
    assert row["difference"] is None


def points_of(*arguments):
    """The cases of a command line, as pytest would be given them."""
    given = []
    settings = replace(parse([*arguments]), device="cpu")
    config = SimpleNamespace(stash={SETTINGS: settings})
    metafunc = SimpleNamespace(config=config, parametrize=lambda names, cases, ids: given.extend(cases))
    bench_scale.pytest_generate_tests(metafunc)
    return [(model, sweep.name, curve.name, value) for model, sweep, curve, value in given]


def test_the_cases_of_a_command_line():
    assert parse(["scale"]).cases == ("scale",)
    every = points_of("scale")
    assert len(set(every)) == len(every) and {model for model, *_ in every} == {"resnet18", "resnet50", MADE}
    assert {sweep for _, sweep, *_ in every} == {sweep.name for sweep in sweeps.SWEEPS}
    assert {model for model, *_ in points_of("scale", "--model", "resnet50")} == {"resnet50"}
    toy = points_of("scale", "--model", "toy", "--method", "layercam")
    assert toy == [("toy", "layers", "layercam", n) for n in (1, 2, 4)]
    assert points_of("scale", "--model", MADE, "--method", "scorecam", "--batch", "2")[0][-1] == 2
