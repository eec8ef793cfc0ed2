"""A shard: the maps of consecutive samples in one file, as small as their precision allows.

The file is an uncompressed .npz that numpy opens: for layer l `maps_l` and `scale_l`, `offset_l`, `range_l`, of which

    map = offset + scale * stored, within range,   range = (min, max) of the map before it was stored

beside `index`, `class`, `predicted`, `score` and `size`, one for each image, and `meta`, JSON in UTF-8: the paths, the
bytes of image files, the samples that could not be explained, and where the shard lies. Maps that differ in size are
stored end to end, with their sizes in `shape_l`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

STORED = {"fp16": np.float16, "uint8": np.uint8, "fp32": np.float32}
_LEVELS = 255
_EXPONENTS = 15  # above 1, of what fp16 holds: values far below the largest keep their digits
_MEMBERS = ("maps", "offset", "scale", "range")  # of a layer
Array = np.ndarray


@dataclass
class Sample:
    """One explained image: its place in the data set, what was explained, and each layer's map."""

    index: int
    target: int  # the explained class, -1 for none
    predicted: int
    score: float  # the probability of the explained class; of a callable target its value
    size: tuple[int, ...]  # of the image
    maps: Sequence[Array]


@dataclass
class Failure:
    """A sample that has no map, and why."""

    index: int
    path: str | None
    reason: str


@dataclass
class Shard:
    """Samples start to stop of a data set, in their order, as far as they could be explained."""

    number: int
    start: int
    stop: int
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    batch_size: int = 0  # the smallest that memory made of the one asked for
    run: str = ""  # what the manifest of its run is known by

    def __len__(self) -> int:
        return len(self.samples) + len(self.failures)

    @property
    def is_full(self) -> bool:
        return len(self) == self.stop - self.start

    def write(
        self, file: BinaryIO, store: str, paths: Mapping[int, str | None], lengths: Mapping[int, int | None]
    ) -> None:
        """Into a file; the same samples, of files so called and so long, give the same bytes."""
        samples = sorted(self.samples, key=lambda s: s.index)
        failures = [vars(f) for f in sorted(self.failures, key=lambda f: f.index)]
        layers = len(samples[0].maps) if samples else 0
        meta: dict[str, Any] = {
            "shard": self.number,
            "start": self.start,
            "stop": self.stop,
            "batch_size": self.batch_size,
            "run": self.run,
            "layers": layers,
        }
        meta |= {"paths": [paths.get(s.index) for s in samples], "failed": failures}
        meta["bytes"] = [lengths.get(s.index) for s in samples]
        arrays = {
            "index": np.array([s.index for s in samples], np.int64),
            "class": np.array([s.target for s in samples], np.int64),
            "predicted": np.array([s.predicted for s in samples], np.int64),
            "score": np.array([s.score for s in samples], np.float32),
            "size": np.array([s.size for s in samples], np.int32),
        }
        for layer in range(layers):
            found = stored([s.maps[layer] for s in samples], store)
            arrays |= {f"{name}_{layer}": array for name, array in found.items()}
        meta["arrays"] = [*arrays]
        arrays["meta"] = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
        np.savez(file, **arrays)  # type: ignore[arg-type]


def stored(maps: Sequence[Array], store: str) -> dict[str, Array]:
    """Maps in the numbers of a shard.

    fp16    multiples of a power of two above 0 or, where no value is negative, above the smallest: off by at most 2^-11
            of the largest of them
    uint8   255 steps from the smallest value to the largest: off by at most 1 / 510 of the span
    fp32    the values themselves
    """
    low, high = (np.array([extreme(m) for m in maps], np.float32) for extreme in (np.min, np.max))
    if store == "uint8":
        offset, scale = low, (high - low) / np.float32(_LEVELS)
    elif store == "fp16":
        offset = np.where(low >= 0, low, np.float32(0))
        exponent = np.frexp(np.maximum(high - offset, -low))[1] - _EXPONENTS
        scale = np.ldexp(np.float32(1), np.maximum(exponent, -126))
    else:
        offset, scale = np.zeros_like(low), np.ones_like(low)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    numbers = [((m - o) / s if store != "fp32" else m) for m, o, s in zip(maps, offset, scale, strict=True)]
    numbers = [np.rint(n) if store == "uint8" else n for n in numbers]
    numbers = [n.astype(STORED[store]) for n in numbers]
    found = {"offset": offset, "scale": scale, "range": np.stack([low, high], 1)}
    if len({n.shape for n in numbers}) == 1:
        return {"maps": np.stack(numbers), **found}
    shapes = np.array([n.shape for n in numbers], np.int32)
    return {"maps": np.concatenate([n.ravel() for n in numbers]), "shape": shapes, **found}


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """ValueError, naming the file, for whatever is raised because it is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # by zipfile and numpy, a damaged length's MemoryError included
        reason = "it is no .npz file" if "allow_pickle" in str(error) else str(error) or type(error).__name__
        raise ValueError(f"{path} is no whole shard of maps ({reason}): remove it and run again") from error


class StoredShard:
    """A shard on disk. ValueError, naming the file, unless it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _whole(path), np.load(path) as file:
            self._members = set(file.files)
            self.meta: dict[str, Any] = json.loads(bytes(file["meta"]))
            self.records = {name: file[name] for name in ("index", "class", "predicted", "score", "size")}
            if missing := {*self.meta["arrays"]} - self._members:  # no check sum is of a member's name
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
        self.layers: int = self.meta["layers"]

    def __len__(self) -> int:
        return len(self.records["index"])

    def maps(self, layer: int) -> list[Array]:
        """The signed maps of a layer as fp32, one for each image; in their range, of which rounding may leave."""
        with _whole(self.path), np.load(self.path) as file:
            numbers, offset, scale, bounds = (file[f"{name}_{layer}"] for name in _MEMBERS)
            if f"shape_{layer}" in self._members:
                shapes = file[f"shape_{layer}"]
                ends = np.cumsum(shapes.prod(1))
                numbers = [n.reshape(s) for n, s in zip(np.split(numbers, ends[:-1]), shapes, strict=True)]
            of_images = zip(numbers, offset, scale, bounds, strict=True)
            return [np.clip(o + s * n.astype(np.float32), *b) for n, o, s, b in of_images]

    def verify(self) -> None:
        """Read it all, and compare with the check sums of the file; ValueError if it was damaged."""
        with _whole(self.path), zipfile.ZipFile(self.path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"{self.path} is damaged in {damaged}: remove it and run again")
