"""Batches through the method: on the way to the device and back while it computes, smaller where memory is short."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcam.batches import check_count, free_memory, is_out_of_memory
from fastcam.dataset.shards import Failure, Sample
from fastcam.dataset.sources import Batch, said
from fastcam.fast.agreement import random_state
from fastcam.fast.calls import FastCalls, device_of
from fastcam.inputs import inputs_of
from fastcam.methods import BaseCAM
from fastcam.methods.base import map_size
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.record import to_cpu, unwrap
from fastcam.targets import find_logits, scores

_NO_LABEL = "it has no label, and targets are labels"
_BATCH = {"cpu": 16}  # elsewhere 128
_OF_THE_DEVICE = getattr(torch, "AcceleratorError", ())  # after which nothing runs any more


@dataclass
class Rows:
    """What the device gave for some images of a batch, on its way to the CPU."""

    indices: list[int]
    size: tuple[int, ...]
    maps: Sequence[Tensor]
    records: Tensor  # float64: explained class, predicted class, score
    arrived: Any = None  # a CUDA event

    def wait(self) -> None:
        """Until they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()

    def found(self, names: Sequence[str | None] | None) -> tuple[list[Sample], list[Failure]]:
        """Each image's, or that its map is not a number."""
        maps, records = [m.numpy() for m in self.maps], self.records.tolist()
        samples, failures = [], []
        for i, index in enumerate(self.indices):
            of_layers = [m[i] for m in maps]
            if all(np.isfinite(m).all() for m in of_layers):
                target, predicted, score = records[i]
                samples.append(Sample(index, int(target), int(predicted), score, self.size, of_layers))
            else:
                reason = "its map is not a number: the model's activations or gradients overflow"
                failures.append(Failure(index, names[index] if names else None, reason))
        return samples, failures


@dataclass
class Explained:
    """A batch, explained."""

    rows: list[Rows]
    failures: list[Failure]
    batch_size: int


@dataclass
class Explainer:
    """A method with its targets.

    targets      "predicted", "label", a class index, or a callable from an image's output to a scalar
    full         finished maps at the image's size in place of each layer's signed low map
    inputs       from what the data set holds from an index on to what the model takes, on the device
    names        of the samples, for what is said of them; None for one that has none
    given_size   images at once, None for 16 on a CPU and 128 elsewhere; fewer of a shape for which memory was short
    works        whether the model has taken an image; before, one that takes none of several is an error
    spread       reads a few samples from everywhere, one a batch: a model that takes none of these either is wrong
    """

    cam: BaseCAM
    targets: str | int | Callable[[Any], Tensor]
    full: bool
    options: dict[str, Any]
    inputs: Callable[[Tensor, int], Tensor]
    names: Sequence[str | None] | None
    given_size: int | None = None
    works: bool = False
    spread: Callable[[], Iterable[Batch]] = tuple

    def __post_init__(self) -> None:
        self.cam = _steady(self.cam)
        self._rejected = 0
        self._sizes: dict[Any, int] = {}  # for which memory suffices, by the images' shape and type
        self.device = device_of(self.cam.model)
        size = _BATCH.get(self.device.type, 128) if self.given_size is None else self.given_size
        self.batch_size = check_count("batch_size", size)

    def copied_ahead(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Each batch with its groups' tensors on the device; on a GPU the next is on its way meanwhile."""
        if self.device.type != "cuda":
            for batch in batches:
                yield batch, [group.x.to(self.device) for group in batch.groups]
            return
        stream = torch.cuda.Stream(self.device)
        waiting: tuple[Batch, list[Tensor], torch.cuda.Event] | None = None
        for batch in batches:
            with torch.cuda.stream(stream):
                copies = [group.x.to(self.device, non_blocking=True) for group in batch.groups]
                event = torch.cuda.Event()
                event.record(stream)
            if waiting is not None:
                yield self._ready(*waiting)
            waiting = batch, copies, event
        if waiting is not None:
            yield self._ready(*waiting)

    def _ready(self, batch: Batch, copies: list[Tensor], event: Any) -> tuple[Batch, list[Tensor]]:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in copies:
            tensor.record_stream(current)
        return batch, copies

    def explain(self, batch: Batch, copies: Sequence[Tensor]) -> Explained:
        """Maps and records of a batch; images that the model rejects are found one by one.

        RuntimeError if it rejects all of the first images, and others too: then not they are to blame.
        """
        rows: list[Rows] = []
        failures = list(batch.failures)
        begin = len(failures)
        for group, x in zip(batch.groups, copies, strict=True):
            rows += self._in_parts(group.indices, group.labels, x, failures)
        self._rejected += sum(failure.reason != _NO_LABEL for failure in failures[begin:])
        self.works = self.works or bool(rows)
        if self._rejected > 1 and not self.works:
            self.works = any(map(self._takes, self.spread()))
            if not self.works:
                raise RuntimeError(f"the model takes none of the first {self._rejected} images: {failures[-1].reason}")
        return Explained(rows, failures, min(map(self._size, copies), default=self.batch_size))

    def _takes(self, batch: Batch) -> bool:
        """Whether the model takes an image of a batch."""
        groups = ((g.indices, g.labels, g.x.to(self.device)) for g in batch.groups)
        return any(isinstance(self._unless_it_fails(*group), Rows) for group in groups)

    def _size(self, x: Tensor) -> int:
        """How many images like these at once."""
        return self._sizes.get((x.shape[1:], x.dtype), self.batch_size)

    def _in_parts(self, indices: list[int], labels: list[int], x: Tensor, failures: list[Failure]) -> list[Rows]:
        found = []
        parts = [(0, len(indices))]
        while parts:
            start, stop = parts.pop(0)
            if stop - start > (size := self._size(x)):
                parts = [(i, min(i + size, stop)) for i in range(start, stop, size)] + parts
                continue
            answer = self._unless_it_fails(indices[start:stop], labels[start:stop], x[start:stop])
            if isinstance(answer, Rows):
                found.append(answer)
            elif stop - start == 1:
                index = indices[start]
                failures.append(Failure(index, self.names[index] if self.names else None, answer))
            else:
                middle = (start + stop + 1) // 2
                parts = [(start, middle), (middle, stop), *parts]
        return found

    def _unless_it_fails(self, indices: list[int], labels: list[int], x: Tensor) -> Rows | str:
        """What is found for these images, or why not. Short memory makes batches of this shape smaller from here on."""
        try:
            with _seeded(indices[0], self.device):
                return self._rows(indices, labels, x)
        except _OF_THE_DEVICE:
            raise
        except Exception as error:  # whatever a model raises
            reason = said(error)
            short = isinstance(error, RuntimeError) and is_out_of_memory(error)
        if short:
            free_memory()
        if short and len(indices) > 1:
            self._sizes[x.shape[1:], x.dtype] = len(indices) // 2
        return reason

    def _rows(self, indices: list[int], labels: list[int], x: Tensor) -> Rows:
        targets = self._targets(labels)
        x = self.inputs(x, indices[0])
        if self.full:
            maps = [self.cam.attribute(x, targets, complete=True, **self.options)]
        else:
            maps = self.cam.signed_maps(x, targets, **self.options)
        size = tuple(map_size(unwrap(self.cam.model), "input", inputs_of(x)) or ())
        return self._on_the_way(Rows(indices, size, [m.float() for m in maps], records(self.cam, targets, len(x))))

    def _targets(self, labels: list[int]) -> Any:
        if self.targets == "predicted":
            return None
        if self.targets == "label":
            if min(labels) < 0:
                raise ValueError(_NO_LABEL)
            return labels
        return self.targets

    def _on_the_way(self, rows: Rows) -> Rows:
        rows.maps, rows.records = [to_cpu(m, wait=False) for m in rows.maps], to_cpu(rows.records, wait=False)
        if self.device.type == "cuda":
            rows.arrived = torch.cuda.Event()
            rows.arrived.record(torch.cuda.current_stream(self.device))
        return rows


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What a method or a model draws depends on the samples alone; the user's random numbers stay as they are."""
    restore = random_state(device)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        restore()


def _steady(cam: BaseCAM) -> BaseCAM:
    """The method with a batch size for its rows that no time decides on: it decides on how numbers are rounded."""
    cam = copy.copy(cam)
    if isinstance(cam, PerturbationCAM):
        cam.steady, cam._found = True, {}
    if cam.optimize is not None:  # whose agreement is on this run's images
        cam._fast = FastCalls(cam.optimize)
    if isinstance(base := getattr(cam, "base_cam", None), BaseCAM):
        cam.base_cam = _steady(base)  # type: ignore[attr-defined]
    return cam


def records(cam: BaseCAM, targets: Any, images: int) -> Tensor:
    """Of the last call, fp64 `(B, 3)`: explained class, predicted class and score; -1, -1 and NaN where there is none.

    The score is the probability of the explained class, or the value of a callable.
    """
    logits = find_logits(cam.outputs)
    found = torch.full((images, 3), -1.0, dtype=torch.float64, device=device_of(cam.model))
    found[:, 2] = math.nan
    if logits is None or logits.ndim == 0 or len(logits) != images:  # a detector's list, say
        return found
    if callable(targets):
        found[:, 2] = scores(logits, targets, images).detach()
    if logits.ndim != 2:
        return found
    found[:, 1] = logits.argmax(1)
    if callable(targets) or not cam.class_discriminative:
        return found
    found[:, 0] = found[:, 1] if targets is None else torch.as_tensor(targets, device=logits.device).expand(images)
    found[:, 2] = logits.double().softmax(1).gather(1, found[:, :1].long()).squeeze(1)
    return found
