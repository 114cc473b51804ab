"""Traits, poles and targets: reading them, writing them, and seeing a rating from a pole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError
from personalitybench.traits import BIG_FIVE, TARGETS, Pole, Target, trait

RATINGS = st.floats(min_value=1, max_value=5)


@given(st.sampled_from(TARGETS))
def test_a_target_is_read_as_it_is_written(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert Target.parse(f"{target.trait}:{target.pole.value}") == target


def test_targets_are_every_trait_at_both_poles_once() -> None:
    assert [str(target) for target in TARGETS[:3]] == ["openness:high", "openness:low", "conscientiousness:high"]
    assert len(set(TARGETS)) == len(TARGETS) == len(BIG_FIVE) * len(Pole)
    assert {target.trait for target in TARGETS} == {found.name for found in BIG_FIVE}


def test_no_two_traits_share_a_facet_an_adjective_or_a_key_in_the_files() -> None:
    for named in (
        [facet for found in BIG_FIVE for facet in found.facets],
        [target.adjective for target in TARGETS],
        [target.file_key for target in TARGETS],
    ):
        assert len(named) == len(set(named))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_article_fits_the_adjective(target: Target) -> None:
    article, _, adjective = target.adjective.partition(" ")
    assert article == ("an" if adjective[0] in "aeiou" else "a")


def test_a_pole_has_its_own_key_and_adjective() -> None:
    low = Target.parse("extraversion:low")
    assert (low.file_key, low.adjective) == ("Extraversion_reversed", "an introverted")
    high = Target.parse("extraversion:high")
    assert (high.file_key, high.adjective) == ("Extraversion", "an extraverted")


@pytest.mark.parametrize("text", ["", "extraversion", "extraversion:", "extraversion:mid", "extraversion:high:low"])
def test_a_target_without_a_pole_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'extraversion:high' \(poles: high, low\)") as caught:
        Target.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["extroversion:low", "Extraversion:low", " extraversion:low"])
def test_a_misspelt_trait_names_the_nearest(text: str) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'extraversion'"):
        Target.parse(text)


def test_a_trait_unlike_any_other_lists_them() -> None:
    with pytest.raises(ConfigurationError) as caught:
        trait("zzz")
    assert "did you mean" not in str(caught.value)
    assert all(found.name in str(caught.value) for found in BIG_FIVE)


@given(RATINGS)
def test_both_poles_of_a_rating_mirror_each_other(rating: float) -> None:
    high, low = Target("openness", Pole.HIGH), Target("openness", Pole.LOW)
    assert high.score(rating) == rating
    assert low.score(rating) == pytest.approx(6 - rating)
    assert low.score(low.score(rating)) == pytest.approx(rating)
    assert 1 <= low.score(rating) <= 5


def test_targets_sort_and_serve_as_keys() -> None:
    mixed = [Target.parse(text) for text in ("openness:low", "openness:high", "agreeableness:low")]
    assert list(map(str, sorted(mixed))) == ["agreeableness:low", "openness:high", "openness:low"]
    assert {Target("openness", Pole.LOW): 1}[Target.parse("openness:low")] == 1
