"""What an output folder was made from and how: two runs that agree in it give the same maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

import fastcam
from fastcam.dataset.describing import fingerprint
from fastcam.dataset.whole_files import write_first, write_whole

FORMAT = 1
NAME = "manifest.json"
_RESULT = "result"  # what a run adds: not part of what two runs agree in


def versions() -> dict[str, str]:
    return {"fastcam": fastcam.__version__, "torch": torch.__version__}


def agree(
    out: Path, wanted: Mapping[str, Any], token: str, strays_of: Callable[[str], Sequence[str]], unused: bool
) -> str:
    """Write the manifest of a new folder, or compare it with the one that is there; what the run is known by.

    strays_of   gives the shards that the run known by this has not
    unused      whether nothing came of the manifest that is there: another run then takes its place
    ValueError that says what differs, or which shards are in the way.
    """
    path, here = out / NAME, json.loads(json.dumps({"format": FORMAT, **wanted}))
    if path.exists():
        if not unused:
            _compare(out, here)
        elif any(_differences(read(out), here)):
            path.unlink()
    if strays := strays_of(run_of(here)):
        found = f"{strays[0]} to {strays[-1]}" if len(strays) > 1 else strays[0]
        raise ValueError(f"{out} holds another run's shards, {found}: remove these files, or choose another folder")
    if not path.exists():
        write_first(path, _json(here), token)
        _compare(out, here)
    return run_of(here)


def _compare(out: Path, here: Mapping[str, Any]) -> None:
    if differences := list(_differences(read(out), here)):
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


def run_of(found: Mapping[str, Any]) -> str:
    """What the run of a manifest is known by in its shards, whatever has come of it so far."""
    agreed = {name: value for name, value in found.items() if name != _RESULT}
    return fingerprint([json.dumps(agreed, sort_keys=True)])[:16]


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
    elif (was := json.dumps(there)) != (now := json.dumps(here)):  # as texts, of which NaN equals NaN
        yield f"{name}: {was} there, {now} now"
