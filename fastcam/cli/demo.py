"""`fastcam demo`: the embedded default."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcam.cli.arguments import default_device, make_folder


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("demo", help="explain digit scenes by every method, with a network that comes along")
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for figure and table")
    parser.add_argument("--device", default=default_device(), help="default: %(default)s")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from fastcam.demo import run

    make_folder(options.out)
    print(run(options.out, options.device))
    return 0
