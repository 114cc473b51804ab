"""Temporary files and folders beside their targets, ``.NAME.xxxxxxxx``, locked while their writer lives.

A kill leaves one; its lock is gone with the process, so that it can be told from one that is being written.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

fcntl: Any = import_module("fcntl") if os.name == "posix" else None
_NAME = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}")
_EXTENSIONS = {".json", ".jsonl", ".yaml", ".md", ".html", ".csv", ".svg", ".safetensors", ".npz", ".py", ".txt"}
_OLD_SECONDS = 24 * 3600.0  # without locks, what is older counts as abandoned


@contextmanager
def temporary_file(target: Path) -> Iterator[tuple[int, Path]]:
    """Give an empty file beside a target: its descriptor, which stays open, and its path. It is deleted at the end.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        if _hold(handle, name):
            break
        os.close(handle)
    try:
        yield handle, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)  # gone already where it was renamed
        os.close(handle)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside a target. It is deleted at the end, unless it was renamed.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
        if handle is None or _hold(handle, str(folder)):
            break
        os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def find_abandoned(folder: Path, target: str | None = None, *, recursive: bool = False) -> list[Path]:
    """Return temporary files and folders whose writer is gone.

    Args:
        folder: Where to look.
        target: Only those of a target of this name; files of other names count by their extension.
        recursive: Look in all folders beneath it, too.
    """
    found = []
    for path, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            match = _NAME.fullmatch(name)
            if match is None or (target is not None and match["target"] != target):
                continue
            known = target is not None or name in folders or Path(match["target"]).suffix in _EXTENSIONS
            if known and _take(Path(path, name), remove=False):
                found.append(Path(path, name))
        folders[:] = [name for name in folders if recursive and _NAME.fullmatch(name) is None]
    return sorted(found)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Delete temporary files and folders, but none whose writer lives, and none that cannot be deleted."""
    for path in paths:
        _take(path, remove=True)


def _take(path: Path, *, remove: bool) -> bool:
    """Whether a temporary's writer is gone; the lock is held while it is removed."""
    if path.is_symlink():
        return False
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)) if fcntl is not None else None
    except OSError:
        return False
    try:
        if handle is None:
            if time.time() - path.lstat().st_mtime < _OLD_SECONDS:
                return False
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif remove:
            path.unlink(missing_ok=True)
    except OSError:  # locked: its writer lives; or it cannot be deleted
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _hold(handle: int, name: str) -> bool:
    """Lock a new file or folder; false where somebody deleted it before."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(os.fstat(handle), os.stat(name))  # noqa: PTH116 (the pair of fstat)
    except FileNotFoundError:
        return False
