"""A process of its own that explains a data set and says how much memory it had resident on the way.

`python -m benchmarks.resident FOLDER IMAGES MODEL BATCH WORKERS THREADS` prints JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.inference import Loading, in_slices
from benchmarks.models import RECIPES, network
from fastcam import GradCAM
from fastcam.dataset.attribute import attribute_dataset

EARLY = 200  # images after which everything that is to be held is there
_STATISTICS = Path("/proc/self/statm")
KNOWN = _STATISTICS.exists()  # whether this system says
_POINTS = 10
_WINDOW = 5  # batches


def measure(folder: Path, count: int, model: str, loading: Loading, threads: int) -> dict[str, Any]:
    """What `resident` finds, in a process that has done nothing else."""
    numbers = (count, model, loading.batch, loading.workers, threads)
    command = [sys.executable, "-m", "benchmarks.resident", str(folder), *map(str, numbers)]
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def resident(folder: Path, count: int, model: str, loading: Loading, early: int = EARLY) -> dict[str, Any]:
    """Bytes resident after `early` images, after all, and between, of the process and of its workers together.

    They are read behind the model's forward pass, so always at the same place of a batch; each is the median over the
    batch and those before it, since the allocator gives back what it does not need at times of its own.
    """
    net = network(model, "cpu")
    looks: list[tuple[int, int, int]] = []

    def look(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        seen = len(inputs[0]) + (looks[-1][0] if looks else 0)
        looks.append((seen, _bytes("self"), sum(_bytes(w.pid) for w in multiprocessing.active_children())))

    (images,) = in_slices(folder, count, count)
    with tempfile.TemporaryDirectory() as out, net.register_forward_hook(look):
        cam = GradCAM(net, RECIPES[model].layer)
        maps = attribute_dataset(cam, images, out, batch_size=loading.batch, workers=loading.workers)
        if len(maps) != count:
            raise AssertionError(f"{len(maps)} of {count} images were explained: {maps.failed[:1]}")
    return curve(looks, early)


def curve(looks: Sequence[tuple[int, int, int]], early: int) -> dict[str, Any]:
    """Of looks (images so far, bytes, bytes of workers) those at some numbers of images, smoothed."""
    count = looks[-1][0]
    marks = {early, count, *(early + i * (count - early) // _POINTS for i in range(1, _POINTS))}
    at = sorted({next((i for i, look in enumerate(looks) if look[0] >= mark), len(looks) - 1) for mark in marks})
    windows = [list(zip(*looks[max(0, i - _WINDOW + 1) : i + 1], strict=True)) for i in at]
    found = {name: [int(median(w[place])) for w in windows] for name, place in (("process", 1), ("workers", 2))}
    return {"images": [looks[i][0] for i in at], **found}


def _bytes(process: Any) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except OSError:  # a worker that has just ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    folder, count, model, batch, workers, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    found = resident(Path(folder), int(count), model, Loading(int(batch), int(workers)))
    print(json.dumps(found))
