"""The operators under compute-sanitizer, each of whose tools is shown to find what it is for.

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

TOOLS = {"memcheck": "read", "initcheck": "empty", "racecheck": "race", "synccheck": "diverged"}
HERE = Path(__file__).parent
FOLDERS = (
    "/usr/local/cuda*/bin",
    "/usr/local/cuda*/compute-sanitizer",
    "/opt/nvidia/*/compute-sanitizer",
    "/opt/cuda*/bin",
)
FOUND = 9  # what compute-sanitizer exits with


def sanitizer() -> str | None:
    """On the path, in the CUDA toolkit, or beside what Triton brings along."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [*(f"{home}/bin" for home in named), *FOLDERS]
    try:
        import triton

        folders.append(f"{Path(triton.__file__).parent}/backends/nvidia/**")
    except ImportError:
        pass
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
    return subprocess.run(
        arguments, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tool", TOOLS)
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
    done = run(command(tool, program, "operators"))
    assert "ran to the end" in done.stdout and done.returncode == 0, done.stdout[-5000:]


def test_the_program_that_is_checked_runs():
    """Without the sanitizer, on whatever there is: one wrong kernel, which goes unnoticed."""
    done = run([sys.executable, str(HERE / "sanitized.py"), "empty"])
    assert done.returncode == 0 and "ran to the end" in done.stdout, done.stdout
