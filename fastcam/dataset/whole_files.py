"""Files that are there as a whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # what the names of unfinished files end with


def write_whole(path: Path, write: Callable[[BinaryIO], object], token: str) -> None:
    """Have `write` fill a file of another name, flush it to the disk and give it its name.

    token   the writer's own, so that two that write the same file keep apart
    Raises OSError, a full disk's too, and leaves nothing behind then.
    """
    while True:
        temporary = _written(path, write, token)
        try:
            os.replace(temporary, path)
            break
        except FileNotFoundError:  # another worker took this one, which paused, for lost, and tidied
            continue
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _flush_folder(path.parent)


def write_first(path: Path, write: Callable[[BinaryIO], object], token: str) -> bool:
    """The same if there is no such file yet; whether it was written."""
    temporary = _written(path, write, token)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: the last one that writes wins
        if path.exists():
            return False
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)
    return True


def temporary_name(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.{token}{TEMPORARY}")


def _written(path: Path, write: Callable[[BinaryIO], object], token: str) -> Path:
    temporary = temporary_name(path, token)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent}") from None
        raise
    return temporary


def _flush_folder(folder: Path) -> None:
    """Have the new name survive a loss of power, where folders can be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
