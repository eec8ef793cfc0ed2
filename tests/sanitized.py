"""What runs under compute-sanitizer: `python sanitized.py WHAT`, operators or a kernel that is wrong on purpose.

operators  all of them                                                          (memcheck)
ours       those whose kernels are all ours, not PyTorch's                      (the other tools)
read       a Triton kernel that reads behind the end of its input               (memcheck)
empty      one that reads what nothing has written                              (initcheck)
race       a block whose threads read shared memory without waiting             (racecheck)
diverged   a barrier that half a warp does not reach                            (synccheck)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
import triton
import triton.language as tl

from gpu_cases import OPERATIONS, PYTORCHS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SOURCES = {
    "race": """extern "C" __global__ void wrong(float* out) {
        __shared__ float values[64];
        values[threadIdx.x] = threadIdx.x;
        out[threadIdx.x] = values[63 - threadIdx.x];
    }""",
    "diverged": """extern "C" __global__ void wrong(float* out) {
        if (threadIdx.x % 32 < 16) __syncthreads();
        out[threadIdx.x] = threadIdx.x;
    }""",
}


@triton.jit
def _double(x, out, N: tl.constexpr, BLOCK: tl.constexpr):
    """Twice x; right if N is its length."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, 2 * tl.load(x + i, mask=i < N, other=0), mask=i < N)


def operators(names: Iterable[str]) -> None:
    for operation in map(OPERATIONS.__getitem__, names):
        operation.run(*operation.inputs(DEVICE))
        if DEVICE == "cuda":
            operation.run(*operation.inputs(DEVICE, torch.bfloat16))
        operation.run(*operation.inputs(DEVICE, torch.float16, last=True))


def wrong(what: str) -> None:
    if what in SOURCES:
        kernel = torch.cuda._compile_kernel(SOURCES[what], "wrong")
        kernel(grid=(1, 1, 1), block=(64, 1, 1), args=[torch.zeros(64, device=DEVICE)])
        return
    x = torch.ones(1000, device=DEVICE) if what == "read" else torch.empty(1000, device=DEVICE)
    _double[(1,)](x, torch.zeros(1024, device=DEVICE), 1024 if what == "read" else 1000, 1024)


def main(what: str) -> None:
    if what in ("operators", "ours"):
        operators([name for name in OPERATIONS if what == "operators" or name not in PYTORCHS])
    else:
        wrong(what)


if __name__ == "__main__":
    main(sys.argv[1])
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print("ran to the end")
