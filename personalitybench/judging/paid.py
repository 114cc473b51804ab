"""A judge whose ratings cost money: what it spent, what it may spend, and what it would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from personalitybench.judging.base import RatingRequest
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
    """

    price: Price | None
    budget: float | None = None
    calls: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def dollars(self) -> float | None:
        """US dollars; None where no price is known."""
        return None if self.price is None else cost(self.price, self.prompt_tokens, self.completion_tokens)

    def __str__(self) -> str:
        """What it comes to so far, in a few words: dollars, or tokens where no price is known."""
        if self.dollars is None:
            return f"{self.prompt_tokens + self.completion_tokens:,} tokens"
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
    """

    ratings: int
    kept: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


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
