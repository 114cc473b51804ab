"""Statistics of the scores of one row: means, spreads, and bootstrap intervals that resample whole questions.

All scores of a question stay together in a resample (both poles of a trait share their questions), so intervals
of sums and later of differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 20250424  # one fixed stream: the same scores give the same interval everywhere

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n-1) and a percentile bootstrap interval; None where undefined."""

    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None


def summarise(scores: Mapping[str, Sequence[float]]) -> Summary:
    """Summarise the scores of one target.

    Args:
        scores: Scores (1-5) by question id; several where a question was answered under several seeds.
    """
    values = [value for group in scores.values() for value in group]
    if not values:
        return Summary(None, None, None)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), sd, sum_interval([[scores]]))


def sum_interval(
    groups: Sequence[Sequence[Mapping[str, Sequence[float]]]], divisor: float = 1.0
) -> tuple[float, float] | None:
    """Bootstrap interval of a sum of means, divided by ``divisor``.

    Args:
        groups: The parts (scores by question id) of each trait. The parts of one group share their questions and
            are resampled together; different groups are resampled independently.
        divisor: What the sum is divided by, e.g. 5 for the average composite of five traits.

    Each part's mean is a ratio of sums, so a question without a rating in one part keeps its place in the others.

    Returns:
        Lower and upper end at :data:`LEVEL`, or None where a group has fewer than two questions or a part none.
    """
    if not groups:
        return None
    random = np.random.default_rng(_SEED)
    total: Array = np.zeros(RESAMPLES)
    for parts in groups:
        questions = sorted({question for part in parts for question in part})
        if any(sum(map(bool, part.values())) < 2 for part in parts):
            return None
        draws = random.integers(0, len(questions), size=(RESAMPLES, len(questions)))
        for part in parts:
            sums = np.array([math.fsum(part.get(question, ())) for question in questions])
            counts = np.array([len(part.get(question, ())) for question in questions])
            with np.errstate(invalid="ignore", divide="ignore"):
                total = total + sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    total = total[np.isfinite(total)] / divisor
    if not len(total):
        return None
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(total, [tail, 1.0 - tail])
    return float(low), float(high)
