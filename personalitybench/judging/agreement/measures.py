"""How far ratings agree, as single figures; each is None where it is undefined, never NaN.

The figures of agreement that are not plain shares or means come from scikit-learn, krippendorff and SciPy, which are
imported where they are used: none of them is needed to show a command's help.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CATEGORIES = (1, 2, 3, 4, 5)
LEAST = 2
"""Answers below which there is no figure at all."""

_DECIMALS = 9  # so that 2.5 is a half also where it came as a mean that is 2.4999999999999996


def whole(ratings: Floats) -> Floats:
    """Round to whole numbers, half up; NaN (unrated) stays."""
    return np.floor(np.round(ratings, _DECIMALS) + 0.5)


def exact(first: Floats, second: Floats) -> float | None:
    """Share of answers with the same rating, rounded."""
    return float(np.mean(whole(first) == whole(second))) if len(first) >= LEAST else None


def within_one(first: Floats, second: Floats) -> float | None:
    """Share of answers with ratings at most one apart, rounded."""
    return float(np.mean(np.abs(whole(first) - whole(second)) <= 1)) if len(first) >= LEAST else None


def bias(first: Floats, second: Floats) -> float | None:
    """Mean of the second rating less the first."""
    return float(np.mean(second - first)) if len(first) >= LEAST else None


def difference(first: Floats, second: Floats) -> float | None:
    """Mean of the absolute difference."""
    return float(np.mean(np.abs(second - first))) if len(first) >= LEAST else None


def kappa(first: Floats, second: Floats) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen, 1968) over the categories 1 to 5, of rounded ratings."""
    one, other = whole(first).astype(int), whole(second).astype(int)
    if len(one) < LEAST or len(np.union1d(one, other)) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # noqa: PLC0415 (heavy)

    return _finite(cohen_kappa_score(one, other, labels=list(CATEGORIES), weights="quadratic"))


def alpha(ratings: Floats) -> float | None:
    """Krippendorff's alpha for ordinal data (Krippendorff, 2011), of rounded ratings.

    Args:
        ratings: Judges x answers; NaN where a judge has no rating. Answers with one rating do not count.
    """
    rounded = whole(ratings)
    paired = rounded[:, np.sum(~np.isnan(rounded), axis=0) >= 2]
    if paired.shape[1] < LEAST or len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    import krippendorff  # noqa: PLC0415 (needed here only)

    return _finite(krippendorff.alpha(paired, value_domain=list(CATEGORIES), level_of_measurement="ordinal"))


def spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation; None where either is constant."""
    if len(first) < LEAST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import spearmanr  # noqa: PLC0415 (heavy)

    return _finite(spearmanr(first, second).statistic)


def kendall(first: Floats, second: Floats) -> float | None:
    """Kendall's tau-b; None where either is constant."""
    if len(first) < LEAST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy.stats import kendalltau  # noqa: PLC0415 (heavy)

    return _finite(kendalltau(first, second).statistic)


def counts(first: Floats, second: Floats) -> Ints:
    """Answers by rounded rating, 5 x 5: rows are the first's ratings, columns the second's."""
    size = len(CATEGORIES)
    places = (whole(first).astype(int) - 1) * size + whole(second).astype(int) - 1
    return np.bincount(places, minlength=size * size).reshape(size, size).astype(np.int64)


def swapped(names: list[str], first: Floats, second: Floats) -> list[tuple[str, str]]:
    """Pairs that two judges order in opposite ways: of each the one that the first judge puts higher, first."""
    found = []
    for one, other in combinations(range(len(names)), 2):
        if (first[one] - first[other]) * (second[one] - second[other]) < 0:
            better, worse = (one, other) if first[one] > first[other] else (other, one)
            found.append((names[better], names[worse]))
    return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
