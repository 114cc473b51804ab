"""While a chat model judges: replies are written as they come, and work ends where the server must be gone."""

from __future__ import annotations

import asyncio

from personalitybench.errors import JudgeError
from personalitybench.judging.base import MAY_PASS, Unrated
from personalitybench.judging.chat_client import Reply
from personalitybench.judging.responses import ResponseStore, StoredResponse

_LEAST = 8  # requests that may fail in a row, where fewer are in flight


class Patience:
    """Ends the work when a server has failed so many requests in a row that it must be gone."""

    def __init__(self, concurrency: int) -> None:
        self._limit = max(_LEAST, concurrency)
        self._failed = 0

    def see(self, reply: Reply | Unrated, judge: str) -> None:
        """Count what came of a request.

        Raises:
            JudgeError: It is one failure too many.
        """
        gone = isinstance(reply, Unrated) and reply.reason in MAY_PASS
        self._failed = self._failed + 1 if gone else 0
        if isinstance(reply, Unrated) and self._failed >= self._limit:
            raise JudgeError(
                f"judge {judge}: {self._failed} requests in a row failed after all their tries, the last one with "
                f"{reply.detail!r}: see that the server is up; what was rated is kept, and the same command goes on"
            )


class Keeper:
    """Writes replies to the store as they come, many in one go, without holding up those that are under way."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._waiting: list[tuple[str, StoredResponse]] = []
        self._writing: asyncio.Task[None] | None = None

    def keep(self, key: str, response: StoredResponse) -> None:
        """Have a reply written soon.

        Raises:
            StorageError: An earlier one could not be: nothing more should be paid.
        """
        self._waiting.append((key, response))
        if self._writing is None or self._writing.done():
            if self._writing is not None:
                self._writing.result()
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            StorageError: It cannot be.
        """
        try:
            if self._writing is not None:
                await self._writing
        finally:  # a second Ctrl-C cancels the writing, too
            if self._waiting:
                self._store.put_many(self._waiting)

    async def _write(self) -> None:
        while self._waiting:
            now, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._store.put_many, now)
            except BaseException:
                self._waiting = now + self._waiting
                raise
