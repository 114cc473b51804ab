"""What judges would be asked: of answers that are there their own text, of the others a text as long as it may be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from personalitybench.errors import DataError, ModelError, NotHereError
from personalitybench.judging import FLUENCY, RatingRequest, create_judge
from personalitybench.judging.attacks import ATTACKS, QUESTIONS, attack_answers
from personalitybench.judging.base import MAY_PASS, fingerprint
from personalitybench.leaderboard.floors import floor_ratings
from personalitybench.runs.plan_calls import PlannedCall
from personalitybench.runs.rating import RATINGS, Row, judged_ids, without_verdict
from personalitybench.runs.spending import JudgeEstimate, estimate_judges
from personalitybench.tasks import rating_requests

_BYTES_OF_TOKEN = 3  # as judging/prices.py guesses, so that an answer of n tokens is guessed to have n


@dataclass
class PlannedJudge:
    """A judge.

    Attributes:
        name: As the suite names it.
        there: Ratings that are in the run's files.
        ratings: Ratings that are not.
        estimates: What those cost, of the judge or of a panel's members; None where its rubric is not on this machine.
    """

    name: str
    there: int
    ratings: int
    estimates: list[JudgeEstimate] | None


class _ToRate:
    """What judges would be asked after all answers are written."""

    def __init__(
        self, tuned: Sequence[PlannedCall], reported: Sequence[PlannedCall], *, choosing: str, floors: bool
    ) -> None:
        self.tuned = tuned
        self.reported = reported
        self.choosing = choosing
        self.floors = floors
        self.there = 0

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        """See :class:`~personalitybench.runs.spending.ToRate`."""
        self.there = 0
        number = count()
        own = _fingerprint(judge)
        groups: list[tuple[Sequence[PlannedCall], Collection[str]]] = [(self.reported, MAY_PASS)]
        if judge == self.choosing:
            groups.insert(0, (self.tuned, ()))
        for calls, again in groups:
            for call in calls:
                yield from self._of_call(call, own, again, number)
        if self.floors:
            if own is None:
                for kind in ATTACKS:
                    for answer in attack_answers(QUESTIONS)[kind]:
                        yield from answer.requests()
            else:
                yield from floor_ratings(create_judge(judge)).requests()

    def _of_call(
        self, call: PlannedCall, own: Mapping[str, str] | None, again: Collection[str], number: Iterator[int]
    ) -> Iterator[RatingRequest]:
        for target, missing in call.missing.items():
            if call.folder is not None:
                rows: list[Row] = list(call.answers(target))
                if own is not None:
                    ratings = call.folder.ratings(target, own)
                    self.there += RATINGS * len(judged_ids(rows, ratings, again))
                    rows = list(without_verdict(rows, ratings, again))
                yield from rating_requests(rows, [row["answer"] for row in rows])
            for question in missing:
                text = f"{next(number)} ".ljust(_BYTES_OF_TOKEN * call.max_tokens, "x")
                for aspect in (question.trait, FLUENCY):
                    yield RatingRequest(question.question, text, aspect)


def plan_judges(
    judges: Sequence[str],
    tuned: Sequence[PlannedCall],
    reported: Sequence[PlannedCall],
    *,
    floors: bool,
    batch: bool,
) -> list[PlannedJudge]:
    """Plan what judges would be asked.

    Args:
        judges: The suite's, or none; the first chooses strengths.
        tuned: Calls of the dev half.
        reported: Calls of the board.
        floors: Whether they rate what floors are made of, too.
        batch: Whether they are asked in batches, those that can.
    """
    to_rate = _ToRate(tuned, reported, choosing=judges[0] if judges else "", floors=floors)
    found = []
    for judge in judges:
        try:
            create_judge(judge)
        except NotHereError:  # its rubric is the paper's, which is fetched on first use
            answers = sum(call.requests for call in (*(tuned if judge == judges[0] else ()), *reported))
            attacks = sum(len(attack_answers(QUESTIONS)[kind]) for kind in ATTACKS) if floors else 0
            found.append(PlannedJudge(judge, 0, RATINGS * (answers + attacks), None))
            continue
        ratings = sum(1 for _ in to_rate.to_rate(judge))
        there = to_rate.there
        found.append(PlannedJudge(judge, there, ratings, estimate_judges(to_rate, [judge], batch=batch)))
    return found


def _fingerprint(judge: str) -> dict[str, str] | None:
    """Identity of a judge; None where a model that it loads is not on this machine."""
    try:
        return fingerprint(create_judge(judge))
    except (DataError, ModelError):
        return None
