"""What a run depends on, in texts and fingerprints that are the same in every process: model, method, data set."""

from __future__ import annotations

import argparse
import functools
import hashlib
import inspect
import json
import logging
import os
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastcam.layers import layer_name
from fastcam.methods import BaseCAM

_DEEPEST = 5  # levels of objects within objects that are looked at
_FOLLOWED = 2  # levels of functions called by functions whose global names are looked up
_MOST = 2**23  # values in a data set that are looked at
_WHOLE, _STRETCHES = 2**26, 2**10  # bytes of a tensor that are looked at; where there are more, in so many stretches
_NUMBERS, _LISTS = (bool, int, float), (list, tuple)  # of types: there may be a million values to compare with them
_TEXTS = (str, Path, torch.dtype, torch.device, torch.Size, range, slice)
_BRIEF = 200  # characters of what is told as it is
_SEPARATORS = "/" + os.sep
_LIBRARIES = (os.path.dirname(os.__file__) + os.sep, str(Path(__file__).parents[1]) + os.sep)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprint(parts: Iterable[str | bytes | Tensor]) -> str:
    """The SHA-256 of texts, bytes and tensors with their shapes and types, in their order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            total.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        total.update(b"\0")
    return total.hexdigest()


def without_addresses(text: str) -> str:
    return _ADDRESS.sub("", text)


def model_fingerprint(model: nn.Module) -> str:
    """Of the modules as they print themselves, of every parameter and buffer, and of the modules' own settings.

    The code of a `forward` is not part of it.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    settings = [f"{name}.{key}={value}" for name, m in model.named_modules() for key, value in _settings(m)]
    texts = [type(model).__qualname__, without_addresses(repr(model)), *settings]
    return fingerprint([*texts, *(part for named in tensors for part in named)])


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    own = [item for item in vars(module).items() if not item[0].startswith("_") and item[0] != "training"]
    return sorted((k, v) for k, v in own if isinstance(v, bool | int | float | str))


def described_method(cam: BaseCAM) -> dict[str, Any]:
    """The class of the method, its layers, and its settings."""
    layers = cam.target_layers
    kept = ("model", "target_layers", "outputs", "base_cam", "progress")
    settings = {name: value for name, value in vars(cam).items() if not name.startswith("_") and name not in kept}
    found = {
        "class": type(cam).__name__,
        "layers": None if layers is None else [layer_name(cam.model, layer) for layer in layers],
        "fusion": cam.fusion,
        "settings": {name: plain(value) for name, value in settings.items()},
    }
    base = getattr(cam, "base_cam", None)
    return found if base is None else {**found, "base": described_method(base)}


def plain(value: Any, depth: int = 0, root: str = "", left: Iterator[int] | None = None) -> Any:
    """A setting as JSON has it: functions by name, code and what they use, objects by class and attributes.

    root   a folder; paths are told as they lie below it
    left   gives a number for each value that is still to be looked at; of others the class is told
    """
    if left is not None and next(left, None) is None:
        return _name(type(value))
    if value is None or isinstance(value, _NUMBERS):
        return value
    if isinstance(value, _TEXTS):
        return _below(root, str(value))
    inside = functools.partial(plain, depth=depth + 1, root=root, left=left)
    if isinstance(value, _LISTS) and depth <= _DEEPEST:
        return [inside(v) for v in value]
    if isinstance(value, types.ModuleType | logging.Logger):  # a logger's attributes are what it has met
        return getattr(value, "name", getattr(value, "__name__", ""))
    if isinstance(value, nn.Module):
        return {"class": _name(type(value)), "fingerprint": model_fingerprint(value)}
    if isinstance(value, bytes):
        return fingerprint([value])
    if isinstance(value, Tensor):
        return _content(value)
    if not isinstance(value, type) and hasattr(value, "to_numpy"):  # a table of pandas
        return [inside(list(getattr(value, "columns", ()))), inside(value.to_numpy())]
    if not isinstance(value, type) and hasattr(value, "__array_interface__"):  # an array, or a picture of Pillow
        array = np.asarray(value)
        return inside(array.tolist()) if array.dtype.kind in "OSU" else _content(array)
    if depth > _DEEPEST:
        return _name(type(value))
    if isinstance(value, Dataset) and hasattr(value, "__len__"):
        return described_dataset(value, depth + 1)
    if isinstance(value, Mapping):
        return {str(k): inside(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, map(inside, value)))
    if is_dataclass(value) and not callable(value):
        return {field.name: inside(getattr(value, field.name)) for field in fields(value)}
    return _plain_callable(value, inside, depth) if callable(value) else _plain_object(value, inside)


def _content(value: Tensor | np.ndarray) -> str:
    """The fingerprint of numbers; of more than `_WHOLE` bytes, that of stretches which are spread over them."""
    if isinstance(value, Tensor):
        kind, raw = str(value.dtype), value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        kind, raw = value.dtype.str, np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    if len(raw) > _WHOLE:
        length = len(raw) // _STRETCHES
        raw = raw[: _STRETCHES * length].reshape(_STRETCHES, length)[:, : _WHOLE // _STRETCHES]
    return fingerprint([f"{kind}{tuple(value.shape)}", raw.tobytes()])


def _plain_callable(value: Any, inside: Any, depth: int) -> Any:
    if isinstance(value, functools.partial):
        return {"partial": inside(value.func), "args": inside(value.args), "keywords": inside(value.keywords)}
    if inspect.ismethod(value):
        return {"method": inside(value.__func__), "of": inside(value.__self__)}
    if inspect.isfunction(value):
        held = [inside(_value_in(cell)) for cell in value.__closure__ or ()]
        defaults = inside([*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())])
        found = {"function": _name(value), "code": _code(value.__code__), "holds": held, "defaults": defaults}
        if depth > _FOLLOWED or _is_installed(value.__code__.co_filename):
            return found
        return {**found, "globals": _globals(value, inside)}
    if inspect.isclass(value) or inspect.isroutine(value):
        return _name(value)
    found, call = _plain_object(value, inside), type(value).__call__
    own = inspect.isfunction(call) and not _is_installed(call.__code__.co_filename)
    return {**found, "call": inside(call)} if own else found


def _plain_object(value: Any, inside: Any) -> Any:
    attributes = {name: inside(v) for name, v in sorted(getattr(value, "__dict__", {}).items())}
    return {"class": _name(type(value)), **({"attributes": attributes} if attributes else {})}


def _globals(function: types.FunctionType, inside: Any) -> dict[str, Any]:
    """What a function's code finds under global names; of modules and settings, what it names of them."""
    names, found = _names(function.__code__), {}
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        is_module = isinstance(value, types.ModuleType)
        if is_module and _is_installed(getattr(value, "__file__", None)):
            continue
        if is_module or isinstance(value, types.SimpleNamespace | argparse.Namespace):
            found[name] = {n: inside(v) for n, v in vars(value).items() if n in names}
        else:
            found[name] = inside(value)
    return {name: _brief(told) for name, told in found.items()}


def _names(code: types.CodeType) -> set[str]:
    """The names that code looks up, with those of the functions in it."""
    return {*code.co_names}.union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _is_installed(file: str | None) -> bool:
    """Whether code is Python's, fastcam's or a package's, and no user's."""
    parts = Path(file or "").parts
    packaged = "site-packages" in parts or "dist-packages" in parts
    return packaged or file is None or file.startswith((*_LIBRARIES, "<frozen"))


def _brief(told: Any) -> Any:
    """What is long as its fingerprint."""
    text = json.dumps(told, sort_keys=True)
    return told if len(text) <= _BRIEF else fingerprint([text])


def _value_in(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty yet
        return None


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return fingerprint([code.co_code, *constants, *code.co_names])[:16]


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # its order is chance


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def described_precision(device: torch.device) -> dict[str, Any]:
    """How products of fp32 numbers are made, and autocast's type."""
    backends: Any = torch.backends
    matmul, conv = backends.mkldnn.matmul, backends.mkldnn.conv
    if device.type == "cuda":
        matmul, conv = backends.cuda.matmul, backends.cudnn.conv
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None
    return {"matmul": matmul.fp32_precision, "conv": conv.fp32_precision, "autocast": autocast}


def described_dataset(dataset: Any, depth: int = 0) -> dict[str, Any]:
    """Its length and what it holds: files, tensors, listed samples, or a part or a sequence of other data sets.

    Of any class but those what its attributes hold, see `_held`; what its code does is not part of it.
    """
    if hasattr(dataset, "described"):  # `ImageFiles`
        return dataset.described()
    found: dict[str, Any] = {"class": type(dataset).__qualname__, "samples": len(dataset)}
    told = {"transform", "target_transform", "transforms"}
    for name in sorted(told):
        if (value := getattr(dataset, name, None)) is not None:
            found[name] = _brief(plain(value)) if _ADDRESS.search(text := repr(value)) else text
    if isinstance(dataset, Tensor | TensorDataset):
        found["fingerprint"] = fingerprint([dataset] if isinstance(dataset, Tensor) else dataset.tensors)
        told |= {"tensors"}
    elif isinstance(dataset, Subset):
        indices = fingerprint([repr([*map(int, dataset.indices)])])
        found |= {"of": described_dataset(dataset.dataset, depth + 1), "indices": indices}
        told |= {"dataset", "indices"}
    elif isinstance(dataset, ConcatDataset):
        found["of"] = [described_dataset(d, depth + 1) for d in dataset.datasets]
        told |= {"datasets", "cumulative_sizes"}
    elif (listed := listed_samples(dataset)) is not None:
        found["fingerprint"] = fingerprint(f"{name}\0{rest}" for name, *rest in listed)
        told |= {"samples", "imgs", "targets"}
    elif isinstance(dataset, list | tuple):
        found["fingerprint"] = fingerprint([repr(plain(list(dataset)))])
    held = _held(dataset, told, depth) if depth <= _DEEPEST else {}
    return {**found, "settings": held} if held else found


def _held(dataset: Any, told: Collection[str], depth: int) -> dict[str, Any]:
    """What a data set's attributes hold, paths as they lie below its `root`; long values as their fingerprints.

    Where nothing is listed, the root's own name counts.
    """
    attributes = sorted(getattr(dataset, "__dict__", {}).items())
    known = {name: value for name, value in attributes if name not in told and _counts(name, value)}
    root = str(known["root"]) if isinstance(known.get("root"), str | Path) else ""
    left = iter(range(_MOST))
    found = {}
    for name, value in known.items():
        try:
            found[name] = _brief(plain(value, depth + 1, root, left))
        except Exception:  # whatever an object raises that is looked at
            found[name] = _name(type(value))
    if root and not any(isinstance(v, list | tuple | Mapping | Tensor | np.ndarray) for v in known.values()):
        found["root"] = Path(root).name
    return found


def _counts(name: str, value: Any) -> bool:
    """Whether an attribute is not a state or a cache, as those often are whose names begin with _."""
    first = value[0] if isinstance(value, _LISTS) and value else value
    kinds = (str, Path, Tensor, np.ndarray) if first is value else (str, Path, tuple)
    return not name.startswith("_") or isinstance(first, kinds)


def listed_samples(dataset: Any) -> list[tuple[Any, ...]] | None:
    """What torchvision's folders list, `(path, class)`, the paths as they lie below the data set's root."""
    listed = getattr(dataset, "samples", None)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != len(dataset):
        return None
    if not all(isinstance(s, tuple | list) and s and isinstance(s[0], str | Path) for s in listed):
        return None
    root = str(getattr(dataset, "root", ""))
    return [(_below(root, str(name)), *rest) for name, *rest in listed]


def _below(root: str, name: str) -> str:
    """A path as it lies below a folder, if it does."""
    root = root.rstrip(_SEPARATORS)
    rest = name[len(root) :]
    if not root or not name.startswith(root) or rest[:1] not in _SEPARATORS:
        return name
    return rest.lstrip(_SEPARATORS).replace(os.sep, "/") or "."
