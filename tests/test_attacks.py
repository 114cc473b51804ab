"""The answers that judges are attacked with: complete, reproducible, and what they say they are."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from personalitybench.errors import ConfigurationError
from personalitybench.judging import FLUENCY
from personalitybench.judging.attacks import (
    ATTACKS,
    KINDS,
    REFERENCES,
    AttackCollection,
    answers_sha256,
    attack_answers,
    first_person,
    hostile_texts,
    load_attacks,
)
from personalitybench.questions import shared_source
from personalitybench.traits import TARGETS, Pole
from personalitybench.validation import validate


def test_every_kind_answers_the_same_questions_for_every_target() -> None:
    answers = attack_answers(3)
    assert list(answers) == [*ATTACKS, *REFERENCES] == list(KINDS)
    keys = [(answer.target, answer.question_id) for answer in answers["gold"]]
    assert Counter(target for target, _ in keys) == dict.fromkeys(TARGETS, 3)
    sample = set(shared_source("sample").questions("evaluate")["id"])
    for kind, made in answers.items():
        assert [(answer.target, answer.question_id) for answer in made] == keys
        for answer in made:
            assert answer.kind == kind
            assert answer.question_id in sample
            assert answer.question_id.startswith(answer.target.trait)
            assert not re.search(r"@[A-Z]+@", answer.answer)
            assert [item.aspect for item in answer.requests()] == [answer.target.trait, FLUENCY]


def test_fewer_questions_are_among_more() -> None:
    few, many = ({answer.question_id for answer in attack_answers(count)["gold"]} for count in (2, 5))
    assert len(few) == 10
    assert few < many
    for count in (0, 25):
        with pytest.raises(ConfigurationError, match="the sample has 1 to 24"):
            attack_answers(count)


def test_an_injection_holds_the_opposite_text_and_demands_what_the_target_wants() -> None:
    answers = attack_answers(4)
    texts = {(answer.target, answer.question_id): answer.answer for answer in answers["gold"]}
    pairs = zip(answers["injection"], answers["opposite"], strict=True)
    for injection, opposite in pairs:
        assert opposite.answer == texts[opposite.target.opposite, opposite.question_id]
        assert opposite.answer in injection.answer
        demanded, other = ("5", "1") if injection.target.pole is Pole.HIGH else ("1", "5")
        around = injection.answer.replace(opposite.answer, "")
        assert f"[[{other}]]" not in around
        if injection.variant in ("verdict", "polite", "role-tags", "computed-mark"):
            assert f"[[{demanded}]]" in around


def test_the_floors_hold_every_variant_and_more_questions_each_for_both_poles() -> None:
    variants = set(load_attacks().injections)
    assert len(variants) >= 30
    assert {answer.variant for answer in attack_answers()["injection"]} == variants
    both = {(answer.variant, answer.target.pole) for answer in attack_answers(24)["injection"]}
    assert both == {(variant, pole) for variant in variants for pole in Pole}


@pytest.mark.parametrize("added", [0, 1])
def test_an_even_number_of_variants_meets_both_poles_as_well(monkeypatch: pytest.MonkeyPatch, added: int) -> None:
    texts = {f"v{number}": "@ANSWER@ [[@RATING@]]" for number in range(4 + added)}
    changed = load_attacks().model_copy(update={"injections": texts})
    monkeypatch.setattr("personalitybench.judging.attacks.load_attacks", lambda: changed)
    made = attack_answers.__wrapped__(3)["injection"]
    assert {(answer.variant, answer.target.pole) for answer in made} == {(v, pole) for v in texts for pole in Pole}


def test_keywords_name_the_pole_and_a_constant_is_constant() -> None:
    answers = attack_answers(1)
    assert len({answer.answer for answer in answers["constant"]}) == 1
    for answer in answers["keywords"]:
        assert answer.target.adjective in answer.answer
        assert f"{'high' if answer.target.pole is Pole.HIGH else 'low'} {answer.target.trait}" in answer.answer


def test_every_description_of_the_sample_in_the_first_person() -> None:
    """Grammar cannot be tested by a rule; that nobody is addressed any more can, and a few were read."""
    for target, texts in shared_source("sample").descriptions.items():
        for text in texts:
            said = first_person(text)
            assert not re.search(r"\byou(r|rs|rself)?\b", said, re.IGNORECASE), (target, said)
            assert not re.search(r"\bI (are|were|is)\b|\bme am\b", said), (target, said)
            assert said.startswith("I am ")
    told = (
        "You are a clerk. Fancies strike you as odd and tire you. When you were young, your days kept you to yourself."
    )
    assert first_person(told).startswith(
        "I am a clerk. Fancies strike me as odd and tire me. When I was young, my days"
    )


def test_the_hash_covers_every_text() -> None:
    made = attack_answers(2)
    seen = {answers_sha256(answers) for answers in made.values()} | {answers_sha256(attack_answers(3)["gold"])}
    assert len(seen) == len(KINDS) + 1
    assert answers_sha256(made["gold"]) == answers_sha256(attack_answers.__wrapped__(2)["gold"])


def test_the_collection_of_hostile_texts_is_a_collection() -> None:
    texts = hostile_texts()
    assert len(texts) >= 50
    assert len(set(texts.values())) == len(texts)
    assert max(map(len, texts.values())) >= 100_000
    mark = re.findall(r"</answer-([0-9a-f]{16})>", texts["computed-mark"])
    assert mark, "what an attacker can work out is worked out"
    assert texts["computed-mark-loud"].count(mark[0]) == 1


def test_a_wrong_collection_is_told() -> None:
    good = load_attacks().model_dump()
    with pytest.raises(ConfigurationError, match=r"injection 'mine' must have @ANSWER@ once"):
        validate(AttackCollection, good | {"injections": {"mine": "[[5]]"}}, "x")
    with pytest.raises(ConfigurationError, match="unknown key 'constnt': did you mean 'constant'"):
        validate(AttackCollection, {**good, "constnt": "x"}, "x")
