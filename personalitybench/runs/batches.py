"""Ratings asked for in batches: which judges can, what they fetch before the ordinary judging, what still waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from personalitybench.errors import ConfigurationError
from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.paid import BatchJudge, PaidJudge

ToRate = Callable[[str], Iterable[RatingRequest]]
"""Gives what a judge is to rate."""


def check_batches(judges: Sequence[str]) -> None:
    """Refuse ``--batch`` where it would do nothing, or where money would be spent without it.

    Raises:
        ConfigurationError: None of the judges can rate in batches, or one that costs something cannot.
    """
    made = {name: create_judge(name) for name in judges}
    cannot = [name for name, judge in made.items() if not isinstance(judge, BatchJudge)]
    costly = [name for name in cannot if isinstance(made[name], PaidJudge)]
    if costly or len(cannot) == len(made):
        raise ConfigurationError(
            f"judge {', '.join(costly or cannot)} cannot rate in batches: leave --batch out, or name a judge behind "
            "OpenAI's API"
        )


def fetch_in_batches(judges: Sequence[str], to_rate: ToRate, say: Callable[[str], None]) -> None:
    """Have judges fetch in batches what their ratings need; those that cannot (and cost nothing) rate as always.

    Args:
        judges: Who rates; all are asked before any is waited for.
        to_rate: What each is to rate.
        say: Told what happens.
    """
    able = {name: judge for name in judges if isinstance(judge := create_judge(name), BatchJudge)}
    for wait in (False, True) if len(able) > 1 else (True,):
        for name, judge in able.items():
            judge.fetch_in_batches(to_rate(name), partial(_say_of, name, say), wait=wait)


def tell_waiting(judges: Sequence[str], to_rate: ToRate, say: Callable[[str], None]) -> None:
    """Say where requests are about to be paid again that a batch was paid for."""
    for name in judges:
        judge = create_judge(name)
        if isinstance(judge, BatchJudge) and judge.has_batches():
            waiting = judge.estimate_batches(to_rate(name)).under_way
            if waiting:
                say(
                    f"judge {name}: {waiting:,} of these requests are in batches that were begun; with --batch they "
                    "are fetched, without it they are asked, and paid, again"
                )


def _say_of(judge: str, say: Callable[[str], None], line: str) -> None:
    say(f"judge {judge}: {line}")
