"""Figures with their intervals, from aligned ratings: NaN is an answer without a rating.

Each function takes what it is given apart into the answers that count, asks ``measures`` for the figure and
``resampling`` for the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from personalitybench.judging.agreement import measures, resampling
from personalitybench.judging.agreement.measures import Floats, whole
from personalitybench.judging.agreement.schema import Agreement, Figure, Length, Mean, MethodOrder, Retest, Together


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: How many; none gives figures without intervals.
        seed: Of the draws.
    """

    resamples: int
    seed: int

    def draws(self, questions: Sequence[str]) -> resampling.Draws:
        """Resamples of the questions of some answers."""
        return resampling.draw(questions, self.resamples, self.seed)


def agreement(first: Floats, second: Floats, questions: Sequence[str], bootstrap: Bootstrap) -> Agreement:
    """Compare two judges.

    Args:
        first: Ratings of the first (answers,).
        second: Ratings of the second (answers,).
        questions: Question of each answer.
        bootstrap: How intervals are made.
    """
    first, second, kept = _both(first, second, questions)
    draws = bootstrap.draws(kept)
    apart = np.abs(whole(first) - whole(second))
    plain = np.stack([apart == 0, apart <= 1, second - first, np.abs(second - first)], axis=1).astype(np.float64)
    exact, within_one, bias, difference = resampling.means(plain, draws).T
    found = resampling.tables(first, second, draws)
    alphas = resampling.alphas(found + found.transpose(0, 2, 1))
    return Agreement(
        n=len(first),
        questions=draws.questions,
        exact=_figure(measures.exact(first, second), exact),
        within_one=_figure(measures.within_one(first, second), within_one),
        kappa=_figure(measures.kappa(first, second), resampling.kappas(found)),
        alpha=_figure(measures.alpha(np.stack([first, second])), alphas),
        spearman=_spearman(first, second, draws),
        bias=_figure(measures.bias(first, second), bias),
        difference=_figure(measures.difference(first, second), difference),
    )


def counts(first: Floats, second: Floats) -> list[list[int]]:
    """Answers by rounded rating of both, 5 x 5."""
    rated = ~np.isnan(first) & ~np.isnan(second)
    return [[int(count) for count in row] for row in measures.counts(first[rated], second[rated])]


def together(ratings: Floats, questions: Sequence[str], bootstrap: Bootstrap) -> Together:
    """Compare all judges at once (judges x answers)."""
    kept = np.sum(~np.isnan(ratings), axis=0) >= 2
    draws = bootstrap.draws(_chosen(questions, kept))
    alphas = resampling.alphas(resampling.coincidences(ratings[:, kept], draws))
    return Together(n=int(kept.sum()), alpha=_figure(measures.alpha(ratings[:, kept]), alphas))


def mean(values: Floats, questions: Sequence[str], bootstrap: Bootstrap) -> Mean:
    """Mean of the ratings that there are; of a single one, too."""
    rated = ~np.isnan(values)
    draws = bootstrap.draws(_chosen(questions, rated))
    value = float(values[rated].mean()) if rated.any() else None
    return Mean(n=int(rated.sum()), mean=_figure(value, resampling.means(values[rated], draws)))


def length(
    ratings: Floats, toward: Floats | None, words: Floats, questions: Sequence[str], bootstrap: Bootstrap
) -> Length:
    """Correlate ratings with the number of words.

    Args:
        ratings: As they are (answers,).
        toward: Seen from the target's pole, NaN where there is none; None for fluency.
        words: Words of each answer.
        questions: Question of each answer.
        bootstrap: How intervals are made.
    """

    def correlate(values: Floats) -> Figure:
        one, other, kept = _both(words, values, questions)
        return _spearman(one, other, bootstrap.draws(kept))

    seen = None if toward is None else correlate(toward)
    return Length(n=int(np.sum(~np.isnan(ratings))), rating=correlate(ratings), toward=seen)


def retest(ratings: Floats, questions: Sequence[str], bootstrap: Bootstrap, *, partly: int) -> Retest:
    """Compare a judge with itself.

    Args:
        ratings: Askings x answers.
        questions: Question of each answer.
        bootstrap: How intervals are made.
        partly: Answers that it rated at one time and left unrated at another.
    """
    pairs = list(combinations(range(len(ratings)), 2))
    first = np.concatenate([ratings[one] for one, _ in pairs])
    second = np.concatenate([ratings[other] for _, other in pairs])
    # Pairs of askings of one answer share its question, so they are drawn together.
    between = agreement(first, second, list(questions) * len(pairs), bootstrap)
    all_askings = together(ratings, questions, bootstrap)
    return Retest(
        repeats=len(ratings),
        n=all_askings.n,
        partly=partly,
        exact=between.exact,
        within_one=between.within_one,
        difference=between.difference,
        alpha=all_askings.alpha,
    )


def order(
    first: Floats, second: Floats, methods: Sequence[str], questions: Sequence[str], bootstrap: Bootstrap
) -> MethodOrder:
    """Compare how two judges order methods by their mean ratings.

    Args:
        first: Ratings of the first (answers,), toward the target for a trait.
        second: Ratings of the second (answers,).
        methods: Method of each answer.
        questions: Question of each answer.
        bootstrap: How intervals are made.
    """
    rated = ~np.isnan(first) & ~np.isnan(second)
    kept = _chosen(methods, rated)
    names = list(dict.fromkeys(kept))
    draws = bootstrap.draws(_chosen(questions, rated))
    of_method = np.asarray(kept, dtype=str)[:, None] == np.asarray(names, dtype=str)[None, :]
    by_method = [np.where(of_method, values[rated][:, None], np.nan) for values in (first, second)]
    one, other = (_means(values) for values in by_method)
    rows_one, rows_other = (np.round(resampling.means(values, draws), 9) for values in by_method)
    return MethodOrder(
        methods=len(names),
        kendall=_figure(measures.kendall(one, other), resampling.row_kendalls(rows_one, rows_other)),
        spearman=_figure(measures.spearman(one, other), resampling.row_spearmans(rows_one, rows_other)),
        swapped=measures.swapped(names, one, other),
    )


def _means(values: Floats) -> Floats:
    """Means of columns; rounded, as sums of equal ratings in another order differ in the last bit."""
    return np.array([round(float(column[~np.isnan(column)].mean()), 9) for column in values.T])


def _spearman(first: Floats, second: Floats, draws: resampling.Draws) -> Figure:
    value = measures.spearman(first, second)
    return Figure() if value is None else _figure(value, resampling.spearmans(first, second, draws))


def _figure(value: float | None, resampled: Floats) -> Figure:
    """A figure with its interval; one that is undefined has none."""
    return Figure() if value is None else Figure(value=value, interval=resampling.interval(resampled))


def _both(first: Floats, second: Floats, questions: Sequence[str]) -> tuple[Floats, Floats, list[str]]:
    """What both rated, and the questions of it."""
    rated = ~np.isnan(first) & ~np.isnan(second)
    return first[rated], second[rated], _chosen(questions, rated)


def _chosen(names: Sequence[str], chosen: Sequence[bool] | np.ndarray) -> list[str]:
    return [name for name, wanted in zip(names, chosen, strict=True) if wanted]
