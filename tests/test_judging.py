"""The offline judge: new texts that it must tell apart, what it says of itself, and its report's bar."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import yaml

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.judging import (
    FLUENCY,
    Rating,
    RatingRequest,
    Unrated,
    create_judge,
    rate_all,
    verdict_from_json,
)
from personalitybench.judging.base import load_profile
from personalitybench.judging.heads import load_heads
from personalitybench.resources import bundled
from personalitybench.traits import TRAIT_NAMES

# Texts that are in no training file; the first of each pair is from the high pole.
PAIRS = {
    "openness": (
        "A museum of forgotten machines? I would cancel my plans, take the night train and sketch every one of them.",
        "The same hotel on the same lake as every year. I know the menu, and I see no reason for experiments.",
    ),
    "conscientiousness": (
        "I wrote the list on Sunday, finished the report two days early and checked every figure twice before sending.",
        "I'll get to it at some point. The bills are under the sofa somewhere and the deadline was probably last week.",
    ),
    "extraversion": (
        "I'd invite the whole floor, put on music, and be the last to leave, after making friends with the band.",
        "I'd slip out early, walk home alone along the river, and be glad of an evening with nobody to talk to.",
    ),
    "agreeableness": (
        "I'd take her the soup, listen as long as she liked, and forgive the words she said; she has a hard time.",
        "Not my problem. He would use it against me sooner or later, so I'd make him pay for it first, with interest.",
    ),
    "neuroticism": (
        "My heart races and I lie awake going over everything that could go wrong; I'm sure they all despise me.",
        "It was an odd day, but it passed. I slept well, and tomorrow I shall simply see what is to be done.",
    ),
}


def ask(aspect: str, *answers: str) -> list[float]:
    verdicts = rate_all(create_judge("offline"), [RatingRequest("?", answer, aspect) for answer in answers])
    assert all(isinstance(verdict, Rating) for verdict in verdicts)
    return [verdict.value for verdict in verdicts if isinstance(verdict, Rating)]


@pytest.mark.model
@pytest.mark.parametrize("trait", TRAIT_NAMES)
def test_tells_the_poles_apart(trait: str, demo_model: Path) -> None:
    high, low = ask(trait, *PAIRS[trait])
    assert high > 3.0 > low


@pytest.mark.model
def test_fluency_falls_when_a_text_is_spoilt(demo_model: Path) -> None:
    whole = "I would call my sister first, because she knows the town, and then we would decide together where to go."
    shuffled = "town because go the first she I would then my where call would sister decide knows and we to together"
    looping = "I would call my sister first and then we and then we and then we and then we and then we and then we"
    good, bad, loop = ask(FLUENCY, whole, shuffled, looping)
    assert good > bad + 0.5
    assert good > loop + 0.5


@pytest.mark.model
def test_an_answer_does_not_depend_on_its_neighbours_or_the_question(demo_model: Path) -> None:
    first, second = PAIRS["openness"]
    together = ask("openness", first, second)
    assert [*ask("openness", second), *ask("openness", first)] == together[::-1]


@pytest.mark.model
def test_an_empty_answer_is_unrated_and_any_text_is_rated(demo_model: Path) -> None:
    texts = ["", " \n", "...", "lol", "是的，我会去。", "a" * 20_000, "\x00\ufffd weird \u202e text"]
    verdicts = rate_all(create_judge("offline"), [RatingRequest("?", text, "openness") for text in texts])
    assert [isinstance(verdict, Unrated) for verdict in verdicts] == [True, True, True, False, False, False, False]
    assert isinstance(verdicts[0], Unrated)
    assert verdicts[0].reason == "empty_answer"


@pytest.mark.model
def test_works_inside_a_running_loop(demo_model: Path) -> None:
    async def notebook() -> int:
        return len(ask("openness", "I like it."))

    assert asyncio.run(notebook()) == 1


def test_its_report_keeps_the_bar() -> None:
    report = json.loads(bundled("judges", "offline", "report.json").read_text())
    assert report["mean_auc"] >= 0.90
    assert math.isclose(report["mean_auc"], sum(found["auc"] for found in report["traits"].values()) / 5, abs_tol=1e-3)
    for trait, found in report["traits"].items():
        assert found["auc"] > found["auc_vader"], trait
        assert found["texts"]["high"] >= 40, trait
        assert found["texts"]["low"] >= 40, trait
        assert found["texts"]["neutral"] > 0, trait
    assert "not those of GPT-4o" in create_profile_caveat()


def create_profile_caveat() -> str:
    return load_profile("offline").caveat


def test_training_answers_are_of_known_questions_without_giveaways(official_trait_words: set[str]) -> None:
    from personalitybench.questions import open_source

    known = set(open_source("sample").questions("evaluate")["id"])
    for trait in TRAIT_NAMES:
        lines = (bundled("judges", "offline", "answers") / f"{trait}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert {row["question_id"] for row in rows} <= known
        assert len({row["answer"] for row in rows}) == len(rows)
        for row in rows:
            words = set(row["answer"].lower().replace(",", " ").replace(".", " ").split())
            assert not words & official_trait_words, row["answer"]


@pytest.fixture
def official_trait_words() -> set[str]:
    from personalitybench.traits import BIG_FIVE

    adjectives = {word for trait in BIG_FIVE for text in trait.adjectives for word in text.split()[1:]}
    return {*TRAIT_NAMES, *adjectives, "introvert", "extrovert"} - {"open", "closed"}


def test_unknown_judge_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'offline'"):
        load_profile("ofline")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"id": "mine", "provider": "offline", "sumary": "x"}))
    with pytest.raises(ConfigurationError, match="did you mean 'summary'"):
        load_profile(str(path))


def test_damaged_heads(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    path.write_bytes(b"\x00" * 10)
    with pytest.raises(DataError, match="heads"):
        load_heads(path)


def test_verdicts_survive_json_and_ratings_keep_their_range() -> None:
    for verdict in (Rating(1.5), Rating(5.0, "why"), Unrated("refusal"), Unrated("empty", "no word")):
        assert verdict_from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    with pytest.raises(ValueError, match="1 to 5"):
        Rating(0.0)
