"""What a run was measured on. No path and no host name."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastcam
from benchmarks.settings import Settings

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "grad-cam", "torchcam", "captum", "flashtorch")


def slug(device: str) -> str:
    """The name of the device in file names: `cpu`, or the GPU's own such as `nvidia-h100-80gb-hbm3`."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: str, settings: Settings) -> dict[str, Any]:
    """The head of a results file: when (UTC), which commit, which hardware, which versions."""
    commit, dirty = (settings.commit, None) if settings.commit else _commit()
    return {
        "device": device,
        "set": settings.set_name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        "dirty": dirty,
        "hardware": _hardware(device),
        "versions": _versions(device),
        "threads": torch.get_num_threads(),
        "repetitions": settings.repetitions,
        "tf32": False,
    }


def _commit() -> tuple[str | None, bool | None]:
    """The commit and whether files beside it are changed; None where there is no git."""
    head, changes = _output("git", "rev-parse", "--short=12", "HEAD"), _output("git", "status", "--porcelain")
    return head, None if changes is None else bool(changes)


def _hardware(device: str) -> dict[str, Any]:
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0))}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        hardware |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        }
    return hardware


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", file.read_text()) if file.exists() else None
    return found[1] if found else platform.machine()


def _versions(device: str) -> dict[str, str]:
    """Of all that is compared, too where it is not there: a table without a peer says why."""
    found = {"python": platform.python_version(), "fastcam": fastcam.__version__}
    found |= {name: _version(name) for name in _PACKAGES}
    if device == "cuda":
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str | None:
    """What a command prints, from the repository's root; None if it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
