"""Models by name, for the command line: torchvision's, timm's, or any callable that returns one."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fastcam.images import Preprocess
from fastcam.record import first_convolution


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, how its images are made, and its classes' names, if known."""

    model: nn.Module
    preprocess: Preprocess
    categories: Sequence[str] | None = None


def load_model(
    name: str,
    weights: str | None = None,
    size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Loaded:
    """The model `name`, a torchvision name, `timm:NAME` or `package.module:callable`.

    weights     a torchvision name such as "DEFAULT", which is timm's too, or a file with a state_dict (.safetensors, or
                read with `weights_only=True`); None leaves a model by name random, with a warning
    size        side of the square input in pixels; None takes the weights' own, or 224
    resize      the short side before the centre is cropped to `size`; None takes size * 256 / 224, or timm's own share
    mean, std   for images in [0, 1], one value or one a channel; None takes the weights' own, or ImageNet's
    Raises ValueError for unknown names and weights that do not fit, ImportError where a package is missing.
    """
    from_file = weights is not None and os.path.exists(weights)
    entry = None
    preprocess = Preprocess()
    if name.startswith("timm:"):
        model, preprocess = _timm_model(name.removeprefix("timm:"), None if from_file else weights, size)
    elif ":" in name:
        if weights is not None and not from_file:
            raise ValueError(f"weights must be a file for the model {name!r}, got {weights!r}")
        model = _called(name)
    else:
        entry = None if weights is None or from_file else _torchvision_weights(name, weights)
        model = _torchvision_model(name, entry)
    if from_file:
        assert weights is not None
        _load_file(model, weights)
    elif weights is None and (":" not in name or name.startswith("timm:")):
        warnings.warn(f"the weights of {name} are random (seed 0): pass --weights", stacklevel=2)
    if entry is not None:
        preprocess = _preprocess_of(entry)
    if size is not None and not name.startswith("timm:"):
        preprocess = replace(preprocess, resize=round(size * 256 / 224), crop=size)
    if resize is not None:
        preprocess = replace(preprocess, resize=resize)
    preprocess = preprocess.for_channels(input_channels(model))
    channels = len(preprocess.mean)
    preprocess = replace(
        preprocess,
        mean=preprocess.mean if mean is None else _a_channel(mean, channels, "mean"),
        std=preprocess.std if std is None else _a_channel(std, channels, "std"),
    )
    categories = None if entry is None else entry.meta.get("categories")
    return Loaded(model.eval(), preprocess, categories)


def _a_channel(values: Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ValueError(f"{name} must be one value or {channels}, got {len(values)}")
    return tuple(values) * (channels // len(values))


def input_channels(model: nn.Module) -> int:
    """The channels of the model's first convolution; 3 for a model without."""
    first = first_convolution(model)
    return 3 if first is None else first.in_channels


def _called(name: str) -> nn.Module:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not see the folder it is called in
        sys.path.insert(0, os.getcwd())
    imported = importlib.import_module(module)
    if not callable(getattr(imported, attribute, None)):
        raise ValueError(f"model {name!r}: {module} has no callable {attribute!r}")
    model = getattr(imported, attribute)()
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _torchvision() -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ImportError("models by name need torchvision: pip install 'fastcam[models]'") from error


def _torchvision_model(name: str, entry: Any) -> nn.Module:
    models = _torchvision()
    known = models.list_models()
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.3))
        raise ValueError(
            f"no torchvision model {name!r}; the nearest names: {nearest}; or give package.module:callable"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce their initialisation
        with random_but_the_same():
            return models.get_model(name, weights=entry)


@contextmanager
def random_but_the_same() -> Iterator[None]:
    """Random weights that are made inside are those of seed 0; the caller's generator goes on as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _torchvision_weights(name: str, weights: str) -> Any:
    models = _torchvision()
    if name not in models.list_models():
        return None  # the model's own error follows
    known = models.get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(f"weights {weights!r} are neither a file nor one of {', '.join(known.__members__)} of {name}")
    return known[weights]


def _timm_model(name: str, weights: str | None, size: int | None) -> tuple[nn.Module, Preprocess]:
    """A model of timm's, for inputs of this size where it can be built for one, and timm's own preprocessing."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("models timm:NAME need timm: pip install 'fastcam[models]'") from error
    if not timm.is_model(name.partition(".")[0]):
        nearest = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3))
        raise ValueError(f"no timm model {name!r}; the nearest names: {nearest}")
    if weights not in (None, "DEFAULT"):
        raise ValueError(f"weights {weights!r} are neither a file nor DEFAULT, which is what timm:{name} takes")
    pretrained = weights is not None
    sized: dict[str, Any] = {} if size is None else {"img_size": size}
    with random_but_the_same():
        try:
            model = timm.create_model(name, pretrained=pretrained, **sized)
        except TypeError:  # a convolutional network takes any size
            model = timm.create_model(name, pretrained=pretrained)
    config = timm.data.resolve_data_config({}, model=model)
    height, width = config["input_size"][1:]
    if size is None and height != width:
        raise ValueError(f"timm:{name} is for {height} x {width} pixels, images are cropped to a square: pass --size")
    crop = width if size is None else size
    interpolation = config["interpolation"]
    return model, Preprocess(
        resize=math.floor(crop / config["crop_pct"]),
        crop=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if interpolation == "random" else interpolation,
    )


def _preprocess_of(entry: Any) -> Preprocess:
    transforms = entry.transforms()
    try:
        sizes = transforms.resize_size[0], transforms.crop_size[0]
        return Preprocess(*sizes, transforms.mean, transforms.std, transforms.interpolation.value)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"weights {entry} are not for the classification of images") from error


def _read(path: str) -> Any:
    if not path.endswith(".safetensors"):
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"weights {path} need the package safetensors: pip install safetensors") from error
    return load_file(path)


def _load_file(model: nn.Module, path: str) -> None:
    try:
        state = _read(path)
    except ImportError:
        raise
    except Exception as error:  # torch raises its own, pickle's and zip's
        raise ValueError(
            f"weights {path} cannot be read as a state_dict ({type(error).__name__}): "
            "save model.state_dict(), not the model"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"weights {path} hold a {type(state).__name__}, expected a state_dict")
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"weights {path} are no state_dict: their keys are no names")
    if all(key.startswith("module.") for key in state) and not hasattr(model, "module"):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error) if len(str(error)) < 400 else str(error)[:400] + " ..."
        raise ValueError(f"weights {path} do not fit {type(model).__name__}, another --model? {reason}") from error
