"""What a judge that is a chat model replied, kept so that nothing is paid twice and reading it anew is free.

One SQLite file for all runs of a user. A reply is found by a hash of all that was sent. What is kept is the raw text,
never a rating: a better reader of ratings needs no new replies. Failures are not kept: they are asked again.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from personalitybench.errors import StorageError
from personalitybench.files import canonical_json
from personalitybench.locks import hold_lock

logger = logging.getLogger(__name__)

T = TypeVar("T")

_VERSION = 1
_APPLICATION = 0x50425231  # "PBR1": marks a file as ours, so that another program's database is never touched
_BUSY = 60.0  # seconds to wait for another process, which writes for milliseconds
_ANNOUNCED_WAIT = 5.0  # seconds of that after which it is announced
_CHUNK = 500  # keys of one query: below every build's limit of parameters
_SALVAGED = 10  # rows that are given up together where a page of a damaged file cannot be read
# Our statements never change, so one that SQLite cannot make sense of means that the schema in the file did.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE responses (
    key BLOB NOT NULL PRIMARY KEY, text TEXT NOT NULL, model TEXT NOT NULL, finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, created TEXT NOT NULL, checksum INTEGER NOT NULL
);
COMMIT;
"""
# Earlier versions stored failures, too: a whole reply replaces one.
_INSERT = """
INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    text = excluded.text, model = excluded.model, finish_reason = excluded.finish_reason,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
    created = excluded.created, checksum = excluded.checksum
WHERE responses.finish_reason <> 'stop' AND excluded.finish_reason = 'stop'
"""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A reply as it came.

    Attributes:
        text: What the model wrote.
        model: The model as the server named it.
        finish_reason: Why it stopped, as the server says (``stop``).
        prompt_tokens: Tokens sent, as the server counts them.
        completion_tokens: Tokens written, as the server counts them.
        created: When it came: ISO time, UTC.
    """

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    created: str


class _DamagedRowError(Exception):
    """A row is not what was written."""


def request_key(model: str, base_url: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> str:
    """Name a request by all that its reply depends on.

    Whoever wants a second reply to the same messages (test and retest) sends another ``seed``, or adds a key of its
    own to ``sampling``.

    Args:
        model: The model that is asked for.
        base_url: Address of the server; a slash at its end says nothing. It is only hashed, never stored.
        messages: ``role`` and ``content`` of each, in their order.
        sampling: What is sent besides (JSON values); ``0`` and ``0.0`` are the same.

    Returns:
        SHA-256 as 64 hex digits.

    Raises:
        ValueError: A number in ``sampling`` is not finite.
    """
    value = {
        "model": model,
        "base_url": base_url.rstrip("/"),
        "messages": [dict(message) for message in messages],
        "sampling": _plain(sampling),
    }
    # An answer that was cut inside an emoji has half of it, which plain UTF-8 refuses.
    return sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


class ResponseStore:
    """Replies in one SQLite file, which any number of processes and threads may use at the same time.

    A file that is damaged, when it is opened or later, is renamed to ``NAME.damaged-TIME`` and a new one takes its
    place, with every reply that can still be read and whose checksum is right; a warning says how many. What is lost
    is asked for again. A file that is deleted while it is in use is begun anew.

    Args:
        path: The file; folders above it are made.

    Raises:
        StorageError: It cannot be made, read or written, or is another program's. All methods raise it for a full
            disk, a lost permission, or a process that keeps the file for more than a minute; what was stored stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        with self._reporting(), self._alone():
            self._open()

    def get(self, key: str) -> StoredResponse | None:
        """Give the reply to a request, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, StoredResponse]:
        """Give the replies that there are, by key."""
        return dict(self.read(keys))

    def whole(self, keys: Iterable[str]) -> dict[str, StoredResponse]:
        """Return the whole replies by key, without failures that earlier versions kept."""
        return {key: reply for key, reply in self.read(keys) if reply.finish_reason == "stop"}

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, StoredResponse]]:
        """Yield keys with their replies, in no order and without those that have none.

        Holds a few hundred at a time: for more replies than should be in memory at once.
        """
        rest = iter(keys)
        while wanted := {bytes.fromhex(key): key for key in islice(rest, _CHUNK)}:
            yield from self.execute(partial(_select, wanted))

    def put(self, key: str, response: StoredResponse) -> None:
        """Store a reply; it is on disk when this returns. A key keeps its first whole one (``stop``)."""
        self.put_many([(key, response)])

    def put_many(self, responses: Iterable[tuple[str, StoredResponse]]) -> None:
        """Store replies together: all or none, with one wait for the disk."""
        rows = [_to_row(bytes.fromhex(key), response) for key, response in responses]
        self.execute(partial(_insert, rows))

    def __len__(self) -> int:
        """How many replies there are."""
        return self.execute(_count)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation on the file at the path; once more, on a new file, where that turns out to be damaged."""
        with self._lock, self._reporting():
            if self._connection is None:
                raise StorageError(f"the store of judge responses {self.path} is closed: open it again")
            connection = self._connection
            if self._inode_at_path() != self._inode:  # set aside by another process, or deleted
                self.close()
                with self._alone():
                    connection = self._open()
            try:
                return self._run_when_free(operation, connection)
            except (_DamagedRowError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_damage(error):
                    raise
                self.close()
                with self._alone():
                    if self._inode_at_path() == self._inode:  # no other process was faster
                        self._set_aside(error)
                    connection = self._open()
                return operation(connection)

    def _run_when_free(self, operation: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        """Run an operation; announce a long wait for a process that writes to the file."""
        try:
            return operation(connection)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        logger.warning(
            "waiting up to %.0f s for another process that writes to the store of judge responses %s; Ctrl-C ends it",
            _BUSY,
            self.path,
        )
        _wait_for_others(connection, _BUSY)
        try:
            return operation(connection)
        finally:
            _wait_for_others(connection, _ANNOUNCED_WAIT)

    def _open(self) -> sqlite3.Connection:
        """Open the file, or a new one in its place. Call it alone."""
        try:
            self._connection = _connect(self.path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            self._connection = _connect(self.path)
        self._inode = self._inode_at_path()
        _wait_for_others(self._connection, _ANNOUNCED_WAIT)
        return self._connection

    def _set_aside(self, why: Exception) -> None:
        """Rename the file, and save into a new one what can be saved. Call it alone."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        # The file itself is last: a log of writes that stayed behind would be played into the new file.
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.replace(f"{aside}{suffix}")
        with closing(_connect(self.path)) as connection:
            _insert(_salvage(aside), connection)
            saved = _count(connection)
        logger.warning(
            "the store of judge responses %s is damaged (%s): it was renamed to %s; %s of its responses could be "
            "saved, the others are asked for again",
            self.path,
            why,
            aside.name,
            f"{saved:,}",
        )

    def _inode_at_path(self) -> int:
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening, making or renaming the file meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.path.parent / f".{self.path.name}.lock", f"opening or renaming {self.path}", _BUSY):
            yield

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of the disk and of SQLite into ours."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise StorageError(
                    f"another process has kept the store of judge responses {self.path} for {_BUSY:.0f} s: wait for it "
                    "or end it, then run this again; what was stored is kept"
                ) from error
            reason = "it is a folder" if self.path.is_dir() else getattr(error, "strerror", None) or error
            raise StorageError(
                f"cannot use the store of judge responses {self.path}: {reason}; what was stored is kept, "
                "so the same command resumes once there is room and permission"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file, with the table in it.

    Raises:
        StorageError: It is a database, but not one of ours.
    """
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    connection.text_factory = bytes  # a damaged text need not be UTF-8; the checksum says whether it is right
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            _refuse_others(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a reply that was paid for survives the machine, too
        if not tables:
            connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _wait_for_others(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")


def _refuse_others(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) != (_APPLICATION, _VERSION):
        raise StorageError(f"{path} was written by another program or version: move it away")


def _insert(rows: Iterable[tuple[Any, ...]], connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, rows)


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM responses").fetchone()[0])


def _select(wanted: Mapping[bytes, str], connection: sqlite3.Connection) -> list[tuple[str, StoredResponse]]:
    """Replies to some keys.

    Raises:
        _DamagedRowError: A row is not what was written.
    """
    marks = ",".join("?" * len(wanted))
    found = []
    for row in connection.execute(f"SELECT * FROM responses WHERE key IN ({marks})", list(wanted)):  # noqa: S608 (marks)
        if not _is_intact(row) or row[0] not in wanted:
            raise _DamagedRowError("a checksum is wrong")
        text, model, reason, created = (row[column].decode("utf-8", "surrogatepass") for column in (1, 2, 3, 6))
        # A few names and a hundred thousand replies: one copy of each name.
        found.append(
            (wanted[row[0]], StoredResponse(text, sys.intern(model), sys.intern(reason), row[4], row[5], created))
        )
    return found


def _salvage(path: Path) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a damaged file that are right; what lies on a page that cannot be read is passed over."""
    size = sum(part.stat().st_size for part in (path, Path(f"{path}-wal")) if part.exists())
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY)) as connection:
        connection.text_factory = bytes
        connection.execute("PRAGMA writable_schema = ON")  # SQLite then reads a file that ends too early, too
        # Rows are numbered from 1 without gaps, and each takes more than 64 bytes.
        for start in range(0, size // 64 + 1, _SALVAGED):
            span = (start, start + _SALVAGED)
            try:
                rows = connection.execute("SELECT * FROM responses WHERE rowid >= ? AND rowid < ?", span).fetchall()
            except (sqlite3.Error, UnicodeDecodeError):
                continue
            yield from (_as_text(row) for row in rows if _is_intact(row))


def _to_row(key: bytes, response: StoredResponse) -> tuple[Any, ...]:
    text, model, reason, created = (
        value.encode("utf-8", "surrogatepass")
        for value in (response.text, response.model, response.finish_reason, response.created)
    )
    row = (key, text, model, reason, int(response.prompt_tokens), int(response.completion_tokens), created)
    return _as_text((*row, _checksum(row)))


def _as_text(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bytes as text, so that people can read the file, where they are text: half an emoji is not."""
    key, *values = row
    return (key, *(_decoded(value) if isinstance(value, bytes) else value for value in values))


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _is_intact(row: tuple[Any, ...]) -> bool:
    return bool(row[-1] == _checksum(row[:-1]))


def _checksum(row: tuple[Any, ...]) -> int:
    """Checksum of all columns with their types: SQLite has none, and a damaged text could read as another rating."""
    return zlib.crc32(repr(row).encode())


def _is_damage(error: Exception) -> bool:
    """Whether the file is damaged. Where SQLite's complaint quotes damaged text, Python cannot even decode that."""
    return (
        isinstance(error, (_DamagedRowError, UnicodeDecodeError))
        or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
    )


def _plain(value: Any) -> Any:
    """The same JSON value with one way to write each whole number."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
