"""The operators under compute-sanitizer, each of whose tools is shown to find what it is for.

memcheck is in every run of the GPU tests, the others with -m "gpu and slow": compilers run slowly under them.
Memory is not taken from PyTorch's pool here: in a pool what lies behind a tensor belongs to the program, too.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton

import sanitized
from gpu_cases import OPERATIONS, PYTORCHS, Operation

TOOLS = {"memcheck": "read", "initcheck": "empty", "racecheck": "race", "synccheck": "diverged"}
HERE = Path(__file__).parent
FOLDERS = (
    "/usr/local/cuda*/bin",
    "/usr/local/cuda*/compute-sanitizer",
    "/opt/nvidia/*/compute-sanitizer",
    "/opt/cuda*/bin",
)
SLOW = pytest.mark.slow
LIMIT = 170  # seconds of a run; there are three, and ten minutes for all tests
FOUND = 9  # what compute-sanitizer exits with


def sanitizer() -> str | None:
    """On the path, in the CUDA toolkit, or beside what Triton brings along."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [*(f"{home}/bin" for home in named), *FOLDERS]
    folders.append(f"{Path(triton.__file__).parent}/backends/nvidia/**")
    inside = [match for folder in folders for match in sorted(glob.glob(f"{folder}/compute-sanitizer", recursive=True))]
    return next((f for f in [shutil.which("compute-sanitizer"), *inside] if f and os.access(f, os.X_OK)), None)


def command(tool: str, program: str, what: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only"]
    # PyTorch asks the driver for things that may be refused: no error of a kernel's.
    options += ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [program, *options, sys.executable, str(HERE / "sanitized.py"), what]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(paths)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": LIMIT}
    try:
        return subprocess.run(arguments, env=surroundings, **options)
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"")[-3000:].decode(errors="replace")
    pytest.fail(f"not done after {LIMIT} s: {' '.join(arguments)}\n{output}", pytrace=False)


@pytest.mark.gpu
@pytest.mark.parametrize("tool", [pytest.param(tool, marks=[] if tool == "memcheck" else SLOW) for tool in TOOLS])
def test_operators(tool):
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    if TOOLS[tool] in ("race", "diverged") and not hasattr(torch.cuda, "_compile_kernel"):
        pytest.skip("this PyTorch compiles no CUDA source, by which to show that the tool finds anything")
    wrong = run(command(tool, program, TOOLS[tool]))
    if any(refusal in wrong.stdout for refusal in ("Device not supported", "not supported on this")):
        pytest.skip(f"compute-sanitizer refuses this device: {wrong.stdout[-300:]}")
    assert wrong.returncode == FOUND, f"{tool} does not find what is wrong:\n{wrong.stdout[-3000:]}"
    what = "operators" if tool == "memcheck" else "ours"
    alone = run([sys.executable, str(HERE / "sanitized.py"), what])  # leaves the kernels in Triton's cache
    assert alone.returncode == 0, alone.stdout[-5000:]
    done = run(command(tool, program, what))
    assert "ran to the end" in done.stdout and done.returncode == 0, done.stdout[-5000:]


def test_a_program_that_takes_too_long_is_a_failure_that_says_so(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 0.2)
    with pytest.raises(pytest.fail.Exception, match=r"not done after 0.2 s: .*time\.sleep\(30\)"):
        run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(30)"])


def test_pytorchs_own_kernels_are_left_to_memcheck(monkeypatch):
    ran = []
    for name in OPERATIONS:
        record = Operation(lambda name=name: ran.append(name), tuple)
        monkeypatch.setitem(OPERATIONS, name, record)
    for what, names in (("operators", [*OPERATIONS]), ("ours", [n for n in OPERATIONS if n not in PYTORCHS])):
        ran.clear()
        sanitized.main(what)
        assert list(dict.fromkeys(ran)) == names


def test_the_program_that_is_checked_runs():
    """Without the sanitizer, on whatever there is: one wrong kernel, which goes unnoticed."""
    done = run([sys.executable, str(HERE / "sanitized.py"), "empty"])
    assert done.returncode == 0 and "ran to the end" in done.stdout, done.stdout
