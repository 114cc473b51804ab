"""Claims on requests, in the store of replies: no two judges, threads or processes ask for the same reply.

A claim is void as soon as its owner is gone: an owner holds a lock file, which the system releases when a process ends,
however it ends. So neither a reused process number nor a copied cache keeps a claim alive.
"""

from __future__ import annotations

import glob
import secrets
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from personalitybench.errors import StorageError
from personalitybench.judging.responses import ResponseStore

_TABLE = "CREATE TABLE IF NOT EXISTS claims (key BLOB NOT NULL PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID"
_CLAIM = """
INSERT OR IGNORE INTO claims SELECT :key, :owner
WHERE NOT EXISTS (SELECT 1 FROM responses WHERE key = :key AND finish_reason = 'stop')
"""


class Claims:
    """The claims of one owner; released when the context ends.

    Args:
        store: The store of the replies.
    """

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._owner = secrets.token_hex(8)
        self._lock = FileLock(self._lock_file(self._owner), timeout=0)

    def take(self, keys: Iterable[str], *, by_force: bool = False) -> set[str]:
        """Claim requests.

        Args:
            keys: Their keys.
            by_force: Also those that a living owner claims.

        Returns:
            The keys that this owner claims now; the others have a whole reply, or another owner.

        Raises:
            StorageError: The store cannot be written.
        """
        rows: list[dict[str, object]] = [{"key": bytes.fromhex(key), "owner": self._owner} for key in keys]
        return self._store.execute(partial(self._take, rows, by_force))

    def release(self) -> None:
        """Give up all claims of this owner.

        Raises:
            StorageError: The store cannot be written.
        """
        if self._lock.is_locked:
            self._store.execute(self._release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.is_locked:
            with suppress(StorageError):  # without the lock they are void, too
                self.release()
            self._lock.release()
            self._lock_file(self._owner).unlink(missing_ok=True)

    def _take(self, rows: Collection[dict[str, object]], by_force: bool, connection: sqlite3.Connection) -> set[str]:
        # Locks are made and tested within the transaction: nobody takes an owner for gone that is about to lock.
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            if not self._lock.is_locked:
                self._lock.acquire()
            recorded = connection.execute("SELECT DISTINCT owner FROM claims").fetchall()
            for owner in {owner.decode("ascii", "replace") for (owner,) in recorded} | self._owners_with_files():
                self._delete_if_gone(owner, connection)
            if by_force:
                connection.executemany("DELETE FROM claims WHERE key = :key AND owner <> :owner", rows)
            connection.executemany(_CLAIM, rows)
            found = connection.execute("SELECT key FROM claims WHERE owner = ?", (self._owner,)).fetchall()
        return {key.hex() for (key,) in found}

    def _release(self, connection: sqlite3.Connection) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)  # another process may have replaced a damaged file
            connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))

    def _delete_if_gone(self, owner: str, connection: sqlite3.Connection) -> None:
        if owner == self._owner:
            return
        path = self._lock_file(owner)
        if path.exists():
            try:
                FileLock(path, timeout=0).acquire().lock.release()
            except Timeout:
                return
            path.unlink(missing_ok=True)
        connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    def _owners_with_files(self) -> set[str]:
        """Owners by their lock files: one that was killed in its first transaction has no row."""
        pattern = glob.escape(self._lock_file("").name) + "*"
        return {path.name.rpartition("-")[2] for path in self._store.path.parent.glob(pattern)}

    def _lock_file(self, owner: str) -> Path:
        return self._store.path.parent / f".{self._store.path.name}.claims-{owner}"
