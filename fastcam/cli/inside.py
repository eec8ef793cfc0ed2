"""`fastcam kernels`, `features`, `saliency`, `maximize` and `dream`: pictures of what is inside a network."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fastcam
from fastcam.cli.arguments import (
    DTYPES,
    complain,
    keep_apart,
    load,
    make_folder,
    model_arguments,
    names_for,
    option_argument,
    positive,
    progress,
    read,
)
from fastcam.cli.explain import gradient_method

if TYPE_CHECKING:
    from fastcam.images import Preprocess


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    text = "draw the kernels of layers, a figure a layer"
    parser = _command(commands, "kernels", _kernels, text, "fastcam.kernel_figure", preprocessing=False)
    parser.add_argument("--layer", action="append", help="repeat for several; default: the first convolution")

    text = "draw the feature maps of layers, a figure an image and layer"
    parser = _command(commands, "features", _features, text, "fastcam.FeatureMaps.plot")
    _images_argument(parser)
    parser.add_argument("--layer", action="append", required=True, help="name, index path or glob; repeat for several")
    parser.add_argument("--which", choices=("output", "input"), default="output", help="default: output")

    text = "draw the gradients of images, a figure an image"
    parser = _command(commands, "saliency", _saliency, text, "the method's class, fastcam.SmoothGrad say")
    _images_argument(parser)
    parser.add_argument("--method", choices=_gradients(), default="saliency", help="default: saliency")
    parser.add_argument("--target", type=int, help="class index; default: the predicted class")

    text = "make images that excite channels, neurons or classes"
    parser = _command(commands, "maximize", _maximize, text, "fastcam.maximize")
    parser.add_argument(
        "objectives", nargs="+", metavar="OBJECTIVE", help="layer4.1.conv1:45, layer4:45@3,3, logit:207 ..."
    )
    parser.add_argument("--steps", type=positive, default=256, help="default: 256")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")

    text = "let a layer dream into images, at their own size"
    parser = _command(commands, "dream", _dream, text, "fastcam.deep_dream")
    _images_argument(parser)
    parser.add_argument("--layer", action="append", required=True, help="name, index path or glob; repeat for several")
    parser.add_argument("--channel", action="append", type=int, help="repeat for several; default: all of them")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    behind: str,
    preprocessing: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    model_arguments(parser, preprocessing)
    option_argument(parser, f"an argument of {behind}")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    parser.set_defaults(run=run)
    return parser


def _images_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at once; default: 16")


def _gradients() -> list[str]:
    from fastcam.visualize import SALIENCY

    return list(SALIENCY)


def _kernels(options: argparse.Namespace) -> int:
    from fastcam.layers import find_layers, layer_name
    from fastcam.record import first_convolution

    make_folder(options.out)
    model, _ = _model(options)
    first = first_convolution(model)
    if options.layer is None and first is None:
        raise ValueError("the model has no convolution: pass --layer (`fastcam layers` lists them)")
    layers = find_layers(model, [first] if options.layer is None else options.layer)
    given = _given(options, fastcam.plot_kernels, "fastcam.kernel_figure")
    for layer in layers:
        path = options.out / f"{layer_name(model, layer)}.png"
        fastcam.kernel_figure(model, layer, **given).save(path)
    return _wrote(options, len(layers), len(layers), "figure")


def _features(options: argparse.Namespace) -> int:
    from fastcam.layers import find_layers, layer_name

    model, preprocess = _model(options)
    names = [layer_name(model, layer) for layer in find_layers(model, options.layer)]
    drawn = _given(options, fastcam.FeatureMaps.plot, "fastcam.FeatureMaps.plot", but=("image",))
    done = 0
    for paths, x in _batches(options, preprocess, [f"-{name}" for name in names]):
        maps = fastcam.feature_maps(model, _to(x, options), names, which=options.which)
        for i, stem in enumerate(paths):
            for name in names:
                maps[name].save(stem.with_name(f"{stem.name}-{name}.png"), image=i, **drawn)
            done += 1
    return _wrote(options, done, _count(options), "image")


def _saliency(options: argparse.Namespace) -> int:
    model, preprocess = _model(options)
    method = gradient_method(options, model)
    ending = f"-{options.method}"
    done = 0
    for paths, x in _batches(options, preprocess, [ending]):
        found = method(_to(x, options), options.target)
        for i, stem in enumerate(paths):
            found.save(stem.with_name(f"{stem.name}{ending}.png"), image=i, mean=preprocess.mean, std=preprocess.std)
            done += 1
    return _wrote(options, done, _count(options), "image")


def _maximize(options: argparse.Namespace) -> int:
    make_folder(options.out)
    model, preprocess = _model(options)
    found = fastcam.maximize(
        model,
        options.objectives,
        **{
            "size": preprocess.crop,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "steps": options.steps,
            "seed": options.seed,
            "progress": sys.stderr.isatty(),
            **_given(options, fastcam.maximize, "fastcam.maximize"),
        },
    )
    found.save(options.out / "maximize.png")
    found.save_images(options.out, "maximize-{index}.png")
    return _wrote(options, len(found), len(found), "image")


def _dream(options: argparse.Namespace) -> int:
    model, preprocess = _model(options)
    native = replace(preprocess, resize=None, crop=None)
    settings = {"mean": native.mean, "std": native.std, "seed": options.seed, "progress": sys.stderr.isatty()}
    settings |= _given(options, fastcam.deep_dream, "fastcam.deep_dream")
    options.batch_size = 1  # each image has its own size
    done = 0
    for (stem,), x in _batches(options, native, ["-dream"]):
        dream = fastcam.deep_dream(model, _to(x, options), options.layer, options.channel, **settings)
        dream.save_images(stem.parent, stem.name.replace("{", "{{").replace("}", "}}") + "-dream.png")
        done += 1
    return _wrote(options, done, _count(options), "image")


def _model(options: argparse.Namespace) -> tuple[nn.Module, Preprocess]:
    loaded = load(options)
    return loaded.model.to(options.device, DTYPES[options.dtype]), loaded.preprocess


def _to(x: Tensor, options: argparse.Namespace) -> Tensor:
    return x.to(options.device, DTYPES[options.dtype])


def _batches(
    options: argparse.Namespace, preprocess: Preprocess, endings: Sequence[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Images that can be read, in batches: for each the stem of the files to write, and the model's inputs."""
    from fastcam.images import find_images

    make_folder(options.out)
    paths = find_images(options.images, skip=options.out)
    names = names_for(paths)
    keep_apart(options, paths, [f"{name}{ending}.png" for name in names.values() for ending in endings])
    waiting = progress(paths)
    while chunk := list(islice(waiting, options.batch_size)):
        if images := read(chunk, preprocess):
            yield [options.out / names[path] for path, _, _ in images], torch.stack([x for _, x, _ in images])


def _count(options: argparse.Namespace) -> int:
    from fastcam.images import find_images

    return len(find_images(options.images, skip=options.out))


def _given(options: argparse.Namespace, function: Any, called: str, but: Sequence[str] = ()) -> dict[str, Any]:
    """The options given with -o, or a ValueError that says which the function has."""
    parameters = inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}.difference(but)
    for name, _ in options.option:
        if name not in known:
            raise ValueError(f"{called} has no option {name!r}: it has {', '.join(sorted(known))}")
    return dict(options.option)


def _wrote(options: argparse.Namespace, done: int, wanted: int, what: str) -> int:
    """Say what was done; the exit status."""
    if done < wanted:
        complain(f"{wanted - done} of {wanted} {what}s failed")
    print(f"wrote the pictures of {done} {what}{'s' * (done != 1)} to {options.out}")
    return 0 if done == wanted else 1
