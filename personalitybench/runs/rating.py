"""Has answers rated that a sheet has no verdict for yet: of a run, of lm-eval's samples, of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from personalitybench.files import Sheet
from personalitybench.judging import create_judge
from personalitybench.judging.paid import describe_spending, paid_judges
from personalitybench.judging.rating_lines import may_pass, read_ratings
from personalitybench.runs.progress import Stage
from personalitybench.tasks import judge_answers

RATINGS = 2
"""Of an answer: for its trait and for fluency."""

Row = Mapping[str, Any]


def answer_sha256(answer: Row) -> str:
    """SHA-256 of an answer's text: each line of ratings holds that of the answer that it rates."""
    return hashlib.sha256(answer["answer"].encode("utf-8", "surrogatepass")).hexdigest()


def current_ratings(answers: Iterable[Row], ratings: Sheet) -> dict[str, Row]:
    """The last line of ratings of each answer, by the answer's id. Ratings of another answer are left out.

    A line without ``answer_sha256``, from a version that did not write it, counts for the answer with its id.

    Raises:
        StorageError: A line is none of ratings, or repeats one.
    """
    lines = _lines(ratings)
    found = ((answer["id"], _line_of(answer, lines)) for answer in answers)
    return {identity: line for identity, line in found if line is not None}


def judged_ids(answers: Iterable[Row], ratings: Sheet, again: Collection[str] = ()) -> set[str]:
    """Ids of the answers that have their verdicts.

    Args:
        answers: With ``id`` and ``answer``.
        ratings: The sheet.
        again: Reasons of being unrated that do not count as a verdict.
    """
    return {identity for identity, line in current_ratings(answers, ratings).items() if stays(line, again)}


def stays(row: Row, again: Collection[str]) -> bool:
    """Return True if neither of a row's verdicts is that it is unrated for one of the reasons ``again``."""
    return not may_pass(row, again)


def without_verdict(answers: Iterable[Row], ratings: Sheet, again: Collection[str] = ()) -> Iterator[Row]:
    """Yield the answers that have no verdict yet; ``again`` as in :func:`judged_ids`."""
    lines = _lines(ratings)
    for answer in answers:
        line = _line_of(answer, lines)
        if line is None or not stays(line, again):
            yield answer


def _lines(ratings: Sheet) -> dict[tuple[str, str | None], Row]:
    """The last line for each id and hash of an answer."""
    return dict(read_ratings(ratings))


def _line_of(answer: Row, lines: Mapping[tuple[str, str | None], Row]) -> Row | None:
    identity = answer["id"]
    return lines.get((identity, answer_sha256(answer))) or lines.get((identity, None))


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
        ratings: Where verdicts are appended: ``id``, ``answer_sha256``, ``trait``, ``fluency``.
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
            {
                "id": row["id"],
                "answer_sha256": answer_sha256(row),
                **{aspect: verdict.to_json() for aspect, verdict in found.items()},
            }
            for row, found in zip(chunk, verdicts, strict=True)
        )


def cost_so_far(judge: str) -> Callable[[], str] | None:
    """What progress tells of a judge that costs money."""
    made = create_judge(judge)
    return (lambda: describe_spending(made)) if paid_judges(made) else None
