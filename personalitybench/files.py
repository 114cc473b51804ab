"""Files that survive a kill: atomic writes, append-only JSON lines, locks, content hashes, the cache folder.

Every stage of the way of the data writes through here, so nothing half-written is ever read back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs
from filelock import FileLock, Timeout

from personalitybench.dry import is_dry
from personalitybench.errors import StorageError
from personalitybench.locks import find_holder
from personalitybench.outside_files import (
    MAX_JSON_BYTES,
    UnreadableError,
    numbered_lines,
    open_regular,
    parse_json,
    read_text,
)
from personalitybench.temporaries import find_abandoned, remove_abandoned, temporary_file

CACHE_VARIABLE = "PERSONALITYBENCH_CACHE"

_FRESH_NS = 50_000_000
_HASHES: dict[tuple[str | int, ...], str] = {}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


def cache_folder(*parts: str) -> Path:
    """Folder of the user's cache (``PERSONALITYBENCH_CACHE`` or the platform's), created if it is missing.

    A dry run creates nothing, and in a cache that is read-only a folder may be missing.

    Raises:
        StorageError: It cannot be created.
    """
    given = os.environ.get(CACHE_VARIABLE)
    try:
        root = named_folder(given, CACHE_VARIABLE) if given else platformdirs.user_cache_path("personalitybench")
    except RuntimeError as error:  # a user without a home
        raise StorageError(f"there is no cache folder ({error}): name one in {CACHE_VARIABLE}") from error
    folder = root.joinpath(*parts)
    if is_dry():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _READ_ONLY and root.is_dir():  # what is in it can be used all the same
            return folder
        raise StorageError(
            f"cannot create the cache folder {folder} ({error.strerror}): name a writable one in {CACHE_VARIABLE}"
        ) from error
    return folder


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keep a second process out of a folder, by a file beside it. A kill ends it.

    Args:
        folder: The folder.
        doing: What is being done in it, for the error: "another process is <doing>".

    Raises:
        StorageError: Another process is in it, or it cannot be written.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=2)  # what is done in a moment is waited for
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        holder = find_holder(Path(lock.lock_file))
        raise StorageError(
            f"another process is {doing} in {folder}: wait for it, then run this again ({holder})"
        ) from error
    except OSError as error:
        raise _storage_error(folder, error) from error
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


def sweep(folder: Path) -> None:
    """Delete what killed processes left of their writing in a folder and beside it; call it under the folder's lock."""
    beside = find_abandoned(folder.parent, folder.name)
    remove_abandoned([*beside, *find_abandoned(folder, recursive=True)])


def is_locked(folder: Path) -> bool:
    """Whether a process, this one too, is in a folder that :func:`locked` guards; says no where nobody can tell."""
    path = folder.parent / f".{folder.name}.lock"
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def is_file(path: Path) -> bool:
    """Whether a path is a file; false also for what no path can be (too long, a null byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether anything is at a path; false also for what no path can be."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def named_folder(text: str, variable: str) -> Path:
    """Return the folder that an environment variable names, with ``~`` expanded.

    Raises:
        StorageError: It begins with a user who does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise StorageError(f"{variable}={text}: {str(error).rstrip('.')}: name another folder") from error


def refuse_non_folder(path: Path, option: str) -> None:
    """Refuse an output folder that cannot be made because a file, device or dangling link is in its way.

    Raises:
        StorageError: The text names what is in the way, and the option.
    """
    for part in (path, *path.parents):
        try:
            mode = part.lstat().st_mode
            if part.is_dir():
                return
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            continue
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot write in {path} ({error}): name another folder with {option}") from error
        kind = "a link to nothing" if stat.S_ISLNK(mode) and not part.exists() else "no folder"
        raise StorageError(f"cannot write in {path}: {part} is {kind}: name another folder with {option}")


def canonical_json(value: Any) -> str:
    """Serialise so that equal values give equal text: sorted keys, no spaces, plain UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON value, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once in a process as long as inode, size and times stay.

    Raises:
        OSError: It cannot be read.
    """
    before = path.stat()
    key = (str(path.resolve()), before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    if (digest := _HASHES.get(key)) is None:
        digest = sha256_file(path)
        # A file system may give two writes in quick succession the same time, so a fresh file is hashed again.
        if abs(time.time_ns() - before.st_ctime_ns) > _FRESH_NS:
            _HASHES[key] = digest
    return digest


def git_blob_id(path: Path) -> str:
    """Identity that git gives to a file's content: SHA-1 over ``blob <size>``, a zero byte, and the bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed.

    Raises:
        StorageError: The disk is full or the folder is not writable; the old file is untouched.
    """
    _refuse_if_dry(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as (handle, temporary):
            with os.fdopen(handle, "wb", closefd=False) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise _storage_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, readable by people."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        finite: As for :func:`personalitybench.outside_files.parse_json`.

    Raises:
        StorageError: It is missing, is not JSON or exceeds a limit.
    """
    try:
        text = read_text(path, MAX_JSON_BYTES)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        text = f"{path} is not JSON (byte {error.start} is not UTF-8): delete it or restore it"
        raise StorageError(text) from error
    except UnreadableError as error:
        raise StorageError(f"{path} {error}: delete it or restore it") from error
    try:
        return parse_json(text, finite=finite)
    except UnreadableError as error:
        raise StorageError(f"{path} is not JSON ({error}): delete it or restore it") from error


class JsonLines:
    """An append-only file of JSON objects that tolerates a kill in the middle of a line.

    A line counts once its newline is on disk. What stands after the last newline was being written
    when a process died; it is cut off before the next append, so appended lines never glue to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines.

        Raises:
            StorageError: A complete line is not a JSON object: the file was altered.
        """
        try:
            stream = open_regular(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}") from error
        with stream:
            for number, line in self._lines(stream):
                if not line.endswith(b"\n"):
                    return
                try:
                    value = parse_json(line.decode("utf-8-sig"), finite=False)
                except ValueError:
                    value = None
                if not isinstance(value, dict):
                    raise StorageError(
                        f"{self.path}:{number} is not a JSON object: restore the file, or delete it to make it again"
                    )
                yield value

    def _lines(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        try:
            yield from numbered_lines(stream)
        except UnreadableError as error:
            raise StorageError(f"{self.path} {error}: restore the file, or delete it to make it again") from error

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and flush them to disk.

        Raises:
            StorageError: The disk is full or the folder is not writable; complete lines stay. The file is a link (of
                a folder that somebody sent, it may lead to any file of the user) or no regular file.
        """
        data = b"".join(_line(row) for row in rows)
        if not data:
            return
        _refuse_if_dry(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open_to_append() as stream:
                stream.truncate(self._complete_bytes(stream))
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def _open_to_append(self) -> BinaryIO:
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise StorageError(f"{self.path} is a link or no regular file, so nothing is appended: delete it")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(self.path, flags, 0o666), "ab+")

    @staticmethod
    def _complete_bytes(stream: Any) -> int:
        """Length up to and including the last newline, found from the end."""
        end = stream.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            stream.seek(start)
            found = stream.read(position - start).rfind(b"\n")
            if found >= 0:
                return int(start + found + 1)
            position = start
        return 0


@dataclass(frozen=True)
class Sheet:
    """A file of JSON lines with a manifest beside it that is written when the file is complete."""

    path: Path

    @property
    def lines(self) -> JsonLines:
        """The lines."""
        return JsonLines(self.path)

    @property
    def manifest(self) -> Path:
        """The manifest."""
        return self.path.with_suffix(".json")

    @property
    def complete(self) -> bool:
        """Whether the manifest is there.

        Raises:
            StorageError: The lines are not those that the manifest was written for.
        """
        if not self.manifest.is_file():
            return False
        recorded = read_json(self.manifest)
        expected = recorded.get("sha256") if isinstance(recorded, dict) else None
        if not self.path.is_file() or sha256_file(self.path) != expected:
            raise StorageError(
                f"{self.path} was altered after it was complete: restore it, or delete it and {self.manifest.name} "
                "to make it again"
            )
        return True

    def reopen(self) -> None:
        """Take the manifest away, before lines are added to what was complete."""
        self.manifest.unlink(missing_ok=True)

    def finish(self, **about: Any) -> None:
        """Write the manifest."""
        count = sum(1 for _ in self.lines.read())
        write_json(self.manifest, {"lines": count, "sha256": sha256_file(self.path), **about})


def _line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON; a lone surrogate, which UTF-8 cannot hold, is written as its escape."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def _refuse_if_dry(path: Path) -> None:
    if is_dry():  # a mistake of ours: whoever plans must not come here
        raise StorageError(f"a dry run writes nothing, but {path} was to be written: please report this")


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; what was finished before is kept, "
        "so the same command resumes once there is room and permission"
    )
