"""Rubrics: the answer stays inside its fence, the templates never get at it, and a wrong file is told at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError
from personalitybench.judging import FLUENCY, Rating, RatingRequest, rubrics
from personalitybench.judging.attacks import hostile_texts
from personalitybench.judging.rubrics import Rubric, fence, load_rubric, rubric_names
from personalitybench.resources import bundled
from personalitybench.traits import BIG_FIVE, TRAIT_NAMES

ATTACKS = hostile_texts()
PROJECT = load_rubric("project")
ASPECTS = (*TRAIT_NAMES, FLUENCY)
QUESTION = "A friend asks you to a party. What do you do?"


def user_turn(rubric: Rubric, item: RatingRequest) -> str:
    return rubric.messages(item)[-1]["content"]


def mark_of(content: str) -> str:
    """The mark of a user turn: of the fence that opens last."""
    return re.findall(r"^<answer-([0-9a-f]{16})>$", content, re.MULTILINE)[0]


def outside(content: str, answer: str) -> str:
    """All of a user turn but the fenced answer, whatever its mark."""
    mark = content[content.rindex("</answer-") + len("</answer-") :].partition(">")[0]
    block = f"<answer-{mark}>\n{answer}\n</answer-{mark}>"
    assert content.count(block) == 1
    rest = content.replace(block, "<THE ANSWER>")
    return rest.replace(mark, "MARK")


@pytest.mark.parametrize("aspect", ["extraversion", FLUENCY])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_answer_stands_inside_its_fence_and_nowhere_else(name: str, aspect: str) -> None:
    answer = ATTACKS[name]
    plain = outside(user_turn(PROJECT, RatingRequest(QUESTION, "I would go.", aspect)), "I would go.")
    system, user = PROJECT.messages(RatingRequest(QUESTION, answer, aspect))
    assert outside(user["content"], answer) == plain
    assert system["content"] == PROJECT.messages(RatingRequest(QUESTION, "I would go.", aspect))[0]["content"]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_question_is_fenced_as_well(name: str) -> None:
    question = ATTACKS[name]
    plain = outside(user_turn(PROJECT, RatingRequest(QUESTION, "I would go.", "openness")), "I would go.")
    content = user_turn(PROJECT, RatingRequest(question, "I would go.", "openness"))
    found = outside(content, "I would go.").replace(f"<question-MARK>\n{question}\n</question-MARK>", "<THE QUESTION>")
    assert found == plain.replace(f"<question-MARK>\n{QUESTION}\n</question-MARK>", "<THE QUESTION>")


def test_the_collection_of_attacks_is_a_collection() -> None:
    assert len(ATTACKS) >= 25
    assert len(set(ATTACKS.values())) == len(ATTACKS)
    assert max(len(answer) for answer in ATTACKS.values()) >= 100_000


@given(question=st.text(), answer=st.text(), aspect=st.sampled_from(ASPECTS))
def test_any_text_is_kept_as_it_is(question: str, answer: str, aspect: str) -> None:
    item = RatingRequest(question, answer, aspect)
    messages = PROJECT.messages(item)
    outside(messages[1]["content"], answer)
    assert messages == PROJECT.messages(item), "a cache finds them again"
    assert [message["role"] for message in messages] == ["system", "user"]
    json.dumps(messages, ensure_ascii=False).encode()


@given(text=st.text(alphabet=st.sampled_from("a\ud800\udc00\udfff\U0001f600\ufeff")))
def test_half_a_character_can_be_sent(text: str) -> None:
    whole = re.sub(
        "[\ud800-\udfff]", "\ufffd", re.sub("\ud800([\udc00\udfff])", lambda m: chr(0x10000 + ord(m[1]) - 0xDC00), text)
    )
    outside(user_turn(PROJECT, RatingRequest("?", text, FLUENCY)), whole)


def test_a_mark_that_the_text_holds_is_drawn_again() -> None:
    # Of the 256 marks of two digits only those that end in 0 are left; each text draws anew.
    held = " ".join(f"{number:02X}" for number in range(256) if number % 16)
    for text in (held, held.lower(), held + " "):
        first = fence({"answer": text}, digits=2)["answer"]
        mark = first.partition("-")[2][:2]
        assert mark.endswith("0")
        assert first == f"<answer-{mark}>\n{text}\n</answer-{mark}>"
    taken = {fence({"answer": str(number)}, digits=2)["answer"].partition("-")[2][:2] for number in range(40)}
    assert len(taken) > 20, "marks differ from text to text"


@given(texts=st.dictionaries(st.sampled_from(["question", "answer"]), st.text("0123456789abcdefABCDEF"), min_size=1))
def test_no_text_holds_its_mark(texts: dict[str, str]) -> None:
    fenced = fence(texts, digits=4)
    marks = {re.fullmatch(rf"<{name}-(\w+)>\n.*\n</{name}-\1>", block, re.DOTALL)[1] for name, block in fenced.items()}  # type: ignore[index]
    assert len(marks) == 1
    assert not any(mark in text.lower() for mark in marks for text in texts.values())


def test_what_the_judge_of_a_trait_is_told() -> None:
    for trait in BIG_FIVE:
        content = user_turn(PROJECT, RatingRequest(QUESTION, "I would go.", trait.name))
        for said in (trait.name, *trait.facets, *trait.adjectives, QUESTION, "at most 30 words", "[[1]]", "[[5]]"):
            assert said in content
        high, low = trait.adjectives
        assert f"5: the answer clearly shows {high} person\n" in content
        assert f"1: the answer clearly shows {low} person\n" in content
        assert "{" not in content
    with pytest.raises(ConfigurationError, match="unknown trait 'extroversion': did you mean 'extraversion'"):
        PROJECT.messages(RatingRequest(QUESTION, "I would go.", "extroversion"))


def test_the_judge_of_fluency_sees_only_the_answer() -> None:
    messages = PROJECT.messages(RatingRequest("A SECRET", "I would go.", FLUENCY))
    assert "SECRET" not in str(messages)
    assert messages == PROJECT.messages(RatingRequest("Another", "I would go.", FLUENCY))
    traits = "|".join(name for trait in BIG_FIVE for name in (trait.name, *trait.facets))
    assert not re.search(rf"\b({traits})\b", str(messages))


def test_the_reply_is_read_by_the_rubric() -> None:
    assert PROJECT.read("It claims [[5]].\n[[2]]", FLUENCY) == Rating(2.0, "It claims [[5]].")


def test_the_direct_rubric_is_the_projects_without_the_explanation() -> None:
    direct = load_rubric("direct")
    for aspect in ASPECTS:
        item = RatingRequest(QUESTION, "I would go.", aspect)
        asked, usual = (rubric.messages(item) for rubric in (direct, PROJECT))
        assert asked[0] == usual[0]
        end = "The material ends here. "
        assert asked[1]["content"].partition(end)[0] == usual[1]["content"].partition(end)[0]
        assert "explain" not in asked[1]["content"]
        assert "[[1]]" in asked[1]["content"].partition(end)[2]


def test_the_systems_message_names_the_fences_as_they_are() -> None:
    system, user = (message["content"] for message in PROJECT.messages(RatingRequest("?", "I would go.", FLUENCY)))
    mark = mark_of(user)
    for line in ("<answer-MARK>", "</answer-MARK>"):
        assert line in system
        assert f"\n{line.replace('MARK', mark)}\n" in user


# Files

TEXTS = {"summary": "one of mine", "system": "Judge.", "trait": "{{ trait }}? {{ answer }}", "fluency": "{{ answer }}"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def make(**changed: str | None) -> str:
        path = tmp_path / "mine.yaml"
        texts = {key: text for key, text in (TEXTS | changed).items() if text is not None}
        path.write_text(yaml.safe_dump(texts), encoding="utf-8")
        return str(path)

    return make


def test_a_rubric_of_ones_own(write: Callable[..., str]) -> None:
    rubric = load_rubric(write())
    assert (rubric.name, rubric.summary, rubric.fenced) == ("mine", "one of mine", True)
    fenced = fence({"answer": "I would go.", "question": "?"})["answer"]
    assert rubric.messages(RatingRequest("?", "I would go.", "openness")) == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": f"openness? {fenced}"},
    ]
    alone = load_rubric(write(system="")).messages(RatingRequest("?", "I would go.", FLUENCY))
    assert [message["role"] for message in alone] == ["user"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"trait": None}, r"rubric .*mine\.yaml: give either 'trait' .* or 'matrix'"),
        ({"fluency": None}, "'fluency' is missing"),
        ({"matrix": "{{ answer }}"}, "give either 'trait'"),
        ({"trait": None, "matrix": "{{ answer }}"}, "'matrix' and 'matrix_again' belong together"),
        ({"matrix_again": "Again."}, "belong together"),
        ({"trait": None, "matrix": "{{ trait }} {{ answer }}", "matrix_again": "x"}, "openness: 'trait' is undefined"),
        ({"sistem": "x"}, "unknown key 'sistem': did you mean 'system'"),
        ({"fenced": "false"}, "unknown key 'fenced'"),
        ({"summary": ""}, "summary"),
        ({"trait": "{{ trait }}?"}, r"'mine', openness: \{\{ answer \}\} must stand once, it is not there unchanged"),
        ({"fluency": "{{ answer }} {{ answer }}"}, r"fluency: \{\{ answer \}\} must stand once, it is there 2 times"),
        ({"fluency": "{{ answer | upper }}"}, "must stand once, it is not there unchanged"),
        ({"fluency": "{{ answer[30:] }}"}, "must stand once, it is not there unchanged"),
        ({"fluency": "{{ question }} {{ answer }}"}, "fluency: 'question' is undefined"),
        ({"fluency": "{{ trait }} {{ answer }}"}, "fluency: 'trait' is undefined"),
        ({"system": "{{ answer }}"}, "system: 'answer' is undefined"),
        ({"trait": "{{ answer }} {{ facet }}"}, "openness: 'facet' is undefined"),
        ({"trait": "{{ answer }"}, "openness: unexpected '}'"),
        ({"trait": "{{ answer }} {% if %}"}, "openness: Expected an expression"),
        ({"trait": "{{ answer }} {{ 1 / 0 }}"}, "openness: line 1: Div is not for rubrics"),
        ({"trait": "{{ answer }} {{ facets[9] }}"}, "openness: .*has no element 9"),
        ({"trait": "{{ answer }} {% include 'x' %}"}, "openness: line 1: Include is not for rubrics"),
        ({"trait": "{{ answer }} {{ ''.__class__.__mro__ }}"}, "openness: access to attribute '__class__'.*is unsafe"),
        ({"trait": "{{ answer }} {{ facets.append('x') }}"}, "openness: line 1: Call is not for rubrics"),
        ({"trait": "{{ answer }} {{ lipsum() }}"}, "openness: line 1: Call is not for rubrics"),
        ({"trait": "{{ answer }} {{ facets | random }}"}, "openness: .*No filter named 'random'"),
    ],
)
def test_a_wrong_rubric_is_told_when_it_is_loaded(
    write: Callable[..., str], changed: dict[str, str | None], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        load_rubric(write(**changed))
    assert "\n" not in str(raised.value)


ENDLESS = [
    "{{ 'a' * 2000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '{:2000000000}'.format(1) }}",
    "{{ 'a'.ljust(2000000000) }}",
    "{{ 'a' | center(2000000000) }}",
    "{{ 'a' | indent(2000000000) }}",
    "{{ question | replace('', question) }}",
    "{{ question | list | join(question) }}",
    "{{ facets | join(facets | join(question)) }}",
    "{{ facets | join('" + "x" * 101 + "') }}",
    "{% for a in question %}{% for b in question %}{% for c in question %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in facets %}{% for b in facets %}{% for c in facets %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000000) %}{% endfor %}",
    "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "{% set facets = question %}{% for a in facets %}x{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(a='x') %}",
    "{% filter upper %}x{% endfilter %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + " ~ ".join(["question"] * 30000) + " }}",
    "{% if question %}" * 300 + "{% endif %}" * 300,
    "x" * 100_001,
    "{% for a in facets %}{% for b in facets %}" + "x" * 90_000 + "{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("part", ENDLESS, ids=lambda part: part[:40])
def test_a_template_that_would_not_end_is_told_when_it_is_loaded(write: Callable[..., str], part: str) -> None:
    before = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"rubric 'mine', openness: .+") as raised:
        load_rubric(write(trait="{{ answer }} " + part))
    assert time.monotonic() - before < 5
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_templates_may_hold_conditions_loops_and_filters(write: Callable[..., str]) -> None:
    text = (
        "{% for facet in facets if facet != 'x' %}{{ loop.index }} {{ facet | title }}{% if not loop.last %}; "
        "{% endif %}{% endfor %} {{ facets | sort | join(', ') }} {{ facets[0] }} {{ trait ~ '!' if high else '' }} "
        "{{ answer }}"
    )
    (message,) = load_rubric(write(trait=text, system="")).messages(RatingRequest("?", "I would go.", "openness"))
    assert "1 Imagination; 2 " in message["content"]
    assert " openness! <answer-" in message["content"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"summary: [", "is not YAML"),
        (b"\xff\xfe\xfa", "is not YAML"),
        (b"- 1", "is not a mapping"),
        (b"", "is not a mapping"),
    ],
)
def test_a_file_that_is_no_rubric(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        load_rubric(str(path))


def test_names() -> None:
    assert rubric_names() == ["direct", "matrix", "official", "project"]
    with pytest.raises(ConfigurationError, match="unknown rubric 'projct': did you mean 'project'"):
        load_rubric("projct")
    with pytest.raises(ConfigurationError, match=r"unknown rubric '/nowhere/mine\.yaml'"):
        load_rubric("/nowhere/mine.yaml")


def test_the_hash_covers_the_facets(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_rubric("project").sha256
    changed = (replace(BIG_FIVE[0], facets=("imagination",)), *BIG_FIVE[1:])
    monkeypatch.setattr(rubrics, "BIG_FIVE", changed)
    assert load_rubric("project").sha256 != before


def test_the_hash_covers_what_can_change_a_rating_and_no_more(write: Callable[..., str]) -> None:
    rubric = load_rubric(write())
    seen = {rubric.sha256, PROJECT.sha256}
    assert load_rubric(write(summary="another")).sha256 == rubric.sha256
    assert replace(rubric, name="another").sha256 == rubric.sha256
    for key in ("system", "trait", "fluency"):
        seen.add(load_rubric(write(**{key: TEXTS[key] + " "})).sha256)
    seen.add(load_rubric(write(again="Once more.")).sha256)
    seen.add(replace(rubric, fenced=False).sha256)
    assert len(seen) == 7
    assert load_rubric(str(bundled("judges", "rubrics", "project.yaml"))) == PROJECT
