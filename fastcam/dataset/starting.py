"""What a run finds in its folder before it begins: a manifest, shards of its own or another's, files that changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcam.dataset import manifest
from fastcam.dataset.claims import Claims
from fastcam.dataset.shards import StoredShard

if TYPE_CHECKING:
    from fastcam.dataset.work import Plan

MANIFEST = "manifest"  # the claim on it
_NAMED = 3  # files in an error


def take_manifest(claims: Claims, patient: bool = True) -> bool:
    """Whether this worker is from now on the one that may write the manifest; a patient one waits for that."""
    while not (taken := claims.take(MANIFEST)) and patient:
        time.sleep(0.05)
    return taken


def agree(plan: Plan, wanted: Mapping[str, Any], claims: Claims) -> str:
    """What the run is known by, see `manifest.agree`; from here on this worker counts as one of it.

    A manifest that has neither a shard nor a worker is that of a run of which nothing came.
    """
    take_manifest(claims)
    try:
        unused = not _numbered(plan) and not claims.others_work()
        run = manifest.agree(plan.out, wanted, claims.token, partial(_strays, plan), unused)
        claims.take(claims.token)
        return run
    finally:
        claims.release(MANIFEST)


def check_lengths(plan: Plan) -> None:
    """ValueError if files changed in length after their maps were made; those without a map may be mended.

    Files that are gone are none of another length.
    """
    changed: list[str] = []
    shards: list[str] = []
    lengths = plan.lengths or ()
    for number in range(plan.shards if lengths else 0):
        if (shard := plan.stored(number)) is not None:
            known = zip(shard.records["index"], shard.meta["paths"], shard.meta["bytes"], strict=True)
            found = [path for index, path, length in known if len({lengths[index], length} - {-1}) > 1]
            changed += found
            shards += [shard.path.name] * bool(found)
    if changed:
        hint = f"remove their shards, {_some(shards)}, or choose another folder"
        raise ValueError(f"{plan.out} holds maps of files that have changed since, {_some(changed)}: {hint}")


def _strays(plan: Plan, run: str) -> list[str]:
    """Shards behind the last one and, where the manifest is gone, of another run."""
    known = (plan.out / manifest.NAME).exists()
    there = _numbered(plan)
    return [p.name for p in there if int(p.stem) >= plan.shards or not known and _run_of(p) not in (run, None)]


def _numbered(plan: Plan) -> list[Path]:
    return sorted(path for path in plan.folder.glob("[0-9]*.npz") if path.stem.isdecimal())


def _run_of(shard: Path) -> Any:
    """None if it is damaged: then it is made again."""
    try:
        return StoredShard(shard).meta.get("run")
    except (FileNotFoundError, ValueError):
        return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join([*names[:_NAMED], *([f"{more} more"] if more > 0 else [])])
