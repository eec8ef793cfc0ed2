"""The `fastcam` command: explain images or whole data sets, report, look inside a network, run the demo."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import fastcam
from fastcam.cli import demo, explain, inside, layers, report, run
from fastcam.cli.arguments import complain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; status 0, 1 if some images failed, 2 for a wrong argument or full disk, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
        try:
            return options.run(options)
        except BrokenPipeError:  # of `| head`
            sys.stdout = None  # nothing is flushed into it any more
            return 0
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            complain(error)
            return 2
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in getattr(options, "option", []))
            if not given and not isinstance(error, TypeError):  # nothing that was given explains it
                raise
            complain(f"{type(error).__name__}: {error}; is an option wrong? -o {given}" if given else error)
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
