"""One run: the cases collected and run by pytest, their figures gathered, written and shown."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.machine import describe, slug
from benchmarks.peers import installed
from benchmarks.report.summary import of_run
from benchmarks.settings import GPU_ONLY, TIME_IS_UP, Settings
from fastcam.methods import ATTENTION, METHODS
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
    """The pytest plugin of a run: gives the cases its settings and keeps what they measured, one `Group` a file."""

    def __init__(self, settings: Settings, head: dict[str, Any]) -> None:
        self._settings = settings
        self._head = head
        self.groups: dict[str, Group] = {}
        self._begun = time.monotonic()

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[SETTINGS] = self._settings

    @pytest.fixture
    def settings(self) -> Settings:
        return self._settings

    @pytest.fixture
    def row(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        """What a case measured, to be filled in by it: `case` and `model`, where it has one, are there."""
        return _named(request.node)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if not any("empty parameter set" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip")):
                self._group(item).not_begun.append(item.name)

    def pytest_runtest_setup(self) -> None:
        minutes = self._settings.minutes
        if minutes is not None and time.monotonic() - self._begun > 60 * minutes:
            pytest.skip(f"the run's {minutes:g} {TIME_IS_UP}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        outcome = yield
        group = self._group(item)
        group.not_begun = [name for name in group.not_begun if name != item.name]
        reason = outcome.longrepr[2] if outcome.skipped and isinstance(outcome.longrepr, tuple) else ""
        begun_or_ended = outcome.passed and outcome.when != "call"
        if begun_or_ended or "empty parameter set" in reason:  # the latter: nothing of its file was asked for
            return outcome
        if outcome.failed:
            group.failed.append(item.name)
        elif outcome.skipped:
            group.left_out.append({"case": item.name, "reason": reason.removeprefix("Skipped: ")})
        else:
            group.rows.append(item.funcargs["row"])
        return outcome

    def _group(self, item: Any) -> Group:
        return self.groups.setdefault(self._settings.set_name or "-".join(_named(item).values()), Group())

    def pytest_runtest_teardown(self) -> None:
        """After every case, so that a run cut short keeps what it has, and the next case finds the memory free."""
        gc.collect()
        self.write()

    def write(self) -> list[Path]:
        """Write each group where the settings want it; the files."""
        folder = self._settings.out or (RESULTS / slug(self._head["device"]) if self._settings.recorded else None)
        if folder is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.json" for name, group in self.groups.items() if group.begun]
        for file, result in zip(files, self.results(), strict=True):
            file.write_text(dumped(result))
        return files

    def results(self) -> list[dict[str, Any]]:
        """Of the groups of which a case was begun: the others leave what is on record of them."""
        return [{**self._head, **vars(group)} for group in self.groups.values() if group.begun]


@dataclass
class Group:
    """The cases of a file.

    rows       what each case measured that ran to its end
    failed     the names of cases whose outputs did not pass their check, or that broke
    left_out   name and reason of cases that were skipped
    not_begun  the names of those that were still to come when this was written: none once the run is over
    """

    failed: list[str] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    not_begun: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        return bool(self.failed or self.left_out or self.rows)


def _named(item: Any) -> dict[str, str]:
    """The case that an item belongs to, and its model if it has one, and any was asked for."""
    names = {"case": item.path.stem.removeprefix("bench_")}
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    model = parameters.get("model")
    return {**names, "model": model} if isinstance(model, str) else names


def run(settings: Settings) -> int:
    """Measure what the settings ask for; the exit status. Prints the tables last."""
    settings = replace(settings, device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cases = [case for case in settings.cases if case not in GPU_ONLY or settings.device == "cuda"]
    if complaint := _impossible(settings, cases):
        print(complaint, file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    plugin = Session(settings, describe(str(settings.device), settings))
    files = [str(ROOT / "benchmarks" / f"bench_{case}.py") for case in cases]
    status = pytest.main([*_PYTEST, *files], plugins=[plugin])
    written = plugin.write()
    print("\n".join(f"written to {file}" for file in written) or "not written: no whole case; name a folder with --out")
    print(of_run(plugin.results()))
    return int(status)


def _impossible(settings: Settings, cases: Sequence[str]) -> str | None:
    """Why nothing can be measured, if so."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        return "there is no GPU here"
    if not cases:
        return f"{' and '.join(settings.cases)} are measured on a GPU only"
    if settings.set_name and {"methods", "perturbation"} & set(cases) and not installed("grad-cam"):
        return f"--set {settings.set_name} compares with grad-cam, which is not installed: pip install grad-cam==1.5.7"
    known = [*METHODS, *ATTENTION, *SALIENCY]
    if "toolbox" in cases:
        from benchmarks.bench_toolbox import CASES as toolbox

        known += toolbox
    if "inside" in cases:
        from benchmarks.bench_inside import CASES as inside

        known += inside
    if unknown := set(settings.methods) - set(known):
        return f"no method {', '.join(sorted(unknown))}; there are {', '.join(known)}"
    return None


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
