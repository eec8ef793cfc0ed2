"""Compile Triton launches for a GPU that is not here. Nothing runs."""

from __future__ import annotations

import contextlib
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class _OfflineDriver:
    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # also keeps the caches of the architectures apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compile_only(arch: int) -> Iterator[list[Any]]:
    """In the block a kernel launch compiles for sm_<arch> instead; yields the list of what was compiled."""
    compiled: list[Any] = []
    launch = JITFunction.run

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(launch(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    driver.set_active(_OfflineDriver(arch))
    JITFunction.run = compile_instead
    try:
        yield compiled
    finally:
        JITFunction.run = launch
        driver.set_active(None)  # triton looks for the real driver on next use


def registers_and_spills(kernel: Any) -> tuple[int, int]:
    """What ptxas says: registers a thread, bytes spilled."""
    ptx = kernel.asm["ptx"]
    (gpu,) = re.findall(r"\.target (sm_\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "kernel.ptx")
        source.write_text(ptx)
        ptxas = get_ptxas(kernel.metadata.target.arch).path
        command = [ptxas, "-v", f"--gpu-name={gpu}", source, "-o", source.with_suffix(".cubin")]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", log)
    return int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", log)))


def global_bytes(kernel: Any, access: str = "ld") -> list[int]:
    """Bytes a thread moves in each global load ("ld") or store ("st") of the PTX; copies to shared memory are loads."""
    ptx = kernel.asm["ptx"]
    found = re.findall(rf"{access}\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    copied = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx) if access == "ld" else []
    return [int(count or 1) * int(bits) // 8 for count, bits in found] + [int(size, 0) for size in copied]
