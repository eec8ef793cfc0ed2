"""The maps of a data set, read from the folder that a run wrote."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from fastcam.dataset import manifest
from fastcam.dataset.shards import StoredShard
from fastcam.methods.base import Size, check_size
from fastcam.methods.fusion import FUSIONS

_HELD = 4  # shards whose maps stay in memory


def open_maps(out: str | os.PathLike[str], verify: bool = False) -> Maps:
    """The maps that `attribute_dataset` or `fastcam run` wrote to a folder, of a run that goes on as far as it is.

    verify   read every byte and compare it with the check sums
    Raises ValueError if the folder has no manifest or no finished shard, or if a shard is damaged, naming it.
    """
    maps = Maps(Path(out))
    if verify:
        for shard in maps.shards:
            shard.verify()
    return maps


class Maps(Sequence[np.ndarray]):
    """The explained images of a data set, in its order; see `open_maps`.

    `maps[i]` is what the method gave: fp32 `(H, W)` in [0, 1] at the image's size; `maps[i:j]` such maps in one array,
    or in a list where sizes differ. `low(i)` is the signed map in the method's own unit.

    indices, target, predicted, score   int64, int64, int64 and fp32, one for each image: its place in the data set, the
            explained class, or -1, the predicted class, and the explained class' probability, or a callable's value
    paths   of the images, None where the data set names none
    failed  index, path and reason of each sample without a map
    manifest, complete   how the maps were made, and whether all are there

    With fp32 they are those of a call to rounding. fp16 is off by at most 2^-11 of the largest value of a signed map
    (of its span where none is negative), uint8 by 1 / 510 of the span; of a map in [0, 1] at most 0.002, and for uint8,
    with one layer, 0.004 times span / largest value where values are negative, since what is below 0 takes part of the
    levels. A product of several layers' maps (RefineCAM) makes more of the error of uint8: store fp16 there.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.manifest = manifest.read(out)
        self.shards = [StoredShard(path) for path in sorted((out / "shards").glob("[0-9]*.npz"))]
        if not self.shards:
            raise ValueError(f"{out} holds no finished shard of maps")
        run = manifest.run_of(self.manifest)
        if wrong := [s.path.name for s in self.shards if s.meta.get("run") != run]:
            raise ValueError(f"{out}: {wrong[0]} is not of the run that {manifest.NAME} describes")
        columns = {
            name: np.concatenate([s.records[name] for s in self.shards])
            for name in ("index", "class", "predicted", "score")
        }
        self.indices, self.target = columns["index"], columns["class"]
        self.predicted, self.score = columns["predicted"], columns["score"]
        self.paths: list[str | None] = [path for s in self.shards for path in s.meta["paths"]]
        self.failed: list[dict[str, Any]] = [failure for s in self.shards for failure in s.meta["failed"]]
        self.complete = len(self.indices) + len(self.failed) == self.manifest["dataset"]["samples"]
        self._sizes = [tuple(size.tolist()) for s in self.shards for size in s.records["size"]]
        self._starts = np.cumsum([0, *map(len, self.shards)])
        self._held: dict[int, list[list[np.ndarray]]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...
    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            return self.read(index)
        found = [self.read(i) for i in range(*index.indices(len(self)))]
        return np.stack(found) if len({m.shape for m in found}) == 1 else found

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(len(self)))

    def __repr__(self) -> str:
        method, total = self.manifest["method"]["class"], self.manifest["dataset"]["samples"]
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Maps({method}, {len(self)} of {total} images{failed})"

    def _repr_html_(self) -> str | None:
        """The first maps over their images, with a slider, where these are found as a report without `images` does."""
        from fastcam.report.notebook import slider_of_run

        return slider_of_run(self)

    def read(self, index: int, size: Size = "input") -> np.ndarray:
        """A finished map in [0, 1], at the size of the image, `(H, W)`, or another; for None at the size stored."""
        check_size(size)
        wanted = self._sizes[self._place(index)] if size == "input" else size
        lows, fusion = self._stored(index), self.manifest["method"]["fusion"]
        wanted = max((m.shape for m in lows), key=np.prod) if wanted is None else wanted
        if self.manifest["full"]:
            fusion = "scaled once"
            if tuple(wanted) == lows[0].shape:
                return lows[0]
        interpolation = self.manifest["method"]["settings"].get("interpolation")
        tensors = [torch.from_numpy(m)[None, None] for m in lows]
        return FUSIONS[fusion](tensors, wanted, interpolation)[0].numpy()  # type: ignore[arg-type]

    def low(self, index: int) -> Any:
        """The signed low map `(h, w)` in the method's unit; with several layers a list, a map a layer.

        ValueError if finished maps were stored.
        """
        if self.manifest["full"]:
            raise ValueError("finished maps at the images' size were stored: there are no signed ones")
        found = self._stored(index)
        return found[0] if len(found) == 1 else found

    def record(self, index: int) -> dict[str, Any]:
        """What is known of an image beside its map."""
        place = self._place(index)
        return {
            "index": int(self.indices[place]),
            "path": self.paths[place],
            "class": int(self.target[place]),
            "predicted": int(self.predicted[place]),
            "score": float(self.score[place]),
            "size": self._sizes[place],
        }

    def export(self, path: str | os.PathLike[str], size: Size = None) -> None:
        """Write maps and records to a file `.npz` or `.parquet`, or a folder `.zarr`, by the name's ending.

        size   None for what was stored, a signed low map a layer as fp32, or finished ones; "input" or `(H, W)` for
               finished maps
        The columns are index, class, predicted, score and path, and `map`; of several layers' low maps `map_0` ...
        Parquet and Zarr are written a part at a time, each kind under another name until it is whole. ImportError where
        the packages pyarrow and zarr are missing, ValueError for another ending, or maps that differ in size where they
        must be one array: in .npz and .zarr.
        """
        from fastcam.dataset.exporting import export

        export(self, Path(path), size)

    def _place(self, index: int) -> int:
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(f"an index must be a whole number, or a slice in [ ], got {index!r}") from None
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there are {len(self)} maps, got index {index}")
        return place

    def _stored(self, index: int) -> list[np.ndarray]:
        place = self._place(index)
        shard = int(np.searchsorted(self._starts, place, "right")) - 1
        return [maps[place - self._starts[shard]] for maps in self._layers(shard)]

    def _layers(self, shard: int) -> list[list[np.ndarray]]:
        """The maps of each layer of a shard, by layer and image; the shards that were read first are forgotten."""
        if shard not in self._held:
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
            found = self.shards[shard]
            self._held[shard] = [found.maps(layer) for layer in range(found.layers)]
        return self._held[shard]
