"""Bootstrap intervals of figures of agreement: whole questions are drawn, as for the rows of a board.

A resample is the number of times that each question was drawn. Sums over a resample are then one product of matrices,
and kappa, alpha and the correlations follow from such sums for all resamples at once: the libraries that give the
figures themselves take one sample at a time. Tests hold both to the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from personalitybench.judging.agreement.measures import CATEGORIES, Floats, whole
from personalitybench.metrics.statistics import LEVEL

UNDEFINED_AT_MOST = 0.05
"""Share of resamples in which a figure may be undefined; an interval of what is left would be of something else."""

_BLOCK = 2_000_000  # numbers in one block of resamples x answers: a few dozen MB whatever the number of answers
_SIZE = len(CATEGORIES)


@dataclass(frozen=True)
class Draws:
    """Resamples of the questions of some answers.

    Attributes:
        places: For each answer the place of its question, 0 to questions - 1.
        drawn: Resamples x questions: how often each was drawn. No rows where there can be no interval.
    """

    places: npt.NDArray[np.intp]
    drawn: Floats

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return int(self.drawn.shape[1])

    def sums(self, values: Floats) -> Floats:
        """Sums over each resample.

        Args:
            values: Answers x figures.

        Returns:
            Resamples x figures.
        """
        if not len(values):
            return np.zeros((len(self.drawn), values.shape[1]))
        order = np.argsort(self.places, kind="stable")
        starts = np.searchsorted(self.places[order], np.arange(self.questions))
        found: Floats = self.drawn @ np.add.reduceat(values[order], starts, axis=0)
        return found

    def blocks(self) -> Iterator[Floats]:
        """Resamples x answers, how often each answer is there, in blocks of some resamples."""
        step = max(1, _BLOCK // max(1, len(self.places)))
        for start in range(0, len(self.drawn), step):
            yield self.drawn[start : start + step][:, self.places]


def draw(questions: Sequence[str], resamples: int, seed: int) -> Draws:
    """Draw questions with replacement, as many as there are; the same for the same questions and seed.

    Args:
        questions: The question of each answer.
        resamples: How many.
        seed: Of the draws.
    """
    names, places = np.unique(np.asarray(questions, dtype=str), return_inverse=True)
    number = len(names)
    if number < 2:
        return Draws(places, np.zeros((0, number)))
    random = np.random.default_rng(seed)
    return Draws(places, random.multinomial(number, np.full(number, 1 / number), size=resamples).astype(np.float64))


def interval(values: Floats) -> tuple[float, float] | None:
    """Percentile interval of the figures of all resamples; None where too many are undefined."""
    defined = values[np.isfinite(values)]
    if len(defined) == 0 or len(defined) < (1 - UNDEFINED_AT_MOST) * len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def means(values: Floats, draws: Draws) -> Floats:
    """Mean of each resample: (answers,) or (answers, figures) with NaN where one does not count."""
    table = values[:, None] if values.ndim == 1 else values
    counted = ~np.isnan(table)
    sums = draws.sums(np.where(counted, table, 0.0))
    found = _divide(sums, draws.sums(counted.astype(np.float64)))
    return found[:, 0] if values.ndim == 1 else found


def tables(first: Floats, second: Floats, draws: Draws) -> Floats:
    """Counts by rounded rating of each resample: resamples x 5 x 5."""
    places = (whole(first) - 1) * _SIZE + whole(second) - 1
    return draws.sums(np.eye(_SIZE * _SIZE)[places.astype(int)]).reshape(-1, _SIZE, _SIZE)


def coincidences(ratings: Floats, draws: Draws) -> Floats:
    """Krippendorff's coincidence matrix of each resample: resamples x 5 x 5.

    Args:
        ratings: Judges x answers, NaN where there is none.
        draws: Resamples of these answers.
    """
    rounded = whole(ratings)
    each = np.stack([(rounded == value).sum(axis=0) for value in CATEGORIES], axis=1).astype(np.float64)
    pairs = each[:, :, None] * each[:, None, :] - each[:, :, None] * np.eye(_SIZE)
    pairs /= np.maximum(each.sum(axis=1) - 1, 1)[:, None, None]
    return draws.sums(pairs.reshape(len(pairs), _SIZE * _SIZE)).reshape(-1, _SIZE, _SIZE)


def kappas(found: Floats) -> Floats:
    """Kappa with quadratic weights of tables (resamples x 5 x 5); NaN where undefined."""
    weights = np.subtract.outer(np.arange(_SIZE), np.arange(_SIZE)) ** 2
    by_chance = found.sum(axis=2)[:, :, None] * found.sum(axis=1)[:, None, :]
    total = found.sum(axis=(1, 2))
    return 1 - _divide((found * weights).sum(axis=(1, 2)) * total, (by_chance * weights).sum(axis=(1, 2)))


def alphas(found: Floats) -> Floats:
    """Ordinal alpha of coincidence matrices (resamples x 5 x 5); NaN where undefined.

    The ordinal distance of two ratings is that of their middle ranks, squared.
    """
    each = found.sum(axis=2)
    middle = np.cumsum(each, axis=1) - each / 2
    distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    observed = (found * distance).sum(axis=(1, 2))
    by_chance = (each[:, :, None] * each[:, None, :] * distance).sum(axis=(1, 2))
    return 1 - _divide(observed * (each.sum(axis=1) - 1), by_chance)


def spearmans(first: Floats, second: Floats, draws: Draws) -> Floats:
    """Rank correlation of each resample; NaN where either is constant in it."""
    rank_first, rank_second = _ranker(first), _ranker(second)
    found = []
    for weights in draws.blocks():
        half = weights.sum(axis=1, keepdims=True) / 2
        one, other = rank_first(weights) - half, rank_second(weights) - half
        spreads = (weights * one * one).sum(axis=1) * (weights * other * other).sum(axis=1)
        found.append(_divide((weights * one * other).sum(axis=1), np.sqrt(spreads)))
    return np.concatenate(found) if found else np.zeros(0)


def row_kendalls(first: Floats, second: Floats) -> Floats:
    """Kendall's tau-b of each row (resamples x methods); NaN where a row is constant or has a gap."""
    one, other = (_signs(values) for values in (first, second))
    spreads = (one * one).sum(axis=1) * (other * other).sum(axis=1)
    return _divide((one * other).sum(axis=1), np.sqrt(spreads))


def row_spearmans(first: Floats, second: Floats) -> Floats:
    """Rank correlation of each row (resamples x methods); NaN where a row is constant or has a gap."""
    one, other = (_row_ranks(values) for values in (first, second))
    spreads = (one * one).sum(axis=1) * (other * other).sum(axis=1)
    return _divide((one * other).sum(axis=1), np.sqrt(spreads))


def _ranker(values: Floats) -> Callable[[Floats], Floats]:
    """Make a function that gives each answer's middle rank in resamples (resamples x answers, how often it is there).

    The order of the answers is the same in every resample; only how many stand below changes.
    """
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))

    def ranks(weights: Floats) -> Floats:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)
        found: Floats = (np.cumsum(sizes, axis=1) - sizes / 2)[:, group]
        return found

    return ranks


def _signs(values: Floats) -> Floats:
    one, other = np.triu_indices(values.shape[1], 1)
    signs: Floats = np.sign(values[:, one] - values[:, other])
    return signs


def _row_ranks(values: Floats) -> Floats:
    """Middle ranks in each row, less their mean; a row with NaN gets NaN."""
    above = np.sign(values[:, :, None] - values[:, None, :]).sum(axis=2)
    ranks: Floats = above / 2
    return ranks


def _divide(upper: Floats, lower: Floats) -> Floats:
    """Quotients, NaN where the divisor is 0."""
    found: Floats = np.divide(upper, lower, out=np.full(np.shape(upper), np.nan), where=lower > 0)
    return found
