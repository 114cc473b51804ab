"""Text measures and statistics, against values worked out by hand."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.metrics.fluency import TEXT_MEASURES, measure_text
from personalitybench.metrics.statistics import sum_interval, summarise

Scores = Mapping[str, Sequence[float]]
RATINGS = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0])
SCORES = st.dictionaries(
    st.text(alphabet="abcdefgh", min_size=1, max_size=3),
    st.lists(RATINGS, min_size=1, max_size=3),
    min_size=2,
    max_size=20,
)

# Text measures


@pytest.mark.parametrize(
    ("answer", "measures"),
    [
        # he said, said yes, yes he, said no: 4 of 6 pairs; "he said yes" stood before: 1 of 5 triples
        ("He said yes. HE SAID yes. No", {"words": 7, "distinct_2": 4 / 6, "repetition": 1 / 5, "unfinished": 1}),
        ("a b c d e f.", {"words": 6, "distinct_2": 1, "repetition": 0, "unfinished": 0}),
        ("no no no no no!", {"words": 5, "distinct_2": 1 / 4, "repetition": 2 / 3, "unfinished": 0}),
        # a b c a b c a b c: pairs ab bc ca; 8 of them; triples abc bca cab; 7 of them
        ("a b c, a b c; a b c.", {"words": 9, "distinct_2": 3 / 8, "repetition": 4 / 7, "unfinished": 0}),
        ("Don't re-read it, l’été!", {"words": 4, "distinct_2": 1, "repetition": 0, "unfinished": 0}),
        ("Two words", {"words": 2, "distinct_2": 1, "unfinished": 1}),
        ("Yes.", {"words": 1, "unfinished": 0}),
        ("", {"words": 0, "unfinished": 1}),
        ("?! ...", {"words": 0, "unfinished": 0}),
        ("snake_case is 2 words, 10 is 1.", {"words": 8, "distinct_2": 1, "repetition": 0, "unfinished": 0}),
    ],
)
def test_measures_of_a_text(answer: str, measures: dict[str, float]) -> None:
    assert measure_text(answer) == pytest.approx(measures)


@pytest.mark.parametrize(
    "answer", ["I went.", "Did I?", "Yes!", "And so…", 'He said "no."', "(I did.)", "“Stay.”", "*Sigh.*", "Done.  \n\n"]
)
def test_an_answer_that_ends_a_sentence_is_finished(answer: str) -> None:
    assert measure_text(answer)["unfinished"] == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "我会去参加聚会。",
            "你好！？",
            "他说：“好。”",
            "他说「好。」",
            "行きます。",
            "هل أنت بخير؟",
            "मैं जाऊँगा।",
            "سأذهب.",
            "သွားမယ်။",
        ),
        *("سأذهب.", "သွားမယ်။", "ខ្ញុំទៅ។", "Τι κάνεις;", "Գնում եմ։", "እሄዳለሁ።", "Where？", "Yes. 👍🏽", "Wait… "),
    ],
)
def test_a_sentence_ends_as_its_script_says(answer: str) -> None:
    assert measure_text(answer)["unfinished"] == 0.0


@pytest.mark.parametrize(
    "answer", ["我会去，", "我会去", "行く。「", "他说：", "هل، ", "मैं जाऊँगा", "Τι κάνεις; και", "a; b;", "سأذهب؛"]
)
def test_a_break_is_seen_in_other_scripts(answer: str) -> None:
    assert measure_text(answer)["unfinished"] == 1.0


@pytest.mark.parametrize("answer", ["ฉันจะไป", "ฉันจะไป 👍", "ฉันจะไป.", "ຂ້ອຍຈະໄປ"])
def test_scripts_without_an_end_of_sentence_have_no_such_measure(answer: str) -> None:
    assert "unfinished" not in measure_text(answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("我会去", 3),
        ("मैं हिन्दी में लिखता हूँ", 5),
        ("cafe\u0301 cafe\u0301", 2),
        ("می‌خواهم بروم", 2),  # with a zero-width non-joiner
        ("สวัสดี", 4),  # vowel and tone signs above and below belong to their letter
        ("AI会写诗", 4),
        ("ខ្ញុំទៅ", 3),
        ("1️⃣ One", 2),
    ],
)
def test_words_of_other_scripts(answer: str, words: int) -> None:
    assert measure_text(answer)["words"] == words


@pytest.mark.parametrize("letter", ["去", "あ", "ア", "ก", "ກ", "ក", "က"])
def test_a_collapse_is_seen_in_scripts_without_blanks(letter: str) -> None:
    measures = measure_text(letter * 10)
    assert measures["words"] == 10
    assert measures["distinct_2"] == pytest.approx(1 / 9)
    assert measures["repetition"] == pytest.approx(7 / 8)


_OLD_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_OLD_FINISHED = re.compile(r"[.!?…][^\w.!?…,;:–—(\[{“‘„-]*$")
ENGLISH = st.text("abcXYZéñü019 \n\t.,;:!?…'’\"“”‘„()[]{}*_-–—/€%#😀", max_size=60)


@given(ENGLISH)
@settings(max_examples=500)
def test_figures_of_latin_text_are_those_of_the_plain_rules(answer: str) -> None:
    measures = measure_text(answer)
    assert measures["words"] == len(_OLD_WORD.findall(answer))
    assert measures["unfinished"] == (0.0 if _OLD_FINISHED.search(answer) else 1.0)


@pytest.mark.parametrize("answer", ["I went home and", "I went, ", "First:", "1. Go\n2", "e.g. this", "One. Two"])
def test_an_answer_that_breaks_off_is_unfinished(answer: str) -> None:
    assert measure_text(answer)["unfinished"] == 1.0


@pytest.mark.parametrize("answer", ["See you all there! 😊", "What a day! 🎉🎉", "I would, I think. ❤️"])
def test_an_emoji_after_the_last_sentence_does_not_cut_it_off(answer: str) -> None:
    assert measure_text(answer)["unfinished"] == 0.0


@given(st.text() | st.lists(st.sampled_from(["yes", "no", "Yes,", "well.", "😊"])).map(" ".join))
def test_measures_stay_in_their_range(answer: str) -> None:
    found = measure_text(answer)
    assert found.keys() <= TEXT_MEASURES.keys()
    assert found["words"] >= 0
    assert found.get("unfinished", 0.0) in {0.0, 1.0}  # left out for Thai and Lao
    assert ("distinct_2" in found) == (found["words"] >= 2)
    assert ("repetition" in found) == (found["words"] >= 3)
    assert 0 < found.get("distinct_2", 1) <= 1
    assert 0 <= found.get("repetition", 0) < 1


@given(st.lists(st.sampled_from(["ant", "bee", "cat"]), min_size=3, max_size=12), st.integers(2, 4))
def test_saying_it_again_is_repetition(words: list[str], times: int) -> None:
    once = measure_text(" ".join(words))
    again = measure_text(" ".join(words * times))
    assert again["words"] == once["words"] * times
    assert again["repetition"] > once["repetition"]
    assert again["distinct_2"] < 1


# Statistics


def test_a_summary_worked_out_by_hand() -> None:
    found = summarise({"a": [2.0], "b": [4.0], "c": [4.0, 5.0], "d": [5.0]})
    assert found.mean == pytest.approx(4.0)
    assert found.sd == pytest.approx(math.sqrt(6 / 4))
    assert found.interval is not None
    assert 2.0 < found.interval[0] < 4.0 < found.interval[1] <= 5.0


def test_two_questions_have_the_interval_of_their_four_resamples() -> None:
    """A resample of two questions is both of one (a quarter each) or one of each (half)."""
    assert sum_interval([[{"a": [1.0], "b": [5.0]}]]) == (1.0, 5.0)
    assert sum_interval([[{"a": [1.0], "b": [5.0]}]], divisor=2) == (0.5, 2.5)
    assert summarise({"a": [3.0], "b": [3.0]}).interval == (3.0, 3.0)


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [], "b": []}])
def test_nothing_rated_has_no_summary(scores: Scores) -> None:
    found = summarise(scores)
    assert (found.mean, found.sd, found.interval) == (None, None, None)


def test_one_question_has_no_interval() -> None:
    found = summarise({"a": [3.0]})
    assert (found.mean, found.sd, found.interval) == (3.0, None, None)
    found = summarise({"a": [3.0, 5.0]})
    assert found.mean == 4.0
    assert found.sd == pytest.approx(math.sqrt(2))
    assert found.interval is None, "seeds are no further questions"


def test_one_rated_question_among_others_has_no_interval() -> None:
    """An interval of no width would say that one answer is all there is to know."""
    assert summarise({"a": [3.0], "b": [], "c": []}).interval is None
    whole = {"a": [1.0], "b": [2.0], "c": [5.0]}
    assert sum_interval([[whole, {"a": [3.0], "b": [], "c": []}]]) is None


def test_a_part_without_a_rating_has_no_interval() -> None:
    whole = {"a": [1.0], "b": [2.0], "c": [5.0]}
    assert sum_interval([[whole, {"a": [], "b": [], "c": []}]]) is None
    assert sum_interval([[whole, {}]]) is None
    assert sum_interval([[whole], [{"a": [1.0]}]]) is None
    assert sum_interval([[whole], [whole]]) is not None


@given(SCORES)
@settings(deadline=None)
def test_an_interval_holds_the_mean_and_stays_among_the_scores(scores: dict[str, list[float]]) -> None:
    found = summarise(scores)
    values = [value for group in scores.values() for value in group]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.interval is not None
    assert found.mean is not None
    low, high = found.interval
    assert min(values) - 1e-9 <= low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= high <= max(values) + 1e-9


@given(SCORES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_same_scores_give_the_same_interval_in_any_order(
    scores: dict[str, list[float]], order: random.Random
) -> None:
    keys = list(scores)
    order.shuffle(keys)
    first = sum_interval([[scores]])
    np.random.seed(len(keys))  # numpy's global stream must not matter
    assert sum_interval([[{key: scores[key][::-1] for key in keys}]]) == first


@given(SCORES)
@settings(deadline=None)
def test_poles_that_mirror_each_other_sum_to_a_point(scores: dict[str, list[float]]) -> None:
    """Both poles of a trait are answers to the same questions, so they are resampled together."""
    mirrored = {question: [6.0 - value for value in values] for question, values in scores.items()}
    found = sum_interval([[scores, mirrored]])
    assert found == pytest.approx((6.0, 6.0))


def test_parts_of_different_groups_are_resampled_independently() -> None:
    scores = {f"q{n}": [float(1 + n % 5)] for n in range(40)}
    mirrored = {question: [6.0 - values[0]] for question, values in scores.items()}
    single = sum_interval([[scores]])
    apart = sum_interval([[scores], [mirrored]])
    together = sum_interval([[scores, scores]])
    assert single is not None
    assert apart is not None
    assert together is not None
    width = single[1] - single[0]
    assert apart[1] - apart[0] == pytest.approx(math.sqrt(2) * width, rel=0.15), "variances add"
    assert together[1] - together[0] == pytest.approx(2 * width), "a sum with itself is twice as wide"


def test_a_question_that_one_pole_lacks_keeps_its_place_in_the_other() -> None:
    high = {"a": [1.0], "b": [], "c": [5.0], "d": [3.0], "e": [2.0]}
    low = {"a": [5.0], "b": [2.0], "d": [3.0], "e": [4.0]}
    found = sum_interval([[high, low]])
    assert found is not None
    mean = 11 / 4 + 14 / 4
    assert found[0] < mean < found[1]
    named = {"b": [], **{key: value for key, value in low.items() if key != "b"}, "c": []}
    assert sum_interval([[high, {**low, "c": []}]]) == found, "missing and unrated are the same"
    assert sum_interval([[high, named]]) != found


def test_an_interval_narrows_with_questions_and_not_with_repeats() -> None:
    few = {f"q{n}": [float(1 + n % 5)] for n in range(20)}
    many = {f"q{n}": [float(1 + n % 5)] for n in range(320)}
    repeated = {question: values * 16 for question, values in few.items()}

    def width(scores: Scores) -> float:
        found = sum_interval([[scores]])
        assert found is not None
        return found[1] - found[0]

    assert width(many) == pytest.approx(width(few) / 4, rel=0.2)
    assert width(repeated) == pytest.approx(width(few))


def test_the_interval_is_the_percentile_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).choice([1.0, 2.0, 3.0, 4.0, 5.0], size=60, p=[0.1, 0.1, 0.2, 0.2, 0.4])
    found = sum_interval([[{f"q{n:02}": [float(value)] for n, value in enumerate(values)}]])
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, random_state=0)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.04)
    assert found is not None
    assert found[1] - found[0] > 0.4, "the tolerance is a tenth of what is compared"
