"""What the judges of a run may cost, would cost and did cost, for those that cost anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.table import Table

from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.paid import BatchJudge, Estimate, PaidJudge, Spending, paid_judges, share_budget
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
        if not spent.calls + spent.kept + spent.batch_calls:
            continue
        dollars = "no price known" if spent.dollars is None else f"${spent.dollars:.4f} ({judge.prices.about})"
        there = max(0, spent.kept - spent.batch_calls)  # what batches brought was there when it was read
        sent = spent.prompt_tokens + spent.batch_prompt_tokens
        written = spent.completion_tokens + spent.batch_completion_tokens
        progress.say(
            f"judge {name}: {spent.calls:,} replies asked for, {_batched(spent)}{there:,} were there; "
            f"{sent:,} + {written:,} tokens, {dollars}"
        )


@dataclass(frozen=True)
class JudgeEstimate:
    """What a judge, or a member of a panel, would be asked.

    Attributes:
        judge: Its name.
        ratings: Ratings that are in no file yet.
        estimate: What they take; None: they cost nothing.
        about: What the cost is made with.
    """

    judge: str
    ratings: int
    estimate: Estimate | None = None
    about: str = ""


def estimate_judges(answers: ToRate, judges: Sequence[str], *, batch: bool = False) -> list[JudgeEstimate]:
    """What judges would be asked, guessed before anything is sent.

    Args:
        answers: What they are to rate.
        judges: By whom.
        batch: In batches, for those that can.
    """
    rows = []
    for judge in judges:
        paid = paid_judges(create_judge(judge))
        if not paid:
            rows.append(JudgeEstimate(judge, sum(1 for _ in answers.to_rate(judge))))
        for name, asked in paid.items():
            batched = asked if batch and isinstance(asked, BatchJudge) else None
            items = answers.to_rate(judge)
            found = batched.estimate_batches(items) if batched else asked.estimate(items)
            rows.append(JudgeEstimate(name, found.ratings, found, _about(asked, batch=batched is not None)))
    return rows


def estimate_table(answers: ToRate, judges: Sequence[str], *, batch: bool = False) -> Table:
    """What the judges would be asked, and what that would cost, as a table; arguments as :func:`estimate_judges`."""
    middle = ["in batches"] if batch else []
    table = Table(
        *("judge", "ratings", "there", *middle, "calls"),
        *("tokens sent (estimate)", "written (at most)", "cost (estimate)"),
    )
    for row in estimate_judges(answers, judges, batch=batch):
        found = row.estimate
        if found is None:
            table.add_row(row.judge, f"{row.ratings:,}", *[""] * (len(table.columns) - 3), "free")
            continue
        dollars = "no price known" if found.dollars is None else f"${found.dollars:.2f} ({row.about})"
        waiting = [found.under_way] if batch else []
        numbers = (found.ratings, found.kept, *waiting, found.calls, found.prompt_tokens, found.completion_tokens)
        table.add_row(row.judge, *(f"{number:,}" for number in numbers), dollars)
    return table


def _batched(spent: Spending) -> str:
    return f"{spent.batch_calls:,} fetched in batches, " if spent.batch_calls else ""


def _about(judge: PaidJudge, *, batch: bool) -> str:
    """What a cost is made with."""
    if not batch:
        return judge.prices.about
    price = judge.spending.price
    discount = None if price is None else price.batch_discount
    about = "no discount of batches known" if discount is None else f"batches cost {discount:.0%} less"
    return f"{judge.prices.about}, {about}"
