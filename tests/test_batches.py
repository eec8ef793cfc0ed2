"""The queue of rows: its batch sizes, what it does when memory is short, its progress bar."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcam import GroupCAM, ScoreCAM, batches
from fastcam.batches import BatchSize, in_batches, is_out_of_memory

from models import TinyNet, tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that only `Rows` and looking at it advance."""

    def look():
        Rows.now += 1e-6
        return Rows.now

    monkeypatch.setattr(batches.time, "perf_counter", look)


class Rows:
    """Counts its calls, takes so many seconds of a clock, and runs out of memory above `fits` rows."""

    now = 0.0

    def __init__(self, fits=10**9, seconds=lambda n: 0.001):
        self.calls, self.fits, self.seconds = [], fits, seconds

    def __call__(self, start, stop):
        self.calls.append(stop - start)
        if stop - start > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        Rows.now += self.seconds(stop - start)
        return torch.arange(start, stop)[:, None]


def run(rows, run_rows, size):
    result = in_batches(rows, run_rows, size)
    assert torch.equal(result, torch.arange(rows)[:, None])  # no row lost, none twice, all in order
    return run_rows.calls


def test_a_given_size_is_kept_to():
    assert run(25, Rows(), BatchSize(10, CPU)) == [10, 10, 5]
    assert run(3, Rows(), BatchSize(np.int64(10), CPU)) == [3]


def test_an_automatic_size_grows_while_it_gets_faster():
    size = BatchSize("auto", CPU)
    assert run(200, Rows(seconds=lambda n: 0.02), size) == [8, 8, 16, 16, 32, 32, 64, 24]
    assert run(128, Rows(seconds=lambda n: 0.02), size) == [64, 64]


def test_an_automatic_size_stays_where_larger_is_no_faster():
    size = BatchSize("auto", CPU)
    assert run(80, Rows(seconds=lambda n: 0.003 * n), size) == [8, 8, 16, 16, 8, 8, 8, 8]
    assert run(20, Rows(), size) == [8, 8, 4]


@pytest.mark.parametrize("fits", [1, 3, 8, 20])
def test_an_automatic_size_is_halved_when_memory_runs_out(fits):
    size, rows = BatchSize("auto", CPU), Rows(fits, lambda n: 0.01)
    calls = run(100, rows, size)
    done = [n for n in calls if n <= fits]
    assert sum(done) == 100 and len(calls) - len(done) <= 3
    assert max(run(50, Rows(fits), size)) <= fits  # remembered


def test_what_does_not_fit_at_all_is_an_error():
    for size, rows in [(BatchSize("auto", CPU), Rows(fits=0)), (BatchSize(4, CPU), Rows(fits=3))]:
        with pytest.raises(torch.OutOfMemoryError):
            in_batches(10, rows, size)


def test_which_errors_mean_that_memory_is_short():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        in_batches(10, lambda a, b: (_ for _ in ()).throw(RuntimeError("shapes")), BatchSize("auto", CPU))


class Small(TinyNet):
    """Has memory for 5 images, after the first batch."""

    batches = ()

    def forward(self, x):
        self.batches = (*self.batches, len(x))
        if len(x) > 5 and len(self.batches) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_score_cam_when_memory_is_short():
    x = torch.randn(2, 3, 20, 24)
    net = tiny(Small)
    actual = ScoreCAM(net, "tail")(x, 1)
    np.testing.assert_allclose(actual, ScoreCAM(tiny(), "tail", batch_size=16)(x, 1), atol=1e-5)
    assert net.batches == (2, 8, 4, 4, 4, 4, 4, 4, 4, 4)
    with pytest.raises(torch.OutOfMemoryError):
        ScoreCAM(tiny(Small), "tail", batch_size=16)(x, 1)


class Tight(TinyNet):
    """Has memory for 3 images with what a recorded run keeps, and for as many as you like otherwise."""

    def forward(self, x):
        hooked = self.body._forward_hooks
        if len(x) > 3 and hooked:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


@pytest.mark.parametrize("targets", [None, 1, [0, 1, 2, 3, 4, 0, 1], torch.arange(14).view(7, 2) % 5])
def test_images_whose_recorded_run_is_too_large_go_in_parts(targets):
    x, net = torch.randn(7, 3, 20, 24), tiny(Tight)
    cam, whole = GroupCAM(net, "body", groups=3), GroupCAM(tiny(), "body", groups=3, batch_size=16)
    np.testing.assert_allclose(cam(x, targets), whole(x, targets), atol=1e-5)
    torch.testing.assert_close(cam.outputs, whole.outputs)
    with pytest.raises(torch.OutOfMemoryError):
        GroupCAM(net, "body", groups=3, batch_size=7)(x, targets)  # a size that the user chose is kept to


def test_a_bar_on_request(capfd):
    x = torch.randn(1, 3, 20, 24)
    ScoreCAM(tiny(), "tail")(x, 1)
    assert capfd.readouterr() == ("", "")
    ScoreCAM(tiny(), "tail", progress=True)(x, 1)
    assert "ScoreCAM tail" in capfd.readouterr().err
