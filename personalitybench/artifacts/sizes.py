"""How much room folders of the cache take, where a file may have several names: a combination links its parts'."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def measure(*folders: Path) -> tuple[int, float]:
    """Bytes of the files beneath folders, and when the newest was written, in seconds since 1970.

    A file with several names counts once. Files that go while they are looked at are not counted.
    """
    files: dict[tuple[int, int], int] = {}
    newest = 0.0
    for folder in folders:
        about = _status(folder)
        newest = newest if about is None else max(newest, about.st_mtime)
        for _, found in _files(folder):
            newest = max(newest, found.st_mtime)
            files[found.st_dev, found.st_ino] = found.st_size
    return sum(files.values()), newest


def freed_by(*folders: Path) -> int:
    """Bytes that deleting folders gives back: those of files that have no further name elsewhere."""
    names: Counter[tuple[int, int]] = Counter()
    files = {}
    for folder in folders:
        for _, found in _files(folder):
            names[found.st_dev, found.st_ino] += 1
            files[found.st_dev, found.st_ino] = found
    return sum(found.st_size for place, found in files.items() if names[place] >= found.st_nlink)


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Files beneath a folder by their paths in it, with their bytes, in the order of their names."""
    found = sorted((path.relative_to(folder), status.st_size) for path, status in _files(folder))
    return [(str(path), size) for path, size in found]


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if folder.is_file() and (status := _status(folder)) is not None:
        yield folder, status
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            if (found := _status(file)) is not None:
                yield file, found


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
