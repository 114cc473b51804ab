"""Reading one judge on the scale of another: monotone maps and the error on questions that they did not see."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.judging import Rating, Unrated
from personalitybench.judging.agreement.calibration import (
    Calibration,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from personalitybench.judging.agreement.table import Column, ComparedAnswer, RatingTable

TRAITS = ("openness", "neuroticism")


def table(own: Sequence[float | None], reference: Sequence[float | None], answers_a_question: int = 3) -> RatingTable:
    """Two judges' ratings of traits; fluency is rated by neither. None: unrated."""
    answers = [
        ComparedAnswer(f"q{i // answers_a_question}", "What now?", f"Answer {i}.", TRAITS[i % 2], "high", "none")
        for i in range(len(own))
    ]

    def column(name: str, values: Sequence[float | None]) -> Column:
        found = {
            (answer.id, "trait"): Unrated("refused") if value is None else Rating(value)
            for answer, value in zip(answers, values, strict=True)
        }
        return Column(name, {"id": name, "profile_sha256": "1" * 64, "rubric_sha256": "2" * 64}, [found])

    return RatingTable("made up", answers, [column("mild", own), column("strict", reference)])


def noise(count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).uniform(1, 5, count).tolist()


def test_a_judge_that_is_one_too_mild_is_read_right() -> None:
    reference = [float(value) for value in np.random.default_rng(0).integers(1, 5, 300)]
    found = fit_calibration(table([value + 1 for value in reference], reference), "mild", "strict")
    fitted = found.maps["trait"]
    assert fitted.points == ((2.0, 1.0), (3.0, 2.0), (4.0, 3.0), (5.0, 4.0))
    assert [fitted.read(value) for value in (1.0, 2.5, 5.0)] == [1.0, 1.5, 4.0]
    assert (fitted.errors.raw, fitted.errors.mapped, fitted.errors.gained) == (1.0, 0.0, 1.0)
    assert set(fitted.by_trait) == set(TRAITS)
    assert sum(part.n for part in fitted.by_trait.values()) == fitted.n == 300
    assert "fluency" not in found.maps


def test_a_judge_that_knows_nothing_is_no_better_than_the_mean_on_unseen_questions() -> None:
    fitted = fit_calibration(table(noise(600, 1), noise(600, 2)), "mild", "strict").maps["trait"]
    seen = np.abs([fitted.read(own) - other for own, other in zip(noise(600, 1), noise(600, 2), strict=True)]).mean()
    assert fitted.errors.mapped > seen  # what the map saw flatters it
    assert fitted.errors.mapped > fitted.errors.constant - 0.02


def test_a_judge_that_is_upside_down_gets_a_flat_map() -> None:
    reference = noise(200, 3)
    fitted = fit_calibration(table([6 - value for value in reference], reference), "mild", "strict").maps["trait"]
    assert fitted.read(1.0) == pytest.approx(fitted.read(5.0)) == pytest.approx(float(np.mean(reference)), abs=1e-5)


def test_questions_are_not_split_between_what_a_map_saw_and_did_not_see() -> None:
    # Each question has a rating of its own that its reference follows in no order: known only to who saw the question.
    random = np.random.default_rng(4)
    own = np.repeat(random.uniform(1, 5, 40), 10)
    reference = np.repeat(random.uniform(1, 5, 40), 10)
    errors = fit_calibration(table(own.tolist(), reference.tolist(), 10), "mild", "strict").maps["trait"].errors
    assert errors.mapped > errors.constant - 0.1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1, 5), st.floats(1, 5)), min_size=30, max_size=80), st.floats(1, 5), st.floats(1, 5)
)
def test_a_map_never_turns_ratings_round(pairs: list[tuple[float, float]], one: float, other: float) -> None:
    own, reference = zip(*pairs, strict=True)
    fitted = fit_calibration(table(own, reference), "mild", "strict").maps["trait"]
    low, high = sorted((one, other))
    assert 1.0 <= fitted.read(low) <= fitted.read(high) <= 5.0


def test_unrated_answers_are_left_out() -> None:
    own: list[float | None] = [*noise(60, 5), None, 3.0]
    reference: list[float | None] = [*noise(60, 6), 4.0, None]
    assert fit_calibration(table(own, reference), "mild", "strict").maps["trait"].n == 60


@pytest.mark.parametrize(
    ("made", "names", "says"),
    [
        (lambda: table(noise(29, 1), noise(29, 2)), ("mild", "strict"), "29 for trait, 0 for fluency"),
        (lambda: table(noise(60, 1), noise(60, 2), 30), ("mild", "strict"), "5 questions or more"),
        (
            lambda: table(noise(60, 1), noise(60, 2)),
            ("mild", "stern"),
            "no ratings by 'stern': these are by mild, strict",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_said(made: Callable[[], RatingTable], names: tuple[str, str], says: str) -> None:
    with pytest.raises((DataError, ConfigurationError), match=says):
        fit_calibration(made(), *names)


def test_a_calibration_is_kept_and_fits_its_judge_alone(tmp_path: Path) -> None:
    made = fit_calibration(table(noise(90, 7), noise(90, 8)), "mild", "strict")
    path = tmp_path / "mild-to-strict.json"
    write_calibration(made, path)
    found = read_calibration(path)
    assert found == made
    assert found.sha256 == made.sha256
    found.check(made.judge)
    with pytest.raises(ConfigurationError, match="rubric_sha256 differs; calibrate the judge anew"):
        found.check(made.judge | {"rubric_sha256": "3" * 64})


@pytest.mark.parametrize("points", [[[2, 3], [4, 2]], [[2, 3], [2, 4]], [[1, 0.5]], []])
def test_a_map_that_turns_round_or_leaves_the_scale_is_refused(tmp_path: Path, points: list[list[float]]) -> None:
    made: Calibration = fit_calibration(table(noise(90, 7), noise(90, 8)), "mild", "strict")
    content = made.model_dump(mode="json")
    content["maps"]["trait"]["points"] = points
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="points"):
        read_calibration(path)
