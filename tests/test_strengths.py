"""Strengths as users write them, and how a row says what its strength was come by."""

from __future__ import annotations

from typing import Any

import pytest

from personalitybench.errors import ConfigurationError
from personalitybench.strengths import parse_strength, show_strength, strength_for, strength_protocol
from personalitybench.traits import TARGETS, Target


def test_a_number_is_for_all_targets() -> None:
    assert parse_strength(2) == 2.0
    assert {strength_for(2.0, target) for target in TARGETS} == {2.0}
    assert strength_for(None, TARGETS[0]) is None
    assert show_strength(1.40) == "1.4"


def test_a_trait_stands_for_both_poles_and_a_target_goes_before_its_trait() -> None:
    found = parse_strength({"openness:low": 0.9, "agreeableness": 1.4, "openness": 0.6})
    assert found == {"openness:high": 0.6, "openness:low": 0.9, "agreeableness:high": 1.4, "agreeableness:low": 1.4}
    assert list(found) == ["openness:high", "openness:low", "agreeableness:high", "agreeableness:low"]
    assert strength_for(found, Target.parse("openness:low")) == 0.9
    assert show_strength(found) == "0.6–1.4"
    with pytest.raises(ConfigurationError, match="have none for extraversion:high"):
        strength_for(found, Target.parse("extraversion:high"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("strong", "a strength is a number"),
        (True, "a strength is a number"),
        (float("nan"), "a strength is a number"),
        (float("inf"), "a strength is a number"),
        ({"openness": "strong"}, "not 'strong'"),
        ({"opennes": 1.0}, "did you mean 'openness'"),
        ({"openness:hi": 1.0}, "write a trait and a pole"),
        ({}, "empty"),
        ([1.0], "a strength is a number"),
    ],
)
def test_what_is_no_strength(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_strength(value)


def test_how_a_strength_was_come_by() -> None:
    assert strength_protocol(1.0, "test", "dev") == "held-out"
    assert strength_protocol(1.0, "all", None) == "paper"
    assert strength_protocol({"openness:low": 1.0}, "test", None) == "given"
    assert strength_protocol(1.0, "dev", None) == "given"
    assert strength_protocol(None, "all", None) is None
