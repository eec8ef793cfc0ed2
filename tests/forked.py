"""Runs over a data set in processes of their own, forked from one that has PyTorch loaded, so that starts cost little.

`Processes` starts that one, which knows no GPU, and asks it for others; `command` and `attribute` are what those do.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import fastcam
from fastcam.dataset import whole_files

POINTS = ("before the write", "amid the write", "before the rename", "after the rename")
_HANGS = 120  # seconds after which a process is ended
_HERE = Path(__file__).parent
_IMPORTED = ("fastcam.cli", "fastcam.cli.explain", "fastcam.dataset.attribute", "torch.fx.experimental.symbolic_shapes")


class Net(nn.Module):
    """A convolution and a linear head. The environment can slow it down, stop it, and have it count its images.

    PACE      seconds an image
    GATE      a file: while it is there the second pass, or that of number AT, does not come to an end
    SEEN      a file to which each pass adds a line: its process, and the number of its images
    TOGETHER  how many processes SEEN must name before a pass comes to an end
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self._passes = 0

    def forward(self, x):
        self._passes += 1
        if (seen := os.environ.get("SEEN")) is not None:
            with open(seen, "a") as file:
                file.write(f"{os.getpid()} {len(x)}\n")
            begin = time.monotonic()
            while len(seen_in(seen)) < int(os.environ.get("TOGETHER", "1")) and time.monotonic() < begin + _HANGS:
                time.sleep(0.01)
        time.sleep(float(os.environ.get("PACE", "0")) * len(x))
        while self._passes == int(os.environ.get("AT", "2")) and os.path.exists(os.environ.get("GATE", "")):
            time.sleep(0.01)
        return self.head(self.features(x).mean((2, 3)))


def seen_in(path) -> Counter[str]:
    """How many images each process has had, of the file SEEN."""
    found: Counter[str] = Counter()
    for line in Path(path).read_text().splitlines():
        process, images = line.split()
        found[process] += int(images)
    return found


def net(cls=Net) -> nn.Module:
    torch.manual_seed(5)
    return cls().eval()


def data(samples: int = 14) -> TensorDataset:
    images = torch.rand(samples, 3, 12, 14, generator=torch.Generator().manual_seed(7))
    return TensorDataset(images, torch.arange(samples) % 4)


def explained(out, dataset=None, model=None, targets="predicted", **options):
    """The maps of 14 samples in shards of 4."""
    cam = fastcam.GradCAM(net() if model is None else model, "features")
    options = {"workers": 0, "batch_size": 2, "shard_size": 4, **options}
    return fastcam.attribute_dataset(cam, data() if dataset is None else dataset, out, targets, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def photos_in(folder: Path, images: int = 24) -> Path:
    """A new folder with `data` as image files."""
    folder.mkdir()
    for n, pixels in enumerate((data(images).tensors[0] * 255).byte().movedim(1, -1).numpy()):
        Image.fromarray(pixels).save(folder / f"{n:02d}.png")
    return folder


def run_arguments(photos: Path, out: Path, *more) -> list[str]:
    """Of `fastcam run` on `Net`, with shards of 4 images."""
    fixed = ["run", photos, "--out", out, "--model", "forked:net", "--layer", "features", "--size", "12"]
    more = ("--batch-size", 2, "--shard-size", 4, "--device", "cpu", "--workers", 0, *more)
    return [str(a) for a in (*fixed, *more)]


def command(arguments, environment=None, file_size=None) -> int:
    """`fastcam` with these arguments, whose files may not become larger than a number of bytes."""
    from fastcam.cli import main

    os.environ.update({name: str(value) for name, value in (environment or {}).items()})
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    return main(arguments)


def torchrun(arguments, environment) -> int:
    """`torchrun` with these arguments; the processes that it starts are new ones."""
    from torch.distributed.run import main

    os.environ.update({name: str(value) for name, value in environment.items()})
    main([str(argument) for argument in arguments])
    return 0


def attribute(out, point=None, file="", nth=1, samples=14, pace=0.0) -> int:
    """`explained`, killed the nth time that it comes to one of `POINTS` with a file whose name ends like this."""
    if point is not None:
        _kill_at(point, file, nth)
    os.environ["PACE"] = str(pace)
    explained(out, data(samples))
    return 0


def memory(out, samples, marks, side, **options) -> int:
    """Print, of a long run, how many kB are resident when it reads these of its samples, and at its end."""
    found = []

    class Watched(Dataset):
        def __len__(self):
            return samples

        def __getitem__(self, index):
            if index in marks:
                found.append(_resident())
            return torch.rand(3, side, side, generator=torch.Generator().manual_seed(index))

    explained(out, Watched(), batch_size=16, **options)
    print(json.dumps([*found, _resident()]))
    return 0


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _kill_at(point: str, file: str, nth: int) -> None:
    written, replace, link = whole_files._written, os.replace, os.link
    times = 0

    def arrive(at, path):
        nonlocal times
        times += at == point and str(path).endswith(file)
        if times == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_written(path, write, token):
        def in_halves(opened):
            write(whole := io.BytesIO())
            half = len(whole.getvalue()) // 2
            opened.write(whole.getvalue()[:half])
            opened.flush()
            arrive("amid the write", path)
            opened.write(whole.getvalue()[half:])

        arrive("before the write", path)
        return written(path, in_halves, token)

    def dying(give):
        def give_name(temporary, path):
            arrive("before the rename", path)
            give(temporary, path)
            arrive("after the rename", path)

        return give_name

    whole_files._written, os.replace, os.link = dying_written, dying(replace), dying(link)


class Processes:
    """What starts processes and waits for them; those still there at the end of the block are killed."""

    def __enter__(self) -> Processes:
        path = os.pathsep.join([str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, "-c", "import forked; forked.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        self._running: set[int] = set()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running:
            os.killpg(process, signal.SIGKILL)
        self._server.kill()
        self._server.communicate()

    def start(self, log: Path, do, **arguments) -> int:
        """A process that does one of this module's functions, at the head of a group of its own; its number."""
        process = self._asked("start", str(log), do.__name__, arguments)
        self._running.add(process)
        return process

    def wait(self, process: int) -> int:
        """Its exit status, that of a signal below 0."""
        self._running.discard(process)
        return self._asked("wait", process)

    def _asked(self, *order) -> int:
        print(json.dumps(order, default=str), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def serve() -> None:
    """Fork and wait as asked on stdin."""
    torch.set_num_threads(1)
    for module in _IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        order, *given = json.loads(line)
        if order == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(given[0], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _end(_alone(*given))
        print(answer, flush=True)


def _alone(log: str, name: str, arguments: dict) -> int:
    """In a new process: its output goes to a file, and it does not outlive a test that hangs."""
    os.setsid()
    signal.alarm(_HANGS)
    for path, mode, streams in ((os.devnull, os.O_RDONLY, [0]), (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, [1, 2])):
        handle = os.open(path, mode)
        for stream in streams:
            os.dup2(handle, stream)
    return globals()[name](**{k: Path(v) if k == "out" else v for k, v in arguments.items()})


def _end(status: int) -> None:
    """As a process ends, but for freeing all that it holds, which takes longer than most runs."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
