"""The report on agreement: judges of known kinds, what is missing, and what it says of methods, length and retests."""

from __future__ import annotations

import json
import time

import pytest

from personalitybench.errors import ConfigurationError
from personalitybench.judging.agreement.report import make_report
from personalitybench.judging.agreement.schema import AgreementReport, AspectFigures
from personalitybench.judging.agreement.table import ASPECTS, ComparedAnswer, RatingTable
from personalitybench.judging.base import Rating, Unrated
from personalitybench.traits import TRAIT_NAMES
from tests.rating_tables import answers, column, table, verdicts

RATED = answers(10, methods=("none", "p2"), traits=("openness", "neuroticism"))
MEASURES = ("exact", "within_one", "kappa", "alpha", "spearman", "bias", "difference")


def spread(place: int, answer: ComparedAnswer) -> float:
    """A judge that uses the whole scale."""
    return 1.0 + (place * 7 + len(answer.question_id)) % 5


def trait(report: AgreementReport) -> AspectFigures:
    return next(found for found in report.aspects if found.aspect == "trait")


def values(report: AgreementReport) -> dict[str, float | None]:
    overall = trait(report).pairs[0].overall
    return {name: getattr(overall, name).value for name in MEASURES}


def test_judges_that_say_the_same_agree_perfectly() -> None:
    report = make_report(table(RATED, one=spread, other=spread), resamples=50)
    perfect = {"exact": 1, "within_one": 1, "kappa": 1, "alpha": 1, "spearman": 1, "bias": 0, "difference": 0}
    assert values(report) == pytest.approx(perfect)
    pair = trait(report).pairs[0]
    assert pair.overall.alpha.interval == pytest.approx((1, 1))
    assert sum(pair.counts[place][place] for place in range(5)) == len(RATED) == pair.overall.n
    assert [found.aspect for found in report.aspects] == list(ASPECTS)


def test_judges_that_say_the_opposite_disagree() -> None:
    report = make_report(table(RATED, one=spread, other=lambda *item: 6 - spread(*item)), resamples=50)
    found = values(report)
    assert found["spearman"] == pytest.approx(-1)
    assert found["kappa"] == pytest.approx(-1, abs=0.05)
    assert found["alpha"] is not None
    assert found["alpha"] < -0.9
    assert found["bias"] == pytest.approx(0, abs=0.2)


def test_a_constant_judge_has_no_rank_correlation_and_two_of_them_no_kappa() -> None:
    one = make_report(table(RATED, one=spread, flat=lambda *_: 3.0), resamples=50)
    assert values(one)["spearman"] is None
    assert values(one)["kappa"] == pytest.approx(0)
    both = make_report(table(RATED, flat=lambda *_: 3.0, level=lambda *_: 3.0), resamples=50)
    undefined = {name for name, value in values(both).items() if value is None}
    assert undefined == {"kappa", "alpha", "spearman"}
    assert trait(both).judges[0].length.rating.value is None
    assert trait(both).pairs[0].order.kendall.value is None
    assert "NaN" not in both.model_dump_json()


def test_missing_verdicts_are_counted_and_left_out() -> None:
    few = RATED[:6]
    first = column("first", verdicts(few, [1, 2, 3, "refused", "refused", 5]))
    second = column("second", verdicts(few, [1, 2, None, 4, "empty", 4]))
    report = make_report(RatingTable("made up", few, [first, second]), resamples=50)
    one, other = trait(report).judges
    assert (one.rated, one.coverage, one.unrated, one.not_asked) == (4, 4 / 6, {"refused": 2}, 0)
    assert (other.rated, other.unrated, other.not_asked) == (4, {"empty": 1}, 1)
    pair = trait(report).pairs[0]
    assert pair.overall.n == 3
    assert pair.overall.exact.value == pytest.approx(2 / 3)
    assert pair.overall.bias.value == pytest.approx(-1 / 3)
    assert [found.aspect for found in report.aspects] == ["trait"]  # nobody was asked for fluency


def test_judges_that_rated_nothing_in_common_have_no_figures() -> None:
    few = RATED[:4]
    first, second = verdicts(few, [1, 2, None, None]), verdicts(few, [None, None, 3, 4])
    report = make_report(RatingTable("made up", few, [column("first", first), column("second", second)]))
    assert set(values(report).values()) == {None}
    assert trait(report).pairs[0].overall.n == 0
    assert trait(report).together.alpha.value is None


def test_one_question_gives_figures_without_intervals() -> None:
    few = answers(1, methods=("a", "b", "c"))
    report = make_report(table(few, one=lambda place, _: 1.0 + place % 5, other=lambda place, _: 1.0 + place % 4))
    overall = trait(report).pairs[0].overall
    assert overall.questions == 1
    for name in MEASURES:
        assert getattr(overall, name).value is not None
        assert getattr(overall, name).interval is None


def test_groups_say_where_the_bias_is() -> None:
    report = make_report(
        table(RATED, one=lambda *_: 3.0, other=lambda _, answer: 4.0 if answer.trait == "neuroticism" else 3.0)
    )
    pair = trait(report).pairs[0]
    assert {name: found.bias.value for name, found in pair.by_trait.items()} == {"openness": 0, "neuroticism": 1}
    assert list(pair.by_pole) == ["high", "low"]
    assert {name: found.n for name, found in pair.by_method.items()} == {"none": 40, "p2": 40}
    assert pair.by_trait["neuroticism"].bias.interval == (1, 1)


def test_traits_stand_in_their_usual_order() -> None:
    rated = answers(1, traits=tuple(reversed(TRAIT_NAMES)))
    report = make_report(table(rated, one=spread, other=spread), resamples=0)
    assert list(trait(report).pairs[0].by_trait) == list(TRAIT_NAMES)


def test_methods_are_ordered_by_scores_toward_the_target() -> None:
    rated = answers(6, methods=("a", "b", "c"))
    strength = {"a": 0.0, "b": 1.0, "c": 2.0}

    def rate(way: float) -> object:
        return lambda _, answer: (
            3.0
            + (1 if answer.pole == "high" else -1)
            * (strength[answer.method] if way > 0 else 2 - strength[answer.method])
        )

    report = make_report(table(rated, one=rate(1), same=rate(1), turned=rate(-1)), resamples=100)  # type: ignore[arg-type]
    same, turned, _ = (pair.order for pair in trait(report).pairs)
    assert (same.methods, same.kendall.value, same.spearman.value, same.swapped) == (3, 1, pytest.approx(1), [])
    assert turned.kendall.value == pytest.approx(-1)
    assert set(turned.swapped) == {("b", "a"), ("c", "a"), ("c", "b")}
    means = {name: found.mean.value for name, found in trait(report).judges[0].methods.items()}
    assert means == {"a": 3, "b": 4, "c": 5}


def test_length_is_seen_from_the_targets_pole() -> None:
    """A judge that finds long answers higher on the trait, and one that finds them more as they should be."""
    rated = answers(10)
    last = len(rated)
    high = lambda place, _: 1 + 4 * place / last  # noqa: E731
    fitting = lambda place, answer: 3 + (1 if answer.pole == "high" else -1) * 2 * place / last  # noqa: E731
    report = make_report(table(rated, high=high, fitting=fitting), resamples=100)
    upward, toward = (judge.length for judge in trait(report).judges)
    assert upward.rating.value == pytest.approx(1)
    assert upward.toward is not None
    assert abs(upward.toward.value or 0) < 0.5
    assert toward.toward is not None
    assert toward.toward.value == pytest.approx(1)
    assert report.aspects[1].judges[0].length.toward is None


def test_texts_of_no_pole_have_no_score_toward_it() -> None:
    neutral = [ComparedAnswer(f"q{place}", "", "so " * place, "openness", "neutral", "gold") for place in range(1, 9)]
    report = make_report(table(neutral, one=spread, other=spread), resamples=10)
    judge = trait(report).judges[0]
    assert judge.length.toward is not None
    assert judge.length.toward.value is None
    assert judge.methods["gold"].n == 0
    assert list(trait(report).pairs[0].by_pole) == ["neutral"]


def test_a_judge_is_compared_with_itself() -> None:
    few = RATED[:4]
    steady = column("steady", verdicts(few, [1, 2, 3, 4]), verdicts(few, [1, 2, 3, 4]))
    moving = column(
        "moving", verdicts(few, [1, 2, 3, "refused"]), verdicts(few, [1, 4, 3, 4]), verdicts(few, [2, 2, 3, None])
    )
    report = make_report(RatingTable("made up", few, [steady, moving]), resamples=50)
    one, other = (judge.retest for judge in trait(report).judges)
    assert one is not None
    assert (one.repeats, one.n, one.partly, one.exact.value, one.alpha.value) == (2, 4, 0, 1, 1)
    assert other is not None
    assert (other.repeats, other.n, other.partly) == (3, 3, 1)
    # nine pairs of askings: answer 1 gives 1-1, 1-2, 1-2; answer 2 gives 2-4, 2-2, 4-2; answer 3 three times the same
    assert other.exact.value == pytest.approx(5 / 9)
    assert other.within_one.value == pytest.approx(7 / 9)
    assert other.difference.value == pytest.approx((1 + 1 + 2 + 2) / 9)


def test_one_judge_alone_has_a_report() -> None:
    report = make_report(table(RATED, only=spread), resamples=20)
    assert trait(report).pairs == []
    assert trait(report).together.alpha.value is None
    assert trait(report).judges[0].retest is None
    assert trait(report).judges[0].coverage == 1


def test_an_answer_that_is_there_twice_counts_once() -> None:
    once = table(RATED, one=spread, other=lambda *_: 2.0)
    twice = RatingTable(once.source, [*RATED, *RATED[:10]], once.columns)
    assert make_report(twice, resamples=30) == make_report(once, resamples=30)


def test_the_same_table_gives_the_same_report_and_another_seed_other_intervals() -> None:
    one = table(RATED, one=spread, other=lambda place, answer: 1.0 + place % 5)
    first, again, other = (make_report(one, resamples=40, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert values(first) == values(other)
    assert trait(first).pairs[0].overall.bias.interval != trait(other).pairs[0].overall.bias.interval


def test_a_report_survives_its_json() -> None:
    report = make_report(table(RATED, one=spread, flat=lambda *_: 3.0), resamples=20)
    assert AgreementReport.model_validate(json.loads(report.model_dump_json())) == report


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (RatingTable("here", [], [column("one", {})]), "nothing to compare"),
        (RatingTable("here", RATED, []), "nothing to compare"),
        (RatingTable("here", RATED, [column("one", {}), column("one", {})]), "twice"),
    ],
)
def test_tables_without_a_comparison_are_refused(wrong: RatingTable, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        make_report(wrong)


def test_thousand_resamples_of_600_answers_take_seconds() -> None:
    rated = answers(12, methods=("a", "b", "c", "d", "e"), traits=TRAIT_NAMES)
    assert len(rated) == 600
    judges = {
        f"judge-{number}": lambda place, _, number=number: 1 + 4 * ((place * 37 + number * 11) % 101) / 100
        for number in range(3)
    }
    start = time.perf_counter()
    make_report(table(rated, **judges))
    assert time.perf_counter() - start < 30  # 2 s on two cores; a resample at a time would take minutes


def test_a_reason_is_never_a_number() -> None:
    few = RATED[:3]
    given = {(few[0].id, "trait"): Rating(5), (few[1].id, "trait"): Unrated("refused"), (few[2].id, "trait"): Rating(1)}
    report = make_report(RatingTable("made up", few, [column("one", given)]), resamples=0)  # type: ignore[arg-type]
    assert trait(report).judges[0].mean.value == 3
    assert trait(report).judges[0].mean.interval is None
