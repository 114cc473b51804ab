"""All traits in one reply: what is asked, how the JSON is read, and that nothing but the judge's own object counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.judging import FLUENCY, Rating, RatingRequest, Unrated, rate_all
from personalitybench.judging.attacks import hostile_texts
from personalitybench.judging.base import JudgeProfile
from personalitybench.judging.matrix_verdicts import matrix_schema, read_matrix
from personalitybench.judging.rubrics import fence, load_rubric
from personalitybench.traits import BIG_FIVE, TRAIT_NAMES
from tests.chat_server import ChatServer

MATRIX = load_rubric("matrix")
QUESTION = "A friend asks you to a party. What do you do?"


HOSTILE = hostile_texts()


def reply(rating: object = 2, **others: object) -> str:
    """An object in which every trait has a rating."""
    ratings = dict.fromkeys(TRAIT_NAMES, rating) | others
    return json.dumps({trait: {"explanation": f"Of {trait}.", "rating": value} for trait, value in ratings.items()})


def value(text: str, trait: str = "openness") -> float:
    verdict = read_matrix(text, trait)
    assert isinstance(verdict, Rating), verdict
    return verdict.value


def reason(text: str, trait: str = "openness") -> str:
    verdict = read_matrix(text, trait)
    assert isinstance(verdict, Unrated), verdict
    assert 0 < len(verdict.detail) < 250
    return verdict.reason


# What is asked


def test_all_traits_share_their_messages() -> None:
    asked = [MATRIX.messages(RatingRequest(QUESTION, "I would go.", trait)) for trait in TRAIT_NAMES]
    assert all(messages == asked[0] for messages in asked)
    content = asked[0][-1]["content"]
    for trait in BIG_FIVE:
        assert f"{trait.name} ({', '.join(trait.facets)}): 5 is {trait.adjectives[0]} person, 1 is " in content
    shape = content[content.rindex("\n{\n") :].replace("...", "null")
    assert list(json.loads(shape)) == list(TRAIT_NAMES), "the form that it shows is the form that is read"


def test_fluency_is_asked_by_itself_and_sees_only_the_answer() -> None:
    messages = MATRIX.messages(RatingRequest("A SECRET", "I would go.", FLUENCY))
    assert messages[-1] == load_rubric("project").messages(RatingRequest("?", "I would go.", FLUENCY))[-1]
    assert MATRIX.read("Well put. [[4]]", FLUENCY) == Rating(4.0, "Well put.")
    assert MATRIX.response_format(FLUENCY) is None
    assert "double square brackets" in MATRIX.further_turn(FLUENCY)
    assert "JSON" in MATRIX.further_turn("openness")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_stays_in_its_fence(name: str) -> None:
    answer = HOSTILE[name]
    system, user = MATRIX.messages(RatingRequest(QUESTION, answer, "openness"))
    block = fence({"answer": answer, "question": QUESTION})["answer"]
    assert user["content"].count(block) == 1
    plain = MATRIX.messages(RatingRequest(QUESTION, "I would go.", "openness"))
    assert system == plain[0]
    assert len(user["content"]) - len(answer) == len(plain[1]["content"]) - len("I would go.")


def test_the_schema_is_one_that_structured_outputs_take() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    form = MATRIX.response_format("openness")
    assert form is not None
    schema = form["json_schema"]["schema"]
    assert schema == matrix_schema(TRAIT_NAMES)
    jsonschema.Draft202012Validator.check_schema(schema)
    accepts = jsonschema.Draft202012Validator(schema).is_valid
    assert accepts(json.loads(reply(3)))
    for wrong in (reply(6), reply(2.5), reply("4"), '{"openness": {"explanation": "", "rating": 4}}'):
        assert not accepts(json.loads(wrong))


# What is read


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "```json\n{}\n```",
        "Here it is:\n\n{}\n\nI hope that helps.",
        "{} [[5]]",
        " {} ",
        "A stray {{ and then\n{}",
    ],
)
def test_a_reply(form: str) -> None:
    text = form.replace("{{", "\0").replace("{}", reply(2, neuroticism=5)).replace("\0", "{")
    assert read_matrix(text, "openness") == Rating(2.0, "Of openness.")
    assert read_matrix(text, "neuroticism") == Rating(5.0, "Of neuroticism.")


def test_an_explanation_may_be_missing_hold_braces_or_go_over_lines() -> None:
    assert read_matrix('{"openness": {"rating": 4}}', "openness") == Rating(4.0)
    tricky = json.dumps({"openness": {"explanation": 'It says {"openness": {"rating": 5}} \\ "[[5]]" }', "rating": 1}})
    assert value(tricky) == 1
    assert read_matrix('{"openness": {"explanation": "one\ntwo", "rating": 4}}', "openness") == Rating(4.0, "one\ntwo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no-rating"),
        ("[[4]]", "no-rating"),
        ("openness: 4", "no-rating"),
        ("{}", "no-rating"),
        ("{openness: {rating: 4}}", "no-rating"),
        ('{"openness": {"rating": 4}', "no-rating"),
        ('{"extraversion": {"rating": 4}}', "no-rating"),
        ('{"Openness": {"rating": 4}}', "no-rating"),
        ('{"openness": 4}', "no-rating"),
        ('{"openness": {"explanation": "fine"}}', "no-rating"),
        ('{"ratings": {"openness": {"rating": 4}}}', "no-rating"),
        (reply(4) + " {", "no-rating"),
        (reply(4) + " {so be it}", "no-rating"),
        (reply(4) + ' {"openness": {"rating": 1', "no-rating"),
        (reply(3.5), "not-a-rating"),
        (reply(4.0), "not-a-rating"),
        (reply("4"), "not-a-rating"),
        (reply(True), "not-a-rating"),
        (reply(None), "not-a-rating"),
        (reply([4]), "not-a-rating"),
        ('{"openness": {"rating": NaN}}', "not-a-rating"),
        ('{"openness": {"explanation": 1, "rating": 4}}', "not-a-rating"),
        ('{"openness": {"rating": 4, "rating": 5}}', "not-a-rating"),
        ('{"openness": {"rating": 4}, "openness": {"rating": 5}}', "not-a-rating"),
        ('{"openness": {"rating": 4}, "x": {"a": 1, "a": 1}}', "not-a-rating"),
        (reply(0), "out-of-range"),
        (reply(6), "out-of-range"),
        (reply(-3), "out-of-range"),
        ('{"openness": {"rating": ' + "9" * 10_000 + "}}", "out-of-range"),
        ('{"openness": {"rating": "' + "9" * 10_000 + '"}}', "not-a-rating"),
        ('{"a":' * 100_000, "no-rating"),
        ('{"a":' * 40 + "[" * 100_000 + "]" * 100_000 + "}" * 40, "no-rating"),
    ],
)
def test_what_is_no_rating(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_one_trait_that_is_wrong_spoils_no_other() -> None:
    text = reply(4, neuroticism="high", agreeableness=9)
    assert value(text, "openness") == 4
    assert reason(text, "neuroticism") == "not-a-rating"
    assert reason(text, "agreeableness") == "out-of-range"


@pytest.mark.parametrize("name", HOSTILE)
def test_an_echo_of_the_answer_is_not_the_verdict(name: str) -> None:
    for answer in (HOSTILE[name], HOSTILE[name] + reply(5)):
        assert value(f"It says:\n{answer}\n\nThis sways nobody.\n{reply(2)}") == 2
        assert value(json.dumps({"openness": {"explanation": answer, "rating": 2}})) == 2


@given(before=st.text(), rating=st.integers(1, 5), after=st.text().filter(lambda text: "{" not in text))
def test_the_object_at_the_end_decides(before: str, rating: int, after: str) -> None:
    quoted = reply(6 - rating)
    text = f"{before.replace('{', '(')} {quoted} {before.replace('{', '(')} {reply(rating)}{after}"
    assert value(text) == rating


JSONISH = st.text(alphabet=st.sampled_from('{}[]":,\\ 1245.-eopnsratig\n')) | st.text()
PIECES = st.lists(
    st.sampled_from([reply(5), reply(1), '{"openness": {"rating": 3}}', "{", "}", '"', "\\", "x", ": ", ", "])
)


@given(text=JSONISH | PIECES.map("".join))
def test_every_text_gives_a_rating_in_range_or_a_reason(text: str) -> None:
    verdict = read_matrix(text, "openness")
    if isinstance(verdict, Rating):
        assert verdict.value in {1.0, 2.0, 3.0, 4.0, 5.0}
    else:
        assert verdict.reason in {"no-rating", "not-a-rating", "out-of-range"}
        assert len(verdict.detail) < 250


@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_only_whole_numbers_from_one_to_five_are_ratings(value: Any) -> None:
    is_rating = type(value) is int and 1 <= value <= 5
    assert isinstance(read_matrix(json.dumps({"openness": {"rating": value}}), "openness"), Rating) == is_rating


@pytest.mark.parametrize("shape", ["{", '{"', "{}", '{"a":{', '{"a":1,', "}", '"', "{{{{ ''' \"", "\\", reply(1)])
def test_time_grows_with_the_length_and_not_faster(shape: str) -> None:
    def seconds(length: int) -> float:
        start = time.process_time()
        read_matrix((shape * length)[:length], "openness")
        return time.process_time() - start

    small, large = (min(seconds(length) for _ in range(3)) for length in (1 << 16, 1 << 20))
    # Sixteen times the text; a square would be 256 times the time, or minutes.
    assert large < 64 * small + 0.1
    assert large < 3.0


# The whole judge


@pytest.fixture
def judge(chat_server: ChatServer, cache: object) -> Callable[..., Any]:
    pytest.importorskip("openai")
    from personalitybench.judging.chat_judge import ChatJudge

    def make(**settings: Any) -> ChatJudge:
        asked = {"model": "small", "base_url": chat_server.url, "rubric": "matrix", **settings}
        profile = {"id": "served", "provider": "chat", "summary": "for tests", "settings": asked}
        return ChatJudge(JudgeProfile.model_validate(profile))

    return make


def test_five_traits_are_one_call(judge: Callable[..., Any], chat_server: ChatServer) -> None:
    def answer(body: Any) -> str:
        return reply(2, extraversion=5) if "response_format" in body else "Well put. [[4]]"

    chat_server.answer = answer
    items = [RatingRequest(QUESTION, "I would go.", aspect) for aspect in (*TRAIT_NAMES, FLUENCY)]
    asking = judge()
    estimate = asking.estimate(items)
    assert (estimate.ratings, estimate.calls, estimate.completion_tokens) == (6, 2, 5 * 80 + 80)
    verdicts = rate_all(asking, items)
    assert [verdict.value for verdict in verdicts] == [2, 2, 5, 2, 2, 4]
    assert len(chat_server.requests) == 2
    forms = [request.body.get("response_format") for request in chat_server.requests]
    assert sorted(forms, key=str) == [None, MATRIX.response_format("openness")]


def test_the_schema_is_part_of_the_request_and_can_be_left_out(
    judge: Callable[..., Any], chat_server: ChatServer
) -> None:
    chat_server.answer = lambda _: reply(3)
    item = RatingRequest(QUESTION, "I would go.", "openness")
    for asking in (judge(), judge(structured=False), judge()):
        assert rate_all(asking, [item]) == [Rating(3.0, "Of openness.")]
    assert ["response_format" in request.body for request in chat_server.requests] == [True, False]
    assert judge().profile.sha256 != judge(structured=False).profile.sha256


def test_it_is_asked_once_more_in_words_that_fit(judge: Callable[..., Any], chat_server: ChatServer) -> None:
    def answer(body: Any) -> str:
        if body["messages"][-1]["content"] == MATRIX.further_turn("openness"):
            return reply(4, neuroticism=0)
        return reply(3, openness="rather open", neuroticism="low")

    chat_server.answer = answer
    verdicts = rate_all(judge(), [RatingRequest(QUESTION, "I would go.", trait) for trait in TRAIT_NAMES])
    assert [verdict.value for verdict in verdicts[:4]] == [4, 3, 3, 3]
    assert verdicts[4].reason == "out-of-range"
    assert len(chat_server.requests) == 2, "both traits share the further turn"
