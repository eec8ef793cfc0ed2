"""The `fastcam` command: explain images or whole data sets, report, look inside a network, run the demo."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

import fastcam
from fastcam.cli import demo, explain, inside, layers, report, run
from fastcam.cli.arguments import complain
from fastcam.streams import hush


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its status.

    0, 1 if it went on without some images, 2 if something stopped it, a wrong argument or a full disk say, 130 for
    Ctrl-C, and 141, as of any command, if nobody reads what it prints.
    """
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
        try:
            return _status(options)
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with suppress(OSError):
                    hush(stream)  # or Python fails as it ends


def _status(options: argparse.Namespace) -> int:
    try:
        status = options.run(options)
        print(end="", flush=True)
        return status
    except BrokenPipeError as error:
        try:
            print(flush=True)
        except BrokenPipeError:  # `| head` has seen enough
            return 141
        complain(error)
        return 2
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(error)
        return 2
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in getattr(options, "option", []))
        text = error if isinstance(error, TypeError) else traceback.format_exc()
        complain(f"{type(error).__name__}: {error}; is an option wrong? -o {given}" if given else text)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; what was written so far is complete")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastcam", description="See what a vision network looks at.")
    parser.add_argument("--version", action="version", version=f"fastcam {fastcam.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (explain, run, report, inside, layers, demo):
        group.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
