"""The command: `python -m benchmarks report [--check]`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import summary, tables
from benchmarks.report.pictures import Picture, pictures, shown_by
from benchmarks.report.runs import Device, devices, read
from benchmarks.report.wording import RATIOS, measured_on

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_BETWEEN = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
_ROOT = Path(__file__).parent.parent.parent
_HEAD = (
    "# Benchmarks\n\nMade from the files in `benchmarks/results/` by `python -m benchmarks report`; not to be edited.\n"
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if anything is not up to date")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    parser.add_argument(
        "--results", type=Path, default=_ROOT / "benchmarks" / "results", help="folder of recorded runs"
    )
    parser.add_argument("--docs", type=Path, default=_ROOT / "docs", help="folder of benchmarks.md and its pictures")
    options = parser.parse_args(arguments)
    found = devices(read(options.results))
    drawn = {device.slug: pictures(device) for device in found}
    page, folder = options.docs / "benchmarks.md", options.docs / "benchmarks"
    in_readme = _address(folder, options.readme.parent)
    block = summary.block(
        found,
        lambda device: _links([p for p in drawn[device.slug] if p.in_summary], in_readme),
        _address(page, options.readme.parent),
    )
    before = options.readme.read_text() if options.readme.exists() else ""
    readme = replaced(before, block)
    texts = {page: _page(found, drawn)}
    if readme is None:
        print(block, end="")
    else:
        texts[options.readme] = readme
    every = [picture for of_device in drawn.values() for picture in of_device]
    if options.check:
        stale = [*_stale_texts(texts), *_stale_pictures(folder, every)]
        stale += [] if readme is not None else [f"{options.readme.name}, which has no place for them"]
        return _complain(stale)
    _write(texts, folder, every)
    return 0


def replaced(text: str, block: str) -> str | None:
    """The text with the block between its markers; None if it has none."""
    return _BETWEEN.sub(lambda m: m[1] + block + m[2], text) if _BETWEEN.search(text) else None


def _page(found: list[Device], drawn: dict[str, list[Picture]]) -> str:
    """`docs/benchmarks.md`: everything that is on record."""
    if not found:
        return f"{_HEAD}\nNo run is on record yet.\n"
    parts = [_HEAD, f"{RATIOS}\n"]
    for device in found:
        parts += [f"## {device.name}\n", measured_on(device), _links(drawn[device.slug], "benchmarks")]
        parts.append(tables.of_device(device))
    return "\n".join(part for part in parts if part)


def _links(shown: Sequence[Picture], folder: str) -> str:
    return "\n".join(f"![{picture.title}]({folder}/{picture.name})\n\n*{picture.caption}*\n" for picture in shown)


def _address(file: Path, start: Path) -> str:
    return os.path.relpath(file, start).replace(os.sep, "/")


def _stale_texts(texts: dict[Path, str]) -> list[str]:
    return [file.name for file, text in texts.items() if not file.exists() or file.read_text() != text]


def _stale_pictures(folder: Path, every: Sequence[Picture]) -> list[str]:
    """Pictures that are missing, that show other data, or that show what is no longer on record."""
    wanted = {picture.name: picture.digest for picture in every}
    there = {file.name: digest for file in folder.glob("*.png") if (digest := shown_by(file))}
    return sorted(name for name in wanted | there if wanted.get(name) != there.get(name))


def _complain(stale: Sequence[str]) -> int:
    if stale:
        print(f"out of date: {', '.join(stale)}: run `python -m benchmarks report`", file=sys.stderr)
    return int(bool(stale))


def _write(texts: dict[Path, str], folder: Path, every: Sequence[Picture]) -> None:
    """What differs from what is there; pictures of what is no longer on record go."""
    stale = _stale_pictures(folder, every)
    for picture in every:
        if picture.name in stale:
            folder.mkdir(parents=True, exist_ok=True)
            picture.write(folder)
    for name in set(stale) - {picture.name for picture in every}:
        (folder / name).unlink()
    for file, text in texts.items():
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
