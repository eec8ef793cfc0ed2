"""What maps were made with: how it is said, and what sets columns of one method apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fastcam.fast.settings import Optimize

if TYPE_CHECKING:
    from fastcam.report.columns import Column

_RECORDED = ("model", "weights", "dtype", "aug_smooth", "eigen_smooth", "optimize")
_OF_CLASSES = ("class_discriminative", "uses_gradients")  # what follows from the method
_NAMED_BY = ("class", "function", "partial", "method")


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a record of `fastcam explain`; its version and device are none."""
    found = {name: record[name] for name in _RECORDED if record.get(name)}
    return found | record.get("options", {})


def of_manifest(about: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a manifest of `fastcam run`, without those that are off."""
    method, base = about["method"], about["method"].get("base")
    found = {**method["settings"], "base": base and base["class"], **dict.fromkeys(about["smoothing"], True)}
    if found.get("sign") == "activation":  # the default
        del found["sign"]
    kept = {name: value for name, value in found.items() if not (value is None or value is False)}
    return {"model": about["model"], **{name: value for name, value in kept.items() if name not in _OF_CLASSES}}


def said(name: str, value: Any) -> str:
    """A setting in words."""
    if name == "model" and isinstance(value, dict):
        return ", ".join([value["class"], *value["dtype"]])
    if name in ("model", "dtype"):
        return str(value)
    if name == "weights":
        return f"weights {PurePath(value).name}"
    if name == "optimize":
        default = asdict(Optimize())
        more = ", ".join(f"{key}={given}" for key, given in value.items() if given != default.get(key))
        return f"fast mode: {more}" if more else "fast mode"
    return name if value is True else f"{name}={name_of(value)}"


def name_of(value: Any) -> Any:
    """A value as it is, or the name of an object that a manifest describes."""
    key = next((key for key in _NAMED_BY if isinstance(value, dict) and key in value), None)
    return value if key is None else str(name_of(value[key])).rpartition(".")[2]


def titles(columns: Sequence[Column]) -> list[str]:
    """The columns' methods, with what sets each apart from others of that name.

    That is the folder, too, where they differ in what words do not tell: in the weights of a run's model, say.
    """
    folders, facts = _names([column.out for column in columns]), [_facts(column) for column in columns]
    parts = []
    for place, column in enumerate(columns):
        alike = [f for other, f in zip(columns, facts, strict=True) if other.method == column.method]
        names = dict.fromkeys(name for f in alike for name in f)
        texts = {name: {f.get(name, _NONE)[1] for f in alike} for name in names}
        values = {name: {f.get(name, _NONE)[0] for f in alike} for name in names}
        parts.append([facts[place].get(name, _NONE)[1] for name in names if len(texts[name]) > 1])
        parts[-1] += [folders[place]] * any(len(values[name]) > len(texts[name]) for name in names)
    for more in (folders, [str(number) for number in range(1, len(columns) + 1)]):
        told = [_title(column.method, part) for column, part in zip(columns, parts, strict=True)]
        for part, title, one in zip(parts, told, more, strict=True):
            part += [one] * (told.count(title) > 1 and one not in part)
    return [_title(column.method, part) for column, part in zip(columns, parts, strict=True)]


_NONE = ("", "")


def _facts(column: Column) -> dict[str, tuple[str, str]]:
    """What a column was made with, and how that is said, by name."""
    found = {"layers": (str(column.layers), ", ".join(column.layers)), "explained": (column.explained,) * 2}
    return found | {n: (json.dumps(v, sort_keys=True), said(n, v)) for n, v in column.settings.items()}


def _title(method: str, parts: Sequence[str]) -> str:
    told = "; ".join(filter(None, parts))
    return f"{method} ({told})" if told else method


def _names(folders: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as short as tells them apart; nothing for a single folder."""
    whole = [folder.resolve().parts for folder in folders]
    different, length = len(set(whole)), 1
    while len({parts[-length:] for parts in whole}) < different:
        length += 1
    return ["/".join(parts[-length:]) if different > 1 else "" for parts in whole]


def differences(one: Column, other: Column) -> list[str]:
    """What two columns were made with that is not the same: `method "gradcam" and "layercam"`."""
    here, there = ({"method": c.method, "layers": c.layers, **c.settings, **_seen(c)} for c in (one, other))
    names = [name for name in here | there if here.get(name) != there.get(name)]
    return [f"{name} {json.dumps(here.get(name))} and {json.dumps(there.get(name))}" for name in names]


def _seen(column: Column) -> dict[str, Any]:
    return {} if column.preprocess is None else asdict(column.preprocess)
