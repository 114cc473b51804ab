"""Ratings asked for in batches: which judges can, what they fetch before the ordinary judging, what still waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from personalitybench.errors import ConfigurationError
from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.paid import BatchJudge, paid_judges

ToRate = Callable[[str], Iterable[RatingRequest]]
"""Gives what a judge is to rate."""


def check_batches(judges: Sequence[str]) -> None:
    """Refuse ``--batch`` where it would do nothing, or where money would be spent without it.

    Raises:
        ConfigurationError: None of the judges can rate in batches, or one that costs something (a panel's member, say)
            cannot.
    """
    paid = {name: asked for judge in judges for name, asked in paid_judges(create_judge(judge)).items()}
    cannot = [name for name, asked in paid.items() if not isinstance(asked, BatchJudge)]
    if cannot or not paid:
        raise ConfigurationError(
            f"judge {', '.join(cannot or judges)} cannot rate in batches: leave --batch out, or name a judge behind "
            "OpenAI's API"
        )


def before_rating(judges: Sequence[str], to_rate: ToRate, say: Callable[[str], None], *, batch: bool) -> None:
    """Do what comes before answers are rated.

    Args:
        judges: Who rates.
        to_rate: What each is to rate.
        say: Told what happens.
        batch: Whether what the ratings need is fetched in batches; else it is only told what waits in some.
    """
    (fetch_in_batches if batch else tell_waiting)(judges, to_rate, say)


def fetch_in_batches(judges: Sequence[str], to_rate: ToRate, say: Callable[[str], None]) -> None:
    """Have judges fetch in batches what their ratings need; those that cannot (and cost nothing) rate as always.

    Args:
        judges: Who rates; all are asked before any is waited for.
        to_rate: What each is to rate.
        say: Told what happens.
    """
    able = [(judge, *each) for judge in judges for each in _able(judge).items()]
    for wait in (False, True) if len(able) > 1 else (True,):
        for judge, name, asked in able:
            asked.fetch_in_batches(to_rate(judge), partial(_say_of, name, say), wait=wait)


def tell_waiting(judges: Sequence[str], to_rate: ToRate, say: Callable[[str], None]) -> None:
    """Say where requests are about to be paid again that a batch was paid for."""
    for judge in judges:
        for name, asked in _able(judge).items():
            waiting = asked.estimate_batches(to_rate(judge)).under_way if asked.has_batches() else 0
            if waiting:
                say(
                    f"judge {name}: {waiting:,} of these requests are in batches that were begun; with --batch they "
                    "are fetched, without it they are asked, and paid, again"
                )


def _able(judge: str) -> dict[str, BatchJudge]:
    """What can be asked in batches in a judge: itself, or members of a panel, by their names."""
    return {name: paid for name, paid in paid_judges(create_judge(judge)).items() if isinstance(paid, BatchJudge)}


def _say_of(judge: str, say: Callable[[str], None], line: str) -> None:
    say(f"judge {judge}: {line}")
