"""`python -m benchmarks` measures, `python -m benchmarks report` writes the README's tables and the pictures."""

from __future__ import annotations

import os
import sys

from benchmarks.settings import parse


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["report"]:
        from benchmarks.report.main import main as report

        return report(arguments[1:])
    settings = parse(arguments)
    if settings.threads is not None:
        for library in ("OMP", "MKL", "OPENBLAS"):  # each reads its variable once, when numpy or torch is imported
            os.environ[f"{library}_NUM_THREADS"] = str(settings.threads)
    from benchmarks import session

    return session.run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
