"""Workers that send requests to a server; at an end they wait for replies in flight, which may be charged.

Users are judges (:mod:`personalitybench.judging.chat_client`) and served models
(:mod:`personalitybench.backends.served`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

ANNOUNCED_WAIT = 5.0
"""Seconds after which a wait is announced."""


class Workers:
    """Runs workers within one event loop.

    Args:
        server: The server, for messages.
        timeout: Seconds that a request may be in flight.

    Attributes:
        stopping: An end has begun: nothing more is to be sent.
    """

    def __init__(self, server: str, timeout: float) -> None:
        self.stopping = False
        self._server = server
        self._timeout = timeout
        self._in_flight: set[asyncio.Task[Any] | None] = set()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Mark the request of the current task as in flight."""
        task = asyncio.current_task()
        self._in_flight.add(task)
        try:
            yield
        finally:
            self._in_flight.discard(task)

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
        """Run as many workers at the same time, until all are done.

        The first error, or a cancellation, ends them in order: at once those that have no request in flight, the others
        when they have dealt with the reply. A cancellation meanwhile ends them all at once.
        """
        self.stopping = False
        workers = [asyncio.create_task(work()) for _ in range(count)]
        finished: set[asyncio.Task[None]] = set()
        try:
            finished, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await self._end(workers)
        for worker in finished:
            worker.result()

    async def _end(self, workers: Iterable[asyncio.Task[None]]) -> None:
        self.stopping = True
        pending = {worker for worker in workers if not worker.done()}
        for worker in pending - self._in_flight:
            worker.cancel()
        try:
            if pending:
                _, pending = await asyncio.wait(pending, timeout=ANNOUNCED_WAIT)
            if pending:
                logger.warning(
                    "waiting up to %.0f s for %d replies of %s that are in flight, and may be charged; Ctrl-C ends at "
                    "once",
                    max(0.0, self._timeout - ANNOUNCED_WAIT),
                    len(pending),
                    self._server,
                )
                await asyncio.wait(pending)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
