"""`python -m fastcam.compat script.py args`: a script, or `-m module`, with fastcam as pytorch_grad_cam, flashtorch."""

from __future__ import annotations

import os
import runpy
import sys

from fastcam.compat import install

_USAGE = "usage: python -m fastcam.compat script.py [args], or -m module [args]"


def main(arguments: list[str]) -> None:
    """Run what the arguments name as `__main__`; SystemExit for wrong arguments."""
    by_module = arguments[:1] == ["-m"]
    if len(arguments) < 1 + by_module or arguments[0] in ("-h", "--help"):
        sys.exit(_USAGE)
    sys.argv = arguments[by_module:]
    install()
    if by_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    if not os.path.isfile(sys.argv[0]):
        sys.exit(f"no script {sys.argv[0]!r}; {_USAGE}")
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
