"""Runs on a real (tiny) model: complete, resumed after kills and full disks, equal to lm-eval's."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from personalitybench import files
from personalitybench.errors import ModelError, StorageError
from personalitybench.runs.command import run_suite
from personalitybench.tasks import tasks_folder
from tests.test_lm_eval_command import common, lm_eval

pytestmark = pytest.mark.model

SUITE = """
name: small
models:
  - {{name: {model}, batch_size: 3, device: cpu, args: {{dtype: {dtype}}}}}
methods: {methods}
targets: {targets}
questions: {{source: sample, half: test, limit: 2}}
protocol: {{max_tokens: 8}}
"""
TWO_TARGETS = "['extraversion:high', 'extraversion:low']"


@pytest.fixture
def small_suite(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.format(model=tiny_model, methods="[none, p2]", targets=TWO_TARGETS, dtype="float32"))
    return path


def run(suite: Path, output: Path, *stages: str) -> str:
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    run_suite(str(suite), output, stages, console)
    return console.export_text()


def contents(folder: Path) -> dict[str, bytes]:
    """All files; not the lock, and not what a kill in the middle of an atomic write leaves beside the file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    suite = folder / "small.yaml"
    suite.write_text(SUITE.format(model=tiny_model, methods="[none, p2]", targets=TWO_TARGETS, dtype="float32"))
    run(suite, folder / "run")
    return contents(folder / "run")


def test_a_run_ends_with_a_board_and_a_second_one_changes_nothing(
    small_suite: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    printed = run(small_suite, tmp_path / "run")
    assert "p2" in printed
    assert "leaderboard.json" in printed
    assert contents(tmp_path / "run") == reference
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "calls").rglob("*") if path.is_file()}
    run(small_suite, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    board = json.loads(reference["leaderboard.json"])
    assert {row["identity"]["method"]["name"] for row in board["rows"]} == {"none", "p2"}
    for row in board["rows"]:
        assert set(row["traits"]) == {"extraversion"}
        assert row["targets"]["extraversion:low"]["n"] == 2


def test_stages_one_at_a_time(small_suite: Path, tmp_path: Path, reference: dict[str, bytes]) -> None:
    output = tmp_path / "run"
    with pytest.raises(StorageError, match="run the stage 'generate'"):
        run(small_suite, output, "judge")
    run(small_suite, output, "generate")
    assert not (output / "leaderboard.json").exists()
    with pytest.raises(StorageError, match="run the stage 'judge'"):
        run(small_suite, output, "score")
    run(small_suite, output, "judge")
    run(small_suite, output, "score")
    assert contents(output) == reference


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed(
    small_suite: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    output = tmp_path / "run"
    draw = random.Random(20261122)  # noqa: S311 (moments, not secrets)
    command = [sys.executable, "-m", "tests.killed_run", str(small_suite), str(output)]
    for _ in range(10):
        # The process says when it begins to write, and is killed at a random moment after that.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parent.parent
        )
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != "writing":
            pass
        time.sleep(draw.uniform(0.0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(small_suite, output)
    assert contents(output) == reference


def test_interrupted_from_the_keyboard_and_resumed(
    small_suite: Path, tmp_path: Path, reference: dict[str, bytes]
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "personalitybench.cli", "run", str(small_suite), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(output.rglob("answers.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: what is finished is kept" in said
    assert "Traceback" not in said
    run(small_suite, output)
    assert contents(output) == reference


def test_a_full_disk_is_said_and_the_run_resumes(
    small_suite: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    real, left = os.fsync, 5

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device.*resumes"):
        run(small_suite, output)
    monkeypatch.setattr(files.os, "fsync", real)
    run(small_suite, output)
    assert contents(output) == reference


def test_judging_and_scoring_need_no_model(tmp_path: Path, tiny_model: Path, reference: dict[str, bytes]) -> None:
    copy = tmp_path / tiny_model.name
    shutil.copytree(tiny_model, copy)
    suite = tmp_path / "small.yaml"
    suite.write_text(SUITE.format(model=copy, methods="[none, p2]", targets=TWO_TARGETS, dtype="float32"))
    run(suite, tmp_path / "run", "generate")
    shutil.rmtree(copy)
    run(suite, tmp_path / "run", "judge", "score")
    assert contents(tmp_path / "run")["leaderboard.json"] == reference["leaderboard.json"]
    with pytest.raises(ModelError, match="does not exist"):
        run(suite, tmp_path / "another")


def test_an_altered_answer_is_noticed(small_suite: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(small_suite, output)
    answers = next(output.rglob("answers.jsonl"))
    answers.write_text(answers.read_text().replace("id", "di", 1))
    with pytest.raises(StorageError, match="was altered"):
        run(small_suite, output)


def test_two_processes_do_not_share_a_folder(small_suite: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    output = tmp_path / "run"
    output.mkdir()
    with FileLock(output / ".lock"), pytest.raises(StorageError, match="another process is running"):
        run(small_suite, output)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_same_prompts_answers_and_board_as_lm_eval(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    """One lm_eval call over the whole group, and a run of the same settings."""
    suite = tmp_path / "whole.yaml"
    suite.write_text(
        SUITE.format(model=tiny_model, methods="[p2]", targets="all", dtype=dtype)
        .replace("batch_size: 3", "batch_size: 8")
        .replace("name: small", "name: lm-eval")
    )
    run(suite, tmp_path / "run")
    arguments = common(tiny_model, tmp_path / "out", limit=2, method="p2", half="test", max_tokens=8)
    arguments = [argument.replace("dtype=float32", f"dtype={dtype}") for argument in arguments]
    done = lm_eval("--include_path", str(tasks_folder()), "--tasks", "personalitybench", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    made = lm_eval(
        *("leaderboard", "from-lm-eval", str(tmp_path / "out"), "--output", str(tmp_path / "board")),
        module="personalitybench.cli",
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    answers = {}
    for path in (tmp_path / "run").rglob("answers.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            answers[path.parent.name, row["id"]] = (row["prompt"], row["answer"])
    found = {}
    for path in (tmp_path / "out").rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            key = (sample["doc"]["target"].replace(":", "-"), sample["doc"]["id"])
            found[key] = (sample["arguments"]["gen_args_0"]["arg_0"], sample["resps"][0][0])
    assert found == answers
    assert len(found) == 20
    ours = (tmp_path / "run" / "leaderboard.json").read_text()
    theirs = (tmp_path / "board" / "leaderboard.json").read_text()
    assert theirs == ours


def test_a_setting_that_changes_meets_no_old_answers(small_suite: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(small_suite, output)
    before = contents(output)
    small_suite.write_text(small_suite.read_text().replace("max_tokens: 8", "max_tokens: 9"))
    run(small_suite, output)
    folders: Callable[[dict[str, bytes]], set[str]] = lambda found: {  # noqa: E731
        name.split("/")[1] for name in found if name.startswith("calls/")
    }
    after = contents(output)
    assert len(folders(after) - folders(before)) == 2
    board = json.loads(after["leaderboard.json"])
    assert {row["identity"]["protocol"]["max_tokens"] for row in board["rows"]} == {9}
