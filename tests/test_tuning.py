"""Strengths chosen in a run on a real (tiny) model: kept, resumed, recomputed, shared, and another judge's choice."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from personalitybench import files
from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.judging.base import create_judge
from personalitybench.leaderboard.render import read_board, to_html, to_markdown
from personalitybench.leaderboard.schema import Leaderboard, Sweep
from personalitybench.leaderboard.sweeps import choose, floor_of
from personalitybench.tasks import judge_fingerprint
from tests.plugins import write_judge
from tests.test_runs import contents, run
from tests.test_verify import verify

pytestmark = pytest.mark.model

TARGETS = ["extraversion:high", "extraversion:low", "openness:high"]
SUITE = """
name: tuned
models: [{{name: {model}, batch_size: 8, device: cpu, args: {{dtype: float32}}}}]
methods:
  - none
  - simple
  - {{name: insistent, strengths: [4, 1, 2], choose_on: dev}}
targets: {targets}
judges: [{judge}]
questions: {{limit: 3}}
tuning: {{slack: 0.0}}
protocol: {{max_tokens: 5}}
"""


def write_suite(folder: Path, model: Path, judge: Path, name: str = "tuned") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(SUITE.format(model=model, judge=judge, targets=json.dumps(TARGETS)))
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judges"), "six")


@pytest.fixture(scope="module")
def suite(lively_model: Path, judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), lively_model, judge)


@pytest.fixture(scope="module")
def finished(suite: Path) -> Path:
    """The folder of an uninterrupted run."""
    run(suite, suite.parent / "run")
    return suite.parent / "run"


@pytest.fixture(scope="module")
def board(finished: Path) -> Leaderboard:
    return read_board(finished / "leaderboard.json")


def copy(finished: Path, folder: Path) -> Path:
    for name, content in contents(finished).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Question halves of the calls by label."""
    return {
        path.parent.name.rpartition("-")[0]: json.loads(path.read_text())["settings"]
        for path in folder.glob("calls/*/call.json")
    }


def test_one_row_with_a_strength_for_each_target(finished: Path, board: Leaderboard) -> None:
    rows = {row.identity.method.name: row for row in board.rows}
    assert set(rows) == {"none", "simple", "insistent"}
    assert {row.identity.data.half for row in board.rows} == {"test"}
    assert rows["simple"].identity.method.strength_protocol is None
    method = rows["insistent"].identity.method
    (sweep,) = board.sweeps
    assert method.strength_protocol == "held-out"
    assert method.strength == {target: found.chosen for target, found in sweep.targets.items()}
    assert len(set(method.strength.values())) > 1, "the targets have strengths of their own"
    assert sweep.made(rows["insistent"])
    assert not sweep.made(rows["simple"])
    asked = answers(finished)
    assert set(asked) == {
        *("none", "simple", "insistent-by-target"),
        *("simple-dev", "insistent-1-dev", "insistent-2-dev", "insistent-4-dev"),
    }
    assert {label: found["data"]["half"] for label, found in asked.items() if label.endswith("dev")} == {
        label: "dev" for label in asked if label.endswith("dev")
    }


def test_each_target_is_asked_at_its_own_strength(finished: Path, board: Leaderboard) -> None:
    (sweep,) = board.sweeps
    (folder,) = finished.glob("calls/insistent-by-target-*")
    for target, found in sweep.targets.items():
        lines = (folder / target.replace(":", "-") / "answers.jsonl").read_text().splitlines()
        assert {json.loads(line)["prompt"].count("Remember: you are") for line in lines} == {found.chosen}


def test_dev_and_test_questions_are_different_ones(finished: Path) -> None:
    ids: dict[str, set[str]] = {"dev": set(), "test": set()}
    for path in finished.glob("calls/*/*/answers.jsonl"):
        half = "dev" if "-dev-" in path.parts[-3] else "test"
        ids[half] |= {json.loads(line)["id"] for line in path.read_text().splitlines()}
    assert len(ids["dev"]) == len(ids["test"]) == 6
    assert not ids["dev"] & ids["test"]


def test_the_choice_follows_from_its_own_figures(finished: Path, board: Leaderboard, judge: Path) -> None:
    (path,) = finished.glob("choices/insistent-*/*.json")
    sweep = Sweep.model_validate_json(path.read_text())
    assert [sweep] == board.sweeps
    assert sweep.judge.model_dump() == judge_fingerprint(str(judge))
    assert (sweep.data.half, sweep.data.questions, sweep.baseline.name) == ("dev", 6, "simple")
    for found in sweep.targets.values():
        assert found.baseline.fluency is not None
        assert found.floor == floor_of(found.baseline.fluency, slack=0.0)
        results = {point.strength: point.result for point in found.points}
        assert list(results) == [1.0, 2.0, 4.0]
        assert (found.chosen, found.floor_met) == choose(results, found.floor)
        for point in found.points:
            assert point.result.n == 3
            assert "repetition" in point.result.text
            assert point.floor_met == (point.result.fluency is not None and point.result.fluency >= found.floor)
    assert {found.floor_met for found in sweep.targets.values()} == {True, False}, "both cases are here"


def test_what_a_reader_sees_of_it(finished: Path, board: Leaderboard) -> None:
    (sweep,) = board.sweeps
    failed = [target for target, found in sweep.targets.items() if not found.floor_met]
    for text in (to_markdown(board), to_html(board)):
        assert "held-out" in text
        assert f"floor not met: {len(failed)} of 3" in text
        assert f"No strength met the floor: {', '.join(failed)}" in text
    page = (finished / "index.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("<article>") == 3 * len(board.rows), "one question of each of three targets, every row's answer"


def test_the_board_is_verified_with_its_choice_and_without_its_judge(
    finished: Path, judge: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "run")
    elsewhere = judge.rename(judge.with_suffix(".moved"))
    try:
        create_judge.cache_clear()
        lines, error = verify(folder)
        assert error == ""
        assert lines.startswith(f"{folder}/leaderboard.json: verified: all figures of 3 rows follow from")
        board = json.loads((folder / "leaderboard.json").read_text())
        board["sweeps"][0]["targets"]["openness:high"]["floor"] = 1.0
        (folder / "leaderboard.json").write_text(json.dumps(board))
        assert "sweeps.0.targets.openness:high.floor: the file says 1.0" in verify(folder)[0]
    finally:
        elsewhere.rename(judge)
        create_judge.cache_clear()


def test_stages_one_at_a_time_and_a_second_run_changes_nothing(suite: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for stage in ("generate", "judge", "score"):
        with pytest.raises(StorageError, match="run the stage 'tune' first"):
            run(suite, output, stage)
    printed = run(suite, output, "tune")
    assert "tune insistent: chosen openness:high " in printed
    assert "no strength met the floor, simple's fluency" in printed
    with pytest.raises(StorageError, match="run the stage 'generate'"):
        run(suite, output, "judge")
    for stage in ("generate", "judge", "score"):
        run(suite, output, stage)
    assert contents(output) == contents(finished)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*/*") if path.is_file()}
    assert "chosen" not in run(suite, output)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_stopped_at_every_few_writes_and_resumed(
    suite: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full again and again: after 8 writes, after 8 more, and so on through all of the stage."""
    output, real, stops = tmp_path / "run", os.fsync, 0

    def limited(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", limited)
    while True:
        left = 8
        try:
            run(suite, output, "tune")
        except StorageError:
            stops += 1
            continue
        break
    monkeypatch.setattr(files.os, "fsync", real)
    assert stops > 4
    run(suite, output)
    assert contents(output) == contents(finished)


@pytest.mark.slow
def test_killed_in_the_stage_and_resumed(suite: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    draw = random.Random(20261122)  # noqa: S311 (moments, not secrets)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.killed_run", str(suite), str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != "writing":
            pass
        time.sleep(draw.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(output.glob("calls/*-dev-*")), "it was killed in the stage 'tune' or after it"
    run(suite, output)
    assert contents(output) == contents(finished)


def test_the_same_files_made_again_from_answers_and_ratings(suite: Path, finished: Path, tmp_path: Path) -> None:
    output = copy(finished, tmp_path / "run")
    for path in (*output.glob("leaderboard.*"), output / "index.html", *output.glob("choices/*/*.json")):
        path.unlink()
    with pytest.raises(StorageError, match="run the stage 'tune' first"):
        run(suite, output, "score")
    run(suite, output, "tune", "score")
    assert contents(output) == contents(finished)


def test_what_was_altered_is_noticed(suite: Path, finished: Path, tmp_path: Path) -> None:
    output = copy(finished, tmp_path / "run")
    (path,) = output.glob("choices/*/*.json")
    whole = path.read_text()
    path.write_text(whole.replace('"floor_met": false', '"floor_met": true', 1))
    with pytest.raises(StorageError, match="does not follow from the answers and ratings"):
        run(suite, output, "score")
    path.write_text(whole)
    (ratings,) = output.glob("calls/insistent-1-dev-*/openness-high/hash-*.jsonl")
    ratings.write_text(ratings.read_text().replace("rating", "ratign", 1))
    with pytest.raises(StorageError, match="was altered"):
        run(suite, output, "score")
    ratings.with_suffix(".json").unlink()
    with pytest.raises(StorageError, match="run the stage 'tune' first"):
        run(suite, output, "score")


def test_another_judge_makes_another_choice_of_the_same_answers(
    lively_model: Path, finished: Path, board: Leaderboard, tmp_path: Path
) -> None:
    output = copy(finished, tmp_path / "run")
    before = contents(output)
    other = write_suite(tmp_path, lively_model, write_judge(tmp_path, "two"))
    run(other, output)
    after = contents(output)
    assert len(list(output.glob("choices/insistent-*/*.json"))) == 2
    assert {name for name in before if name.startswith(("calls", "choices"))} <= set(after)
    assert all(after[name] == content for name, content in before.items() if name.startswith(("calls", "choices")))
    swapped = read_board(output / "leaderboard.json")
    strengths = [read.sweeps[0].method.strength for read in (board, swapped)]
    assert strengths[0] != strengths[1]
    assert len(list(output.glob("calls/insistent-by-target-*"))) == 2, "the test half is asked at the new strengths"
    assert len(list(output.glob("calls/*-dev-*"))) == 4, "the dev half is not asked again"


def test_a_second_judge_rates_what_the_first_chose(
    lively_model: Path, finished: Path, judge: Path, board: Leaderboard, tmp_path: Path
) -> None:
    output = copy(finished, tmp_path / "run")
    suite = write_suite(tmp_path, lively_model, judge)
    suite.write_text(suite.read_text().replace("judges: [", f"judges: [{judge}, {write_judge(tmp_path, 'two')}]  # ["))
    run(suite, output)
    (second,) = output.glob("leaderboard-hash-two.json")
    read = read_board(second)
    assert read.judge.id == "hash-two"
    assert read.sweeps == board.sweeps
    assert [row.identity.method.strength for row in read.rows if row.identity.method.name == "insistent"] == [
        board.sweeps[0].method.strength
    ]
    assert read_board(output / "leaderboard.json") == board


def test_dev_answers_are_ordinary_ones_that_another_suite_shares(
    lively_model: Path, suite: Path, finished: Path, judge: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    given = write_suite(tmp_path, lively_model, judge, "given")
    text = given.read_text().replace(", choose_on: dev", "").replace("{limit: 3}", "{limit: 3, half: dev}")
    given.write_text(text.replace("  - none\n", "").replace("tuning: {slack: 0.0}\n", ""))
    run(given, output)
    assert {row.identity.method.strength_protocol for row in read_board(output / "leaderboard.json").rows} == {
        None,
        "given",
    }
    asked = {path: path.stat().st_mtime_ns for path in output.rglob("answers.jsonl")}
    assert len(asked) == 4 * len(TARGETS)
    run(suite, output)
    assert {path: path.stat().st_mtime_ns for path in asked} == asked
    assert contents(output) == contents(finished)


def test_the_papers_protocol_is_marked(lively_model: Path, judge: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, lively_model, judge)
    text = suite.read_text().replace("[4, 1, 2], choose_on: dev", "[{extraversion: 1, openness: 2}]")
    text = text.replace("tuning: {slack: 0.0}\n", "")
    suite.write_text(text.replace("{max_tokens: 5}", "{name: paper, max_tokens: 4}").replace("  - none\n", ""))
    run(suite, tmp_path / "run")
    rows = {row.identity.method.name: row for row in read_board(tmp_path / "run" / "leaderboard.json").rows}
    assert rows["insistent"].identity.method.strength_protocol == "paper"
    assert rows["insistent"].identity.method.strength == {
        **{f"openness:{pole}": 2.0 for pole in ("high", "low")},
        **{f"extraversion:{pole}": 1.0 for pole in ("high", "low")},
    }
    assert {row.identity.data.half for row in rows.values()} == {"all"}
    suite.write_text(suite.read_text().replace("openness: 2", "neuroticism: 2"))
    with pytest.raises(ConfigurationError, match="have none for openness:high"):
        run(suite, tmp_path / "other")
