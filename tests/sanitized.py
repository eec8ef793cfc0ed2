"""What runs under compute-sanitizer: `python sanitized.py operators`, or a kernel that is wrong on purpose.

read      a Triton kernel that reads behind the end of its input               (memcheck)
empty     one that reads what nothing has written                              (initcheck)
race      a block whose threads read shared memory without waiting             (racecheck)
diverged  a barrier that half a warp does not reach                            (synccheck)
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from gpu_cases import OPERATIONS

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


def operators() -> None:
    for operation in OPERATIONS.values():
        for dtype in (torch.float32, torch.bfloat16):
            if DEVICE == "cuda" or dtype == torch.float32:
                operation.run(*operation.inputs(DEVICE, dtype))
        operation.run(*operation.inputs(DEVICE, last=True))


def wrong(what: str) -> None:
    if what in SOURCES:
        kernel = torch.cuda._compile_kernel(SOURCES[what], "wrong")
        kernel(grid=(1, 1, 1), block=(64, 1, 1), args=[torch.zeros(64, device=DEVICE)])
        return
    x = torch.ones(1000, device=DEVICE) if what == "read" else torch.empty(1000, device=DEVICE)
    _double[(1,)](x, torch.zeros(1024, device=DEVICE), 1024 if what == "read" else 1000, 1024)


if __name__ == "__main__":
    operators() if sys.argv[1] == "operators" else wrong(sys.argv[1])
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print("ran to the end")
