"""`fastcam explain`: picture, map and record for each image."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import fastcam
from fastcam.cli.arguments import (
    DTYPES,
    Once,
    complain,
    keep_apart,
    load,
    make_folder,
    model_arguments,
    names_for,
    optimize_arguments,
    optimized,
    option_argument,
    positive,
    progress,
    read,
)

if TYPE_CHECKING:
    from fastcam.methods import BaseCAM
    from fastcam.visualize import InputGradient

    Explainer = BaseCAM | InputGradient


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    from fastcam.methods import ATTENTION, METHODS
    from fastcam.visualize import SALIENCY

    parser = commands.add_parser(
        "explain", help="explain images: picture (PNG), map or gradient (.npy) and record (JSON) for each"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    model_arguments(parser)
    methods = [*METHODS, *ATTENTION, *SALIENCY]
    parser.add_argument("--method", choices=methods, default="gradcam", action=Once, help="default: gradcam")
    parser.add_argument("--layer", action="append", help="name, index path or glob; repeat for several layers")
    parser.add_argument("--target", type=int, action=Once, help="class index; default: the predicted class")
    parser.add_argument("--aug-smooth", action="store_true", help="mean over six augmentations of the image")
    parser.add_argument("--eigen-smooth", action="store_true", help="principal component instead of the sum")
    option_argument(parser, "an argument of the method's class, channels=8 for fasterscorecam say")
    optimize_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at once; default: 16")
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from fastcam.images import find_images
    from fastcam.layers import default_layer, layer_name
    from fastcam.methods import BaseCAM

    make_folder(options.out)
    paths = find_images(options.images, skip=options.out)
    names = names_for(paths)
    keep_apart(options, paths, (f"{name}.png" for name in names.values()))
    loaded = load(options)
    model = loaded.model.to(options.device, DTYPES[options.dtype])
    cam, smoothing = _explainer(options, model)
    kept = ("model", "weights", "method", "aug_smooth", "eigen_smooth", "dtype", "device")
    shared = {name: getattr(options, name) for name in kept} | {"options": dict(options.option)}
    shared |= {"preprocess": asdict(loaded.preprocess), "fastcam": fastcam.__version__}
    target = options.target if getattr(cam, "class_discriminative", True) else None
    if target != options.target:
        warnings.warn(f"{options.method} does not depend on the class, --target is ignored", stacklevel=1)
    done = 0
    waiting = progress(paths)
    while chunk := list(islice(waiting, options.batch_size)):
        images = read(chunk, loaded.preprocess)
        if not images:
            continue
        x = torch.stack([x for _, x, _ in images]).to(options.device, DTYPES[options.dtype])
        maps = np.asarray(cam(x, target, **smoothing), np.float32)
        if hasattr(cam, "target_layers"):
            layers = [default_layer(model, x)] if cam.target_layers is None else cam.target_layers
            shared["layer"] = [layer_name(model, layer) for layer in layers]
        if isinstance(cam, BaseCAM) and cam.optimize and cam.agreement:
            shared |= {"optimize": asdict(cam.optimize), "agreement": asdict(cam.agreement)}
        records = _records(cam, target, loaded.categories)
        for (path, _, picture), values, record in zip(images, maps, records, strict=True):
            done += _written(options.out / names[path], picture, values, {"image": str(path), **record, **shared})
    if done < len(paths):
        complain(f"{len(paths) - done} of {len(paths)} images failed")
    if isinstance(cam, BaseCAM) and cam.agreement:
        print(cam.agreement)
    print(f"wrote {done} pictures, maps and records to {options.out}")
    return 0 if done == len(paths) else 1


def _explainer(options: argparse.Namespace, model: torch.nn.Module) -> tuple[Explainer, dict[str, Any]]:
    """The method, bound to model and layers, and the options of its calls."""
    from fastcam.methods import ATTENTION, METHODS
    from fastcam.methods.perturbation import PerturbationCAM
    from fastcam.visualize import GuidedGradCAM

    if (cls := {**METHODS, **ATTENTION}.get(options.method)) is not None:
        smoothing = {"aug_smooth": options.aug_smooth, "eigen_smooth": options.eigen_smooth}
        progress = {"progress": sys.stderr.isatty()} if issubclass(cls, PerturbationCAM) else {}
        return made(cls, options, model, options.layer, **progress, **optimized(options)), smoothing
    if optimized(options):
        raise ValueError(f"--optimize is for maps, {options.method} gives gradients")
    if options.aug_smooth or options.eigen_smooth:
        raise ValueError(f"--aug-smooth and --eigen-smooth are for maps, {options.method} gives gradients")
    if options.method == "guidedgradcam":
        return made(GuidedGradCAM, options, model, options.layer), {}
    if options.layer:
        raise ValueError(f"{options.method} looks at the input: --layer does not apply")
    return gradient_method(options, model), {}


def gradient_method(options: argparse.Namespace, model: torch.nn.Module) -> InputGradient:
    """The method of `SALIENCY` that was asked for, with its options."""
    from fastcam.visualize import SALIENCY
    from fastcam.visualize.sampled import SampledGradient

    cls = SALIENCY[options.method]
    progress = {"progress": sys.stderr.isatty()} if issubclass(cls, SampledGradient) else {}
    return made(cls, options, model, **progress)


def made(cls: Any, options: argparse.Namespace, *arguments: Any, **keywords: Any) -> Any:
    """An object of the method's class with the options given for it, or a ValueError that says which it has."""
    known = _options_of(cls)
    for name, _ in options.option:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            others = [method for method, other in _family(cls).items() if name in _options_of(other)]
            have = f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} it" if others else ""
            raise ValueError(f"{options.method} has no option {name!r}: {has}{have}")
    return cls(*arguments, **{**keywords, **dict(options.option)})


def _options_of(cls: Any) -> set[str]:
    signatures = [inspect.signature(c.__init__).parameters for c in cls.__mro__ if "__init__" in vars(c)]
    keywords = {p.name for s in signatures for p in s.values() if p.kind == p.KEYWORD_ONLY} - {"optimize"}
    return keywords | {name for name, p in signatures[0].items() if p.default is not p.empty} - {
        *("target_layers", "reshape_transform", "device", "optimize")
    }


def _family(cls: Any) -> dict[str, Any]:
    """The methods, by name, that could be meant where this one is not."""
    from fastcam.methods import ATTENTION, METHODS
    from fastcam.visualize import SALIENCY

    return dict(SALIENCY) if cls in SALIENCY.values() else {**METHODS, **ATTENTION}


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
        complain(f"{record['image']}: {error}")
        return False
    return True
