"""Where a worker's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

READING, EXPLAINING, WRITING = "reading", "explaining", "writing"


class Stages:
    """Where the time goes: waiting for what is read, explaining, and in the writer's thread writing."""

    def __init__(self) -> None:
        self.seconds = {READING: 0.0, EXPLAINING: 0.0, WRITING: 0.0}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin

    @property
    def slowest(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)
