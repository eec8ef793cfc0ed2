"""What there is to explain: image files, or any data set of PyTorch's with a length."""

from __future__ import annotations

import errno
import operator
import os
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from fastcam.dataset.describing import fingerprint, listed_samples, plain, without_addresses
from fastcam.dataset.shards import Failure
from fastcam.images import SUFFIXES, Preprocess, decoder_version, find_images

_NAMES = (
    *("EIO", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO", "EMFILE", "ENFILE", "ENOMEM", "ENOTCONN", "ECONNRESET"),
    *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)
_OF_STORAGE = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}
_OF_THE_READER = (MemoryError, ImportError, NameError, getattr(torch, "AcceleratorError", ()))
_FORKED = "Cannot re-initialize CUDA in forked"  # what a RuntimeError says in each reading process


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as a data set of `(pixels, label)`: uint8 `(k, h, w)`, resized and cropped, and -1 for no label.

    `inputs(pixels)` makes of a batch, on whatever device, what the model takes: a file is decoded where it is read, and
    a quarter of the bytes travel.

    source       a folder, whose image files are taken with those below it, their labels being the places of its
                 sub-folders among them all, sorted; or a text file with a path a line, beside the file if not absolute,
                 and after a tab the class index; or one image
    preprocess   how an image becomes pixels and input
    skip         a folder below `source` that is left out, of results say
    Raises ValueError where there is no image, or a line's class is no number.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        preprocess: Preprocess | None = None,
        skip: str | os.PathLike[str] | None = None,
    ) -> None:
        self.source, self.preprocess = Path(source), preprocess or Preprocess()
        if self.source.is_dir() or self.source.suffix.lower() in SUFFIXES:
            self.paths = find_images([self.source], None if skip is None else Path(skip))
            self.root = self.source if self.source.is_dir() else self.source.parent
            self.labels = _labels_of_folders([p.relative_to(self.root) for p in self.paths])
        else:
            self.root = self.source.parent
            self.paths, self.labels = _listed(self.source)
        self.names = [
            p.relative_to(self.root).as_posix() if p.is_relative_to(self.root) else str(p) for p in self.paths
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.preprocess.pixels(self.paths[index]), self.labels[index]

    def inputs(self, pixels: Tensor) -> Tensor:
        """The model's inputs for a batch of pixels `(B, k, h, w)`."""
        return self.preprocess.normalized(pixels)

    def described(self) -> dict[str, Any]:
        """For a manifest: how many, which, and how they are made into inputs; how long they are, shards say."""
        listed = (f"{name}\0{label}" for name, label in zip(self.names, self.labels, strict=True))
        return {
            "samples": len(self),
            "pillow": decoder_version(),
            "fingerprint": fingerprint(list(listed)),
            "preprocess": plain(asdict(self.preprocess)),
        }


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is reported when it is to be read
        return -1


def _labels_of_folders(paths: Sequence[Path]) -> list[int]:
    """ImageFolder's: the place of the first folder of each path among all of them."""
    folders = sorted({p.parts[0] for p in paths if len(p.parts) > 1})
    places = {name: place for place, name in enumerate(folders)}
    return [places[p.parts[0]] if len(p.parts) > 1 else -1 for p in paths]


def _listed(source: Path) -> tuple[list[Path], list[int]]:
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")  # of which splitlines would make more
    except FileNotFoundError:
        raise ValueError(f"no file or folder {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is neither a folder, nor an image, nor a list of paths: {error}") from error
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        name, tab, label = line.partition("\t")
        if not name.strip():
            continue
        if tab and not label.strip().isdecimal():
            raise ValueError(f"{source}, line {number}: the class must be an index, got {label!r}")
        paths.append(source.parent / name)
        labels.append(int(label) if tab else -1)
    if not paths:
        raise ValueError(f"no image in list {source}")
    return paths, labels


def check_dataset(dataset: Any) -> int:
    """The length of a data set that can be asked for any of its samples; TypeError for another, ValueError if empty."""
    if isinstance(dataset, str | os.PathLike):
        raise TypeError(f"dataset is a path: pass ImageFiles({os.fspath(dataset)!r})")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset must have __len__ and __getitem__, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty")
    return len(dataset)


def names_of(dataset: Any) -> Sequence[str | None] | None:
    """The path of each sample, if the data set tells."""

    def names(of: Any) -> Sequence[str] | None:
        if isinstance(of, ImageFiles):
            return of.names
        samples = listed_samples(of)
        return None if samples is None else [name for name, *_ in samples]

    return _of_samples(dataset, names)


def lengths_of(dataset: Any) -> Sequence[int | None] | None:
    """The bytes of each image file, -1 for one that is not there; None for samples of another kind."""
    return _of_samples(dataset, lambda of: [*map(_length, of.paths)] if isinstance(of, ImageFiles) else None)


def _of_samples(dataset: Any, told: Callable[[Any], Sequence[Any] | None]) -> Sequence[Any] | None:
    """What the data sets below parts and sequences of them tell of each sample, if one of them does."""
    if isinstance(dataset, Subset):
        whole = _of_samples(dataset.dataset, told)
        return None if whole is None else [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts: list[Any] = [*dataset.datasets]
        found = [_of_samples(part, told) for part in parts]
        if all(values is None for values in found):
            return None
        return [value for values, part in zip(found, parts, strict=True) for value in values or [None] * len(part)]
    return told(dataset)


def origin(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that a sample is of, and its index there, below parts and sequences of data sets."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            part = bisect_right(dataset.cumulative_sizes, index)
            dataset, index = dataset.datasets[part], index - [0, *dataset.cumulative_sizes][part]
    return dataset, index


@dataclass
class Group:
    """Samples of one shape, to be explained together."""

    indices: list[int]
    labels: list[int]
    x: Tensor


@dataclass
class Batch:
    """What was read of consecutive samples, of one shard."""

    indices: list[int]
    groups: list[Group]
    failures: list[Failure]

    def pin_memory(self) -> Batch:
        """DataLoader's way to ask for memory that a GPU reads while others work."""
        for group in self.groups:
            if group.x.device.type == "cpu":
                group.x = group.x.pin_memory()
        return self


class _Readable(Dataset[Any]):
    """A data set of which a sample that cannot be read is a `Failure`, unless others cannot be read either."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.names = dataset, names_of(dataset)
        self._files, self._there = _files_of(dataset), 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.dataset[index]
        except Exception as error:  # whatever a decoder raises
            if _is_of_the_reader(error) or isinstance(error, FileNotFoundError) and self._all_are_gone():
                raise
            name, reason = self.names[index] if self.names else None, said(error)
            if name is not None:  # where the files lie is not part of it
                of, place = origin(self.dataset, index)
                path = str(of.paths[place] if isinstance(of, ImageFiles) else of.samples[place][0])
                reason = reason.replace(path, name).replace(repr(path)[1:-1], repr(name)[1:-1])
            return index, Failure(index, name, reason)

    def _all_are_gone(self) -> bool:
        """Whether not one of the files is there, as when their disk is not; the last one that was is asked first."""
        if not self._files or os.path.exists(self._files[self._there]):
            return False
        self._there = next((n for n, path in enumerate(self._files) if os.path.exists(path)), -1)
        return self._there < 0


def _files_of(dataset: Any) -> Sequence[str | Path]:
    """Where its samples lie, if it tells; what others than `ImageFiles` list may be names of something else."""
    if isinstance(dataset, Subset):
        return _files_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [path for part in dataset.datasets for path in _files_of(part)]
    if isinstance(dataset, ImageFiles):
        return dataset.paths
    match getattr(dataset, "samples", None):
        case [[str() | Path() as first, *_], *_] as listed if os.path.exists(first):
            return [sample[0] for sample in listed if isinstance(sample, tuple | list)]
    return ()


def _is_of_the_reader(error: BaseException | None) -> bool:
    """Whether it is not the sample that is at fault: the same one may be read later, or none can be."""
    while error is not None:
        if isinstance(error, _OF_THE_READER) and not isinstance(error, UnboundLocalError):
            return True
        if isinstance(error, OSError) and error.errno in _OF_STORAGE or _FORKED in str(error):
            return True
        error = error.__cause__
    return False


def said(error: Exception) -> str:
    text = without_addresses(str(error)).strip() or "no reason given"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _collated(dataset: Any, items: Sequence[tuple[int, Any]]) -> Batch:
    """Samples of one shape that become inputs in one way are a group."""
    groups: dict[Any, tuple[list[int], list[int], list[Tensor]]] = {}
    failures = []
    for index, item in items:
        if isinstance(item, Failure):
            failures.append(item)
            continue
        x, label = (*item, -1)[:2] if isinstance(item, tuple | list) and len(item) in (1, 2) else (item, -1)
        if not isinstance(x, Tensor):
            got = f"{type(x).__name__}{' of ' + str(len(x)) if isinstance(x, tuple | list | Mapping) else ''}"
            raise TypeError(f"a sample of the data set must be a tensor (k, H, W), or it and its class, got {got}")
        of, _ = origin(dataset, index)
        way = repr(of.preprocess) if isinstance(of, ImageFiles) else None
        indices, labels, xs = groups.setdefault((x.shape, x.dtype, way), ([], [], []))
        indices.append(index)
        labels.append(_class_of(label))
        xs.append(x.detach())  # one that wants a gradient cannot leave a worker process
    found = [Group(indices, labels, torch.stack(xs)) for indices, labels, xs in groups.values()]
    return Batch([index for index, _ in items], found, failures)


def _class_of(label: Any) -> int:
    """-1 for None; TypeError for what is no index."""
    try:
        return -1 if label is None else operator.index(label)
    except TypeError:
        raise TypeError(f"the class of a sample must be an index, got {type(label).__name__}") from None


def loader(
    dataset: Any, batches: Iterator[list[int]], workers: int, pin: bool = False, ahead: int = 2
) -> DataLoader[Any]:
    """Reads what `batches` asks for, in its order; `workers` read `ahead` batches each."""
    return DataLoader(
        _Readable(dataset),
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=partial(_collated, dataset),
        pin_memory=pin,
        worker_init_fn=_left_to_the_parent if workers else None,
        generator=torch.Generator(),  # the user's random numbers stay as they are
    )


def _left_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
