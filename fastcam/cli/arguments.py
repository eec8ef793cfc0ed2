"""What the commands share: arguments, the model, files to read and a folder to write to."""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastcam.streams import WhileRead

if TYPE_CHECKING:
    from fastcam.images import Preprocess
    from fastcam.models import Loaded

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def model_arguments(parser: argparse.ArgumentParser, preprocessing: bool = True) -> None:
    parser.add_argument("--model", required=True, help="torchvision name, timm:NAME, or package.module:callable")
    parser.add_argument("--weights", help="torchvision name such as DEFAULT (timm's too), or a file with a state_dict")
    if preprocessing:
        parser.add_argument("--size", type=positive, help="side of the square input; default: 224, or the weights' own")
        text = "short side before the centre is cropped; default: size*256/224"
        parser.add_argument("--resize", type=positive, help=text)
        parser.add_argument("--mean", type=numbers, help="of images in [0, 1], comma-separated; default: ImageNet's")
        parser.add_argument("--std", type=numbers, help="likewise")
    else:
        parser.set_defaults(size=None, resize=None, mean=None, std=None)
    parser.add_argument("--device", default=default_device(), help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32")


def option_argument(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        *("--option", "-o"),
        action="append",
        type=option,
        default=[],
        metavar="NAME=VALUE",
        help=f"{text}; repeat for several",
    )


def optimize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="fast mode: the maps of a copy of the model whose batch norms are folded, channels last; their agreement "
        "with the exact maps of the first images is printed and recorded",
    )
    text = "a setting of fast mode: dtype=bf16 or fp16, compile=True, cuda_graphs=True, fold=False, channels_last=False"
    parser.add_argument(
        "--optimize-option", action="append", type=option, default=[], metavar="NAME=VALUE", help=f"{text}; repeatable"
    )


def optimized(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword of a method for what was asked for; none without `--optimize`."""
    from fastcam.fast.settings import Optimize

    given = dict(options.optimize_option)
    if not options.optimize:
        if given:
            raise ValueError("--optimize-option is a setting of --optimize: give that too")
        return {}
    known = [field.name for field in fields(Optimize)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"--optimize has no setting {unknown[0]!r}: it has {', '.join(known)}")
    return {"optimize": Optimize(**given)}


def load(options: argparse.Namespace) -> Loaded:
    from fastcam.models import load_model

    return load_model(options.model, options.weights, options.size, options.resize, options.mean, options.std)


def read(paths: Sequence[Path], preprocess: Preprocess) -> list[tuple[Path, Tensor, Tensor]]:
    """Path, model input and picture of each image that can be read; says which can't."""
    images = []
    for path in paths:
        try:
            images.append((path, *preprocess(path)))
        except (ValueError, OSError) as error:
            complain(error)
    return images


def names_for(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name of its own for each image's results: its stem, numbered where stems collide."""
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for path in paths:
        if path in names:
            continue
        candidates = (path.stem if n == 1 else f"{path.stem}-{n}" for n in count(1))
        names[path] = next(name for name in candidates if name not in taken)
        taken.add(names[path])
    return names


def keep_apart(options: argparse.Namespace, paths: Sequence[Path], files: Iterable[str]) -> None:
    """Fail before a file is written over an image that is to be explained, or among a folder of them."""
    out = options.out
    if out.resolve() in {Path(given).resolve() for given in options.images}:
        raise ValueError(f"the results would lie among the images in {out}: choose another --out, {out / 'maps'} say")
    inputs = {path.resolve() for path in paths}
    for name in files:
        if (out / name).resolve() in inputs:
            raise ValueError(f"{out / name} is an image to explain: choose another --out")


def complain(error: object) -> None:
    """Say it on stderr, whatever characters a file name has; that nobody reads it stops nothing."""
    if sys.stderr is not None:
        print(f"fastcam: {error}".encode(errors="replace").decode(), file=WhileRead(sys.stderr))


def say(text: object) -> None:
    """Print what came of the work, which is done even if nobody reads it."""
    if sys.stdout is not None:
        print(text, file=WhileRead(sys.stdout))


def make_folder(folder: Path) -> None:
    """Make the output folder, or fail now rather than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ValueError(f"output folder {folder} cannot be written: {error.strerror}") from error


def progress(paths: Sequence[Path]) -> Iterator[Path]:
    from tqdm import tqdm

    return iter(tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty()))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


class Once(argparse.Action):
    """An argument that may not be repeated: the last one would count without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.dest in vars(namespace).setdefault("given", set()):
            parser.error(f"{option_string} is given twice: run the command once for each")
        namespace.given.add(self.dest)
        setattr(namespace, self.dest, values)


def option(text: str) -> tuple[str, Any]:
    """A name and its value: true or false in any case, a number, a list ... as in Python, otherwise the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers, comma-separated, got {text!r}") from error


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
