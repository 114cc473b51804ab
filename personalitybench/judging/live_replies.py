"""Fetches replies of a chat model by single requests: each is claimed, fits the budget, and is kept as it comes.

The judge (:mod:`.chat_judge`) calls it for what the store does not have; batches are :mod:`.batch`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from personalitybench.errors import JudgeError
from personalitybench.judging.base import Unrated
from personalitybench.judging.batch import WantedReply
from personalitybench.judging.batch_results import to_store
from personalitybench.judging.chat_client import ChatClient, ChatSettings, Reply
from personalitybench.judging.chat_keeping import Keeper, Patience
from personalitybench.judging.chat_outcomes import LONGEST_WAIT
from personalitybench.judging.claims import Claims
from personalitybench.judging.paid import Spending
from personalitybench.judging.prices import PriceTable, cost, estimate_tokens
from personalitybench.judging.responses import ResponseStore, StoredResponse
from personalitybench.workers import ANNOUNCED_WAIT

logger = logging.getLogger(__name__)

Done = Callable[[str, StoredResponse | Reply | Unrated], None]

_SETTLING = 0.05  # seconds between two looks at a budget that requests in flight may leave room in
_LONGEST_LOOK = 1.0  # seconds between two looks at replies that others ask for


class LiveReplies:
    """Fetches replies of one model at one server.

    Args:
        judge: Name of the judge, for messages.
        settings: Whom to ask.
        store: Where replies go.
        spending: Where their tokens are counted; its budget is kept.
        prices: The table that its price is from.
    """

    def __init__(
        self, judge: str, settings: ChatSettings, store: ResponseStore, spending: Spending, prices: PriceTable
    ) -> None:
        self._judge = judge
        self._settings = settings
        self._store = store
        self._spending = spending
        self._prices = prices

    async def fetch(self, wanted: Sequence[WantedReply], done: Done) -> None:
        """Ask for replies; for those that another judge or process is asking for, wait.

        Args:
            wanted: What is needed, each key once.
            done: Told each key with what came of it, as it comes.

        Raises:
            JudgeError: No request can succeed, or the budget is spent. What was paid is kept, also what was in flight.
            StorageError: A reply cannot be kept.
        """
        missing = {each.key: each for each in wanted}
        others = _Others(self._judge, LONGEST_WAIT + 2 * self._settings.timeout)
        with Claims(self._store) as claims:
            while missing:
                own = claims.take(missing, by_force=others.seem_stuck)
                for key, reply in self._store.whole(missing.keys() - own).items():
                    self._spending.kept += 1
                    del missing[key]
                    done(key, reply)
                if own:
                    mine = [each for key, each in missing.items() if key in own]
                    missing = {key: each for key, each in missing.items() if key not in own}
                    await self._ask(mine, done)
                    claims.release()
                elif missing:
                    await others.wait(len(missing))

    async def _ask(self, wanted: Sequence[WantedReply], done: Done) -> None:
        keeper = Keeper(self._store)
        patience = Patience(self._settings.concurrency)
        spending = self._spending
        counted = (0, 0)

        def count(key: str) -> None:
            """Count what tries cost, also failed ones, in place of what was reserved."""
            nonlocal counted
            spending.in_flight.pop(key, None)
            now = (client.prompt_tokens, client.completion_tokens)
            spending.prompt_tokens += now[0] - counted[0]
            spending.completion_tokens += now[1] - counted[1]
            counted = now

        async def admit(number: int) -> None:
            count(wanted[number].key)
            await self._reserve(wanted[number])

        def receive(number: int, reply: Reply | Unrated) -> None:
            each = wanted[number]
            count(each.key)  # what came is kept and counted before anything is refused
            if isinstance(reply, Reply):
                spending.calls += 1
                keeper.keep(each.key, to_store(reply))
            patience.see(reply, self._judge)
            done(each.key, reply)

        try:
            async with ChatClient(self._settings) as client:
                await client.ask_all(
                    (each.messages for each in wanted), receive, lambda number: wanted[number].form, admit
                )
        finally:
            for each in wanted:
                spending.in_flight.pop(each.key, None)
            await keeper.finish()

    async def _reserve(self, wanted: WantedReply) -> None:
        """Reserve the estimate of a request; where it does not fit, wait for what those in flight really cost.

        Raises:
            JudgeError: It does not fit, and nothing is in flight.
        """
        spending = self._spending
        if spending.budget is None or spending.price is None:
            return
        dollars = cost(spending.price, estimate_tokens(wanted.messages), wanted.most_written)
        while not spending.allows(dollars):
            if not spending.waits_for_replies:
                who = "the judges of the panel: " if spending.beside else ""
                raise JudgeError(
                    f"judge {self._judge}: the budget of ${spending.budget:g} is spent ({who}"
                    f"${spending.toward_budget:.4f} at {self._prices.about}; the next request may cost "
                    f"${dollars:.4f}); what was paid is kept, so the same command goes on with a larger one"
                )
            await asyncio.sleep(_SETTLING)
        spending.in_flight[wanted.key] = dollars


class _Others:
    """Waits for replies that others ask for.

    Args:
        judge: Name of the judge that waits.
        longest: Seconds without any of these replies after which the others seem stuck.
    """

    def __init__(self, judge: str, longest: float) -> None:
        self._judge = judge
        self._longest = longest
        self._number = -1
        self._since = self._began = 0.0
        self._interval = 0.05
        self._announced = False
        self.seem_stuck = False

    async def wait(self, number: int) -> None:
        """Wait a moment for some of so many replies."""
        now = asyncio.get_running_loop().time()
        if self._number < 0:
            self._began = now
        if number != self._number:
            self._number, self._since, self._interval = number, now, 0.05
        self.seem_stuck = now - self._since > self._longest
        if now - self._began > ANNOUNCED_WAIT and not self._announced:
            self._announced = True
            logger.warning(
                "judge %s: waiting for %d replies that another judge or process is asking for; if none comes for "
                "%.0f s they are asked for here; Ctrl-C ends it",
                self._judge,
                number,
                self._longest,
            )
        await asyncio.sleep(self._interval)
        self._interval = min(2 * self._interval, _LONGEST_LOOK)
