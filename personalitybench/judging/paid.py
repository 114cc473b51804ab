"""A judge whose ratings cost money: what it spent, what it may spend, and what it would."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from personalitybench.errors import ConfigurationError
from personalitybench.judging.base import Judge, RatingRequest
from personalitybench.judging.prices import Price, PriceTable, cost


@dataclass
class Spending:
    """What a judge was asked in this process, and what that cost.

    Attributes:
        price: Of its model; None where none is known.
        budget: US dollars after which nothing more is asked; None for no limit.
        calls: Replies that were asked for and came whole.
        kept: Replies that were there already.
        prompt_tokens: Sent, as the server counted them.
        completion_tokens: Written, likewise.
        batch_calls: Replies that came in batches.
        batch_prompt_tokens, batch_completion_tokens: Sent and written in batches, which may cost less.
        promised: US dollars, estimated, of batches that were sent in this process and did not come yet, by their names.
        in_flight: US dollars, estimated, of single requests that were sent and are not answered yet, by their keys.
        beside: What other judges spent that share the budget: the members of a panel.
    """

    price: Price | None
    budget: float | None = None
    calls: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    batch_calls: int = 0
    batch_prompt_tokens: int = 0
    batch_completion_tokens: int = 0
    promised: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    in_flight: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    beside: Sequence[Spending] = field(default=(), repr=False, compare=False)

    @property
    def dollars(self) -> float | None:
        """US dollars; None where no price is known."""
        batches = self.batch_dollars(self.batch_prompt_tokens, self.batch_completion_tokens)
        if self.price is None or batches is None:
            return None
        return cost(self.price, self.prompt_tokens, self.completion_tokens) + batches

    def batch_dollars(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars for tokens in a batch: with its discount where one is known, else at the full price."""
        if self.price is None:
            return None
        return cost(self.price, prompt_tokens, completion_tokens) * (1 - (self.price.batch_discount or 0.0))

    def count_batch(self, calls: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what came in a batch."""
        self.batch_calls += calls
        self.batch_prompt_tokens += prompt_tokens
        self.batch_completion_tokens += completion_tokens

    def promised_but(self, names: Collection[str]) -> float:
        """US dollars that batches may yet cost, of this judge and of those that share its budget, but for these."""
        return sum(
            dollars for each in (self, *self.beside) for name, dollars in each.promised.items() if name not in names
        )

    @property
    def waits_for_replies(self) -> bool:
        """True while single requests are in flight, of this judge or of those that share its budget."""
        return any(each.in_flight for each in (self, *self.beside))

    def allows(self, dollars: float) -> bool:
        """Return True if a request of this cost fits into the budget, with everything that is sent already."""
        if self.budget is None:
            return True
        in_flight = sum(sum(list(each.in_flight.values())) for each in (self, *self.beside))
        return self.toward_budget + self.promised_but(()) + in_flight + dollars <= self.budget

    @property
    def toward_budget(self) -> float:
        """US dollars that count against the budget: of this judge and of those that share it."""
        return sum(each.dollars or 0.0 for each in (self, *self.beside))

    def __str__(self) -> str:
        """What it comes to so far, in a few words: dollars, or tokens where no price is known."""
        if self.dollars is None:
            batches = self.batch_prompt_tokens + self.batch_completion_tokens
            return f"{self.prompt_tokens + self.completion_tokens + batches:,} tokens"
        return f"${self.dollars:.4f}"


@dataclass(frozen=True)
class Estimate:
    """What ratings would take, guessed before anything is sent.

    Attributes:
        ratings: How many are wanted.
        kept: Replies that are there already.
        calls: Requests to send, without those that are asked again.
        prompt_tokens: They send, estimated without a tokenizer.
        completion_tokens: They would write, estimated.
        dollars: At the price that is known, or None.
        under_way: Requests that are in batches already, and among neither ``kept`` nor ``calls``.
    """

    ratings: int
    kept: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    under_way: int = 0


@runtime_checkable
class PaidJudge(Protocol):
    """What a :class:`~personalitybench.judging.base.Judge` has besides, where its ratings cost money.

    Attributes:
        prices: The table that its price is from.
        spending: What it was asked in this process; its ``budget`` can be set.
    """

    prices: PriceTable
    spending: Spending

    def estimate(self, items: Iterable[RatingRequest]) -> Estimate:
        """Guess what ratings would take; sends nothing."""


@runtime_checkable
class BatchJudge(Protocol):
    """What a :class:`PaidJudge` has besides, where its ratings can be asked for in batches.

    A batch is answered within a day, for less money. What came of it is where the ordinary rating finds it.
    """

    def has_batches(self) -> bool:
        """Whether any batch was begun and is not done."""

    def fetch_in_batches(
        self, items: Iterable[RatingRequest], say: Callable[[str], None], *, wait: bool = True
    ) -> None:
        """Have everything fetched that ratings need and is not there; returns when it is, or came to nothing.

        Args:
            items: To be rated; taken one by one.
            say: Told what happens, a line at a time.
            wait: If not, it is sent, and fetched by a later call.

        Raises:
            JudgeError: Nothing more can come of it, or its estimate is more than the budget. What was paid is kept.
        """

    def estimate_batches(self, items: Iterable[RatingRequest]) -> Estimate:
        """Guess what that would take, at the discount that is known; sends nothing."""


@runtime_checkable
class HasMembers(Protocol):
    """A judge whose ratings are made of those of others.

    Attributes:
        members: These judges.
    """

    members: Sequence[Judge]


def paid_judges(judge: Judge) -> dict[str, PaidJudge]:
    """Find what costs money in a judge: itself, or the members of a panel, by their names; empty where nothing does.

    A member of a panel is named after it: ``panel > gpt-4o``.
    """
    name = judge.profile.id
    if isinstance(judge, PaidJudge):
        return {name: judge}
    if not isinstance(judge, HasMembers):
        return {}
    found = (paid_judges(member) for member in judge.members)
    return {f"{name} > {member}": paid for part in found for member, paid in part.items()}


def share_budget(judge: Judge, budget: float | None) -> None:
    """Let a judge spend so many US dollars; a panel's members spend them together.

    Raises:
        ConfigurationError: The price of a model is not known.
    """
    found = paid_judges(judge)
    for name, paid in found.items():
        if budget is not None and paid.spending.price is None:
            raise ConfigurationError(
                f"judge {name}: no price of its model is known, so no budget can be kept: leave --budget out, or "
                "look at --dry-run for the number of tokens"
            )
    spendings = [paid.spending for paid in found.values()]
    for spending in spendings:
        spending.budget = budget
        spending.beside = [other for other in spendings if other is not spending]


def describe_spending(judge: Judge) -> str:
    """What a judge cost so far, in a few words; empty where it costs nothing."""
    found = paid_judges(judge)
    if len(found) == 1:
        return str(next(iter(found.values())).spending)
    return ", ".join(f"{name.rpartition(' > ')[2]} {paid.spending}" for name, paid in found.items())
