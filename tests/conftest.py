"""No GPU: kernels run in Triton's interpreter. The variable must be set before anything imports triton."""

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # two pytest workers on two cores: one thread each, numpy's too
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402

torch.set_num_threads(1)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(config, items):
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}  # not item.keywords, in which the folder's name is, too
        if "gpu" in marks and DEVICE.type != "cuda":
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "compile" in marks and interpreting:
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1; run: TRITON_INTERPRET=0 pytest -m compile"))
        if "slow" in marks and "slow" not in config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="slow; run: pytest -m slow"))


def pytest_terminal_summary(terminalreporter):
    """What each kernel needs, one line a kernel and GPU, from what the compile tests printed."""
    reports = [r for r in terminalreporter.stats.get("passed", []) if "compile" in r.keywords]
    if lines := {line for report in reports for line in report.capstdout.splitlines() if line.startswith("sm_")}:
        terminalreporter.section("registers and shared memory")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(scope="session")
def processes():
    """What starts processes of their own; see forked.py."""
    from forked import Processes

    with Processes() as started:
        yield started


@pytest.fixture
def full_precision():
    """fp32 without TF32, and convolutions whose results repeat to the bit."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    usual = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = usual


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """torch.empty and its relatives return NaN, so an element that no kernel wrote is caught."""

    def poison(allocate):
        def poisoned(*args, **kwargs):
            out = allocate(*args, **kwargs)
            with torch.no_grad():
                return out.fill_(float("nan")) if out.is_floating_point() and not out.is_meta else out

        return poisoned

    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
