"""The most memory that tensors allocated during a call hold at one time."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Peak bytes of the tensors that a call allocates, see `meter`."""
    with meter(device) as peak:
        call()
    return peak[0]


def meter(device: str) -> AbstractContextManager[list[int]]:
    """Gives a list into which, at the end of the block, the peak bytes of the tensors go that the block allocates.

    What was there before, weights and input, is not counted. On a CPU from the profiler's memory events, numpy's arrays
    and scratch space inside oneDNN are not seen; on a GPU from the allocator's own peak, the host's memory is not seen.
    """
    gc.collect()  # cycles, as of grad-cam with its hooks, would be freed at some time in the block
    return _on_gpu() if device == "cuda" else _on_cpu()


@contextmanager
def _on_gpu() -> Iterator[list[int]]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, peak = torch.cuda.memory_allocated(), list[int]()
    yield peak
    torch.cuda.synchronize()
    peak.append(torch.cuda.max_memory_allocated() - before)


@contextmanager
def _on_cpu() -> Iterator[list[int]]:
    peak: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    peak.append(_highest(sorted(changes, key=lambda e: e["ts"])))


def _highest(changes: list[dict[str, Any]]) -> int:
    """The highest sum of live bytes over memory events in time order; frees of what is not theirs do not count."""
    live: dict[int, int] = {}
    now = peak = 0
    for change in changes:
        address, size = change["args"]["Addr"], change["args"]["Bytes"]
        if size > 0:
            live[address] = size
            now += size
        else:
            now -= live.pop(address, 0)
        peak = max(peak, now)
    return peak
