"""What an output folder was made from and how: two runs that agree in it give the same maps."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

import fastcam
from fastcam.dataset.whole_files import write_first, write_whole
from fastcam.layers import layer_name
from fastcam.methods import BaseCAM

FORMAT = 1
NAME = "manifest.json"
_RESULT = "result"  # what a run adds: not part of what two runs agree in


def fingerprint(parts: Sequence[str | bytes | Tensor]) -> str:
    """The SHA-256 of texts, bytes and tensors with their shapes and types, in their order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            # The memory itself, not a copy: a data set in memory may fill most of it.
            total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            total.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        total.update(b"\0")
    return total.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Of the modules as they print themselves, and of every parameter and buffer."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return fingerprint([type(model).__qualname__, repr(model), *(part for named in tensors for part in named)])


def described_method(cam: BaseCAM) -> dict[str, Any]:
    """The class of the method, its layers, and its settings."""
    layers = cam.target_layers
    kept = ("model", "target_layers", "outputs", "base_cam")
    settings = {name: value for name, value in vars(cam).items() if not name.startswith("_") and name not in kept}
    if cam.optimize is None:
        settings.pop("optimize", None)
    found = {
        "class": type(cam).__name__,
        "layers": None if layers is None else [layer_name(cam.model, layer) for layer in layers],
        "fusion": cam.fusion,
        "settings": {name: plain(value) for name, value in settings.items() if name != "progress"},
    }
    base = getattr(cam, "base_cam", None)
    return found if base is None else {**found, "base": described_method(base)}


def plain(value: Any) -> Any:
    """A setting as JSON has it, with no address in memory."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (value if isinstance(value, list | tuple) else sorted(value))]
    if isinstance(value, Tensor | np.ndarray):
        return fingerprint([torch.as_tensor(value)])
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def versions() -> dict[str, str]:
    return {"fastcam": fastcam.__version__, "torch": torch.__version__}


def agree(out: Path, wanted: Mapping[str, Any], token: str) -> None:
    """Write the manifest of a new folder, or compare it with the one that is there.

    ValueError that says what differs.
    """
    path = out / NAME
    if path.exists() or not write_first(path, _json({"format": FORMAT, **wanted}), token):
        differences = list(_differences(read(out), json.loads(json.dumps({"format": FORMAT, **wanted}))))
        if differences:
            raise ValueError(f"{out} holds another run's maps: choose another folder\n  " + "\n  ".join(differences))


def read(out: Path) -> dict[str, Any]:
    """The manifest of a folder; ValueError if it has none."""
    path = out / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{out} holds no maps: it has no {NAME}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is no manifest of fastcam's, or of a later version")
    return found


def add_result(out: Path, result: Mapping[str, Any], token: str) -> None:
    """Put beside what the run was what has come of it so far."""
    write_whole(out / NAME, _json({**read(out), _RESULT: dict(result)}), token)


def _json(value: Any) -> Callable[[BinaryIO], object]:
    """What writes a value into a file."""
    text = json.dumps(value, indent=2) + "\n"
    return lambda file: file.write(text.encode())


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            if name or key != _RESULT:
                yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name}: {json.dumps(there)} there, {json.dumps(here)} now"
