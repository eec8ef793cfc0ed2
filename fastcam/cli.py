"""The `fastcam` command: explain images, list a model's layers, run the demo."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import fastcam

if TYPE_CHECKING:
    from fastcam.images import Preprocess
    from fastcam.methods import BaseCAM
    from fastcam.models import Loaded
    from fastcam.visualize import InputGradient

    Explainer = BaseCAM | InputGradient

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if some images failed, 2 for wrong arguments, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
        try:
            return options.run(options)
        except BrokenPipeError:  # of `| head`
            sys.stdout = None  # nothing is flushed into it any more
            return 0
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            _complain(error)
            return 2
        except KeyboardInterrupt:
            _complain("interrupted; what was written so far is complete")
            return 130


def _parser() -> argparse.ArgumentParser:
    from fastcam.methods import ATTENTION, METHODS
    from fastcam.visualize import SALIENCY

    parser = argparse.ArgumentParser(prog="fastcam", description="See what a vision network looks at.")
    parser.add_argument("--version", action="version", version=f"fastcam {fastcam.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain", help="explain images: picture (PNG), map or gradient (.npy) and record (JSON) for each"
    )
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    _model_arguments(explain)
    methods = [*METHODS, *ATTENTION, *SALIENCY]
    explain.add_argument("--method", choices=methods, default="gradcam", action=_Once, help="default: gradcam")
    explain.add_argument("--layer", action="append", help="name, index path or glob; repeat for several layers")
    explain.add_argument("--target", type=int, action=_Once, help="class index; default: the predicted class")
    explain.add_argument("--aug-smooth", action="store_true", help="mean over six augmentations of the image")
    explain.add_argument("--eigen-smooth", action="store_true", help="principal component instead of the sum")
    explain.add_argument(
        *("--option", "-o"),
        action="append",
        type=_option,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the method's class, channels=8 for fasterscorecam say; repeat for several",
    )
    explain.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    explain.add_argument("--batch-size", type=_positive, default=16, help="images at once; default: 16")
    explain.set_defaults(run=_explain)

    layers = commands.add_parser("layers", help="list a model's layers, their output shapes and the suggested one")
    _model_arguments(layers)
    layers.set_defaults(run=_layers)

    demo = commands.add_parser("demo", help="explain digit scenes by every method, with a network that comes along")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for figure and table")
    demo.add_argument("--device", default=_default_device(), help="default: %(default)s")
    demo.set_defaults(run=_demo)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="torchvision name, timm:NAME, or package.module:callable")
    parser.add_argument("--weights", help="torchvision name such as DEFAULT (timm's too), or a file with a state_dict")
    parser.add_argument("--size", type=_positive, help="side of the square input; default: 224, or the weights' own")
    parser.add_argument(
        "--resize", type=_positive, help="short side before the centre is cropped; default: size*256/224"
    )
    parser.add_argument("--mean", type=_numbers, help="of images in [0, 1], comma-separated; default: ImageNet's")
    parser.add_argument("--std", type=_numbers, help="likewise")
    parser.add_argument("--device", default=_default_device(), help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32")


def _explain(options: argparse.Namespace) -> int:
    from fastcam.images import find_images
    from fastcam.layers import default_layer, layer_name

    _make_folder(options.out)
    paths = find_images(options.images, skip=options.out)
    names = _names(paths)
    _keep_apart(options, paths, names)
    loaded = _load(options)
    model = loaded.model.to(options.device, DTYPES[options.dtype])
    cam, smoothing = _explainer(options, model)
    kept = ("model", "weights", "method", "aug_smooth", "eigen_smooth", "dtype", "device")
    shared = {name: getattr(options, name) for name in kept} | {"options": dict(options.option)}
    shared |= {"preprocess": asdict(loaded.preprocess), "fastcam": fastcam.__version__}
    target = options.target if getattr(cam, "class_discriminative", True) else None
    if target != options.target:
        warnings.warn(f"{options.method} does not depend on the class, --target is ignored", stacklevel=1)
    done = 0
    waiting = _progress(paths)
    while chunk := list(islice(waiting, options.batch_size)):
        images = _read(chunk, loaded.preprocess)
        if not images:
            continue
        x = torch.stack([x for _, x, _ in images]).to(options.device, DTYPES[options.dtype])
        maps = np.asarray(cam(x, target, **smoothing), np.float32)
        if hasattr(cam, "target_layers"):
            layers = [default_layer(model, x)] if cam.target_layers is None else cam.target_layers
            shared["layer"] = [layer_name(model, layer) for layer in layers]
        records = _records(cam, target, loaded.categories)
        for (path, _, picture), values, record in zip(images, maps, records, strict=True):
            done += _written(options.out / names[path], picture, values, {"image": str(path), **record, **shared})
    if done < len(paths):
        _complain(f"{len(paths) - done} of {len(paths)} images failed")
    print(f"wrote {done} pictures, maps and records to {options.out}")
    return 0 if done == len(paths) else 1


def _explainer(options: argparse.Namespace, model: torch.nn.Module) -> tuple[Explainer, dict[str, Any]]:
    """The method, bound to model and layers, and the options of its calls."""
    from fastcam.methods import ATTENTION, METHODS
    from fastcam.methods.perturbation import PerturbationCAM
    from fastcam.visualize import SALIENCY, GuidedGradCAM
    from fastcam.visualize.sampled import SampledGradient

    if (cls := {**METHODS, **ATTENTION}.get(options.method)) is not None:
        smoothing = {"aug_smooth": options.aug_smooth, "eigen_smooth": options.eigen_smooth}
        progress = {"progress": sys.stderr.isatty()} if issubclass(cls, PerturbationCAM) else {}
        return _made(cls, options, model, options.layer, **progress), smoothing
    if options.aug_smooth or options.eigen_smooth:
        raise ValueError(f"--aug-smooth and --eigen-smooth are for maps, {options.method} gives gradients")
    if options.method == "guidedgradcam":
        return _made(GuidedGradCAM, options, model, options.layer), {}
    if options.layer:
        raise ValueError(f"{options.method} looks at the input: --layer does not apply")
    progress = {"progress": sys.stderr.isatty()} if issubclass(SALIENCY[options.method], SampledGradient) else {}
    return _made(SALIENCY[options.method], options, model, **progress), {}


def _made(cls: Any, options: argparse.Namespace, *arguments: Any, **keywords: Any) -> Any:
    """An object of the method's class with the options given for it, or a ValueError that says which it has."""
    signatures = [inspect.signature(c.__init__).parameters for c in cls.__mro__ if "__init__" in vars(c)]
    known = {p.name for s in signatures for p in s.values() if p.kind == p.KEYWORD_ONLY} | {
        name for name, p in signatures[0].items() if p.default is not p.empty
    } - {"target_layers", "reshape_transform", "device"}
    for name, _ in options.option:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise ValueError(f"{options.method} has no option {name!r}: {has}")
    return cls(*arguments, **{**keywords, **dict(options.option)})


def _load(options: argparse.Namespace) -> Loaded:
    from fastcam.models import load_model

    return load_model(options.model, options.weights, options.size, options.resize, options.mean, options.std)


def _read(paths: Sequence[Path], preprocess: Preprocess) -> list[tuple[Path, Tensor, Tensor]]:
    """Path, model input and picture of each image that can be read; says which can't."""
    images = []
    for path in paths:
        try:
            images.append((path, *preprocess(path)))
        except (ValueError, OSError) as error:
            _complain(error)
    return images


def _records(cam: Explainer, target: int | None, categories: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Predicted and explained class of each image, with its probability; None where no class is explained."""
    outputs = cam.outputs
    if outputs is None or outputs.ndim != 2:
        got = "none" if outputs is None else str(tuple(outputs.shape))
        raise ValueError(f"the command explains classifiers, logits (B, classes), the model gives {got}")
    probabilities = outputs.float().softmax(1).cpu()
    for row in probabilities:
        predicted = int(row.argmax())
        classes = {"predicted": predicted, "explained": predicted if target is None else target}
        record: dict[str, Any] = {
            key: {"class": c, "score": round(float(row[c]), 6), **({"name": categories[c]} if categories else {})}
            for key, c in classes.items()
        }
        yield record if getattr(cam, "class_discriminative", True) else {**record, "explained": None}


def _written(stem: Path, picture: Tensor, cam: np.ndarray, record: dict[str, Any]) -> bool:
    """Write picture, map and record of an image; says so if that fails. The picture of a map is an overlay."""
    from fastcam.figures.overlays import gradient_picture, overlay
    from fastcam.images import save_png

    try:
        if np.isnan(cam).any():
            raise ValueError("its map is not a number: the model's activations or gradients overflow")
        save_png(overlay(picture, cam) if cam.ndim == 2 else gradient_picture(cam), stem.with_name(stem.name + ".png"))
        np.save(stem.with_name(stem.name + ".npy"), cam)
        stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        _complain(f"{record['image']}: {error}")
        return False
    return True


def _layers(options: argparse.Namespace) -> int:
    from fastcam.layers import layer_table, suggest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes do not depend on weights
        loaded = _load(options)
    model = loaded.model.to(options.device, DTYPES[options.dtype])
    side = loaded.preprocess.crop or 224
    x = torch.rand(1, len(loaded.preprocess.mean), side, side, device=options.device, dtype=DTYPES[options.dtype])
    table = layer_table(model, x, receptive_fields=True)
    rows = [("layer", "class", "output", "receptive field")]
    for r in table:
        shape = "not run" if r.order < 0 else "-" if r.shape is None else _times(r.shape)
        seen = r.receptive_field if isinstance(r.receptive_field, str) else _times(r.receptive_field or ())
        rows.append((r.name, type(r.module).__name__, shape, seen))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"suggested: {suggest(table, x.ndim).name}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from fastcam.demo import run

    _make_folder(options.out)
    print(run(options.out, options.device))
    return 0


def _names(paths: Sequence[Path]) -> dict[Path, str]:
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


def _keep_apart(options: argparse.Namespace, paths: Sequence[Path], names: dict[Path, str]) -> None:
    """Fail before a result is written over an image that is to be explained, or among a folder of them."""
    out = options.out
    if out.resolve() in {Path(given).resolve() for given in options.images}:
        raise ValueError(f"the results would lie among the images in {out}: choose another --out, {out / 'maps'} say")
    inputs = {path.resolve() for path in paths}
    for name in names.values():
        if (out / f"{name}.png").resolve() in inputs:
            raise ValueError(f"{out / name}.png is an image to explain: choose another --out")


def _complain(error: object) -> None:
    """Say it on stderr, whatever characters a file name has."""
    print(f"fastcam: {error}".encode(errors="replace").decode(), file=sys.stderr)


def _make_folder(folder: Path) -> None:
    """Make the output folder, or fail now rather than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ValueError(f"output folder {folder} cannot be written: {error.strerror}") from error


def _progress(paths: Sequence[Path]) -> Iterator[Path]:
    from tqdm import tqdm

    return iter(tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty()))


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


class _Once(argparse.Action):
    """An argument that may not be repeated: the last one would count without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.dest in vars(namespace).setdefault("given", set()):
            parser.error(f"{option_string} is given twice: run the command once for each")
        namespace.given.add(self.dest)
        setattr(namespace, self.dest, values)


def _option(text: str) -> tuple[str, Any]:
    """A name and its value: a number, True, a list ... as in Python, and otherwise the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers, comma-separated, got {text!r}") from error


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
