"""A judge that is a chat model: a rubric's messages, replies that are kept or asked for, the verdicts read in them.

Joins what knows nothing of each other: :mod:`~personalitybench.judging.rubrics`,
:mod:`~personalitybench.judging.responses`, :mod:`~personalitybench.judging.chat_client`. A reply is paid once: it is on
disk before it counts as there, and reading it anew costs nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from personalitybench.completions import quote
from personalitybench.dry import is_dry
from personalitybench.errors import JudgeModelError
from personalitybench.files import cache_folder
from personalitybench.judging.base import (
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
    is_readable,
)
from personalitybench.judging.batch import Batches, BatchOptions, WantedReply, journal_folder, under_way
from personalitybench.judging.batch_journal import Journal
from personalitybench.judging.chat_client import OPENAI_URL, ChatSettings, Reply
from personalitybench.judging.live_replies import LiveReplies
from personalitybench.judging.paid import Estimate, Spending
from personalitybench.judging.prices import cost, estimate_tokens, load_prices
from personalitybench.judging.responses import ResponseStore, StoredResponse, request_key
from personalitybench.judging.rubrics import load_rubric
from personalitybench.traits import TRAIT_NAMES
from personalitybench.validation import validate

logger = logging.getLogger(__name__)

_ANNOUNCED_MODELS = 5  # names that are told; the ratings' manifests count all
_EXPLANATION_TOKENS = 80  # of a reply: thirty words and the rating, with room; the same again for each trait of several

_WHOLE_NUMBERS = frozenset({"max_tokens", "max_completion_tokens", "seed", "top_k", "top_logprobs", "min_tokens"})
_NUMBERS = frozenset({"temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"})

Messages = list[dict[str, str]]


class ChatJudgeSettings(BaseModel):
    """``settings`` of a profile: what decides its ratings.

    Attributes:
        model: Name of the model at the server.
        base_url: Where the server is; None is the OpenAI API.
        api_key_env: Environment variable with the key.
        sampling: Sent with each request: ``temperature``, ``max_tokens`` and so on; null is not given.
        rubric: What it judges by: a bundled rubric or a YAML file.
        structured: Whether a rubric that asks for JSON sends its schema along (``response_format``); false for servers
            that cannot take one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    sampling: dict[str, Any] = Field(default_factory=dict)
    rubric: str = "project"
    structured: bool = True

    @field_validator("sampling")
    @classmethod
    def _known_types(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        """Leave out what is null; refuse what YAML made of a number that it does not know as one."""
        given = {name: value for name, value in sampling.items() if value is not None}
        for name, value in given.items():
            if name in _WHOLE_NUMBERS and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{name!r} is a whole number, not {value!r}")
            if name in _NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool)):
                raise ValueError(f"{name!r} is a number, not {value!r}: write it without quotes")
        return given


class ChatClientOptions(BaseModel):
    """``client`` of a profile: how the server is asked, which no rating depends on.

    Attributes:
        concurrency: Most requests in flight.
        timeout: Seconds for one try.
        attempts: Tries in all for what may pass.
        batch: How batches are made, where they are asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(default=64, ge=1)
    timeout: float = Field(default=60.0, gt=0)
    attempts: int = Field(default=8, ge=1)
    batch: BatchOptions = BatchOptions()


class ChatJudge:
    """Rates answers by asking a chat model; see :class:`personalitybench.judging.base.Judge`.

    Args:
        profile: Its profile.

    Raises:
        ConfigurationError: The profile or the rubric is wrong.
    """

    summary: ClassVar[str] = "a chat model behind the OpenAI API or any server that speaks like it"
    at_a_time: ClassVar[int] = 1024

    def __init__(self, profile: JudgeProfile) -> None:
        self.profile = profile
        where = f"judge profile {profile.id!r}"
        self._settings = validate(ChatJudgeSettings, profile.settings, f"{where}: settings")
        options = validate(ChatClientOptions, profile.client, f"{where}: client")
        self._client = ChatSettings(
            model=self._settings.model,
            base_url=self._settings.base_url,
            api_key_env=self._settings.api_key_env,
            sampling=self._settings.sampling,
            concurrency=options.concurrency,
            timeout=options.timeout,
            attempts=options.attempts,
        )
        self._batches = options.batch
        self._failed_in_batches: dict[str, Unrated] = {}
        self._models: set[str] = set()
        self._rubric = load_rubric(self._settings.rubric)
        self.prices = load_prices()
        self.spending = Spending(self.prices.price(self._settings.model))

    @property
    def rubric_sha256(self) -> str:
        """Hash of all texts that the model is asked with."""
        return self._rubric.sha256

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        """Rate items.

        Raises:
            JudgeError: No request can succeed, or the budget is spent. What was paid is kept.
        """
        verdicts: dict[int, Verdict] = {}
        asked = {place: self._rubric.messages(item) for place, item in enumerate(items)}
        with ResponseStore(store_path()) as store:
            for last in (False, True):
                again = {}
                for place, reply in (await self._replies(store, items, asked, None if last else report)).items():
                    if isinstance(reply, Unrated):
                        verdicts[place] = reply
                        continue
                    self._see_model(reply.model)
                    verdict = self._rubric.read(reply.text, items[place].aspect)
                    if isinstance(verdict, Rating):
                        verdict = replace(verdict, model=reply.model)
                    if isinstance(verdict, Rating) or last:
                        verdicts[place] = verdict
                    else:
                        again[place] = [
                            *asked[place],
                            {"role": "assistant", "content": reply.text},
                            {"role": "user", "content": self._rubric.further_turn(items[place].aspect)},
                        ]
                asked = again
                if not asked:
                    break
        return [verdicts[place] for place in range(len(items))]

    def fetch_in_batches(
        self, items: Iterable[RatingRequest], say: Callable[[str], None], *, wait: bool = True
    ) -> None:
        """Fetch the replies that are not there in batches; see :class:`personalitybench.judging.paid.BatchJudge`.

        What a batch answered without a reply is unrated in this process; what it left unanswered is asked live.

        Raises:
            JudgeError: Nothing more can come of it, or its estimate is more than the budget. What was paid is kept.
        """
        with ResponseStore(store_path()) as store:
            batches = Batches(self._client, self._batches, store, self.spending, say)
            try:
                self._failed_in_batches |= batches.fetch(self._wanted(items), wait=wait)
            except JudgeModelError as error:
                raise JudgeModelError(f"{error}{self._succession()}") from error

    def has_batches(self) -> bool:
        """Whether any batch of this model at this server was begun and is not done."""
        folder = journal_folder(self._client)
        return folder.is_dir() and bool(Journal(folder).open_parts())

    def estimate_batches(self, items: Iterable[RatingRequest]) -> Estimate:
        """Guess what ratings in batches would take; sends nothing."""
        # Nothing is under way where there is no journal, and looking whether there is one makes none.
        waiting = under_way(self._client) if self.has_batches() else set()
        return self._estimate(items, waiting, self.spending.batch_dollars)

    def estimate(self, items: Iterable[RatingRequest]) -> Estimate:
        """Guess what ratings would take; sends nothing."""
        price = self.spending.price
        return self._estimate(
            items, set(), lambda prompt, written: None if price is None else cost(price, prompt, written)
        )

    def _wanted(self, items: Iterable[RatingRequest]) -> Iterator[WantedReply]:
        """What a judge must be asked to rate items."""
        for item in items:
            if is_readable(item.answer):
                messages = self._rubric.messages(item)
                yield self._wanted_reply(self._key(messages, item), messages, item.aspect)

    def _wanted_reply(self, key: str, messages: Messages, aspect: str) -> WantedReply:
        return WantedReply(key, messages, self._form(aspect), self._most_written(aspect))

    def _estimate(
        self, items: Iterable[RatingRequest], waiting: Set[str], dollars: Callable[[int, int], float | None]
    ) -> Estimate:
        ratings = kept = calls = prompt = completion = batched = 0
        # A dry run makes no store where there is none.
        absent_store = is_dry() and not store_path().is_file()
        with nullcontext() if absent_store else ResponseStore(store_path()) as store:
            for chunk in _chunks(items, self.at_a_time):
                ratings += len(chunk)
                asked = {wanted.key: wanted for wanted in self._wanted(chunk)}
                there = {} if store is None else store.whole(asked)
                kept += len(there)
                absent = asked.keys() - there.keys()
                batched += len(absent & waiting)
                missing = [asked[key] for key in absent - waiting]
                calls += len(missing)
                prompt += sum(estimate_tokens(wanted.messages) for wanted in missing)
                completion += sum(wanted.most_written for wanted in missing)
        return Estimate(ratings, kept, calls, prompt, completion, dollars(prompt, completion), batched)

    def _most_written(self, aspect: str) -> int:
        """Tokens of a reply at most, as far as the sampling says."""
        sampling = self._settings.sampling
        usual = _EXPLANATION_TOKENS * (len(TRAIT_NAMES) if self._rubric.asks_all(aspect) else 1)
        return int(sampling.get("max_completion_tokens", sampling.get("max_tokens", usual)))

    def _form(self, aspect: str) -> dict[str, Any]:
        """What is sent about the form of the reply, besides the sampling."""
        form = self._rubric.response_format(aspect) if self._settings.structured else None
        return {} if form is None else {"response_format": form}

    def _key(self, messages: Messages, item: RatingRequest) -> str:
        # The number of a repeat is not sent: it only keeps the replies apart.
        sampling = self._settings.sampling | self._form(item.aspect) | ({"repeat": item.repeat} if item.repeat else {})
        return request_key(self._settings.model, self._settings.base_url or OPENAI_URL, messages, sampling)

    async def _replies(
        self,
        store: ResponseStore,
        items: Sequence[RatingRequest],
        asked: Mapping[int, Messages],
        report: RatingsReport | None,
    ) -> dict[int, StoredResponse | Reply | Unrated]:
        """Replies by place, from the store where they are there; equal messages are asked once."""
        places: dict[str, list[int]] = {}
        for place, messages in asked.items():
            places.setdefault(self._key(messages, items[place]), []).append(place)
        there = store.whole(places)
        self.spending.kept += len(there)
        found: dict[int, StoredResponse | Reply | Unrated] = {
            place: stored for key, stored in there.items() for place in places[key]
        }
        if report is not None and found:
            report(len(found))
        for key in self._failed_in_batches.keys() & places.keys() - there.keys():
            found.update(dict.fromkeys(places[key], self._failed_in_batches[key]))
            if report is not None:
                report(len(places[key]))
        missing = [key for key in places if key not in there and key not in self._failed_in_batches]
        if not missing:
            return found

        def done(key: str, reply: StoredResponse | Reply | Unrated) -> None:
            found.update(dict.fromkeys(places[key], reply))
            if report is not None:
                report(len(places[key]))

        wanted = [self._wanted_reply(key, asked[places[key][0]], items[places[key][0]].aspect) for key in missing]
        try:
            await LiveReplies(self.profile.id, self._client, store, self.spending, self.prices).fetch(wanted, done)
        except JudgeModelError as error:
            raise JudgeModelError(f"{error}{self._succession()}") from error
        return found

    def _see_model(self, name: str) -> None:
        """Warn where a server answers with several models, or with another one than it was asked for."""
        if name in self._models or len(self._models) >= _ANNOUNCED_MODELS:
            return
        self._models.add(name)
        asked = self._settings.model
        if len(self._models) > 1 or not (name == asked or is_dated_alias(name, asked)):
            names = ", ".join(quote(each) for each in sorted(self._models))
            logger.warning("judge %s: asked for model %s, answered by %s", self.profile.id, quote(asked), names)

    def _succession(self) -> str:
        """What to do where the model is gone."""
        sunset = self.profile.sunset
        if sunset is None or not sunset.successors:
            return ""
        return (
            f"; it was {sunset.status} to be shut down on {sunset.date.isoformat()}. Profiles that can succeed it: "
            f"{', '.join(sunset.successors)}. Their numbers are of another judge and stand on a board of their own. On "
            f"answers that this one has rated, 'personalitybench judges compare {self.profile.id} NEW --answers RUN' "
            f"tells how far they agree, and 'personalitybench judges calibrate NEW {self.profile.id} --answers RUN' "
            "fits a map"
        )


def is_dated_alias(name: str, asked: str) -> bool:
    """Return whether a name is the one that was asked for with a date or version: ``gpt-4o-2024-08-06``."""
    return re.fullmatch(rf"{re.escape(asked)}[-@:]v?\d[\d.-]*", name) is not None


def store_path() -> Path:
    """File of all replies of chat models that judge, in the user's cache."""
    return cache_folder("judges") / "replies.sqlite"


def _chunks(items: Iterable[RatingRequest], size: int) -> Iterator[list[RatingRequest]]:
    chunk: list[RatingRequest] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
