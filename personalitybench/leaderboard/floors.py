"""The floors of a board: what its judge gives to answers that do not show the target, built as rows are."""

from __future__ import annotations

from collections.abc import Sequence

from personalitybench.files import content_hash
from personalitybench.judging import Judge
from personalitybench.judging.attack_ratings import AttackRatings, RatedAttack
from personalitybench.judging.attacks import ATTACKS, KINDS, QUESTIONS, answers_sha256, attack_answers
from personalitybench.leaderboard.build import Cell, Collected, JudgedAnswer, collect, composites
from personalitybench.leaderboard.schema import Floor, Floors, Provenance
from personalitybench.traits import TARGETS

FLOORS_LATER = "they were not rated yet: 'personalitybench judge' does it, and the stage 'judge' of a run"
"""Why a board has none that is made of ratings that are there."""


def floor_ratings(judge: Judge) -> AttackRatings:
    """Ratings of what floors are made of."""
    return AttackRatings(judge, QUESTIONS, ATTACKS)


def build_floors(judge: Judge, why_missing: str) -> Floors:
    """Build the floors from the ratings that are kept on this machine; nothing is rated.

    Args:
        judge: Whose floors.
        why_missing: What to say if there are none.
    """
    rated = floor_ratings(judge).read()
    if rated is None:
        return missing_floors(why_missing)
    rows = [build_floor(kind, [one for one in rated if one.answer.kind == kind]) for kind in ATTACKS]
    return Floors(questions=QUESTIONS, answers_sha256=_answers_hash(), rows=rows)


def missing_floors(why: str) -> Floors:
    """What a board says that should have floors and has none."""
    return Floors(questions=QUESTIONS, answers_sha256=_answers_hash(), missing=" ".join(why.split()))


def build_floor(kind: str, rated: Sequence[RatedAttack]) -> Floor:
    """Figures of one kind of answer.

    Args:
        kind: One of :data:`~personalitybench.judging.attacks.KINDS`.
        rated: The answers of this kind.
    """
    found = collect_attacks(kind, rated)
    traits, average = composites(found.scores)
    return Floor(
        kind=kind,
        about=KINDS[kind],
        targets=found.results(),
        traits=traits,
        average=average,
        fluency_average=composites(found.fluency)[1],
    )


def collect_attacks(kind: str, rated: Sequence[RatedAttack]) -> Collected:
    """Collect answers of one kind as those of a row are collected."""
    cells = [
        Cell(
            model={},
            settings={"method": {"name": kind}, "seed": 0},
            judge={},
            target=target,
            answers=[
                JudgedAnswer(one.answer.question_id, one.answer.answer, one.trait, one.fluency, one.answer.question)
                for one in rated
                if one.answer.target == target
            ],
            provenance=Provenance(backend=""),
        )
        for target in TARGETS
    ]
    return collect(cells)


def _answers_hash() -> str:
    answers = attack_answers(QUESTIONS)
    return content_hash([answers_sha256(answers[kind]) for kind in ATTACKS])
