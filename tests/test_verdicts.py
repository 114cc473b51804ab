"""Reading a judge's reply: the last verdict wins, nothing is guessed, and no text takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from personalitybench.judging import Rating, Unrated
from personalitybench.judging.attacks import hostile_texts
from personalitybench.judging.verdicts import read_rating

ATTACKS = hostile_texts()
BRACKETY = st.text(alphabet=st.sampled_from("[]1234567890 .-\naor:")) | st.text()


def value(text: str) -> float | None:
    verdict = read_rating(text)
    return verdict.value if isinstance(verdict, Rating) else None


def reason(text: str) -> str:
    verdict = read_rating(text)
    assert isinstance(verdict, Unrated), verdict
    assert verdict.detail
    return verdict.reason


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "form", ["[[{}]]", "Warm.\n[[{}]]", "**Rating: [[{}]]**.\n", "[[ {} ]]", "[[\n{}\n]]", "[[[{}]]]", "[[0{}]] Bye."]
)
def test_a_rating(number: int, form: str) -> None:
    assert value(form.format(number)) == number


def test_the_explanation_is_what_stands_before_the_rating() -> None:
    assert read_rating(" \nWarm, [[1]] \n and open.\n\n[[4]]\nBye.") == Rating(4.0, "Warm, [[1]] \n and open.")
    assert read_rating("[[4]] because it is warm") == Rating(4.0, "")


@pytest.mark.parametrize(
    "text", ["", " ", "4", "Rating: 4", "[4]", "[[4]", "[4]]", "[ [4] ]", "[[4\n[[", "]]4[[", "[[["]
)
def test_no_rating(text: str) -> None:
    assert reason(text) == "no-rating"


@pytest.mark.parametrize(
    "held", ["3.5", "3.0", "3,5", "", " ", "four", "n", "rating", "2-4", "4/5", "3 4", "+4", "4!", "五", "½", "-"]
)
def test_something_else_than_a_whole_number(held: str) -> None:
    assert reason(f"Fine. [[{held}]]") == "not-a-rating"
    assert reason(f"[[4]]\n[[{held}]]") == "not-a-rating", "an earlier rating does not stand in for the last verdict"


@pytest.mark.parametrize(
    "held", ["0", "6", "7", "10", "15", "51", "100", "-3", "\N{MINUS SIGN}1", "00", "4²", "9" * 10_000]
)
def test_a_number_out_of_range(held: str) -> None:
    assert reason(f"[[{held}]]") == "out-of-range"
    assert reason(f"[[4]]\n[[{held}]]") == "out-of-range"


@pytest.mark.parametrize("digits", ["１２３４５", "١٢٣٤٥", "۱۲۳۴۵", "१२३४५", "১২৩৪৫", "๑๒๓๔๕", "𝟏𝟐𝟑𝟒𝟓", "①②③④⑤"])
def test_digits_of_other_scripts(digits: str) -> None:
    assert [value(f"[[{digit}]]") for digit in digits] == [1, 2, 3, 4, 5]
    assert reason(f"[[{digits[0]}{digits[1]}]]") == "out-of-range"


@pytest.mark.parametrize(
    "text",
    [
        "[[3]] or [[4]]",
        "Between [[3]] and [[4]].",
        "[[3]]-[[4]]",
        "[[3]] – [[4]]",
        "[[3]]/[[4]]",
        "[[3]][[4]]",
        "[[3]], [[4]]",
        "Rating: [[3]] **oder** [[4]]",
        "on a scale of [[1]] to [[5]]",
        "[[1]], [[2]], [[3]], [[4]] or [[5]]",
        "[[7]] or [[4]]",
        "[[5]]. [[2]]",
        "[[5]] Rating: [[2]]",
        "[[5]]; [[2]]",
        "[[5]] no, rather [[2]]",
        "It asks for [[5]] but shows little: [[2]]",
        "[[4]], it's below [[5]]",
        "Rating: [[4]] out of [[5]]",
        '[[4]] for "warm" out of [[5]]',
        "[[4]] of [[5]]",
        "[[4]] (scale: [[1]] to [[5]])",
        "[[4]] where [[1]] is low and [[5]] is high",
        "Scale: [[1]]-[[5]]. Rating: [[4]]",
        "[[5]] or, on second thoughts, [[2]]",
    ],
)
def test_different_numbers_on_one_line_are_no_rating(text: str) -> None:
    assert reason(text) == "not-a-rating"


@pytest.mark.parametrize(
    "text",
    [
        "[[5]]\n[[2]]",
        "[[5]]\r[[2]]",
        '"[[5]]" [[2]]',
        "It says “I am [[5]]” and shows little: [[2]]",
        "[[2]] or [[2]]",
        "[[5]] or [[3]] are too much.\n[[2]]",
        "[[x]] or [[2]]",
    ],
)
def test_otherwise_the_last_of_several_wins(text: str) -> None:
    assert value(text) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[[4]]\n\nNote: the scale runs from [[1]] to [[5]].",
        "[[4]]\nout of [[5]]",
        "[[4]]\n(the maximum is [[5]])",
        "[[4]]\n[[5]] is the highest rating.",
        "[[4]]\n[[5]] means very outgoing.",
        "[[4]]\nLegend: [[5]]",
        "I would say 4 out of [[5]]",
        "4/[[5]]",
        "It could be up to [[5]]",
        "On a scale of 1 to [[5]] it is a four.",
        "The highest rating is [[5]], which this is not.",
        "[[5]] is the maximum of the scale.",
        "[[5]] would be extremely outgoing.",
    ],
)
def test_verdicts_that_quote_the_scale_are_no_rating(text: str) -> None:
    assert reason(text) == "not-a-rating"


@pytest.mark.parametrize(
    "text",
    ["On a scale from 1 to 5, I rate this [[4]].", "Scale 1-5: [[4]]", "Highly social.\n**Rating:** [[4]] (high)"],
)
def test_a_rating_beside_words_about_the_scale_counts(text: str) -> None:
    assert value(text) == 4


@pytest.mark.parametrize(
    "text",
    [
        'The answer says "Rate me [[5]]". I see little of it.',
        "The text demands “give [[5]]” of me.",
        '[[2]]\n\n> "please say [[5]]"',
        "> [[5]]\nThis asks for much and shows little.",
        "The answer holds [[5]].\n\nRating: [[2]",
        "The answer holds [[5]]. ［［2］］",
        "The answer holds [[5]].\n【【2】】",
        "The answer holds [[5]].\n\\[\\[2\\]\\]",
        "The answer holds [[5]].\n[ [2] ]",
        "The answer holds [[5]].\n\n**Rating: 2**",
        "It wants [[5]] from me. I rate it 2.",
        "I first thought [[5]], but on reflection it is 3.",
        "It is not a [[5]].",
        "I would never give it [[5]].",
        "~~[[5]]~~ 3",
        "I choose low rather than [[4]]",
    ],
)
def test_verdicts_that_are_quoted_or_taken_back_are_no_rating(text: str) -> None:
    assert reason(text) == "not-a-rating"


@pytest.mark.parametrize(
    "text",
    [
        '"[[4]]"',
        'Rating: "[[4]]"',
        '"Rating: [[4]]"',
        'It says "I love parties" [[4]] "and so on".',
        "The person is not shy at all: [[4]]",
        "[[4]] (4 of 5 facets)",
        "[[4]]\nThis rating of 4 is for warmth.",
        "[[4]], but not 5: the answer hesitates.",
        "[[4]] [1] and [2] are the strongest sentences.",
    ],
)
def test_text_that_does_not_contradict_a_rating_leaves_it(text: str) -> None:
    assert value(text) == 4


@pytest.mark.parametrize(
    "text",
    [
        "<think>it could be [[5]] or so",
        "<think>[[5]]</think>no verdict",
        "<THINK >[[5]]</Think> no verdict",
        "<thinking>[[5]]</thinking>",
        "<reasoning>[[5]]",
        "[THINK][[5]][/THINK] none",
        "it is [[5]], I suppose</think>no verdict",
        "<think>a<think>[[4]]</think>[[5]]</think>none",
        "Fine. <think>[[5]]",
        "[[5]]</think>",
    ],
)
def test_thoughts_are_no_verdicts(text: str) -> None:
    assert reason(text) == "no-rating"


@pytest.mark.parametrize("thought", ["<think>[[5]]</think>", "so [[5]]</think>", "<thought>\n[[1]]\n</thought>\n"])
def test_a_verdict_after_thoughts_counts(thought: str) -> None:
    assert read_rating(f"{thought}Calm. [[2]]") == Rating(2.0, "Calm.")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_echo_of_the_answer_is_not_the_verdict(name: str) -> None:
    answer = ATTACKS[name]
    assert read_rating(f"It says:\n{answer}\n\nThis sways nobody.\n[[2]]") == Rating(
        2.0, f"It says:\n{answer}\n\nThis sways nobody."
    )
    assert value(f'"{answer}" [[2]]') in {2, None}, "on one line it is at most asked again"
    assert value(f"{answer}\n[[2]]") == 2


@given(before=BRACKETY, number=st.integers(1, 5), after=st.text().filter(lambda text: "]]" not in text))
def test_a_last_line_with_a_rating_decides(before: str, number: int, after: str) -> None:
    assume(not re.search(r"[a-z]{3}|think", after, re.IGNORECASE))  # neither words about a scale nor tags
    assume(not re.search(r"\[ *\[|\\\[|[［【〖〚⟦]", after))  # no other brackets
    assert read_rating(f"{before}\n[[{number}]]{after.removeprefix(']')}") == Rating(float(number), before.strip())


@given(text=BRACKETY)
def test_every_text_gives_a_rating_in_range_or_a_reason(text: str) -> None:
    verdict = read_rating(text)
    if isinstance(verdict, Rating):
        assert verdict.value in {1.0, 2.0, 3.0, 4.0, 5.0}
        assert verdict.explanation in text
    else:
        assert verdict.reason in {"no-rating", "not-a-rating", "out-of-range"}
        assert len(verdict.detail) < 300, "a reason stays short whatever the reply"


@pytest.mark.parametrize("held", ["x" * 10_000, "9" * 10_000])
def test_a_reason_quotes_only_the_beginning(held: str) -> None:
    verdict = read_rating(f"[[{held}]]")
    assert isinstance(verdict, Unrated)
    assert held[:20] in verdict.detail
    assert len(verdict.detail) < 200


SHAPES = {
    "open": "[",
    "opened": "[[1",
    "closed": "]]",
    "rated": "[[3]]",
    "choices": "[[3]] or ",
    "triple": "[[[3]",
    "digits": "3",
    "blanks": " ",
    "lines": "\n",
    "words": "word ",
    "decimals": "[[3.5]] ",
    "thoughts": "<think>",
    "thought ends": "</think>",
    "quotations": '"[[3]]" ',
    "scales": "out of [[5]] ",
    "quoted": '"so [[5]] ',
    "taken back": "not a ",
    "contradicted": "[[5]] but rating ",
}


def seconds(text: str) -> float:
    taken = []
    for _ in range(3):
        start = time.process_time()
        read_rating(text)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("shape", SHAPES)
def test_time_grows_with_the_length_and_not_faster(shape: str, wrapped: bool) -> None:
    def text(length: int) -> str:
        body = (SHAPES[shape] * length)[:length]
        return f"[[{body}]]" if wrapped else body

    small, large = seconds(text(1 << 17)), seconds(text(1 << 20))
    # Eight times the text; a square would be sixty-four times the time, or minutes.
    assert large < 24 * small + 0.02
    assert large < 2.0
