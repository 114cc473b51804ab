"""Has answers rated that a sheet has no verdict for yet: of a run, of lm-eval's samples, of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from personalitybench.files import Sheet
from personalitybench.judging import create_judge
from personalitybench.judging.paid import describe_spending, paid_judges
from personalitybench.runs.progress import Stage
from personalitybench.tasks import judge_answers

RATINGS = 2
"""Of an answer: for its trait and for fluency."""

Row = Mapping[str, Any]


def judged_ids(ratings: Sheet, again: Collection[str] = ()) -> set[str]:
    """Ids that have their verdicts.

    Args:
        ratings: The sheet.
        again: Reasons of being unrated that do not count as a verdict.
    """
    return {
        row["id"]
        for row in ratings.lines.read()
        if not again or all(row[aspect].get("unrated") not in again for aspect in ("trait", "fluency"))
    }


def without_verdict(answers: Iterable[Row], ratings: Sheet, again: Collection[str] = ()) -> Iterator[Row]:
    """The answers that have no verdict yet; ``again`` as in :func:`judged_ids`."""
    judged = judged_ids(ratings, again)
    return (row for row in answers if row["id"] not in judged)


def rate_missing(
    judge: str,
    answers: Iterable[Row],
    ratings: Sheet,
    stage: Stage,
    *,
    repeat: int = 0,
    again: Collection[str] = (),
) -> None:
    """Have answers rated that have no verdict yet; a kill loses what one call of the judge holds at most.

    Args:
        judge: Its id or profile file.
        answers: With ``id``, ``question``, ``trait`` and ``answer``; as many are held at a time as the judge takes.
        ratings: Where verdicts are appended: ``id``, ``trait``, ``fluency``.
        stage: Is told how many answers more are rated.
        repeat: Which asking of the same this is.
        again: Reasons of being unrated for which an answer is rated anew; the last verdict of an id counts.
    """
    missing = without_verdict(answers, ratings, again)
    while chunk := list(islice(missing, create_judge(judge).at_a_time)):
        rated = 0

        def report(more: int) -> None:
            nonlocal rated
            stage.advance((rated + more) // RATINGS - rated // RATINGS)
            rated += more

        verdicts = judge_answers(judge, chunk, [row["answer"] for row in chunk], report, repeat)
        ratings.lines.append(
            {"id": row["id"], **{aspect: verdict.to_json() for aspect, verdict in found.items()}}
            for row, found in zip(chunk, verdicts, strict=True)
        )


def cost_so_far(judge: str) -> Callable[[], str] | None:
    """What progress tells of a judge that costs money."""
    made = create_judge(judge)
    return (lambda: describe_spending(made)) if paid_judges(made) else None
