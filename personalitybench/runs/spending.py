"""What the judges of a run may cost, would cost and did cost, for those that cost anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.table import Table

from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.paid import paid_judges, share_budget
from personalitybench.runs.progress import RunProgress


class ToRate(Protocol):
    """Where answers are that judges have not rated yet: a run, a folder of lm-eval, a comparison."""

    def to_rate(self, judge: str) -> Iterable[RatingRequest]:
        """What a judge would be asked."""


def set_budget(judges: Sequence[str], budget: float | None) -> None:
    """Let judges that cost something spend so much, each of them; the members of a panel together.

    Raises:
        ConfigurationError: A judge's price is not known.
    """
    for name in judges:
        share_budget(create_judge(name), budget)


def report_spending(judges: Sequence[str], progress: RunProgress) -> None:
    """Say what was asked of the judges that are asked, and what it cost."""
    paid = {name: found for judge in judges for name, found in paid_judges(create_judge(judge)).items()}
    for name, judge in paid.items():
        spent = judge.spending
        if not spent.calls + spent.kept:
            continue
        dollars = "no price known" if spent.dollars is None else f"${spent.dollars:.4f} ({judge.prices.about})"
        progress.say(
            f"judge {name}: {spent.calls:,} replies asked for, {spent.kept:,} were there; "
            f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, {dollars}"
        )


def estimate_table(answers: ToRate, judges: Sequence[str]) -> Table:
    """What the judges would be asked, and what that would cost, guessed before anything is sent."""
    table = Table(
        "judge", "ratings", "there", "calls", "tokens sent (estimate)", "written (at most)", "cost (estimate)"
    )
    for judge in judges:
        paid = paid_judges(create_judge(judge))
        if not paid:
            table.add_row(judge, f"{sum(1 for _ in answers.to_rate(judge)):,}", "", "", "", "", "free")
        for name, asked in paid.items():
            found = asked.estimate(answers.to_rate(judge))
            dollars = "no price known" if found.dollars is None else f"${found.dollars:.2f} ({asked.prices.about})"
            numbers = (found.ratings, found.kept, found.calls, found.prompt_tokens, found.completion_tokens)
            table.add_row(name, *(f"{number:,}" for number in numbers), dollars)
    return table
