"""Compile Triton launches for a GPU that is not here. Nothing runs."""

import contextlib
import pathlib
import re
import subprocess
import tempfile

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class _OfflineDriver:
    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch  # also keeps the caches of the architectures apart

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


@contextlib.contextmanager
def compile_only(arch):
    """In the block a kernel launch compiles for sm_<arch> instead; yields the list of what was compiled."""
    compiled, launch = [], JITFunction.run

    def compile_instead(self, *args, grid, warmup, **kwargs):
        compiled.append(launch(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    driver.set_active(_OfflineDriver(arch))
    JITFunction.run = compile_instead
    try:
        yield compiled
    finally:
        JITFunction.run = launch
        driver.set_active(None)  # triton looks for the real driver on next use


def registers_and_spills(kernel):
    """What ptxas says: registers a thread, bytes spilled."""
    ptx = kernel.asm["ptx"]
    gpu = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "kernel.ptx")
        source.write_text(ptx)
        ptxas = get_ptxas(kernel.metadata.target.arch).path
        command = [ptxas, "-v", f"--gpu-name={gpu}", source, "-o", source.with_suffix(".cubin")]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", log)[1]), sum(map(int, re.findall(r"(\d+) bytes spill", log)))


def global_bytes(kernel, access="ld"):
    """Bytes a thread moves in each global load ("ld") or store ("st") of the PTX."""
    found = re.findall(rf"{access}\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", kernel.asm["ptx"])
    return [int(count or 1) * int(bits) // 8 for count, bits in found]
