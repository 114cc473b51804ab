"""Figures of agreement against published values, and their resamples against the libraries, one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.judging.agreement import figures, measures, resampling
from personalitybench.judging.agreement.figures import Bootstrap

NAN = math.nan
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section E: four observers, twelve units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)

ratings = st.one_of(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]), st.floats(1, 5).map(lambda value: round(value, 1)))
two_judges = st.lists(st.tuples(st.integers(0, 4), ratings, ratings), min_size=2, max_size=25)


def test_alpha_is_the_published_one() -> None:
    assert measures.alpha(KRIPPENDORFF) == pytest.approx(0.815, abs=5e-4)


def test_kappa_is_that_of_an_example_worked_by_hand() -> None:
    # 4 of 100 units are one category apart; by chance the squared distances would sum to 8720 / 100
    first = np.array([1.0] * 46 + [2.0] * 44 + [3.0] * 10)
    second = np.array([1.0] * 50 + [2.0] * 40 + [3.0] * 10)
    assert measures.kappa(first, second) == pytest.approx(1 - 4 / 87.2)


def test_spearman_is_that_of_a_published_example() -> None:
    # Wikipedia, "Spearman's rank correlation coefficient": IQ and hours of television, -29/165
    iq = np.array([106.0, 100, 86, 101, 99, 103, 97, 113, 112, 110])
    hours = np.array([7.0, 27, 2, 50, 28, 29, 20, 12, 6, 17])
    assert measures.spearman(iq, hours) == pytest.approx(-29 / 165)


def test_ratings_are_rounded_half_up() -> None:
    given_, wanted = [1.0, 1.49, 1.5, 2.5, 3.5, 4.5, 2.4999999999999996], [1, 1, 2, 3, 4, 5, 3]
    assert measures.whole(np.array(given_)).tolist() == wanted


def test_shares_and_differences_are_counted() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.4, 3.0, 5.0, 4.0])
    assert measures.exact(first, second) == 0.5
    assert measures.within_one(first, second) == 0.75
    assert measures.bias(first, second) == pytest.approx((0.4 + 1 + 2) / 4)
    assert measures.difference(second, first) == pytest.approx((0.4 + 1 + 2) / 4)
    assert measures.counts(first, second)[2].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("first", "second", "undefined"),
    [
        ([3, 3, 3], [3, 3, 3], {"kappa", "alpha", "spearman", "kendall"}),
        ([3, 3, 3], [2, 3, 4], {"spearman", "kendall"}),
        ([3], [3], {"exact", "within_one", "bias", "difference", "kappa", "alpha", "spearman", "kendall"}),
        ([], [], {"exact", "within_one", "bias", "difference", "kappa", "alpha", "spearman", "kendall"}),
    ],
)
def test_what_is_undefined_is_none(first: list[float], second: list[float], undefined: set[str]) -> None:
    one, other = np.array(first, dtype=float), np.array(second, dtype=float)
    found = {
        name: getattr(measures, name)(one, other)
        for name in ("exact", "within_one", "bias", "difference", "kappa", "spearman", "kendall")
    }
    found["alpha"] = measures.alpha(np.stack([one, other]))
    assert {name for name, value in found.items() if value is None} == undefined


def test_alpha_of_answers_with_one_rating_each_is_undefined() -> None:
    assert measures.alpha(np.array([[1.0, NAN, 3.0], [NAN, 2.0, NAN]])) is None


@settings(max_examples=50, deadline=None)
@given(two_judges)
def test_a_resample_is_what_the_libraries_say_of_it(items: list[tuple[int, float, float]]) -> None:
    """Each row of the vectorised figures against the same answers, repeated as often as they were drawn."""
    questions = [f"q{place}" for place, _, _ in items]
    first, second = (np.array([item[side] for item in items]) for side in (1, 2))
    draws = resampling.draw(questions, 4, seed=3)
    tables = resampling.tables(first, second, draws)
    found = {
        "kappa": resampling.kappas(tables),
        "alpha": resampling.alphas(tables + tables.transpose(0, 2, 1)),
        "spearman": resampling.spearmans(first, second, draws),
        "bias": resampling.means(second - first, draws),
    }
    for row, drawn in enumerate(draws.drawn):
        again = np.repeat(np.arange(len(items)), drawn[draws.places].astype(int))
        if len(again) < measures.LEAST:
            continue
        one, other = first[again], second[again]
        wanted = {
            "kappa": measures.kappa(one, other),
            "alpha": measures.alpha(np.stack([one, other])),
            "spearman": measures.spearman(one, other),
            "bias": measures.bias(one, other),
        }
        for name, value in wanted.items():
            assert found[name][row] == pytest.approx(NAN if value is None else value, nan_ok=True, abs=1e-9), name


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), ratings), min_size=3, max_size=3), min_size=2, max_size=20))
def test_a_resample_of_three_judges_has_the_librarys_alpha(rows: list[list[float | None]]) -> None:
    table = np.array(rows, dtype=float).T
    draws = resampling.draw([str(place) for place in range(table.shape[1])], 5, seed=0)
    found = resampling.alphas(resampling.coincidences(table, draws))
    for row, drawn in enumerate(draws.drawn):
        again = np.repeat(np.arange(table.shape[1]), drawn[draws.places].astype(int))
        if (np.sum(~np.isnan(table[:, again]), axis=0) >= 2).sum() < measures.LEAST:
            continue
        wanted = measures.alpha(table[:, again])
        assert found[row] == pytest.approx(NAN if wanted is None else wanted, nan_ok=True, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ratings, ratings), min_size=2, max_size=8))
def test_orders_of_methods_are_correlated_as_the_libraries_do(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    for rows, one in ((resampling.row_kendalls, measures.kendall), (resampling.row_spearmans, measures.spearman)):
        wanted = one(first, second)
        assert rows(first[None], second[None])[0] == pytest.approx(NAN if wanted is None else wanted, nan_ok=True)


def test_what_one_resample_leaves_undefined_has_no_interval_where_that_is_common() -> None:
    assert resampling.interval(np.array([0.5] * 96 + [NAN] * 4)) == (0.5, 0.5)
    assert resampling.interval(np.array([0.5] * 90 + [NAN] * 10)) is None
    assert resampling.interval(np.zeros(0)) is None


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(ratings, ratings), min_size=6, max_size=12), st.integers(2, 5))
def test_copies_of_answers_narrow_no_interval(pairs: list[tuple[float, float]], copies: int) -> None:
    """Whole questions are drawn: the same answers several times under their questions tell nothing new."""
    first, second = np.array(pairs).T
    questions = [str(place) for place in range(len(pairs))]
    once = figures.agreement(first, second, questions, Bootstrap(200, 0))
    often = figures.agreement(np.tile(first, copies), np.tile(second, copies), questions * copies, Bootstrap(200, 0))
    for name in ("exact", "within_one", "kappa", "bias", "difference"):
        one, other = getattr(once, name), getattr(often, name)
        assert one.value == pytest.approx(other.value, abs=1e-9)
        assert one.interval == pytest.approx(other.interval, abs=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Bias of judges whose differences have a part in common within a question, in 300 repetitions."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        shared = np.repeat(random.normal(0, 0.5, 40), 4)
        gap = 0.3 + shared + random.normal(0, 0.5, 160)
        draws = resampling.draw([str(place // 4) for place in range(160)], 400, seed=1)
        low, high = resampling.interval(resampling.means(gap, draws)) or (NAN, NAN)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 300 <= 0.985


@settings(max_examples=25, deadline=None)
@given(two_judges)
def test_figures_are_in_their_bounds_and_symmetric(items: list[tuple[int, float, float]]) -> None:
    questions = [f"q{place}" for place, _, _ in items]
    first, second = (np.array([item[side] for item in items]) for side in (1, 2))
    found = figures.agreement(first, second, questions, Bootstrap(50, 0))
    turned = figures.agreement(second, first, questions, Bootstrap(50, 0))
    bounds = {"exact": (0, 1), "within_one": (0, 1), "kappa": (-1, 1), "alpha": (-1, 1), "spearman": (-1, 1)}
    for name, (low, high) in bounds.items():
        value, other = getattr(found, name).value, getattr(turned, name).value
        assert (value is None) == (other is None)
        if value is not None:
            assert low - 1e-9 <= value <= high + 1e-9
            assert value == pytest.approx(other)
    assert found.bias.value == pytest.approx(-turned.bias.value)
    assert abs(found.bias.value) <= found.difference.value + 1e-9
