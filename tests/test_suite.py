"""The suite file: strengths, the choice of strengths, the paper's protocol, and what contradicts what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from personalitybench.errors import ConfigurationError
from personalitybench.runs.calls import Tuning
from personalitybench.runs.suite import Suite, load_suite

TUNED: dict[str, Any] = {"name": "npti", "strengths": [2.0, 0.5, 1.0], "choose_on": "dev"}


def load(tmp_path: Path, **keys: Any) -> Suite:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "models": ["demo"], **keys}))
    return load_suite(str(path))


def refused(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, **keys)
    return str(caught.value)


def test_a_chosen_strength_asks_the_dev_half_and_reports_the_test_half(tmp_path: Path) -> None:
    suite = load(tmp_path, methods=["none", "simple", TUNED], seeds=[0, 1])
    assert suite.questions.half == "test"
    (tuning,) = suite.tunings()
    assert tuning.strengths == [0.5, 1.0, 2.0]
    assert tuning.baseline.name == "simple"
    asked = [(call.method.name, call.strength, call.seed, call.half) for call in tuning.calls()]
    assert asked[:2] == [("simple", None, 0, "dev"), ("simple", None, 1, "dev")]
    assert asked[2:] == [("npti", strength, seed, "dev") for strength in (0.5, 1.0, 2.0) for seed in (0, 1)]
    seen: list[Tuning] = []

    def chosen(each: Tuning) -> dict[str, float]:
        seen.append(each)
        return {"openness:low": 0.5}

    reported = list(suite.reported(chosen))
    assert seen == [tuning]
    assert {call.half for call in reported} == {"test"}
    assert [(call.method.name, call.strength, call.seed, call.chosen_on) for call in reported] == [
        *[(name, None, seed, None) for name in ("none", "simple") for seed in (0, 1)],
        *[("npti", {"openness:low": 0.5}, seed, "dev") for seed in (0, 1)],
    ]
    known = list(suite.calls())
    assert tuning.calls() == known[: len(tuning.calls())], "a fit serves the strengths that are chosen from"
    assert all(call.chosen_on is None for call in known)


def test_the_baseline_is_p2_before_simple_or_the_one_that_is_named(tmp_path: Path) -> None:
    assert load(tmp_path, methods=["simple", "p2", TUNED]).tuning.baseline == "p2"
    named = load(tmp_path, methods=["none", "p2", TUNED], tuning={"baseline": "none", "slack": 0})
    assert next(named.tunings()).baseline.name == "none"
    assert named.tuning.slack == 0.0
    assert load(tmp_path, methods=["p2", TUNED]).tuning.slack == 0.1


def test_the_suite_as_it_is_kept_reads_the_same(tmp_path: Path) -> None:
    for keys in (
        {"methods": ["simple", TUNED]},
        {"methods": ["none"]},
        {
            "methods": [{"name": "npti", "strengths": [{"openness": 0.6}]}],
            "protocol": "paper",
            "targets": ["openness:low"],
        },
    ):
        suite = load(tmp_path, **keys)
        assert load(tmp_path, **suite.model_dump(mode="json")) == suite


def test_the_papers_protocol_is_given_strengths_on_all_questions(tmp_path: Path) -> None:
    given = {"name": "npti", "strengths": [{"openness": 0.6, "extraversion": 1.1}, 1.4]}
    suite = load(tmp_path, methods=[given], protocol="paper")
    calls = list(suite.calls())
    assert {call.half for call in calls} == {"all"}
    assert calls[0].strength == {
        "openness:high": 0.6,
        "openness:low": 0.6,
        "extraversion:high": 1.1,
        "extraversion:low": 1.1,
    }
    assert [call.label for call in calls] == ["npti-by-target", "npti-1.4"]
    assert load(tmp_path, methods=[given], protocol={"name": "paper", "max_tokens": 8}).protocol.max_tokens == 8


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"methods": ["p2", TUNED], "questions": {"half": "all"}}, "results are of the test half"),
        ({"methods": ["p2", TUNED], "questions": {"half": "dev"}}, "set it to 'test', not 'dev'"),
        ({"methods": ["p2", TUNED], "protocol": "paper"}, "leave out 'choose_on' of 'npti'"),
        (
            {"methods": ["p2"], "protocol": "paper", "questions": {"half": "test"}},
            "protocol 'paper' asks all questions",
        ),
        ({"methods": ["p2"], "protocol": "papre"}, "protocol.name"),
        ({"methods": ["none", TUNED]}, "add p2 or simple to the methods, or name one of them in 'tuning.baseline'"),
        ({"methods": ["p2", TUNED], "tuning": {"baseline": "simple"}}, "the baseline 'simple' is not a method of"),
        ({"methods": ["p2", TUNED], "tuning": {"baseline": "npti"}}, "those are p2"),
        ({"methods": ["p2"], "tuning": {"baseline": "p2"}}, "no method of the suite has 'choose_on: dev'"),
        ({"methods": ["p2"], "tuning": {"slack": 0}}, "no method of the suite has 'choose_on: dev'"),
        ({"methods": ["p2", TUNED], "tuning": {"slack": -1}}, "tuning.slack"),
        ({"methods": ["p2", TUNED | {"strengths": [1.0]}]}, "a list of at least two numbers"),
        ({"methods": ["p2", TUNED | {"strengths": [1, 2, {"openness": 1}]}]}, "a list of at least two numbers"),
        (
            {"methods": [{"name": "npti", "strengths": [1.0, 2.0, 1]}]},
            "strengths.0 and strengths.2 of method 'npti' are both 1.0",
        ),
        (
            {"methods": [{"name": "npti", "strengths": [{"openness": 1}, {"openness:low": 1, "openness:high": 1.0}]}]},
            "strengths.0 and strengths.1",
        ),
        (
            {"methods": ["p2"], "targets": ["openness:high", "openness:low", "openness:high"]},
            "targets.0 and targets.2 are both openness:high",
        ),
        ({"methods": ["p2"], "targets": []}, "targets: List should have at least 1 item"),
        ({"methods": ["p2"], "targets": ["openness:high"] * 101}, "targets: List should have at most 100 items"),
        ({"methods": ["p2"], "seeds": list(range(101))}, "seeds: List should have at most 100 items"),
        ({"methods": ["p2"], "seeds": [10**30]}, "seeds.0: Input should be less than"),
        (
            {"methods": ["p2"], "seeds": list(range(100)), "models": [str(number) for number in range(100)]},
            "10,000 calls",
        ),
        ({"methods": [{"name": "npti", "strengths": [1.0] * 101}]}, "strengths: List should have at most 100 items"),
        ({"models": ["x" * 1001]}, "models.0.name: String should have at most 1000 characters"),
        ({"methods": ["p2"], "protocol": {"max_tokens": 10**20}}, "protocol.max_tokens: Input should be less than"),
        ({"methods": [{"name": "npti", "strengths": ["strong"]}]}, "methods.0.strengths.0: a strength is a number"),
        ({"methods": ["p2", TUNED | {"choose_on": "test"}]}, "methods.1.choose_on"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    text = refused(tmp_path, **keys)
    assert says in text
    assert "\n" not in text
