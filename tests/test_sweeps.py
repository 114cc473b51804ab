"""The choice of a strength: the rule by hand, at its edges, and on the paper's own figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from personalitybench.errors import DataError
from personalitybench.judging import Unrated
from personalitybench.leaderboard.build import Cell
from personalitybench.leaderboard.schema import TargetResult
from personalitybench.leaderboard.sweeps import build_sweep, choose, floor_of
from tests.test_leaderboard import cell, ratings


def figures(trait: float | None, fluency: float | None) -> TargetResult:
    return TargetResult(n=10, rated=10, coverage=1.0, mean=trait, fluency=fluency)


def chosen(points: Mapping[float, tuple[float | None, float | None]], floor: float) -> tuple[float, bool]:
    return choose({strength: figures(*point) for strength, point in points.items()}, floor)


def test_the_best_trait_score_above_the_floor() -> None:
    points = {0.5: (3.0, 5.0), 1.0: (3.5, 4.9), 1.5: (4.0, 4.8), 2.0: (4.5, 4.7)}
    assert chosen(points, 4.8) == (1.5, True)
    assert chosen(points, 4.9) == (1.0, True), "a fluency at the floor does not fall below it"
    assert chosen(points, 1.0) == (2.0, True)


def test_of_equals_the_smaller_strength() -> None:
    assert chosen({2.0: (4.0, 5.0), 1.0: (4.0, 4.9), 3.0: (4.0, 5.0)}, 4.5) == (1.0, True)
    assert chosen({-1.0: (4.0, 5.0), 0.5: (4.0, 5.0), -0.5: (4.0, 5.0)}, 4.5) == (0.5, True)


def test_where_none_meets_the_floor_the_most_fluent_and_it_says_so() -> None:
    assert chosen({0.5: (3.0, 4.2), 1.0: (3.5, 4.4), 1.5: (4.0, 4.4)}, 4.5) == (1.0, False)


def test_a_strength_without_a_rating_is_not_chosen() -> None:
    assert chosen({0.5: (3.0, 4.6), 1.0: (None, 4.9), 1.5: (5.0, None)}, 4.5) == (0.5, True)
    with pytest.raises(DataError, match=r"none of the strengths \[0.5\]"):
        chosen({0.5: (None, None)}, 4.5)


@pytest.mark.parametrize(
    ("fluency", "floor"),
    [
        (4.85, 4.9),  # half up; Python's round sees 4.8499999... and gives 4.8
        (4.75, 4.8),
        (4.65, 4.7),
        (4.849999, 4.8),
        (4.96, 5.0),  # so without a slack a baseline may lie below its own floor
        (5.0, 5.0),
    ],
)
def test_the_floor_is_rounded_as_people_round(fluency: float, floor: float) -> None:
    assert floor_of(fluency, slack=0.0) == floor


# Fluency of P2 (Table 14, both poles) and the lines that Figures 3b and 5 draw as the floor.
P2_FLUENCY = {"A": (9.81, 4.8), "C": (9.91, 4.9), "E": (10.0, 4.9), "N": (10.0, 4.9), "O": (9.87, 4.8)}
# Low poles in Figures 3b and 5: strength: (trait score, fluency), and what Table 1 is reproduced with.
LOW_POLES = {
    "A": (
        {
            0.9: (4.12, 4.91),
            1.0: (4.28, 4.90),
            1.1: (4.27, 4.88),
            1.2: (4.50, 4.89),
            1.3: (4.58, 4.90),
            1.4: (4.71, 4.80),
            1.5: (4.71, 4.72),
        },
        1.4,
    ),
    "C": (
        {
            0.9: (3.73, 4.98),
            1.0: (3.86, 4.95),
            1.1: (4.02, 4.95),
            1.2: (4.08, 4.91),
            1.3: (4.34, 4.95),
            1.4: (4.28, 4.81),
            1.5: (3.55, 4.94),
        },
        1.3,
    ),
    "E": (
        {
            0.9: (4.79, 4.94),
            1.0: (4.90, 4.91),
            1.1: (4.92, 4.90),
            1.2: (4.97, 4.88),
            1.3: (4.93, 4.89),
            1.4: (4.97, 4.71),
            1.5: (4.99, 4.60),
        },
        1.1,
    ),
    "O": (
        {
            0.4: (2.67, 4.95),
            0.5: (3.10, 4.87),
            0.6: (3.57, 4.83),
            0.7: (3.90, 4.79),
            0.8: (4.20, 4.67),
            0.9: (4.30, 4.53),
        },
        0.6,
    ),
}


@pytest.mark.parametrize("trait", P2_FLUENCY)
def test_the_papers_lines_are_p2s_rounded_fluency_less_a_tenth(trait: str) -> None:
    both_poles, line = P2_FLUENCY[trait]
    assert floor_of(both_poles / 2, slack=0.1) == line


@pytest.mark.parametrize("trait", LOW_POLES)
def test_the_rule_chooses_what_the_paper_chose(trait: str) -> None:
    """On the low poles, where the curves are not at the ceiling."""
    points, strength = LOW_POLES[trait]
    assert chosen(points, P2_FLUENCY[trait][1]) == (strength, True)


def at(strength: float, target: str, *values: float, seed: int = 0) -> Cell:
    made = cell(target, ratings(*values), method="npti", seed=seed)
    method = {
        "name": "npti",
        "version": "1",
        "strength": strength,
        "strength_protocol": "given",
        "artifact": f"a{seed}",
    }
    return replace(made, settings=made.settings | {"method": method})


def test_a_sweep_over_two_targets_and_seeds() -> None:
    targets = ("openness:high", "openness:low")
    baseline = [cell(target, ratings(4.0, 4.0), seed=seed) for target in targets for seed in (0, 1)]
    by_strength = {
        2.0: [at(2.0, target, 5.0, 4.0, seed=seed) for target in targets for seed in (0, 1)],
        1.0: [at(1.0, target, 3.0, 1.0, seed=seed) for target in targets for seed in (0, 1)],
    }
    sweep = build_sweep(baseline, by_strength, slack=0.0)
    high, low = sweep.targets["openness:high"], sweep.targets["openness:low"]
    assert (high.chosen, high.floor, high.floor_met) == (2.0, 5.0, True)
    assert (low.chosen, low.floor, low.floor_met) == (1.0, 5.0, True), "a low pole is scored as 6 - rating"
    assert [point.strength for point in high.points] == [1.0, 2.0]
    first = high.points[0].result
    assert (first.n, first.mean, first.fluency) == (4, 2.0, 5.0)
    assert first.interval is not None
    assert first.interval[0] < 2.0 < first.interval[1]
    assert first.text["words"] == 4.0
    assert sweep.method.strength == {"openness:high": 2.0, "openness:low": 1.0}
    assert sweep.method.strength_protocol == "held-out"
    assert sweep.method.artifact is None, "each seed was fitted on its own"
    assert sweep.seeds == [0, 1]
    assert sweep.baseline.name == "simple"


def test_a_baseline_that_nobody_rated_is_no_floor() -> None:
    made = cell("openness:high", ratings(4.0))
    unrated = replace(made, answers=[replace(answer, fluency=Unrated("refusal")) for answer in made.answers])
    with pytest.raises(
        DataError, match=r"no answer of the baseline was rated for fluency \(openness:high, 1 answers\)"
    ):
        build_sweep([unrated], {1.0: [at(1.0, "openness:high", 4.0)]}, slack=0.1)
