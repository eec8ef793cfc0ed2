"""The recorded runs as the README's tables, as `docs/benchmarks.md` and as pictures: `python -m benchmarks report`."""
