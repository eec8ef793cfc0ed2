"""Shards that are made again because samples of them failed, each once, by however many workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fastcam.dataset.whole_files import write_first

if TYPE_CHECKING:
    from fastcam.dataset.work import Plan

NAME = "retry.json"


def to_make_again(plan: Plan, token: str) -> dict[int, int]:
    """The shards with failures, and when each was made: one that was made at another time has been made again since.

    The list is that of the first worker that retries, and stays until all of it is done: others share it, and a retry
    that was stopped goes on with what is left.
    """
    path = plan.out / NAME
    if not path.exists() and (failed := _failed(plan)):
        text = json.dumps(failed).encode()
        write_first(path, lambda file: file.write(text), token)
    try:
        return {int(number): made for number, made in json.loads(path.read_text()).items()}
    except FileNotFoundError:  # none, or in the meantime all of it was done
        return {}


def _failed(plan: Plan) -> dict[int, int]:
    found = {}
    for number in range(plan.shards):
        made, shard = plan.made(number), plan.stored(number)  # in this order: another may just replace it
        if made is not None and shard is not None and shard.meta["failed"]:
            found[number] = made
    return found
