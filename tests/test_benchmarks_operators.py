"""The operators' benchmark: what it times is right, counted and named as it says. No timing is asserted."""

import dataclasses
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    bench_compiled,
    bench_operators,
    clocks,
    explanations,
    operations,
    settings,
    side_by_side,
    traffic,
)
from fastcam import ops


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_operator_cases_check_themselves(weighting):
    operation = operations.channel_reduce((2, 4, 3, 3), "float32", weighting, "cpu")
    sets = operations.input_sets(operation, 2000)
    assert operations.floor_bytes(operation, sets[0]) == 2 * 2 * 4 * 9 * 4 + 2 * 9 * 4
    assert len(sets) == 4
    assert operations.check(operation, sets[0]) < 1e-6
    wrong = dataclasses.replace(operation, define=lambda A, G: A * A.dtype.itemsize)
    with pytest.raises(AssertionError, match="off its fp64 definition"):
        operations.check(wrong, sets[0])


SMALL = (
    operations.channel_sum((2, 8, 3, 3), "bfloat16", "cpu"),
    operations.finish((2, 3, 4, 4), "cpu", (8, 8)),
    operations.principal_component((2, 8, 3, 3), "bfloat16", "cpu"),
    operations.principal_component((2, 3, 4, 4), "float32", "cpu"),
    operations.masked_inputs(3, 4, "float32", "cpu", (24, 20)),
    operations.channels_last(operations.masked_inputs(3, 4, "bfloat16", "cpu", (24, 20))),
    operations.overlay(2, "bfloat16", "cpu", (24, 20)),
)


@pytest.mark.parametrize("operation", SMALL, ids=str)
def test_cases_of_the_other_operators(operation):
    sets = operations.input_sets(operation, 0)
    assert len(sets) == 2 and operations.check(operation, sets[0]) < operation.tolerance
    worse = [lambda *inputs: operation.define(*inputs) * 1.01, lambda *inputs: operation.define(*inputs) * torch.nan]
    for call in worse:
        with pytest.raises(AssertionError, match="off its fp64 definition"):
            operations.check(operation, sets[0], call)
    assert 0 < operation.flops < 100 * math.prod(operation.shape)


def test_operators_are_definitions_or_kernels_for_a_while():
    decide = ops._on_kernel
    with operations.definitions():
        first = ops._on_kernel
        assert not first(torch.ones(1, device="meta"))
    with operations.definitions():
        assert ops._on_kernel is first  # what torch.compile has compiled asks for this very function
    with operations.kernels():
        assert ops._on_kernel(torch.ones(1))
    assert ops._on_kernel is decide


@pytest.mark.parametrize("run", [["--device", "cpu"], ["--device", "cuda"], ["--set", "gpu-short"]], ids=" ".join)
def test_every_operator_is_in_each_sweep(run):
    found = list(operations.chosen(settings.parse(run)))
    assert {o.operator for o in found} == operations.TOLERANCE.keys()
    assert len({str(o) for o in found}) == len(found)
    explained = list(explanations.chosen(settings.parse(run)))
    assert {e.method for e in explained} >= ({"gradcam", "eigencam", "scorecam"})
    if "gpu-short" in run:
        assert len(found) <= 24  # of a few seconds each
    if "cuda" in run:
        reduced = [o.shape for o in found if o.name == "channel_reduce[gradcam]"]
        assert {s[0] for s in reduced} >= {1, 256} and {s[1:] for s in reduced} == {
            (C, n, n) for C, n in operations.STAGES
        }


@pytest.mark.parametrize(
    "run", [["--device", "cuda"], ["--set", "gpu-short"], ["--set", "gpu-operators-bf16"]], ids=" ".join
)
def test_types_narrow_the_operators_down(run):
    given = settings.parse([*run, "--dtype", "bfloat16"])
    assert {o.dtype for o in operations.chosen(given)} == {"bfloat16"} and not list(explanations.chosen(given))


def test_a_sweep_that_is_cut_short_has_every_operator_at_the_first_batch():
    found = list(operations.chosen(settings.parse(["--set", "gpu-operators-fp32"])))
    half = [o for o in found if o.shape[0] == 256]
    assert found[: len(half)] == half and {o.operator for o in half} == operations.TOLERANCE.keys()
    assert len(found) <= 110 and len(list(operations.chosen(settings.parse(["--set", "gpu-operators-bf16"])))) <= 110


def test_methods_narrow_the_operators_down():
    found = list(operations.chosen(settings.parse(["--device", "cpu", "--method", "layercam"])))
    assert {o.name.partition("[")[2] for o in found if o.operator == "channel_reduce"} == {"layercam]"}
    assert not {"principal_component", "masked_inputs"} & {o.operator for o in found}


@pytest.fixture
def small_copies(monkeypatch):
    monkeypatch.setattr(bench_operators, "COPY_BYTES", 2**12)
    bench_operators.buffers.cache_clear()
    yield
    bench_operators.buffers.cache_clear()


def measured(operation):
    row = {}
    bench_operators.bench_operator(Rounds(), row, settings.Settings(device="cpu", repetitions=2), operation)
    return row


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_an_operator_beside_its_compiled_definition(small_copies):
    operation = operations.channel_reduce((2, 4, 3, 3), "float32", "hirescam", "cpu")
    row = measured(operation)
    assert list(row["seconds"]) == ["copy", "copy of its bytes", "definition", "compiled"]
    assert row["kind"] == "operator" and row["operator"] == "channel_reduce[hirescam]" and row["shape"] == (2, 4, 3, 3)
    assert row["bytes"] == 648 and row["flops"] == 2 * 72 and row["graph_breaks"] == 0 and "not_compiled" not in row
    for side in ("definition", "compiled"):
        rate = row["gigabytes_per_second"][side] * 1e9
        assert rate == pytest.approx(648 / row["seconds"][side]["median"])
        assert row["call_seconds"][side] == row["seconds"][side]
        assert row["copy_share"][side]["median"] > 0
    assert row["copy_gigabytes_per_second"] * 1e9 == pytest.approx(2**13 / row["seconds"]["copy"]["median"])


@pytest.mark.parametrize(
    ("compile", "reason"),
    [
        (lambda function, dynamic: lambda *inputs: function(*inputs) * 2, "off its fp64 definition"),
        (lambda function, dynamic: lambda *inputs: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["wrong", "broken"],
)
def test_a_row_says_why_there_is_no_compiled_side(compile, reason, small_copies, monkeypatch):
    monkeypatch.setattr(torch, "compile", compile)
    row = measured(operations.finish((1, 2, 3, 3), "cpu", (6, 6)))
    assert reason in row["not_compiled"] and "compiled" not in row["seconds"] and "definition" in row["seconds"]


def test_on_a_gpu_what_takes_turns_is_captured_for_each_of_its_inputs(small_copies, monkeypatch):
    captures, copies = [], bench_operators.copies
    monkeypatch.setattr(bench_operators, "copies", lambda moved, rotated, device: copies(moved, rotated, "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1000))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(clocks, "_capture", lambda call, count: captures.append(count) or call())
    monkeypatch.setattr(clocks, "_replayed", lambda graph: 1.0)
    row, operation = {}, operations.finish((1, 2, 3, 3), "cpu", (6, 6))
    bench_operators.bench_operator(Rounds(), row, settings.Settings(device="cuda", repetitions=2), operation)
    count = len(operations.input_sets(operation, 4000))
    assert captures == [1, count, count, count] and count > 10 and row["timer"] == "graph"
    assert list(row["seconds"]) == ["copy", "copy of its bytes", "definition", "compiled"]
    assert list(row["call_seconds"]) == ["definition", "compiled"]


def test_bandwidths_are_shares_of_the_copy():
    comparison = side_by_side.SideBySide({"copy": None, "definition": None}, None)
    comparison.seconds = {"copy": [1.0, 2.0, 4.0], "definition": [2.0, 2.0, 4.0]}
    found = bench_operators.bandwidths(comparison, 2 * bench_operators.COPY_BYTES)
    assert found["copy_share"]["definition"] == {"median": 1.0, "quartiles": [0.75, 1.0]}
    assert found["gigabytes_per_second"] == {"definition": found["copy_gigabytes_per_second"]}


@pytest.mark.parametrize(("method", "batch"), [("gradcam", 2), ("eigencam", 2), ("scorecam", 1)])
def test_explanations_check_themselves(method, batch):
    sides = explanations.Sides(explanations.Explanation(method, "toy", batch), "cpu")
    outputs = {name: call() for name, call in sides.calls.items()}
    assert list(outputs) == ["call", "fastcam", "forward"]
    assert sides.check(outputs) < 1e-4
    assert sides.check({"call": outputs["call"]}) < 1e-4  # the others over their cap
    for side in ("call", "fastcam"):
        with pytest.raises(AssertionError, match=f"{method} is off its definitions"):
            sides.check({**outputs, side: outputs[side] * 0.99})
        with pytest.raises(AssertionError, match=f"{method} is off its definitions"):
            sides.check({**outputs, side: outputs[side] * np.nan})


def test_an_explanation_row():
    row = {}
    explanation = explanations.Explanation("gradcam", "toy", 2)
    bench_operators.bench_explanation(Rounds(), row, settings.Settings(device="cpu", repetitions=2), explanation)
    assert row["kind"] == "explanation" and row["network"] == "toy" and row["batch"] == 2
    assert row["timer"] == "wall clock"
    assert list(row["seconds"]) == ["call", "fastcam", "forward"] and row["difference"] < 1e-4


def test_short_calls_are_timed_together():
    calls = []
    clock = clocks.CallClock()
    short, other = (lambda: calls.append("short")), (lambda: calls.append("other"))
    assert 0 < clock(short) < 1 and 0 < clock(other) < 1
    assert calls.count("short") > 10 and calls.count("other") > 10


def test_calls_are_timed_without_what_makes_them_definitions(monkeypatch):
    begun, decide = [], ops._on_kernel

    def clock(call):
        begun.append(ops._on_kernel)
        call()
        return 1.0

    monkeypatch.setattr(bench_operators, "wall_clock", lambda device: clock)
    functions = dict.fromkeys(("kernel", "definition", "compiled"), torch.neg)
    sets = [(torch.ones(1),), (torch.ones(1),)]
    found = bench_operators.call_seconds(functions, sets, settings.Settings(repetitions=2))
    assert list(found) == list(functions) and ops._on_kernel is decide
    assert len(begun) == 9 and begun.count(decide) == 3 and begun.count(operations._never) == 6


def test_what_a_graph_cannot_hold_is_timed_by_events(monkeypatch):
    captures = []

    def refuse(call, count):
        captures.append(count)
        raise RuntimeError("operation not permitted when stream is capturing")

    testing = pytest.importorskip("triton.testing")
    monkeypatch.setattr(clocks, "_capture", refuse)
    monkeypatch.setattr(testing, "do_bench", lambda call, **_: 5.0)
    call = object()
    clock = clocks.KernelClock({call: 3})
    assert [clock(call), clock(call)] == [5e-3, 5e-3] and captures == [3] and clock.timer == "events"


def test_a_graph_is_captured_once_and_long_enough(monkeypatch):
    captures, replayed = [], []
    monkeypatch.setattr(clocks, "_capture", lambda call, count: captures.append(count) or count)
    monkeypatch.setattr(clocks, "_replayed", lambda graph: replayed.append(graph) or graph * 1e-4)
    turning, other = object(), object()
    clock = clocks.KernelClock({turning: 3})
    assert clock(turning) == pytest.approx(1e-4) and clock(turning) == pytest.approx(1e-4)
    assert captures == [3, 20] and replayed == [3, 20, 20] and clock.timer == "graph"
    clock(other)
    assert captures[2:] == [1, 20], "what takes no turns is captured once to begin with"


def test_all_that_is_compared_is_timed_by_one_clock(monkeypatch):
    def capture(call, count):
        if call == "waits":
            raise RuntimeError("operation not permitted when stream is capturing")
        return count

    testing = pytest.importorskip("triton.testing")
    monkeypatch.setattr(clocks, "_capture", capture)
    monkeypatch.setattr(clocks, "_replayed", lambda graph: 1e-3)
    monkeypatch.setattr(testing, "do_bench", lambda call, **_: 5.0)
    clock = clocks.KernelClock()
    clock.capture(["copy", "waits"])
    assert clock.fell_back and [clock("copy"), clock("waits")] == [5e-3, 5e-3]
    clock = clocks.KernelClock()
    clock.capture(["copy"])
    assert not clock.fell_back and clock("copy") == pytest.approx(1e-3 / 2)


def test_partial_maps_are_timed_with_their_sum():
    operation = operations.channel_sum((2, 8, 3, 3), "float32", "cpu")
    inputs = operation.draw()
    assert bench_operators.whole(operation, inputs) is operation.define
    parts = dataclasses.replace(operation, define=lambda A, w: (A * w[..., None, None]).unflatten(1, (4, 2)).sum(2))
    assert parts.define(*inputs).shape == (2, 4, 3, 3)
    torch.testing.assert_close(bench_operators.whole(parts, inputs)(*inputs), operation.define(*inputs))


def test_the_peak_is_that_of_a_product_of_matrices(monkeypatch):
    monkeypatch.setitem(bench_operators.MATRIX, "cpu", 32)
    row = {}
    bench_operators.bench_peak(Rounds(), row, settings.Settings(device="cpu", repetitions=2))
    assert row["kind"] == "peak" and row["difference"] < 1e-6 and row["timer"] == "wall clock"
    assert row["flops_per_second"] == pytest.approx(2 * 32**3 / row["seconds"]["product"]["median"])


@pytest.mark.gpu
def test_graph_replays_go_through_every_input():
    inputs = [(torch.full((2**20,), float(n), device="cuda"),) for n in range(5)]
    seen = torch.zeros(1, device="cuda")
    call = bench_operators.rotating(lambda x: seen.add_(x[:1]), inputs)
    clock = clocks.KernelClock({call: len(inputs)})
    assert 0 < clock(call) < 1e-3 and not clock.fell_back
    graph, count = clock._graphs[call]
    seen.zero_()
    graph.replay()
    assert count >= 5 and abs(seen.item() - 2 * count) <= 10
    assert clock(call) > 0 and clock._graphs[call][0] is graph


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="counts in Triton's interpreter")
def test_bytes_are_counted_where_masks_let_them_through():
    operation = operations.channel_reduce((1, 6, 5, 5), "bfloat16", "layercam", "cpu")
    found = traffic.traffic_of(operation)
    (launch,) = found["launches"]
    assert launch == {"bytes": 2 * 6 * 25 * 2 + 25 * 4, "distinct": 2 * 6 * 25 * 2 + 25 * 4}  # of a tile of 8 x 32
    assert found["floor"] == launch["bytes"]
    first, second = traffic.traffic_of(operations.overlay(1, "float32", "cpu", (8, 8)))["launches"]
    assert first["distinct"] < first["bytes"]  # a level's colours and a pixel's map, again and again
    assert second["bytes"] > 64 * 3 + 64 * 3 * 4 + 64 * 3 * 4


def test_the_counting_ends_with_its_block():
    builder = pytest.importorskip("triton.runtime.interpreter").interpreter_builder
    with traffic.counted():
        assert "create_masked_load" in vars(builder)
    assert "create_masked_load" not in vars(builder)


def test_widths_of_loads():
    assert bench_compiled.by_width([16, 4, 16, 2]) == {"16": 2, "8": 0, "4": 1, "2": 1, "1": 0}


def test_names_of_compiled_cases_tell_them_apart():
    assert len(bench_compiled.HERE) == len(bench_compiled.CASES)
    assert {case.operation.operator for case in bench_compiled.CASES} == operations.TOLERANCE.keys()


@pytest.mark.compile
@pytest.mark.parametrize("arch", bench_compiled.ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "launches", "widths"),
    [
        ("channel_reduce[gradcam]-2x1024x14x14-float32-contiguous", 1, {"16": 8}),  # 16 numbers a thread of A and of G
        ("principal_component-2x2048x7x7-float32-contiguous", 2, {"4": 12}),  # copies to shared memory
    ],
)
def test_what_is_known_of_a_kernel_that_never_ran(name, launches, widths, arch):
    case = next(c for c in bench_compiled.CASES if str(c.operation) == name)
    moved = {"floor": 8 * case.elements, "launches": launches * [{"bytes": 10 * case.elements, "distinct": 0}]}
    row = bench_compiled.described(case, 0, arch, moved)
    assert row["arch"] == arch and row["run"] is False and row["kernel"] == case.kernels[0].strip("_")
    assert row["bytes_per_element"] == 10 and row["floor_bytes_per_element"] == 8
    assert 16 < row["registers"] < 256 and row["spilled_bytes"] == 0 and row["shared_bytes"] > 0
    assert {width: n for width, n in row["loads"].items() if n} == widths and sum(row["stores"].values()) > 0
    with pytest.raises(AssertionError, match="when interpreted"):
        bench_compiled.described(case, 0, arch, {**moved, "launches": []})
