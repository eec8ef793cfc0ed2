"""One run: the cases collected and run by pytest, their figures gathered, written and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.machine import describe, slug
from benchmarks.settings import Settings
from fastcam.methods import METHODS
from fastcam.visualize import SALIENCY

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SETTINGS = pytest.StashKey[Settings]()
_PYTEST = (
    *("-p", "no:xdist", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
    *("-o", "addopts=", "-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"),
    *("--benchmark-quiet", "--tb=short", "-v"),
)


class Session:
    """The pytest plugin of a run: gives the cases its settings and keeps what they measured.

    rows       the `extra_info` of each case that ran to its end
    failed     the names of cases whose outputs did not pass their check, or that broke
    left_out   name and reason of cases that were skipped
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.left_out: list[dict[str, str]] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[SETTINGS] = self._settings

    @pytest.fixture
    def settings(self) -> Settings:
        return self._settings

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        outcome = yield
        if outcome.failed:
            self.failed.append(item.name)
        elif outcome.skipped and isinstance(outcome.longrepr, tuple):
            self.left_out.append({"case": item.name, "reason": outcome.longrepr[2].removeprefix("Skipped: ")})
        elif outcome.when == "call":
            benchmark: Any = item.funcargs["benchmark"]
            self.rows.append(dict(benchmark.extra_info))
        return outcome


def run(settings: Settings) -> int:
    """Measure what the settings ask for; the exit status. Prints the tables last."""
    settings = replace(settings, device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cases = [case for case in settings.cases if case != "operators" or settings.device == "cuda"]
    if complaint := _impossible(settings, cases):
        print(complaint, file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    plugin = Session(settings)
    files = [str(ROOT / "benchmarks" / f"bench_{case}.py") for case in cases]
    status = pytest.main([*_PYTEST, *files], plugins=[plugin])
    measured = {"failed": plugin.failed, "left_out": plugin.left_out, "rows": plugin.rows}
    result = {**describe(str(settings.device), settings), **measured}
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(_written(result, settings))
    print(report.tables(result))
    return int(status)


def _impossible(settings: Settings, cases: Sequence[str]) -> str | None:
    """Why nothing can be measured, if so."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        return "there is no GPU here"
    if not cases:
        return "operators are measured on a GPU only"
    known = [*METHODS, *SALIENCY]
    if "toolbox" in cases:
        from benchmarks.bench_toolbox import CASES as toolbox

        known += toolbox
    if "inside" in cases:
        from benchmarks.bench_inside import CASES as inside

        known += inside
    if unknown := set(settings.methods) - set(known):
        return f"no method {', '.join(sorted(unknown))}; there are {', '.join(known)}"
    return None


def _written(result: dict[str, Any], settings: Settings) -> str:
    """Write the result where the settings want it; a line that says so."""
    out = settings.out or (RESULTS / f"{slug(result['device'])}.json" if settings.recorded else None)
    if out is None:
        return "not written, since it is no whole run: name a file with --out\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(dumped(result))
    return f"written to {out}\n"


def dumped(result: dict[str, Any]) -> str:
    """JSON with a line per row, numbers to five significant digits."""
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    rows = ",\n".join("  " + json.dumps(_rounded(row)) for row in result["rows"])
    return head.removesuffix("\n}") + ',\n "rows": [\n' + rows + "\n ]\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
