"""What a case enters into its row once its outputs are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.side_by_side import SideBySide


def timed(benchmark: Any, comparison: SideBySide, repetitions: int, batch: int) -> dict[str, Any]:
    """The repetitions, images per second of each side, and memory where it was metered."""
    row = comparison.run(benchmark, repetitions)
    rates = {name: batch / spread["median"] for name, spread in row["seconds"].items()}
    return {**row, "images_per_second": rates, **memory(comparison.peaks)}


def memory(peaks: Mapping[str, int]) -> dict[str, Any]:
    """Peak bytes of each side, and over those of the forward pass where it is there."""
    others = {name: size for name, size in peaks.items() if name != "forward" and "forward" in peaks}
    ratios = {f"{name}/forward": size / peaks["forward"] for name, size in others.items()}
    return {"memory": dict(peaks), "memory_ratios": ratios}
