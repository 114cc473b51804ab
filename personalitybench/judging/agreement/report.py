"""Makes the report on agreement from a table of ratings: aligns the judges and asks for the figures, group by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

import personalitybench
from personalitybench.errors import ConfigurationError
from personalitybench.judging.agreement import figures
from personalitybench.judging.agreement.figures import Bootstrap
from personalitybench.judging.agreement.measures import Floats
from personalitybench.judging.agreement.schema import (
    Agreement,
    AgreementReport,
    AspectFigures,
    JudgeFigures,
    Mean,
    Pair,
    Retest,
)
from personalitybench.judging.agreement.table import ASPECTS, Aspect, Column, ComparedAnswer, RatingTable, Verdicts
from personalitybench.judging.base import Rating, Unrated
from personalitybench.metrics.fluency import measure_text
from personalitybench.traits import TRAIT_NAMES, Pole, Target

__all__ = ["NO_POLE", "RESAMPLES", "AgreementReport", "make_report"]

RESAMPLES = 1000
NO_POLE = "neutral"


def make_report(table: RatingTable, *, resamples: int = RESAMPLES, seed: int = 0) -> AgreementReport:
    """Compare the judges of a table.

    An answer that is in it twice counts once. One judge alone has no pairs, but its coverage, the correlation with
    length and its agreement with itself.

    Args:
        table: Answers and what each judge made of them.
        resamples: Resamples of the questions behind each interval; 0 for no intervals.
        seed: Of the resamples.

    Raises:
        ConfigurationError: There are no answers or no judges, or two judges have one name.
    """
    if not table.answers or not table.columns:
        raise ConfigurationError(f"{table.source}: there is nothing to compare, it needs answers and a judge at least")
    names = [column.judge for column in table.columns]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigurationError(
            f"judge {twice[0]!r} is there twice: name it once, or give the other a name of its own"
        )
    if resamples < 0:
        raise ConfigurationError(f"resamples must be 0 or more, not {resamples}")
    sample = _Sample(list({answer.id: answer for answer in table.answers}.values()))
    bootstrap = Bootstrap(resamples, seed)
    asked = [aspect for aspect in ASPECTS if any(_asked(column, aspect) for column in table.columns)]
    return AgreementReport(
        source=table.source,
        answers=len(sample.answers),
        questions=len(set(sample.questions)),
        methods=list(dict.fromkeys(sample.methods)),
        judges=names,
        identities={column.judge: dict(column.identity) for column in table.columns},
        resamples=resamples,
        seed=seed,
        aspects=[_aspect(sample, aspect, table.columns, bootstrap) for aspect in asked],
        personalitybench=personalitybench.__version__,
    )


@dataclass(frozen=True)
class _Sample:
    """The answers, and what they are grouped by, each in their order."""

    answers: Sequence[ComparedAnswer]

    @cached_property
    def questions(self) -> list[str]:
        return [answer.question_id for answer in self.answers]

    @cached_property
    def methods(self) -> list[str]:
        return [answer.method for answer in self.answers]

    @cached_property
    def traits(self) -> list[str]:
        return [answer.trait for answer in self.answers]

    @cached_property
    def poles(self) -> list[str]:
        return [answer.pole for answer in self.answers]

    @cached_property
    def ids(self) -> list[str]:
        return [answer.id for answer in self.answers]

    @cached_property
    def words(self) -> Floats:
        return np.array([measure_text(answer.answer)["words"] for answer in self.answers])

    def ratings(self, verdicts: Verdicts, aspect: Aspect) -> Floats:
        """Ratings, NaN where there is none."""
        found = (verdicts.get((name, aspect)) for name in self.ids)
        return np.array([verdict.value if isinstance(verdict, Rating) else np.nan for verdict in found])

    def toward(self, ratings: Floats, aspect: Aspect) -> Floats:
        """Ratings for a trait as scores toward the target, NaN for an answer of no pole; of fluency as they are."""
        if aspect == "fluency":
            return ratings
        poles = set(Pole)
        return np.array(
            [
                Target(answer.trait, Pole(answer.pole)).score(rating) if answer.pole in poles else np.nan
                for answer, rating in zip(self.answers, ratings, strict=True)
            ]
        )


def _asked(column: Column, aspect: Aspect) -> bool:
    return any(key[1] == aspect for verdicts in column.repeats for key in verdicts)


def _aspect(sample: _Sample, aspect: Aspect, columns: Sequence[Column], bootstrap: Bootstrap) -> AspectFigures:
    """Everything about one aspect."""
    ratings = {column.judge: sample.ratings(column.repeats[0] if column.repeats else {}, aspect) for column in columns}
    return AspectFigures(
        aspect=aspect,
        judges=[_judge(sample, aspect, column, ratings[column.judge], bootstrap) for column in columns],
        pairs=[_pair(sample, aspect, ratings, pair, bootstrap) for pair in combinations(ratings, 2)],
        together=figures.together(np.stack(list(ratings.values())), sample.questions, bootstrap),
    )


def _judge(sample: _Sample, aspect: Aspect, column: Column, ratings: Floats, bootstrap: Bootstrap) -> JudgeFigures:
    """Make the figures of one judge."""
    verdicts = [column.repeats[0].get((name, aspect)) if column.repeats else None for name in sample.ids]
    toward = sample.toward(ratings, aspect)
    rated = int(np.sum(~np.isnan(ratings)))
    unrated = Counter(verdict.reason for verdict in verdicts if isinstance(verdict, Unrated))
    return JudgeFigures(
        judge=column.judge,
        rated=rated,
        coverage=rated / len(sample.answers),
        unrated=dict(unrated.most_common()),
        not_asked=sum(verdict is None for verdict in verdicts),
        mean=figures.mean(ratings, sample.questions, bootstrap).mean,
        length=figures.length(
            ratings, toward if aspect == "trait" else None, sample.words, sample.questions, bootstrap
        ),
        retest=_retest(sample, aspect, column, bootstrap),
        methods=_means(sample, toward, bootstrap),
    )


def _retest(sample: _Sample, aspect: Aspect, column: Column, bootstrap: Bootstrap) -> Retest | None:
    """Agreement of a judge with itself, where it was asked for this aspect more than once."""
    askings = [verdicts for verdicts in column.repeats if any(key[1] == aspect for key in verdicts)]
    if len(askings) < 2:
        return None
    kinds = [
        {type(verdicts[name, aspect]) for verdicts in askings if (name, aspect) in verdicts} for name in sample.ids
    ]
    ratings = np.stack([sample.ratings(verdicts, aspect) for verdicts in askings])
    partly = sum(len(kind) > 1 for kind in kinds)
    return figures.retest(ratings, sample.questions, bootstrap, partly=partly)


def _means(sample: _Sample, toward: Floats, bootstrap: Bootstrap) -> dict[str, Mean]:
    """Mean of each method."""
    found = {}
    for method, places in _places(sample.methods).items():
        found[method] = figures.mean(toward[places], [sample.questions[place] for place in places], bootstrap)
    return found


def _pair(
    sample: _Sample, aspect: Aspect, ratings: dict[str, Floats], pair: tuple[str, str], bootstrap: Bootstrap
) -> Pair:
    """Compare two judges, on all answers and group by group."""
    first, second = pair
    one, other = ratings[first], ratings[second]

    def compare(labels: Sequence[str], known: Sequence[str] = ()) -> dict[str, Agreement]:
        found = {}
        for label, places in _places(labels, known).items():
            questions = [sample.questions[place] for place in places]
            found[label] = figures.agreement(one[places], other[places], questions, bootstrap)
        return found

    seen = (sample.toward(one, aspect), sample.toward(other, aspect))
    return Pair(
        first=first,
        second=second,
        overall=figures.agreement(one, other, sample.questions, bootstrap),
        counts=figures.counts(one, other),
        by_trait=compare(sample.traits, TRAIT_NAMES),
        by_pole=compare(sample.poles, [*Pole, NO_POLE]),
        by_method=compare(sample.methods),
        order=figures.order(*seen, sample.methods, sample.questions, bootstrap),
    )


def _places(labels: Sequence[str], known: Sequence[str] = ()) -> dict[str, list[int]]:
    """Places of each label: known ones first and in their order, others as they come."""
    found: dict[str, list[int]] = {str(label): [] for label in known}
    for place, label in enumerate(labels):
        found.setdefault(label, []).append(place)
    return {label: places for label, places in found.items() if places}
