"""The benchmark's part on data sets: its photographs, both sides, its checks, memory and what is said of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import bench_dataset, photographs, resident
from benchmarks.inference import Decoded, Loading, in_slices, in_turn, plain_loop
from benchmarks.models import network
from benchmarks.report import goals, summary, tables
from benchmarks.report.runs import devices
from benchmarks.session import SETTINGS
from benchmarks.settings import Settings, parse
from fastcam import GradCAM
from fastcam.dataset.attribute import attribute_dataset


class Rounds:
    """Stands in for the pytest-benchmark fixture, which xdist disables."""

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds * iterations):
            target()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("photographs")
    photographs.make(found, 24)
    return found


def test_photographs_are_the_same_in_every_run_and_differ_from_each_other(folder, tmp_path):
    again = photographs.make(tmp_path, 3)
    bytes_ = [path.read_bytes() for path in again]
    assert bytes_ == [(folder / path.name).read_bytes() for path in again] and len(set(bytes_)) == 3
    assert all(50_000 < len(b) < 100_000 for b in bytes_)
    with Image.open(again[0]) as image:
        assert image.size == (500, 375) and image.mode == "RGB" and np.asarray(image).std() > 20
    again[0].write_bytes(b"another")
    assert photographs.make(tmp_path, 4)[0].read_bytes() == b"another"  # what is there stays


def test_slices_hold_every_photograph_once(folder):
    slices = in_slices(folder, 24, 10)
    assert [len(s) for s in slices] == [10, 10]
    assert [name for s in slices for name in s.names] == [f"{n:05d}.jpg" for n in range(20)]
    taken = in_turn(len, [range(1), range(2)])
    assert [taken() for _ in range(3)] == [1, 2, 1]


def test_the_plain_loop_predicts_what_the_model_does(folder):
    (images,) = in_slices(folder, 6, 6)
    net = network("toy", "cpu")
    found = plain_loop(net, images, Loading(4, 0), "cpu")
    with torch.no_grad():
        expected = [int(net(images.inputs(images[i][0][None])).argmax()) for i in range(6)]
    assert found.tolist() == expected
    decoded = Decoded(300, 64)
    assert len(decoded) == 300 and torch.equal(decoded[0][0], decoded[256][0])
    assert not torch.equal(decoded[0][0], decoded[1][0])


@pytest.fixture(scope="module")
def case(folder):
    found = bench_dataset.Case.of("toy", 8, "cpu", folder, 12)
    return replace(found, loading=Loading(8, 0))


def test_a_right_output_passes_its_check_and_a_wrong_one_is_seen(case, tmp_path):
    maps, predicted = case.sides(tmp_path)["fastcam"](), case.sides(tmp_path)[bench_dataset.PLAIN]()
    assert 0 < bench_dataset.check(case, maps, predicted) < bench_dataset.TOLERANCE
    with pytest.raises(AssertionError, match="predicted classes are not those"):
        bench_dataset.check(case, maps, (predicted + 1) % 10)
    cam = GradCAM(case.problem.net, "layer3")
    other = attribute_dataset(cam, case.slices[0], tmp_path / "layer3", batch_size=8, workers=0)
    with pytest.raises(AssertionError, match="maps differ from those of calls"):
        bench_dataset.check(case, other, predicted)
    few = replace(case, slices=in_slices(case.slices[0].root, 13, 13))
    with pytest.raises(AssertionError, match="12 of 13 images were explained"):
        bench_dataset.check(few, maps, None)


def test_images_in_memory_take_the_same_way(case, tmp_path):
    case = replace(case, slices=[Decoded(12, 64)])
    maps, predicted = (side() for side in reversed(case.sides(tmp_path).values()))
    assert bench_dataset.check(case, maps, predicted) < bench_dataset.TOLERANCE and maps[0].shape == (64, 64)


def test_every_call_writes_to_a_folder_of_its_own_and_leaves_the_other_side_alone(case, tmp_path):
    sides = case.sides(tmp_path)
    sides["fastcam"](), sides["fastcam"]()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert all((path / "shards" / "000000.npz").exists() for path in tmp_path.iterdir())


def test_throughput_from_end_to_end(folder, monkeypatch):
    monkeypatch.setitem(bench_dataset.AMOUNTS, "cpu", bench_dataset.Amount("toy", 8, 24, 8))
    monkeypatch.setattr(bench_dataset, "usual_workers", lambda: 0)
    row = {"case": "dataset", "model": "toy"}
    bench_dataset.bench_throughput(Rounds(), row, Settings(device="cpu", repetitions=2), folder, "toy", 8)
    assert (row["repetitions"], row["images"]) == (3, 8)  # every slice once at least
    assert set(row["ratios"]) == {"fastcam/plain loop"} and row["over_cap"] == {} and row["difference"] < 0.0025
    assert row["images_per_second"]["fastcam"] == pytest.approx(8 / row["seconds"]["fastcam"]["median"])


def test_memory_is_looked_at_early_between_and_at_the_end(folder):
    if not resident.KNOWN:
        pytest.skip("the system does not say")
    found = resident.resident(folder, 24, "toy", Loading(4, 0), early=8)
    assert found["images"] == [8, 12, 16, 20, 24] and found["workers"] == [0] * 5
    assert all(10**8 < size < 10**10 for size in found["process"])
    before = resident._bytes("self")
    held = torch.ones(2**25)  # 128 MiB
    assert resident._bytes("self") - before == pytest.approx(held.nbytes, rel=0.05)


def test_memory_is_a_median_over_batches_and_a_leak_is_seen():
    noise = [0, 50, -50, 0, 90]
    flat = resident.curve([(16 * n, 1000 + noise[n % 5], 7) for n in range(1, 126)], 200)
    assert flat["images"][0] == 208 and flat["images"][-1] == 2000 and len(flat["images"]) == 11
    assert set(flat["process"]) == {1000} and set(flat["workers"]) == {7}
    leak = resident.curve([(16 * n, 1000 + n, 7) for n in range(1, 126)], 200)
    assert leak["process"][-1] - leak["process"][0] == 125 - 13


def test_memory_is_that_of_another_process_and_its_workers(folder):
    if not resident.KNOWN:
        pytest.skip("the system does not say")
    found = resident.measure(folder, 8, "toy", Loading(4, 1), 1)
    assert found["images"] == [8] and found["process"][0] > 10**8 and found["workers"][0] > 10**7


def cases_of(fixtures, *arguments, device="cpu"):
    given = []
    config = SimpleNamespace(stash={SETTINGS: replace(parse([*arguments]), device=device)})
    told = {"config": config, "parametrize": lambda names, cases, ids: given.extend(cases)}
    metafunc = SimpleNamespace(fixturenames=fixtures, **told)
    bench_dataset.pytest_generate_tests(metafunc)
    return given


def test_the_cases_of_a_command_line():
    both = ["benchmark", "row"], ["row"]  # fixtures of throughput and of resident memory
    assert parse(["dataset"]).cases == ("dataset",) and not parse(["dataset", "--images", "40"]).recorded
    assert [cases_of(f, "dataset") for f in both] == [[("resnet18", 16)]] * 2
    assert [cases_of(f, "dataset", device="cuda") for f in both] == [[("resnet50", 128)], []]
    assert cases_of(both[0], "dataset", "--model", "toy", "--batch", "4") == [("toy", 4)]
    assert cases_of(both[0], "--model", "vgg16") == cases_of(both[0], "--method", "eigencam") == []


def recorded(*rows, **hardware):
    head = {"set": None, "date": "2026-01-02", "commit": "0123abc", "dirty": False, "repetitions": 7, "tf32": False}
    head |= {"device": "cuda" if hardware else "cpu", "versions": {}, "threads": 2, "failed": [], "left_out": []}
    return {**head, "hardware": {"cpu": "A CPU", "cores": 2, **hardware}, "rows": list(rows)}


def throughput(share, model="resnet18"):
    ratios = {"fastcam/plain loop": {"median": 1 / share, "quartiles": [0.99 / share, 1.01 / share]}}
    rates = {"plain loop": 40.0, "fastcam": 40 * share}
    known = {"case": "dataset", "kind": "throughput", "model": model, "method": "gradcam", "batch": 16, "workers": 2}
    return {**known, "images": 250, "data": "JPEG", "difference": 0.0005, "ratios": ratios, "images_per_second": rates}


def memory(last):
    found = {"images": [208, 1104, 2000], "process": [10**9, 10**9, last], "workers": [7 * 10**8] * 3}
    known = {"case": "dataset", "kind": "resident memory", "model": "resnet18", "method": "gradcam", "batch": 16}
    return {**known, "workers": 2, "resident": found, "growth": {"process": last / 10**9, "workers": 1.0}}


def test_goals_of_data_sets():
    text = {"share": "a data set of JPEGs", "growth": "a data set of 2,000", "on a GPU": "a data set in memory"}

    def verdicts(*results):
        found = {o.goal.text: o.verdict for o in goals.outcomes(devices(results))}
        return {name: next(v for t, v in found.items() if t.startswith(begin)) for name, begin in text.items()}

    none = dict.fromkeys(text, "not measured yet")
    assert verdicts() == none
    assert verdicts(recorded(throughput(0.91))) == none | {"share": "holds"}
    assert verdicts(recorded(throughput(0.89), memory(1.04e9))) == none | {"share": "does not hold", "growth": "holds"}
    assert verdicts(recorded(memory(1.06e9))) == none | {"growth": "does not hold"}
    on_gpu = recorded(throughput(0.94, "resnet50"), gpu="A GPU", driver="1")
    assert verdicts(on_gpu) == none | {"on a GPU": "does not hold"}


def test_the_tables_say_images_a_second_and_megabytes():
    results = [recorded(throughput(0.8), memory(1.06e9))]
    shown = tables.of_runs(results)
    assert "### Data sets\n" in shown and "### Data sets, memory\n" in shown
    assert "| resnet18 | gradcam | 16 | 2 | JPEG | 250 | 40.0 | 32.0 | 80% (79%–81%) | 0.0005 |" in shown
    assert "| resnet18 | gradcam | 16 | 2 | 1000 (208) to 1060 (2000) | 700 (208) to 700 (2000) |" in shown
    block = summary.block(devices(results), lambda device: "", "docs/benchmarks.md")
    assert "images/s, share of a plain loop's ≥ 90% | 80.0% (79.2%–80.8%): gradcam, resnet18, batch 16" in block
    assert "Losses: rows that miss another goal." in block
