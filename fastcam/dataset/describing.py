"""What a run depends on, in texts and fingerprints that are the same in every process: model, method, data set."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from fastcam.layers import layer_name
from fastcam.methods import BaseCAM

_DEEPEST = 5  # levels of objects within objects that are looked at
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


def plain(value: Any, depth: int = 0) -> Any:
    """A setting as JSON has it: functions by name, code and what they hold, objects by class and attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | torch.dtype | torch.device | torch.Size | range | slice):
        return str(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return fingerprint([torch.as_tensor(value)])
    if isinstance(value, nn.Module):
        return {"class": _name(type(value)), "fingerprint": model_fingerprint(value)}
    if depth > _DEEPEST:
        return _name(type(value))
    inside = functools.partial(plain, depth=depth + 1)
    if isinstance(value, Mapping):
        return {str(k): inside(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, map(inside, value)))
    if isinstance(value, list | tuple):
        return [inside(v) for v in value]
    if is_dataclass(value) and not callable(value):
        return {field.name: inside(getattr(value, field.name)) for field in fields(value)}
    return _plain_callable(value, inside) if callable(value) else _plain_object(value, inside)


def _plain_callable(value: Any, inside: Any) -> Any:
    if isinstance(value, functools.partial):
        return {"partial": inside(value.func), "args": inside(value.args), "keywords": inside(value.keywords)}
    if inspect.ismethod(value):
        return {"method": inside(value.__func__), "of": inside(value.__self__)}
    if inspect.isfunction(value):
        held = [inside(_content(cell)) for cell in value.__closure__ or ()]
        defaults = inside([*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())])
        return {"function": _name(value), "code": _code(value.__code__), "holds": held, "defaults": defaults}
    if inspect.isclass(value) or inspect.isroutine(value):
        return _name(value)
    return _plain_object(value, inside)


def _plain_object(value: Any, inside: Any) -> Any:
    attributes = {name: inside(v) for name, v in sorted(getattr(value, "__dict__", {}).items())}
    return {"class": _name(type(value)), **({"attributes": attributes} if attributes else {})}


def _content(cell: Any) -> Any:
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


def described_dataset(dataset: Any) -> dict[str, Any]:
    """Its length and what it holds: files, tensors, listed samples, or a part or a sequence of other data sets.

    Of another class, its name and its simple settings; what its code does is not part of it.
    """
    if hasattr(dataset, "described"):  # `ImageFiles`
        return dataset.described()
    found: dict[str, Any] = {"class": type(dataset).__qualname__, "samples": len(dataset)}
    for name in ("transform", "target_transform", "transforms"):
        if getattr(dataset, name, None) is not None:
            found[name] = without_addresses(repr(getattr(dataset, name)))
    if isinstance(dataset, TensorDataset):
        found["fingerprint"] = fingerprint(dataset.tensors)
    elif isinstance(dataset, Subset):
        found |= {"of": described_dataset(dataset.dataset), "indices": fingerprint([repr(list(dataset.indices))])}
    elif isinstance(dataset, ConcatDataset):
        found["of"] = [described_dataset(d) for d in dataset.datasets]
    elif (listed := listed_samples(dataset)) is not None:
        found["fingerprint"] = fingerprint(f"{name}\0{rest}" for name, *rest in listed)
    elif isinstance(dataset, list | tuple):
        found["fingerprint"] = fingerprint([repr(plain(list(dataset)))])
    else:
        known = {k: v for k, v in getattr(dataset, "__dict__", {}).items() if not k.startswith("_")}
        found["settings"] = {k: v for k, v in sorted(known.items()) if isinstance(v, bool | int | float)}
    return found


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
    return Path(name).relative_to(root).as_posix() if root and Path(name).is_relative_to(root) else name
