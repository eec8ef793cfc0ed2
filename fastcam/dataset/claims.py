"""Who works on which shard: a file a claim, on a file system that all workers share, and nothing else between them."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import socket
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from fastcam.dataset.whole_files import TEMPORARY

_BEATS = 4  # heartbeats in the time after which a silent worker counts as lost


class Claims:
    """The claims of one worker, as long as this block lasts.

    The worker touches a file of its own, its heartbeat. A claim of one whose heartbeat is older than its own `expiry`
    seconds, which its token tells, by the clock of the file system, is anyone's, as is at once that of a process of
    this machine that is gone. Two workers on one shard, after a pause of the first, do no harm: they write the same
    bytes under the same name.
    """

    def __init__(self, folder: Path, expiry: float = 60.0) -> None:
        """The folder of the claims, made if need be; what it is for is the caller's."""
        if not 0 < expiry < math.inf:
            raise ValueError(f"claim_expiry must be more than 0 seconds and finite, got {expiry}")
        self.folder, self.expiry = folder, expiry
        self.token = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}_{math.ceil(1000 * expiry)}"
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Claims:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        self._beating = threading.Thread(target=self._keep_beating, name="fastcam-heartbeat", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Give back what is still claimed."""
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        for path in list(self.folder.glob("*.claim")):
            if _owner(path) == self.token:
                path.unlink(missing_ok=True)
        self._heartbeat(self.token).unlink(missing_ok=True)
        with suppress(OSError):  # another worker's claims are in it
            self.folder.rmdir()

    def take(self, name: str) -> bool:
        """Whether the shard is this worker's from now on."""
        path = self._path(name)
        self._beat()
        for _ in range(2):
            if self._made(path):
                return True
            if not self._taken_from_lost(path):
                return False
        return False

    def release(self, name: str) -> None:
        """The shard is done, or given up."""
        path = self._path(name)
        if _owner(path) == self.token:
            path.unlink(missing_ok=True)

    def others_work(self) -> bool:
        """Whether a worker that is not lost has a claim, beside this one."""
        owners = {_owner(path) for path in self.folder.glob("*.claim")} - {self.token, "", None}
        return not all(self.is_lost(owner) for owner in owners if owner)

    def is_lost(self, token: str) -> bool:
        """Whether the worker of this token has stopped without a word."""
        host, _, process = token.rpartition("-")[0].rpartition("-")
        gone = host == _host() and process.isdecimal() and not _runs(int(process))
        _, _, thousandths = token.rpartition("_")
        expiry = int(thousandths) / 1000 if thousandths.isdecimal() else self.expiry
        return gone or self._silent(self._heartbeat(token), expiry)

    def tidy(self, *folders: Path) -> None:
        """Remove the heartbeats and claims of lost workers, and what they left unfinished in these folders."""
        for heartbeat in list(self.folder.glob("*.alive")):
            if self.is_lost(heartbeat.stem):
                heartbeat.unlink(missing_ok=True)
        for claim in list(self.folder.glob("*.claim")):
            self._taken_from_lost(claim)
        left = [(path, path.suffix[1:]) for path in self.folder.glob("*.claim.*")]
        for folder in folders:
            left += [(path, path.name.split(".")[-2]) for path in folder.glob(f".*.*-*-*{TEMPORARY}")]
        for path, token in left:
            if self.is_lost(token):
                path.unlink(missing_ok=True)

    def _made(self, path: Path) -> bool:
        """A claim that has its owner from the first moment on; False if there is one."""
        aside = self._aside(path)
        try:
            aside.write_text(self.token)
            os.link(aside, path)
        except (FileExistsError, FileNotFoundError):  # or it was taken for lost, paused here, and tidied
            return False
        except OSError:
            if not aside.exists() or aside.read_text() != self.token:  # a full disk
                raise
            return self._made_without_links(path)
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _made_without_links(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "w") as file:
                file.write(self.token)
        except BaseException:  # nobody would give back a claim without an owner
            path.unlink(missing_ok=True)
            raise
        return True

    def _taken_from_lost(self, path: Path) -> bool:
        """Remove the claim of a worker that is lost; whether this worker was the one that removed it."""
        owner = _owner(path)
        if owner is None:
            return True  # released in the meantime
        if not (self.is_lost(owner) if owner else self._silent(path, self.expiry)):  # without one: being written
            return False
        aside = self._aside(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        if _owner(aside) != owner:  # the claim of one that was faster
            with suppress(OSError):
                os.link(aside, path)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _silent(self, path: Path, expiry: float) -> bool:
        try:
            last = _touched(path)
        except FileNotFoundError:
            return True
        except OSError:  # of a network's file system, for a moment
            return False
        self._beat()
        return _touched(self._heartbeat(self.token)) - last > expiry

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.expiry / _BEATS):
            with suppress(OSError):  # a full disk, say, which the writer of the shards reports
                self._beat()

    def _beat(self) -> None:
        while True:
            try:
                return self._heartbeat(self.token).touch()
            except FileNotFoundError:  # the folder goes with the last worker, which took this one for lost
                self.folder.mkdir(exist_ok=True)

    def _heartbeat(self, token: str) -> Path:
        return self.folder / f"{token}.alive"

    def _aside(self, claim: Path) -> Path:
        return claim.with_name(f"{claim.name}.{self.token}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"


def _touched(path: Path) -> float:
    """When the file was touched; it is opened, because a network's file system then asks its server."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _owner(claim: Path) -> str | None:
    """The token in a claim; None if there is none any more."""
    try:
        return claim.read_text()
    except FileNotFoundError:
        return None


@cache
def _host() -> str:
    """This machine, as long as it runs, or the container that has processes of its own; without a dot."""
    known = socket.gethostname().replace(".", "_")
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
        known += "-" + hashlib.sha256(boot.encode()).hexdigest()[:8]
    return known


def _runs(process: int) -> bool:
    if os.name == "nt":  # where a signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
