"""The most memory that tensors allocated during a call hold at one time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Peak bytes of the tensors that a call allocates; what was there before, weights and input, is not counted.

    On a CPU from the profiler's memory events, numpy's arrays and scratch space inside oneDNN are not seen; on a GPU
    from the allocator's own peak, the host's memory is not seen.
    """
    return _peak_on_gpu(call) if device == "cuda" else _peak_on_cpu(call)


class Metered:
    """A call of which the first run is metered: its `peak`, None before, is what `peak_bytes` says."""

    def __init__(self, call: Callable[[], Any], device: str) -> None:
        self.call, self.device = call, device
        self.peak: int | None = None

    def __call__(self) -> Any:
        if self.peak is not None:
            return self.call()
        found: list[Any] = []
        self.peak = peak_bytes(lambda: found.append(self.call()), self.device)
        return found[0]


def _peak_on_gpu(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(call: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    return _highest(sorted(changes, key=lambda e: e["ts"]))


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
