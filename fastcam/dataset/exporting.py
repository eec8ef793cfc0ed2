"""Maps and records in one file of a common kind."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastcam.dataset.maps import Maps
from fastcam.dataset.whole_files import temporary_name, write_whole
from fastcam.methods.base import Size, check_size

_AT_ONCE = 256  # images


def export(maps: Maps, path: Path, size: Size) -> None:
    """See `Maps.export`."""
    files: dict[str, Callable[[Maps, Any, BinaryIO], None]] = {".npz": _npz, ".parquet": _parquet}
    if path.suffix not in (*files, ".zarr"):
        raise ValueError(f"the name must end in .npz, .zarr, .parquet, got {path}")
    if not len(maps):
        raise ValueError(f"{maps.out} holds no map to export")
    check_size(size)
    target, token = Path(os.path.realpath(path)), secrets.token_hex(4)
    if path.suffix == ".zarr":
        _zarr(maps, size, target, temporary_name(target, token))
    else:
        write_whole(target, partial(files[path.suffix], maps, size), token)


def _columns(maps: Maps, start: int, stop: int) -> dict[str, np.ndarray]:
    names: dict[str, np.ndarray] = {
        "index": maps.indices,
        "class": maps.target,
        "predicted": maps.predicted,
        "score": maps.score,
    }
    return {name: column[start:stop] for name, column in names.items()}


def _of_image(maps: Maps, index: int, size: Size) -> dict[str, np.ndarray]:
    """The maps of an image by column."""
    if size is not None or maps.manifest["full"]:
        return {"map": maps.read(index, size)}
    low = maps.low(index)
    return {f"map_{n}": m for n, m in enumerate(low)} if isinstance(low, list) else {"map": low}


def _parts(maps: Maps, size: Size) -> Iterator[tuple[int, int, dict[str, list[np.ndarray]]]]:
    """The maps of some images in a row, by column."""
    for start in range(0, len(maps), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(maps))
        images = [_of_image(maps, i, size) for i in range(start, stop)]
        yield start, stop, {name: [image[name] for image in images] for name in images[0]}


def _together(found: list[np.ndarray], shape: tuple[int, ...] | None = None) -> np.ndarray:
    shapes = {m.shape for m in found} | ({shape} if shape is not None else set())
    if len(shapes) > 1:
        raise ValueError(f"maps of sizes {sorted(shapes)} make no array: pass a size, or export to .parquet")
    return np.stack(found)


def _npz(maps: Maps, size: Size, file: BinaryIO) -> None:
    parts = list(_parts(maps, size))
    found = {name: _together([m for *_, columns in parts for m in columns[name]]) for name in parts[0][2]}
    paths = {"path": np.array(maps.paths, str)} if any(maps.paths) else {}
    np.savez(file, **_columns(maps, 0, len(maps)), **paths, **found)  # type: ignore[arg-type]


def _zarr(maps: Maps, size: Size, path: Path, temporary: Path) -> None:
    """A folder, filled under another name; the one that is there goes when the new one is whole."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError("export to .zarr needs the package zarr: pip install 'fastcam[export]'") from error
    before = temporary.with_name(f"{temporary.name}.before")
    try:
        _fill(zarr.open_group(str(temporary), mode="w"), maps, size)
        if path.is_dir():
            os.replace(path, before)
        os.replace(temporary, path)
    except BaseException:
        if before.exists() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _fill(group: Any, maps: Maps, size: Size) -> None:
    for name, column in _columns(maps, 0, len(maps)).items():
        group.create_array(name, data=np.ascontiguousarray(column))
    for start, stop, columns in _parts(maps, size):
        for name, found in columns.items():
            if start == 0:
                shape = found[0].shape
                chunks = (min(_AT_ONCE, len(maps)), *shape)
                group.create_array(name, shape=(len(maps), *shape), chunks=chunks, dtype="float32")
            group[name][start:stop] = _together(found, group[name].shape[1:])
    group.attrs.update({"manifest": maps.manifest, "path": maps.paths})


def _parquet(maps: Maps, size: Size, file: BinaryIO) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("export to .parquet needs the package pyarrow: pip install 'fastcam[export]'") from error
    writer: Any = None
    try:
        for start, stop, columns in _parts(maps, size):
            table: dict[str, Any] = {**_columns(maps, start, stop)}
            table["path"] = pyarrow.array(map(_readable, maps.paths[start:stop]), pyarrow.string())
            for name, found in columns.items():
                table[name] = pyarrow.array([m.ravel() for m in found], pyarrow.list_(pyarrow.float32()))
                table[f"{name}_shape"] = pyarrow.array([m.shape for m in found], pyarrow.list_(pyarrow.int32()))
            rows = pyarrow.table(table)
            writer = writer or parquet.ParquetWriter(file, rows.schema)
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()


def _readable(path: str | None) -> str | None:
    """A path as UTF-8 has it: a byte of a name in another encoding becomes the replacement character."""
    return None if path is None else path.encode(errors="surrogateescape").decode(errors="replace")
