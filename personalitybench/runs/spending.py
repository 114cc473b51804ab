"""What the judges of a run may cost, would cost and did cost, for those that cost anything."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from personalitybench.errors import ConfigurationError
from personalitybench.judging import create_judge
from personalitybench.judging.paid import BatchJudge, PaidJudge, Spending
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.stages import Run


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
        if not isinstance(judge, PaidJudge):
            continue
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


def estimate_table(run: Run, judges: Sequence[str], *, batch: bool = False) -> Table:
    """What the judges would be asked, and what that would cost, guessed before anything is sent.

    Args:
        run: Whose answers.
        judges: By whom.
        batch: In batches, for those that can.
    """
    middle = ["in batches"] if batch else []
    table = Table(
        *("judge", "ratings", "there", *middle, "calls"),
        *("tokens sent (estimate)", "written (at most)", "cost (estimate)"),
    )
    for name in judges:
        judge = create_judge(name)
        if not isinstance(judge, PaidJudge):
            empty = [""] * (len(table.columns) - 3)
            table.add_row(name, f"{sum(1 for _ in run.to_rate(name)):,}", *empty, "free")
            continue
        in_batches = judge if batch and isinstance(judge, BatchJudge) else None
        found = in_batches.estimate_batches(run.to_rate(name)) if in_batches else judge.estimate(run.to_rate(name))
        dollars = (
            "no price known"
            if found.dollars is None
            else f"${found.dollars:.2f} ({_about(judge, batch=in_batches is not None)})"
        )
        under_way = [found.under_way] if batch else []
        numbers = (found.ratings, found.kept, *under_way, found.calls, found.prompt_tokens, found.completion_tokens)
        table.add_row(name, *(f"{number:,}" for number in numbers), dollars)
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
