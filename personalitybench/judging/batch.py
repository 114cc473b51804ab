"""Has replies fetched through OpenAI's Batch API: cheaper than live ones, within a day, resumed after any stop.

What is asked is planned in a journal (:mod:`.batch_journal`), sent and looked after through :mod:`.batch_api`, read by
:mod:`.batch_results`. Replies end in the store of live ones, where the ordinary judging finds them.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.completions import valid_text
from personalitybench.errors import JudgeError
from personalitybench.files import cache_folder, content_hash
from personalitybench.judging.base import Unrated
from personalitybench.judging.batch_api import ENDPOINT, BatchApi, Object, SilentServerError
from personalitybench.judging.batch_journal import Journal, Part, Request, request_line
from personalitybench.judging.batch_results import BatchError, Results, find_hopeless, quote, read_errors
from personalitybench.judging.chat_client import OPENAI_URL, ChatSettings
from personalitybench.judging.claims import Claims
from personalitybench.judging.paid import Spending
from personalitybench.judging.prices import estimate_tokens
from personalitybench.judging.responses import ResponseStore

Messages = Sequence[Mapping[str, str]]
Say = Callable[[str], None]

ASKED_AGAIN = 2
"""Batches after the first that ask for what is missing; what is still missing is asked live."""
LONGEST_POLL = 12
"""Times the first interval between two looks at a batch."""

_ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
_FULL = frozenset({"token_limit_exceeded", "queue_limit_exceeded"})  # what may be under way at a time is used up
_STATUS_CHARACTERS = 40  # of a batch's status
_SHOWN_BATCHES = 3  # of those that are waited for
_LOOKED_UP = 1000  # keys that are looked for in the store together
_SAY_COUNTS = 20.0  # seconds between two lines that only count
_REMINDER = 600.0  # seconds of silence after which waiting is told again
_LONGEST_BATCH = 26 * 3600.0  # seconds to wait for the next batch to end; the API ends each within 24 hours


@dataclass(frozen=True)
class WantedReply:
    """A reply that is needed.

    Attributes:
        key: Of the reply in the store.
        messages: What it replies to.
        form: What is sent besides the sampling, such as ``response_format``.
        most_written: Tokens of the reply at most, for the budget.
    """

    key: str
    messages: Messages
    form: Mapping[str, Any]
    most_written: int


class BatchOptions(BaseModel):
    """``client.batch`` of a profile: how batches are made, which no rating depends on.

    Attributes:
        requests: In one file at most; the API takes 50,000.
        bytes: Of one file at most; the API takes 200 MB.
        poll: Seconds until a batch is looked at again; grows to twelve times that.
        silence: Seconds without any answer of the server after which waiting ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int = Field(default=50_000, ge=1, le=50_000)
    bytes: int = Field(default=200_000_000, ge=1, le=200_000_000)
    poll: float = Field(default=5.0, gt=0)
    silence: float = Field(default=3600.0, gt=0)


class Batches:
    """Fetches replies of one model at one server in batches.

    Args:
        settings: Whom to ask.
        options: How batches are made.
        store: Where replies go.
        spending: Where their tokens are counted; its budget is kept.
        say: Told what happens, a line at a time.
    """

    def __init__(
        self,
        settings: ChatSettings,
        options: BatchOptions,
        store: ResponseStore,
        spending: Spending,
        say: Say,
    ) -> None:
        self.unrated: dict[str, Unrated] = {}
        self._settings = settings
        self._options = options
        self._store = store
        self._spending = spending
        self._say_line = say
        self._last_line = time.monotonic()
        self._journal = Journal(journal_folder(settings))
        self._said: dict[str, tuple[str, int, float]] = {}
        self._heard: float | None = None

    def fetch(self, wanted: Iterable[WantedReply], *, wait: bool = True) -> dict[str, Unrated]:
        """Have the replies fetched that are not there, and wait for those that are under way.

        Args:
            wanted: What is needed.
            wait: If not, it is only sent.

        Returns:
            Keys of requests that were answered without a reply, and why. What is in neither this nor the store came
            to nothing in three batches.

        Raises:
            JudgeError: The budget does not allow it, or no request can succeed. What was paid is kept, and what is
                under way goes on.
            KeyboardInterrupt: Likewise.
        """
        waiting = self._plan(wanted)
        if not waiting:
            return self.unrated
        api = BatchApi(self._settings, self._say)
        try:
            if wait:
                self._wait(api, waiting)
            else:
                for name in waiting:
                    self._advance(api, name)
        except KeyboardInterrupt:
            self._say("the batches go on at the server; the same command picks them up and pays nothing twice")
            raise
        finally:
            api.close()
        return self.unrated

    # Deciding what is asked.

    def _plan(self, wanted: Iterable[WantedReply]) -> list[str]:
        """Write down what is to be asked; gives the names of all parts to wait for."""
        with self._journal.alone():
            # Parts first: one that is finished meanwhile by another process has its replies in the store.
            places = {key: part.name for part in self._journal.open_parts() for key in self._journal.keys(part.name)}
            under_way: set[str] = set()
            new = self._journal.prepare(
                self._requests(self._missing(wanted, places, under_way)),
                most=self._options.requests,
                most_bytes=self._options.bytes,
            )
            unsent = [part for part in map(self._journal.read, under_way) if part.batch is None]
            try:
                self._check_budget([*unsent, *new])
            except JudgeError:
                self._journal.discard(new)
                raise
            self._journal.publish(new)
        if under_way:
            self._say(f"batches: {len(under_way)} of an earlier command are gone on with")
        if new:
            count = sum(part.requests for part in new)
            self._say(f"batches: {count:,} requests in {len(new)}; a batch may take up to 24 hours")
        return [*sorted(under_way), *(part.name for part in new)]

    def _missing(
        self, wanted: Iterable[WantedReply], places: Mapping[str, str], under_way: set[str]
    ) -> Iterator[WantedReply]:
        """Pass over what is there or under way, noting the parts of the latter."""
        for each in absent(wanted, self._store):
            if each.key in places:
                under_way.add(places[each.key])
            else:
                yield each

    def _requests(self, wanted: Iterable[WantedReply]) -> Iterator[Request]:
        for each in wanted:
            turns = [{name: valid_text(text) for name, text in turn.items()} for turn in each.messages]
            body = {"model": self._settings.model, "messages": turns, **self._settings.sampling, **each.form}
            yield Request(request_line(each.key, ENDPOINT, body), estimate_tokens(turns), each.most_written)

    def _check_budget(self, parts: Sequence[Part]) -> None:
        """Promise what parts may cost, or refuse what may be more than is left of the budget."""
        spending = self._spending
        costs = {part.name: self._cost(part) for part in parts}
        dollars = sum(costs.values())
        before = spending.toward_budget + spending.promised_but(costs)
        if parts and spending.budget is not None and before + dollars > spending.budget:
            spent = f", after ${before:.4f} that are spent or under way" if before else ""
            raise JudgeError(
                f"the batch of {sum(part.requests for part in parts):,} requests may cost ${dollars:.4f}{spent}, which "
                f"the budget of ${spending.budget:g} does not allow: nothing of it was sent. Give a larger --budget, "
                "or leave --batch out: then it ends when so much is spent"
            )
        spending.promised |= costs

    def _cost(self, part: Part) -> float:
        return self._spending.batch_dollars(part.prompt_tokens, part.completion_tokens) or 0.0

    # Waiting.

    def _wait(self, api: BatchApi, waiting: list[str]) -> None:
        interval = self._options.poll
        since = time.monotonic()
        while True:
            done = {name: part for name in waiting if (part := self._advance(api, name)).done}
            if done:
                waiting = [name for name in waiting if name not in done]
                waiting += [name for part in done.values() for name in part.followed_by]
                interval, since = self._options.poll, time.monotonic()
                continue  # what follows is sent at once
            if not waiting:
                return
            now = time.monotonic()
            if now - since > _LONGEST_BATCH:
                raise JudgeError(
                    f"no batch ended for {_LONGEST_BATCH / 3600:.0f} hours ({self._states(waiting)}): see the batches "
                    "at the server, and whether another process waits for them; the same command picks them up"
                )
            if now - self._last_line > _REMINDER:
                self._say(f"batches: waiting for {len(waiting)} ({self._states(waiting)}); Ctrl-C ends it")
            time.sleep(interval)
            interval = min(interval * 1.5, self._options.poll * LONGEST_POLL)

    def _states(self, names: Sequence[str]) -> str:
        parts = [self._journal.read(name) for name in names[:_SHOWN_BATCHES]]
        more = f", {len(names) - len(parts)} more" if len(names) > len(parts) else ""
        return ", ".join(f"{part.batch or part.name} {part.status}" for part in parts) + more

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._say_line(line)

    def _advance(self, api: BatchApi, name: str) -> Part:
        """Do the next step of a part, or see what another process did."""
        with self._journal.step(name) as own:
            part = self._journal.read(name)
            if part.done:
                return part
            if not own:
                self._tell(part)
                return part
            try:
                return self._step(api, part)
            except SilentServerError as error:
                now = time.monotonic()
                if self._heard is None or now - self._heard > self._options.silence:
                    raise
                self._say(f"batches: {error}")
                return self._journal.read(name)

    def _step(self, api: BatchApi, part: Part) -> Part:
        if part.batch is None:
            part = self._send(api, part)
        if part.batch is None:
            return part
        batch = api.retrieve(part.batch, self._journal.folder / part.name)
        self._heard = time.monotonic()
        part = self._journal.write(_seen(part, batch))
        self._tell(part)
        return self._collect(api, part, batch) if part.status in _ENDED else part

    def _send(self, api: BatchApi, part: Part) -> Part:
        """Upload a part and have a batch made of it. What is about to happen is on disk before."""
        if part.held and any(each.batch for each in self._journal.open_parts()):
            return part
        perhaps_there = part.attempt > 0
        if not perhaps_there:
            part = self._without_those_there(part)
            if part.done:
                return part
            self._check_budget([part])
        if part.input_file is None:
            file = api.upload(self._journal.requests_file(part.name), part.name)
            self._heard = time.monotonic()
            part = self._journal.write(part.model_copy(update={"input_file": file}))
        if not perhaps_there:
            part = self._journal.write(part.model_copy(update={"attempt": 1}))
        batch = api.create(str(part.input_file), part.tag, part.planned.timestamp(), perhaps_there=perhaps_there)
        self._heard = time.monotonic()
        return self._journal.write(_seen(part.model_copy(update={"batch": batch["id"]}), batch))

    def _without_those_there(self, part: Part) -> Part:
        """Take out of a part that was never sent what was, or is being, asked live since it was written."""
        keys = self._journal.keys(part.name)
        there = keys - unclaimed(keys, self._store)
        if not there:
            return part
        if there == keys:
            self._spending.promised.pop(part.name, None)
            return self._journal.finish(part.model_copy(update={"done": True}))
        return self._journal.rewrite(part, list(self._again(part, keys - there)))

    def _tell(self, part: Part) -> None:
        """Say how far a batch is: at once where its state changed, else now and then."""
        if part.batch is None:
            return
        counted = part.completed + part.failed
        state, before, when = self._said.get(part.name, ("", -1, 0.0))
        now = time.monotonic()
        if state == part.status and (counted == before or now - when < _SAY_COUNTS):
            return
        self._said[part.name] = (part.status, counted, now)
        passed = dt.timedelta(seconds=int((dt.datetime.now(dt.UTC) - part.planned).total_seconds()))
        failed = f", {part.failed:,} failed" if part.failed else ""
        again = f" (asked again, {part.asked} of {ASKED_AGAIN})" if part.asked else ""
        self._say(
            f"batch {part.batch}{again}: {part.status}, {part.completed:,} of {part.requests:,}{failed}, {passed}"
        )

    # Taking in what came.

    def _collect(self, api: BatchApi, part: Part, batch: Object) -> Part:
        """Keep all replies of a batch that ended, and decide what is asked again."""
        results = Results(self._journal.keys(part.name), self._store, api.server)
        for kind in ("output_file_id", "error_file_id"):
            if isinstance(batch.get(kind), str):
                api.read_file(batch[kind], results.take, self._journal.folder / part.name)
        results.keep()
        self._spending.promised.pop(part.name, None)
        self._spending.count_batch(len(results.replied), results.prompt_tokens, results.completion_tokens)
        self.unrated |= results.unrated
        if results.garbage:
            self._say(f"batch {part.batch}: {results.garbage:,} lines of its files are no results of ours")
        part = part.model_copy(update={"replies": len(results.replied)})
        errors = read_errors(batch)
        end = results.hopeless or find_hopeless(errors, api.server)
        with self._journal.alone():
            if end is None and part.status == "failed" and any(code in _FULL for code, _, _ in errors):
                return self._too_much(part, errors)
            missing = results.missing
            if part.status == "failed":  # the API says which lines it does not take
                wrong = {line for _, _, line in errors if line is not None}
                missing -= {key for number, key in self._numbered(part) if number in wrong}
            followed_by: list[str] = []
            if missing and end is None and part.status != "cancelled" and part.asked < ASKED_AGAIN:
                followed_by = [self._journal.follow(part, "-again", self._again(part, missing), part.asked + 1)]
                self._say(f"batch {part.batch}: {len(missing):,} requests came to nothing and are asked again")
            elif results.missing:
                self._say(f"batch {part.batch}: {len(results.missing):,} requests came to nothing")
            part = self._journal.finish(part.model_copy(update={"done": True, "followed_by": tuple(followed_by)}))
        if end is not None:
            raise end
        if part.status == "failed" and errors:
            self._say(f"batch {part.batch} failed: {quote(errors, api.server)}")
        if part.status == "cancelled" and missing:
            raise JudgeError(
                f"the batch {part.batch} was cancelled at the server: {part.replies:,} of {part.requests:,} replies "
                "came and are kept; the same command asks for the others, in a new batch with --batch"
            )
        return part

    def _too_much(self, part: Part, errors: Sequence[BatchError]) -> Part:
        """Wait with a batch for which the server has no room, or make it smaller where nothing else takes any."""
        others = any(each.batch and each.name != part.name for each in self._journal.open_parts())
        if others:
            self._say(f"batch {part.batch}: the server takes no more at once; it is sent when others are done")
            again = {"batch": None, "attempt": part.attempt + 1, "status": "planned", "held": True}
            return self._journal.write(part.model_copy(update=again))
        if part.requests == 1:
            self._journal.finish(part.model_copy(update={"done": True}))
            raise JudgeError(f"the server takes no batch at all now: {errors[0][1]}; try later, or leave --batch out")
        self._say(f"batch {part.batch}: too much for the server at once; it is sent in halves, one after the other")
        keys = [key for _, key in self._numbered(part)]
        halves = (set(keys[: len(keys) // 2]), set(keys[len(keys) // 2 :]))
        names = tuple(
            self._journal.follow(part, ending, self._again(part, half), part.asked, held=True)
            for ending, half in zip(("-a", "-b"), halves, strict=True)
        )
        return self._journal.finish(part.model_copy(update={"done": True, "followed_by": names}))

    def _numbered(self, part: Part) -> Iterator[tuple[int, str]]:
        """Lines of a part's file by number, from 1, with their keys."""
        for number, line in enumerate(self._journal.lines(part.name), 1):
            yield number, Request(line).key

    def _again(self, part: Part, keys: set[str]) -> Iterator[Request]:
        """Requests of a part that are asked again; what each may write is what they may on average."""
        written = -(-part.completion_tokens // part.requests)
        for line in self._journal.lines(part.name):
            request = Request(line)
            if request.key in keys:
                yield Request(line, estimate_tokens(request.messages), written)


def journal_folder(settings: ChatSettings) -> Path:
    """Folder of what is known of batches of one model at one server."""
    address = (settings.base_url or OPENAI_URL).rstrip("/")
    return cache_folder("judges", "batches") / content_hash([address, settings.model])[:16]


def under_way(settings: ChatSettings) -> set[str]:
    """Keys of requests that are in batches which are not done."""
    journal = Journal(journal_folder(settings))
    with journal.alone():
        return {key for part in journal.open_parts() for key in journal.keys(part.name)}


def absent(wanted: Iterable[WantedReply], store: ResponseStore) -> Iterator[WantedReply]:
    """Pass over replies that are there or are being asked for live, and all but the first of equal requests."""
    seen: set[str] = set()
    rest = iter(wanted)
    while chunk := _take(rest, seen):
        free = unclaimed(chunk, store)
        yield from (each for key, each in chunk.items() if key in free)


def unclaimed(keys: Iterable[str], store: ResponseStore) -> set[str]:
    """Return the keys that have no whole reply and that nobody is asking for live."""
    with Claims(store) as claims:
        return claims.take(keys)


def _take(rest: Iterator[WantedReply], seen: set[str]) -> dict[str, WantedReply]:
    chunk: dict[str, WantedReply] = {}
    for each in rest:
        if each.key not in seen:
            seen.add(each.key)
            chunk[each.key] = each
            if len(chunk) == _LOOKED_UP:
                break
    return chunk


def _seen(part: Part, batch: Object) -> Part:
    """Note a batch as the server shows it."""
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    update = {"status": valid_text(str(batch.get("status") or part.status))[:_STATUS_CHARACTERS]}
    numbers = {name: counts[name] for name in ("completed", "failed") if type(counts.get(name)) is int}
    return part.model_copy(update=update | numbers)
