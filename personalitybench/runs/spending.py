"""What the judges of a run may cost, would cost and did cost, for those that cost anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.table import Table

from personalitybench.errors import ConfigurationError
from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.paid import PaidJudge
from personalitybench.runs.progress import RunProgress


class HasRatings(Protocol):
    """What has something to be rated: a run, or attacks."""

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        """What a judge would still be asked."""


def set_budget(judges: Sequence[str], budget: float | None) -> None:
    """Let judges that cost something spend so much, each of them.

    Raises:
        ConfigurationError: A judge's price is not known.
    """
    for name in judges:
        judge = create_judge(name)
        if isinstance(judge, PaidJudge):
            if budget is not None and judge.spending.price is None:
                raise ConfigurationError(
                    f"judge {name}: no price of its model is known, so no budget can be kept: leave --budget out, or "
                    "look at --dry-run for the number of tokens"
                )
            judge.spending.budget = budget


def report_spending(judges: Sequence[str], progress: RunProgress) -> None:
    """Say what was asked of the judges that are asked, and what it cost."""
    for name in judges:
        judge = create_judge(name)
        if not isinstance(judge, PaidJudge) or not judge.spending.calls + judge.spending.kept:
            continue
        spent = judge.spending
        dollars = "no price known" if spent.dollars is None else f"${spent.dollars:.4f} ({judge.prices.about})"
        progress.say(
            f"judge {name}: {spent.calls:,} replies asked for, {spent.kept:,} were there; "
            f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, {dollars}"
        )


def estimate_table(run: HasRatings, judges: Sequence[str]) -> Table:
    """What the judges would be asked, and what that would cost, guessed before anything is sent."""
    table = Table(
        "judge", "ratings", "there", "calls", "tokens sent (estimate)", "written (at most)", "cost (estimate)"
    )
    for name in judges:
        judge = create_judge(name)
        if not isinstance(judge, PaidJudge):
            table.add_row(name, f"{sum(1 for _ in run.to_rate(name)):,}", "", "", "", "", "free")
            continue
        found = judge.estimate(run.to_rate(name))
        dollars = "no price known" if found.dollars is None else f"${found.dollars:.2f} ({judge.prices.about})"
        numbers = (found.ratings, found.kept, found.calls, found.prompt_tokens, found.completion_tokens)
        table.add_row(name, *(f"{number:,}" for number in numbers), dollars)
    return table
