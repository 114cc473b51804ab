"""The models that answered a judge's requests are recorded with counts, and a swapped model is announced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.judging import Rating, Unrated, rate_all
from personalitybench.judging.base import JudgeProfile, count_models, verdict_from_json
from personalitybench.judging.chat_judge import ChatJudge, is_dated_alias
from tests.chat_server import ChatServer, Fault
from tests.killed_judge import items
from tests.test_chat_judge import KEY, profile
from tests.test_lm_eval_records import write

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def answered_by(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], ChatJudge]:
    monkeypatch.setenv("TEST_KEY", KEY)
    chat_server.key = None

    def make(names: list[str]) -> ChatJudge:
        count = iter(range(1000))

        def fault(*_: Any) -> Fault:
            choice = {"message": {"content": "Calm. [[3]]"}, "finish_reason": "stop"}
            value = {"model": names[next(count) % len(names)], "choices": [choice]}
            return Fault("raw", body=json.dumps(value).encode())

        chat_server.rule = fault
        return ChatJudge(JudgeProfile.model_validate(profile(chat_server)))

    return make


@pytest.mark.parametrize("names", [["small"], ["small-2024-08-06"], ["small-0613"], ["small@20250101"]])
def test_model_that_was_asked_for_is_recorded_without_a_word(
    names: list[str], answered_by: Callable[[list[str]], ChatJudge], caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = rate_all(answered_by(names), items(4))
    assert count_models(verdicts) == {names[0]: 4}
    assert caplog.messages == []


@pytest.mark.parametrize(
    "names", [["cheap-model-7b"], ["small", "cheap-model-7b"], ["small-2024-05-13", "small-2024-08-06"]]
)
def test_other_and_several_models_are_announced(
    names: list[str], answered_by: Callable[[list[str]], ChatJudge], caplog: pytest.LogCaptureFixture
) -> None:
    judge = answered_by(names)
    verdicts = rate_all(judge, items(4))
    assert count_models(verdicts) == dict.fromkeys(names, 4 // len(names))
    told = ", ".join(sorted(names))
    assert caplog.messages[-1] == f"judge {judge.profile.id}: asked for model small, answered by {told}"
    count = len(caplog.messages)
    assert list(rate_all(judge, items(4))) == list(verdicts), "from the store"
    assert len(caplog.messages) == count


def test_model_survives_its_file_and_decides_no_equality() -> None:
    made = Rating(3.0, "Calm.", model="small-2024-08-06")
    assert verdict_from_json(json.loads(json.dumps(made.to_json()))).model == "small-2024-08-06"  # type: ignore[union-attr]
    assert made == Rating(3.0, "Calm.")
    member = {"members": {"a": made.to_json(), "b": Unrated("refused").to_json()}}
    assert count_models([made, Unrated("empty"), Rating(3.0, basis=member)]) == {"small-2024-08-06": 2}


@pytest.mark.parametrize("name", ["small-mini", "smaller", "small-7b", "xsmall-2024"])
def test_other_names_are_no_dated_alias(name: str) -> None:
    assert not is_dated_alias(name, "small")


def test_names_stand_in_the_manifest_and_in_the_row(
    chat_server: ChatServer, tmp_path: Path, command: Callable[..., Any]
) -> None:
    judge = tmp_path / "mine.yaml"
    settings = f"settings: {{model: judge, base_url: {chat_server.url}, api_key_env: TEST_KEY}}"
    judge.write_text(f"id: mine\nprovider: chat\nsummary: s\n{settings}\n")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\nmodels: [{name: d, backend: dummy}]\nmethods: [none]\ntargets: [extraversion:high]\n"
        f"questions: {{limit: 2}}\nfloors: false\njudges: [{judge}]\n"
    )
    done = command("run", str(suite), "--output", str(tmp_path / "out"), TEST_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "asked for model judge, answered by judge-as-served" in done.stderr
    (manifest,) = tmp_path.glob("out/calls/*/*/mine-*.json")
    assert json.loads(manifest.read_text())["models"] == {"judge-as-served": 4}
    (board,) = tmp_path.glob("out/**/leaderboard.json")
    (row,) = json.loads(board.read_text())["rows"]
    assert row["provenance"]["judge_models"] == {"judge-as-served": 4}


def test_names_stand_in_the_manifests_of_lm_eval_comparisons_and_null_baselines(
    chat_server: ChatServer, tmp_path: Path, command: Callable[..., Any]
) -> None:
    judge = tmp_path / "mine.yaml"
    settings = f"settings: {{model: judge, base_url: {chat_server.url}, api_key_env: TEST_KEY}}"
    judge.write_text(f"id: mine\nprovider: chat\nsummary: s\n{settings}\n")
    write(tmp_path / "out")
    cache = tmp_path / "cache"
    environment = {"TEST_KEY": KEY, "PERSONALITYBENCH_CACHE": str(cache)}
    done = command("judge", "out", "--judge", str(judge), **environment)
    assert done.returncode == 0, done.stderr
    done = command(
        "judges", "compare", str(judge), "--answers", "gold", "--sample", "1", "--repeats", "2", **environment
    )
    assert done.returncode == 0, done.stderr

    def models(folder: Path) -> list[dict[str, Any]]:
        manifests = [json.loads(path.read_text()) for path in sorted(folder.rglob("mine-*/**/*.json"))]
        manifests += [json.loads(path.read_text()) for path in sorted(folder.rglob("mine-*.json"))]
        assert all(manifest["models"].keys() == {"judge-as-served"} for manifest in manifests)
        assert all(manifest["models"]["judge-as-served"] == 2 * manifest["lines"] for manifest in manifests)
        return manifests

    assert len(models(tmp_path / "out" / "ratings")) == 1
    assert len(models(cache / "judges" / "floors")) == 4
    assert len(models(cache / "judges" / "comparisons")) == 2
    asked = len(chat_server.requests)
    again = command(
        "judges", "compare", str(judge), "--answers", "gold", "--sample", "1", "--repeats", "2", **environment
    )
    assert again.returncode == 0, again.stderr
    assert len(chat_server.requests) == asked
    (sheet,) = (path for path in (cache / "judges" / "comparisons").rglob("*.jsonl") if "repeat" not in path.name)
    lines = sheet.read_text().splitlines(keepends=True)
    sheet.write_text("".join([*lines, lines[0]]))
    compare = ("judges", "compare", str(judge), "--answers", "gold", "--sample", "1")
    done = command(*compare, **environment)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert f"{sheet.name}:{len(lines) + 1} repeats the rating of line 1" in done.stderr


def test_ever_new_names_are_not_told_for_ever(
    answered_by: Callable[[list[str]], ChatJudge], caplog: pytest.LogCaptureFixture
) -> None:
    rate_all(answered_by([f"{number:<1000}" for number in range(40)]), items(40))
    assert len(caplog.messages) <= 5
    assert all(len(message) < 2000 for message in caplog.messages)
