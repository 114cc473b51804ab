"""A few answers to read beside a board: for one question of each of a few targets, what every row answered.

They are for the page only. The board holds figures, and the official questions may not be published, so there are
examples of the bundled sample only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personalitybench.judging import Rating, Verdict
from personalitybench.leaderboard.build import Cell, JudgedAnswer, group_cells, row_identity
from personalitybench.leaderboard.schema import Row
from personalitybench.outside_text import escape_controls
from personalitybench.traits import TARGETS, Target

_TARGETS = 3


@dataclass(frozen=True)
class ShownAnswer:
    """One row's answer.

    Attributes:
        row: Id of the row.
        answer: What the model wrote.
        score: The trait rating seen from the target, or why there is none.
        fluency: The rating of fluency, or why there is none.
    """

    row: str
    answer: str
    score: float | str
    fluency: float | str


@dataclass(frozen=True)
class Example:
    """One question under one target.

    Attributes:
        target: The target.
        question: The question.
        answers: What each row answered, in the order of the cells.
    """

    target: Target
    question: str
    answers: list[ShownAnswer]


def pick_examples(cells: Sequence[Cell]) -> list[Example]:
    """Pick questions by a fixed rule, not by how the answers read.

    The targets are three of those that were asked, evenly spaced in their usual order; the question is the first by
    its id that every row was asked for the target; of several seeds it is the first.

    Returns:
        Examples, none where a cell is not of the bundled sample.
    """
    if any(cell.settings["data"]["source"] != "sample" for cell in cells):
        return []
    rows = [(Row.make_id(row_identity(group)), _first_seed(group)) for group in group_cells(cells)]
    asked = [target for target in TARGETS if all(target in answers for _, answers in rows)]
    spaced = [asked[index * len(asked) // _TARGETS] for index in range(_TARGETS)] if asked else []
    return [
        example
        for target in dict.fromkeys(spaced)
        if (example := _example(target, {row: answers[target] for row, answers in rows})) is not None
    ]


def _first_seed(cells: Sequence[Cell]) -> dict[Target, dict[str, JudgedAnswer]]:
    """Answers of a row's first seed by target and question id."""
    seed = min(cell.settings["seed"] for cell in cells)
    return {
        cell.target: {answer.question_id: answer for answer in cell.answers}
        for cell in cells
        if cell.settings["seed"] == seed
    }


def _example(target: Target, rows: dict[str, dict[str, JudgedAnswer]]) -> Example | None:
    shared = set.intersection(*(set(answers) for answers in rows.values()))
    if not shared:
        return None
    question = min(shared)
    shown = [
        ShownAnswer(
            row=row,
            answer=escape_controls(answers[question].answer),
            score=_shown(answers[question].trait, target),
            fluency=_shown(answers[question].fluency, None),
        )
        for row, answers in rows.items()
    ]
    return Example(target, escape_controls(next(iter(rows.values()))[question].question), shown)


def _shown(verdict: Verdict, target: Target | None) -> float | str:
    """A rating, of a trait seen from the target, or the reason why there is none."""
    if not isinstance(verdict, Rating):
        return escape_controls(verdict.reason)
    return verdict.value if target is None else target.score(verdict.value)
