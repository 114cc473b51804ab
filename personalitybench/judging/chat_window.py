"""How many requests to a judge may be in flight: the window of the chat client (:mod:`.chat_client`)."""

from __future__ import annotations

import asyncio
from collections import deque


class Window:
    """A limit that follows what a server bears: additive increase, multiplicative decrease (as TCP does it).

    It begins at the most that is allowed. A request that the server turned away halves it; requests that were sent
    before that halving tell nothing new and do not halve it again. A window's worth of successes widens it by one.
    Whoever waits is served in order. All within one event loop.

    Attributes:
        limit: Requests that may be in flight now, from 1 to ``most``.
        in_flight: Requests in flight now.
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self.in_flight = 0
        self._most = most
        self._successes = 0
        self._halvings = 0
        self._opens_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def pause(self) -> float:
        """Seconds in which no request is to be sent."""
        return max(0.0, self._opens_at - asyncio.get_running_loop().time())

    async def enter(self) -> int:
        """Wait for a place, and for the end of a pause.

        Returns:
            What :meth:`turned_away` wants to know of a request: how many halvings there were before it was sent.
        """
        if self.in_flight >= self.limit:
            await self._queue()
        else:
            self.in_flight += 1
        try:
            while (pause := self.pause) > 0:
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            self.leave()
            raise
        return self._halvings

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """A request was served; :meth:`leave` then lets in who waits."""
        self._successes += 1
        if self._successes >= self.limit and self.limit < self._most:
            self._successes = 0
            self.limit += 1

    def turned_away(self, halvings: int, pause: float | None) -> None:
        """The server has had enough.

        Args:
            halvings: What :meth:`enter` gave to this request.
            pause: Seconds in which no request is to be sent, if the server said so.
        """
        if halvings == self._halvings:
            self._halvings += 1
            self._successes = 0
            self.limit = max(1, self.limit // 2)
        if pause is not None:
            self._opens_at = max(self._opens_at, asyncio.get_running_loop().time() + pause)

    async def _queue(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place was given in the same moment: pass it on
                self.leave()
            else:
                self._waiting.remove(turn)
            raise

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
