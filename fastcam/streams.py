"""Standard streams that nobody reads any more: `| head` has ended, `| tee` was killed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any


def hush(stream: Any) -> None:
    """Flush a stream. One without a reader leads nowhere from then on, or whoever flushes it next would fail."""
    try:
        stream.flush()
    except BrokenPipeError:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


class WhileRead:
    """What is written to a stream as long as that succeeds: a word that is lost is no reason to stop."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)
        self.flush()

    def flush(self) -> None:
        with suppress(OSError):
            hush(self._stream)
