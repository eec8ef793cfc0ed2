"""`fastcam report`: a page to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fastcam.cli.arguments import complain, positive

_SHOWN = 5  # pictures that are not there, named on stderr


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    text = "make a page to look at (one HTML file) of what `run` or `explain` wrote"
    parser = commands.add_parser("report", help=text)
    text = "folder of `fastcam run` or `explain`; several of one of them, of the same images, stand side by side"
    parser.add_argument("out", nargs="+", metavar="OUT", type=Path, help=text)
    text = "folder that the images' recorded paths are relative to; needed where they are not found without it"
    parser.add_argument("--images", metavar="DIR", type=Path, help=text)
    parser.add_argument("--file", type=Path, help="where it is written; default: report.html in OUT")
    text = "the images' sub-folders are their classes, which tells wrong predictions; known anyhow after --target "
    text += "label. For the output of `explain` with --images, their folder"
    parser.add_argument("--labels", action="store_true", help=text)
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--tile", type=positive, metavar="PIXELS", help="side of an image; default: by their number")
    parser.add_argument("--title", help="of the page; default: the methods")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from fastcam.report.page import write_report

    if options.images is not None and not options.images.is_dir():
        raise ValueError(f"no folder {options.images}")
    lost: list[str] = []
    given = {name: getattr(options, name) for name in ("file", "images", "labels", "classes", "tile", "title")}
    path = write_report(options.out, **given, progress=sys.stderr.isatty(), lost=lost.append)
    for line in lost[:_SHOWN]:
        complain(line)
    if lost:
        complain(f"{len(lost)} images are shown without their picture")
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    return 1 if lost else 0
