"""One worker: shards claimed, read ahead, explained and written, each stage while the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fastcam.dataset.claims import Claims
from fastcam.dataset.explaining import Explainer
from fastcam.dataset.shards import Shard, StoredShard
from fastcam.dataset.sources import Batch, loader, names_of
from fastcam.dataset.stages import EXPLAINING, READING, Stages
from fastcam.dataset.writing import Writer

_LOOKS = 10.0  # seconds between two looks at what others have done
_POLLS = 10  # in the time after which a lost worker's shards are taken over
_SPREAD = 15  # parts of a data set, whose ends are looked at before a model counts as wrong


@dataclass
class Plan:
    """What is to be done, the same for all workers.

    shard_size   samples of a shard; the last one has what is left
    workers      processes that read
    lengths      of the samples' files as the run began, see `lengths_of`
    run          what the manifest is known by
    again        shards that are there and are to be made again, and when they were made; see `retrying`
    """

    out: Path
    samples: int
    batch_size: int
    shard_size: int
    store: str
    workers: int
    lengths: Sequence[int | None] | None = None
    run: str = ""
    again: dict[int, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.out / "shards"

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_size)

    def shard(self, number: int) -> Shard:
        start = number * self.shard_size
        return Shard(number, start, min(self.samples, start + self.shard_size), run=self.run)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def stored(self, number: int) -> StoredShard | None:
        """The shard if it is there, whole, and the one of this place."""
        try:
            found, shard = StoredShard(self.path(number)), self.shard(number)
        except (FileNotFoundError, ValueError):
            return None
        place = (found.meta["shard"], found.meta["start"], found.meta["stop"], found.meta.get("run"))
        return found if place == (shard.number, shard.start, shard.stop, shard.run) else None

    def made(self, number: int) -> int | None:
        """When the file of the shard was written; None if there is none."""
        try:
            with open(self.path(number), "rb") as file:  # a network's file system then asks its server
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def is_done(self, number: int) -> bool:
        if number in self.again and self.made(number) == self.again[number]:
            return False
        return self.stored(number) is not None


@dataclass
class Worker:
    """Works on shards until all are there, its own and those of others.

    rank, of    which of how many workers begins where
    told        called with the number of images that were done since, and what is slowest or waited for
    """

    plan: Plan
    dataset: Any
    explainer: Explainer
    claims: Claims
    rank: int = 0
    of: int = 1
    told: Callable[[int, str], None] = lambda _, __: None
    stages: Stages = field(default_factory=Stages)

    def work(self) -> None:
        """Raises what the writer met, a full disk say, and what is wrong with the model or the data set as a whole."""
        first = self.plan.shards * (self.rank % self.of) // self.of  # whatever the environment says
        order = [*range(first, self.plan.shards), *range(first)]
        self._open = {number for number in order if not self.plan.is_done(number)}
        self.told(sum(self._length(n) for n in order if n not in self._open), "")
        self._looked = time.monotonic()
        # else a resumed run would stop where none was to
        self.explainer.works = len(self._open) < self.plan.shards or bool(self.plan.again)
        self.explainer.spread = self._spread
        with Writer(self.plan, names_of(self.dataset), self.claims, self.stages) as writer:
            while self._open:
                worked = self._pass([n for n in order if n in self._open], writer)
                writer.finish()
                if not worked and self._open:
                    time.sleep(min(1.0, self.claims.expiry / _POLLS))
                    self.told(0, f"waiting for {len(self._open)} shards of other workers")
                    self._forget_done()

    def _pass(self, numbers: list[int], writer: Writer) -> bool:
        """All that can be claimed now; whether that was anything."""
        claimed = self._claimed(numbers)
        first = next(claimed, None)
        if first is None:
            return False
        on_gpu = self.explainer.device.type == "cuda"
        workers, size = self.plan.workers, self.plan.batch_size
        ahead = 2 if 2 * workers * size <= self.plan.shard_size else 1  # what is read ahead is claimed
        batches = loader(self.dataset, chain([first], claimed), workers, on_gpu, ahead)
        for batch, x in self.explainer.copied_ahead(self._read(batches)):
            with self.stages.timed(EXPLAINING):
                explained = self.explainer.explain(batch, x)
            number = batch.indices[0] // self.plan.shard_size
            last = batch.indices[-1] + 1 == self.plan.shard(number).stop
            writer.put(number, explained, last)
            if last:
                self._open.discard(number)
            self.told(len(batch.indices), f"slowest: {self.stages.slowest}")
            if time.monotonic() > self._looked + _LOOKS:
                self._forget_done()
        return True

    def _claimed(self, numbers: list[int]) -> Iterator[list[int]]:
        """The indices of batches; a shard is claimed when its first batch is asked for."""
        for number in numbers:
            if number not in self._open or not self.claims.take(str(number)):
                continue
            if self.plan.is_done(number):  # since by another worker
                self.claims.release(str(number))
                self._open.discard(number)
                self.told(self._length(number), "")
                continue
            shard, size = self.plan.shard(number), self.plan.batch_size
            for start in range(shard.start, shard.stop, size):
                yield list(range(start, min(start + size, shard.stop)))

    def _read(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        waiting = iter(batches)
        try:
            while True:
                with self.stages.timed(READING):
                    batch = next(waiting, None)
                if batch is None:
                    return
                yield batch
        finally:  # else they would go on until the frames of an error are collected, and be waited for then
            if end_readers := getattr(waiting, "_shutdown_workers", None):
                end_readers()

    def _spread(self) -> Iterable[Batch]:
        """A few samples from everywhere, one a batch."""
        indices = sorted({(self.plan.samples - 1) * n // _SPREAD for n in range(_SPREAD + 1)})
        return loader(self.dataset, ([index] for index in indices), min(1, self.plan.workers), ahead=1)

    def _forget_done(self) -> None:
        """Count what others have done."""
        self._looked = time.monotonic()
        there = {path.name for path in self.plan.folder.iterdir()}
        for number in sorted(self._open):
            if self.plan.path(number).name in there and self.plan.is_done(number):
                self._open.discard(number)
                self.told(self._length(number), "")

    def _length(self, number: int) -> int:
        shard = self.plan.shard(number)
        return shard.stop - shard.start
