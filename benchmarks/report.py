"""The recorded runs as markdown tables, and the README's copy of them: `python -m benchmarks report [--check]`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_BETWEEN = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
_FOLDER = Path(__file__).parent

_LEGEND = (
    "Medians of ratios within interleaved repetitions, quartiles in brackets; 1.00 is the model's own forward pass "
    "without gradients. Speed-up is grad-cam's time over fastcam's: below 1 fastcam is slower. Memory is the peak of "
    "tensors allocated during the call, over the forward pass's; numpy's arrays, mostly grad-cam's, are not in it. "
    "Methods that score many changed rows have a table of their own: `its masked passes` are the forward passes of "
    "Score-CAM alone, at their fastest batch size, and memory is compared with a forward pass of 32 images. "
    "`captum / fastcam` and the like are the other's time over fastcam's: below 1 fastcam is slower."
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README is not up to date")
    parser.add_argument("--readme", type=Path, default=_FOLDER.parent / "README.md")
    parser.add_argument("--results", type=Path, default=_FOLDER / "results", help="folder of recorded runs")
    options = parser.parse_args(arguments)
    block = "\n".join(tables(json.loads(file.read_text())) for file in sorted(options.results.rglob("*.json")))
    block = f"{_LEGEND}\n\n{block}" if block else "No run is on record yet.\n"
    text = options.readme.read_text() if options.readme.exists() else ""
    if options.check:
        return _complain(options.readme) if replaced(text, block) != text else 0
    if (new := replaced(text, block)) is None:
        print(block, end="")
    elif new != text:
        options.readme.write_text(new)
    return 0


def replaced(text: str, block: str) -> str | None:
    """The text with the block between its markers; None if it has none."""
    return _BETWEEN.sub(lambda m: m[1] + block + m[2], text) if _BETWEEN.search(text) else None


def _complain(readme: Path) -> int:
    print(f"{readme.name} does not show the recorded runs: run `python -m benchmarks report`", file=sys.stderr)
    return 1


def tables(result: dict[str, Any]) -> str:
    """A run as markdown: what it was measured on, then a table per kind of case, then what is missing from them."""
    rows = result["rows"]
    name = result["hardware"].get("gpu", f"CPU, threads: {result['threads']}")
    parts = [f"**{name}**\n\n{_measured_on(result)}\n"]
    for case, (heads, cells) in _COLUMNS.items():
        if chosen := [cells(row) for row in rows if row["case"] == case and row.get("kind") != "explanation"]:
            parts.append(_table(heads, chosen))
    parts += [f"Failed: {case}\n" for case in result["failed"]]
    parts += [f"Left out: {reason}: {', '.join(cases)}\n" for reason, cases in _left_out(result).items()]
    return "\n".join(parts)


def _measured_on(result: dict[str, Any]) -> str:
    hardware, versions = result["hardware"], result["versions"]
    where = f"{hardware['cpu']}, {hardware['cores']} cores"
    if "gpu" in hardware:
        where = f"{hardware['gpu']}, driver {hardware['driver']}, {where}"
    commit = f"commit {result['commit'] or 'unknown'}" + (" with changes" if result["dirty"] else "")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{where}; {software}; {result['date']}, {commit}; {result['repetitions']} repetitions; fp32 without TF32."


def _left_out(result: dict[str, Any]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for entry in result["left_out"]:
        reasons.setdefault(entry["reason"], []).append(entry["case"])
    return reasons


def _method(row: dict[str, Any]) -> list[str]:
    ratios, memory = row["ratios"], row["memory_ratios"]
    return [
        *(row["model"], str(row["batch"]), row["method"]),
        _digits(1e3 * row["seconds"]["forward"]["median"]),
        _ratio(ratios["fastcam/forward"]),
        _ratio(ratios.get("grad-cam/forward")),
        _speed_up(ratios),
        _digits(memory["fastcam/forward"]),
        _digits(memory["grad-cam/forward"]) if "grad-cam/forward" in memory else "–",
    ]


def _perturbation(row: dict[str, Any]) -> list[str]:
    ratios = row["ratios"]
    return [
        *(row["model"], str(row["batch"]), row["method"]),
        _digits(1e3 * row["seconds"]["forward"]["median"]),
        _ratio(ratios["fastcam/forward"]),
        _ratio(ratios.get("fastcam/masked forward passes")),
        _speed_up(ratios),
        _ratio(ratios.get("grad-cam/fastcam bf16")),
        _digits(row["memory_ratios"]["fastcam/forward"]) if _of_full_batches(row) else "–",
    ]


def _of_full_batches(row: dict[str, Any]) -> bool:
    """Whether the memory is that of full batches: an image of AblationCAM or Recipro-CAM alone does not fill one."""
    return row.get("memory_images", 1) > 1 or row["method"] not in ("ablationcam", "reciprocam")


def _toolbox(row: dict[str, Any]) -> list[str]:
    ratios = row["ratios"]
    return [
        *(row["model"], str(row["batch"]), row["method"]),
        _digits(1e3 * row["seconds"]["forward"]["median"]),
        _ratio(ratios["fastcam/forward"]),
        _ratio(ratios.get("grad-cam/forward")),
        _speed_up(ratios),
        _ratio(ratios.get("fastcam/one class")),
    ]


def _inside(row: dict[str, Any]) -> list[str]:
    ratios = row["ratios"]
    return [
        *(row["model"], str(row["batch"]), row["method"]),
        _digits(1e3 * row["seconds"]["forward"]["median"]),
        _ratio(ratios["fastcam/forward"]),
        *(_ratio(ratios.get(f"{peer}/fastcam")) for peer in ("captum", "FlashTorch", "one at a time")),
    ]


def _operator(row: dict[str, Any]) -> list[str]:
    side = "kernel" if "kernel" in row["seconds"] else "definition"
    return [
        *(row["operator"], " × ".join(map(str, row["shape"])), row["dtype"], side),
        _digits(1e6 * row["seconds"][side]["median"]),
        f"{row['gigabytes_per_second'][side]:.0f}",
        f"{row['copy_share'][side]['median']:.0%}",
        _ratio(row["ratios"].get("definition/kernel")),
        _ratio(row["ratios"].get(f"compiled/{side}")),
        _digits(1e6 * row["call_seconds"][side]["median"]),
    ]


def _speed_up(ratios: dict[str, Any]) -> str:
    against = ratios.get("grad-cam/fastcam")
    return f"{_ratio(against)}{' slower' if against and against['median'] < 1 else ''}"


def _ratio(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "–"
    low, high = spread["quartiles"]
    return f"{_digits(spread['median'])} ({_digits(low)}–{_digits(high)})"


def _digits(value: float) -> str:
    """Three significant digits, no exponent: 0.123, 1.23, 12.3, 1234."""
    decimals = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


_COLUMNS = {
    "methods": (
        (
            *("model", "batch", "method", "forward ms", "fastcam / forward", "grad-cam / forward", "speed-up"),
            *("memory: fastcam", "memory: grad-cam"),
        ),
        _method,
    ),
    "perturbation": (
        (
            *("model", "batch", "method", "forward ms", "fastcam / forward", "fastcam / its masked passes", "speed-up"),
            *("speed-up in bf16", "memory at batch size 32"),
        ),
        _perturbation,
    ),
    "toolbox": (
        (
            *("model", "batch", "what", "forward ms", "fastcam / forward", "grad-cam / forward", "speed-up"),
            "10 classes / one",
        ),
        _toolbox,
    ),
    "inside": (
        (
            *("model", "batch", "what", "forward ms", "fastcam / forward"),
            *("captum / fastcam", "FlashTorch / fastcam", "one at a time / fastcam"),
        ),
        _inside,
    ),
    "operators": (
        (
            *("operator", "shape", "type", "ours", "µs", "GB/s", "of copy bandwidth", "PyTorch / kernel"),
            *("torch.compile / ours", "call µs"),
        ),
        _operator,
    ),
}
