"""Answers that several judges rated: what comparisons and calibrations are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from personalitybench.files import content_hash
from personalitybench.judging.base import Verdict

Aspect = Literal["trait", "fluency"]
ASPECTS: tuple[Aspect, ...] = ("trait", "fluency")

Verdicts = Mapping[tuple[str, Aspect], Verdict]
"""Verdicts by answer id and aspect."""


@dataclass(frozen=True)
class ComparedAnswer:
    """An answer that judges are compared on.

    Attributes:
        question_id: Of the question; intervals are clustered by it.
        question: What was asked.
        answer: What was written.
        trait: The trait that it is rated for.
        pole: ``high`` or ``low``: toward which it was induced or written; ``neutral`` where toward none.
        method: What it comes from: a row's label, or ``gold`` for the hand-written texts.
    """

    question_id: str
    question: str
    answer: str
    trait: str
    pole: str
    method: str

    @property
    def id(self) -> str:
        """Hash of all of it, 16 hex digits."""
        return content_hash([self.question_id, self.question, self.answer, self.trait, self.pole, self.method])[:16]


@dataclass(frozen=True)
class Column:
    """What one judge made of the answers.

    Attributes:
        judge: Its name: the id of a profile, or of whoever else rated.
        identity: What its ratings depend on: a judge's fingerprint, or the hash of a file of human ratings.
        repeats: Its verdicts; the first are those that are compared, further ones are for test and retest. A missing
            one was never asked for.
    """

    judge: str
    identity: Mapping[str, str]
    repeats: Sequence[Verdicts]


@dataclass(frozen=True)
class RatingTable:
    """Answers and what each judge made of them.

    Attributes:
        source: Where the answers are from, in a few words.
        answers: The answers, each once.
        columns: The judges, in the order they were named; the first is the one that others are compared with.
    """

    source: str
    answers: Sequence[ComparedAnswer]
    columns: Sequence[Column]
