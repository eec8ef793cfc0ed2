"""What a case enters into its row once its outputs are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.memory import Metered
from benchmarks.side_by_side import SideBySide


def timed(benchmark: Any, comparison: SideBySide, repetitions: int, batch: int) -> dict[str, Any]:
    """The repetitions, images per second of each side, and the memory of those that are `Metered`."""
    row = comparison.run(benchmark, repetitions)
    rates = {name: batch / spread["median"] for name, spread in row["seconds"].items()}
    metered = {name: call.peak for name, call in comparison.sides.items() if isinstance(call, Metered)}
    peaks = {name: peak for name, peak in metered.items() if peak is not None}
    return {**row, "images_per_second": rates, **memory(peaks)}


def memory(peaks: Mapping[str, int]) -> dict[str, Any]:
    """Peak bytes of each side, and over those of the forward pass."""
    ratios = {f"{name}/forward": size / peaks["forward"] for name, size in peaks.items() if name != "forward"}
    return {"memory": dict(peaks), "memory_ratios": ratios}
