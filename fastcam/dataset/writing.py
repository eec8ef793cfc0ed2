"""The thread that collects what was explained and writes shards."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastcam.dataset.claims import Claims
from fastcam.dataset.explaining import Explained
from fastcam.dataset.shards import Shard
from fastcam.dataset.stages import EXPLAINING, WRITING, Stages
from fastcam.dataset.whole_files import write_whole

if TYPE_CHECKING:
    from fastcam.dataset.work import Plan

_WAITING = 4  # batches that may wait to be written


class Writer:
    """Writes, in a thread of its own, each shard whose batches were all `put`, and releases its claim."""

    def __init__(self, plan: Plan, names: Sequence[str | None] | None, claims: Claims, stages: Stages) -> None:
        self.plan, self.names, self.claims, self.stages = plan, names, claims, stages
        self._queue: queue.Queue[tuple[int, Explained, bool] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._shards: dict[int, Shard] = {}
        self._thread = threading.Thread(target=self._run, name="fastcam-writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """What is complete is written; a shard that is not is dropped."""
        self._queue.put(None)
        self._thread.join()

    def put(self, number: int, explained: Explained, last: bool) -> None:
        """A batch of a shard, the last one or not. Raises what the thread met."""
        self._check()
        self._queue.put((number, explained, last))

    def finish(self) -> None:
        """Wait until all that was put is written. Raises what the thread met."""
        self._queue.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        """After an error the queue is emptied without a look, so that nobody waits for room in it."""
        broken = False
        while True:
            item = self._queue.get()
            try:
                if item is None:
                    return
                if not broken:
                    self._add(*item)
            except BaseException as error:
                self._error, broken = error, True
            finally:
                self._queue.task_done()

    def _add(self, number: int, explained: Explained, last: bool) -> None:
        shard = self._shards.setdefault(number, self.plan.shard(number))
        shard.batch_size = min(shard.batch_size or explained.batch_size, explained.batch_size)
        shard.failures += explained.failures
        for rows in explained.rows:
            with self.stages.timed(EXPLAINING):
                rows.wait()
            with self.stages.timed(WRITING):
                samples, failures = rows.found(self.names)
                shard.samples += samples
                shard.failures += failures
        if last:
            with self.stages.timed(WRITING):
                self._write(number, shard)

    def _write(self, number: int, shard: Shard) -> None:
        del self._shards[number]
        if not shard.is_full:
            raise RuntimeError(f"shard {number} lacks samples: of {shard.stop - shard.start} there are {len(shard)}")
        paths = {} if self.names is None else {s.index: self.names[s.index] for s in shard.samples}
        lengths = {} if self.plan.lengths is None else {s.index: self.plan.lengths[s.index] for s in shard.samples}
        path = self.plan.path(number)
        write_whole(path, lambda file: shard.write(file, self.plan.store, paths, lengths), self.claims.token)
        self.claims.release(str(number))
