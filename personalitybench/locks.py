"""Locks between processes: a wait is announced, names the process that holds the lock, and has a limit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from personalitybench.errors import StorageError
from personalitybench.outside_text import echo

LIMIT = 1200.0
"""Seconds to wait for a lock at most."""

STOPPED_LIMIT = 30.0
"""Seconds to wait for a process that is stopped (SIGSTOP, Ctrl-Z) all the while."""

ANNOUNCED_AFTER = 5.0
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        path: Lock file.
        pid: Process id; None where the system does not tell.
        stopped: The process is suspended.
    """

    path: Path
    pid: int | None = None
    stopped: bool = False

    def __str__(self) -> str:
        """Return who it is and how to end it."""
        if self.pid is None:
            return f"'lsof {self.path}' shows it"
        if self.stopped:
            end = f"'kill -CONT {self.pid}' resumes it, 'kill -9 {self.pid}' ends it"
            return f"process {self.pid}, which is stopped: {end}"
        return f"process {self.pid}: 'kill {self.pid}' ends it"


@contextmanager
def hold_lock(path: Path, doing: str, limit: float = LIMIT) -> Iterator[None]:
    """Hold a lock file; after five seconds of waiting, tell on stderr who holds it. A kill releases it.

    Args:
        path: Lock file.
        doing: Work that the lock guards, as the other process does it: ``fetching the demo model``.
        limit: Seconds to wait at most.

    Raises:
        StorageError: Another process held it for the whole time, or was stopped for :data:`STOPPED_LIMIT`.
        OSError: The lock file cannot be made.
    """
    lock = FileLock(path)
    started = time.monotonic()
    stopped_since: float | None = None
    announced = False
    patience = min(ANNOUNCED_AFTER, limit)
    while True:
        try:
            lock.acquire(timeout=patience)
            break
        except Timeout:
            now = time.monotonic()
            holder = find_holder(path)
            stopped_since = (stopped_since or now) if holder.stopped else None
            if now - started >= limit or (stopped_since is not None and now - stopped_since >= STOPPED_LIMIT):
                raise StorageError(
                    f"another process has held {path} for {now - started:.0f} s, {doing}: end it, then run this again "
                    f"({holder})"
                ) from None
            if not announced:
                announced = True
                echo(
                    f"personalitybench: waiting for another process, which is {doing} ({holder}; lock {path}); Ctrl-C "
                    f"ends this command, which waits {STOPPED_LIMIT if holder.stopped else limit:.0f} s at most",
                    err=True,
                )
            patience = min(_LOOK_SECONDS, max(0.0, limit - (now - started)))
            if stopped_since is not None:
                patience = min(patience, max(0.0, STOPPED_LIMIT - (now - stopped_since)))
    try:
        yield
    finally:
        lock.release()


def find_holder(path: Path) -> Holder:
    """Return the process that holds a lock file, as far as ``/proc/locks`` (Linux) tells."""
    try:
        status = path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return Holder(path)
    held = [fields for fields in map(str.split, lines) if len(fields) == 8 and fields[1] == "FLOCK"]
    # Some file systems give the kernel's list another device: the inode decides then.
    for wanted in (device, f":{status.st_ino}"):
        for fields in held:
            if fields[5].endswith(wanted) and fields[4].isdigit() and int(fields[4]) > 0:
                pid = int(fields[4])
                return Holder(path, pid, _is_stopped(pid))
    return Holder(path)


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] in (["T"], ["t"])
