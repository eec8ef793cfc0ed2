"""What a GPU adds: work that is queued in streams, memory that is used again, more than one device, waiting."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from fastcam import ops
from fastcam.methods import METHODS

from gpu_cases import EVERY, OPERATIONS, TOKENS, explanation, on_resnet
from test_untouched import assert_same, snapshot

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]
LONG = 2 * 10**8  # cycles that a stream sleeps for: 0.1 s, far longer than the host takes to queue a call
CALLS = [f"ops.{name}" for name in OPERATIONS] + list(EVERY)
FROM_NUMPY = "randomcam"  # draws from one generator of numpy's, whose order two threads share


def call(name, device, seed=0):
    """A function without state on tensors, and such tensors on the device: an operator's or a method's."""
    torch.manual_seed(seed)
    if name.startswith("ops."):
        operation = OPERATIONS[name.removeprefix("ops.")]
        return operation.run, operation.inputs(device)
    case = explanation(name, device)
    return case, [(case.x + 0.1 * seed * torch.randn_like(case.x)).to(device)]


def stale(inputs):
    """Memory for the inputs in which there is something else: NaN, and whole numbers that are 0."""
    return [torch.full_like(t, float("nan")) if t.is_floating_point() else torch.zeros_like(t) for t in inputs]


@contextmanager
def queued(inputs, cycles=LONG):
    """A stream in which the inputs arrive late, and the memory into which they do."""
    arriving, stream = stale(inputs), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(cycles)
        for memory, t in zip(arriving, inputs, strict=True):
            memory.copy_(t)
        yield arriving


@pytest.mark.parametrize("name", CALLS)
def test_work_is_queued_in_the_stream_of_the_caller(device, name):
    run, inputs = call(name, device)
    expected = run(*inputs)
    with queued(inputs) as late:
        result = run(*late)
        torch.cuda.current_stream().synchronize()
        assert torch.equal(result, expected)


def test_another_stream_would_read_what_was_there_before(device):
    """The check above can fail: the same kernel from a stream that does not wait."""
    operation = OPERATIONS["channel_reduce gradcam"]
    inputs = operation.inputs(device)
    expected = operation.run(*inputs)
    with queued(inputs, 10 * LONG) as late:  # other processes take turns on the GPU
        with torch.cuda.stream(torch.cuda.Stream()):
            early = operation.run(*late)
            torch.cuda.current_stream().synchronize()
        assert early.isnan().all()
        torch.cuda.current_stream().synchronize()
    assert torch.equal(operation.run(*late), expected)


@pytest.mark.parametrize("name", CALLS)
def test_two_streams_from_one_thread(device, name):
    calls = [call(name, device, seed) for seed in (0, 1)]
    expected = [run(*inputs) for run, inputs in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    for stream in streams:  # both are filled before either begins
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG // 10)
    results = []
    for _ in range(2):
        for (run, inputs), stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(*inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected[n % 2]) for n, result in enumerate(results))


@pytest.mark.parametrize("name", [name for name in CALLS if name != FROM_NUMPY])
def test_two_streams_from_two_threads(device, name):
    """Methods share their network: its hooks and its mode are the other thread's, too."""
    (run, inputs), (_, others) = (call(name, device, seed) for seed in (0, 1))
    given = [inputs, others]
    expected = [run(*tensors) for tensors in given]
    another = run if name.startswith("ops.") else run.with_a_method_of_its_own()
    both, results, errors = threading.Barrier(2), {0: [], 1: []}, []

    def work(n, run):
        try:
            both.wait(60)
            with torch.cuda.stream(torch.cuda.Stream()):
                results[n] = [run(*given[n]) for _ in range(4)]
                torch.cuda.current_stream().synchronize()
        except Exception as error:
            errors.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=pair) for pair in ((0, run), (1, another))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    for n in (0, 1):
        assert len(results[n]) == 4 and all(torch.equal(result, expected[n]) for result in results[n])


@pytest.mark.parametrize("name", CALLS)
def test_results_repeat_to_the_bit(device, name):
    """Again, and in memory that is full of NaN."""
    run, inputs = call(name, device)
    first = run(*inputs)
    again = run(*inputs)
    torch.cuda.synchronize()
    filling = [torch.full((2**n,), float("nan"), device=device) for n in range(4, 25) for _ in range(4)]
    torch.cuda.synchronize()
    del filling
    refilled = run(*inputs)
    assert first.isfinite().all() and torch.equal(first, again) and torch.equal(first, refilled)


@pytest.mark.parametrize("name", EVERY)
def test_the_model_is_untouched(device, name):
    case = explanation(name, device)
    next(case.net.parameters()).grad = torch.ones_like(next(case.net.parameters()))
    x = case.x.to(device).requires_grad_()
    case.net.train()
    before, image, draws = snapshot(case.net), x.detach().clone(), torch.cuda.get_rng_state(device)
    case(x)
    assert_same(before, snapshot(case.net))
    assert torch.equal(x, image) and x.grad is None
    assert torch.equal(torch.cuda.get_rng_state(device), draws), "random numbers were drawn"


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_do_not_wait(device, name):
    run, inputs = call(f"ops.{name}", device)
    run(*inputs)
    with errors_on_waiting():
        run(*inputs)


@pytest.mark.parametrize("name", [*ops.WEIGHTINGS, "eigencam", "eigengradcam"])
def test_predicted_classes_are_explained_without_waiting(device, name):
    """From the second call on: the first asks whether the gradient is 0 everywhere."""
    case = on_resnet(name, device=device)
    x = case.x.to(device)
    expected = case(x)
    with errors_on_waiting():
        result = case.method.attribute(x)
    assert torch.equal(result, expected)


def test_waiting_is_an_error(device):
    """The checks above can fail."""
    with errors_on_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3, device=device).any().item()


@contextmanager
def errors_on_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def second():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    return torch.device("cuda", 1)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_gpu_while_the_first_is_the_current_one(second, name):
    run, inputs = call(name, torch.device("cuda", 0))
    expected = run(*inputs)
    elsewhere, moved = call(name, second)
    assert torch.cuda.current_device() == 0
    result = elsewhere(*moved)
    assert result.device == second and torch.cuda.current_device() == 0
    torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in TOKENS])
def test_images_are_brought_to_the_models_gpu(second, name):
    case = explanation(name, second)
    assert case(case.x.to("cuda:0")).device == second and torch.cuda.current_device() == 0


def test_every_method_is_called():
    assert {*METHODS, *TOKENS} < set(CALLS)
