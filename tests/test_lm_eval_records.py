"""Results of lm-eval as outsiders may hand them in: damaged fields, mutants, and the identity that was recorded."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from personalitybench.errors import DataError, PersonalityBenchError
from personalitybench.leaderboard.build import build_board
from personalitybench.leaderboard.examples import pick_examples
from personalitybench.leaderboard.lm_eval_results import log_warnings, read_cells, read_tasks
from personalitybench.leaderboard.render import write_board
from personalitybench.model_identity import identify_folder
from personalitybench.task_record import record_files
from tests.mutations import assert_accepts_or_refuses, json_mutants, jsonl_mutants, mutant_count
from tests.security.terminal import one_line, run_command
from tests.test_leaderboard import IDENTITY, JUDGE

TASK = "personalitybench_openness_high"


def results(model: str = "org/m", files: Any = None, **config: Any) -> dict[str, Any]:
    record = {
        "target": "openness:high",
        "identity": IDENTITY,
        "judges": {"offline": JUDGE},
        "versions": {"torch": "2"},
        "device": "cpu x86_64, float32",
        "fit": None,
        "files": files,
    }
    return {
        "results": {TASK: {"alias": "x", "acc,none": float("nan")}},
        "configs": {
            TASK: {"task": TASK, "metadata": {"version": 1, "personalitybench": record}},
            "other": {"metadata": {"version": 1.0}},
        },
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model, "dtype": "float32"},
            "batch_size": 2,
            "model_sha": "",
            **config,
        },
        "n-samples": {TASK: {"original": 2, "effective": 2}},
    }


def samples() -> list[dict[str, Any]]:
    verdicts = json.dumps({"trait": {"rating": 4.0}, "fluency": {"unrated": "refusal"}, "text": {"words": 2.0}})
    return [
        {
            "doc_id": number,
            "doc": {"id": f"q{number}", "trait": "openness", "question": "Why?", "target": "openness:high"},
            "resps": [[f"Answer {number}."]],
            "filtered_resps": [verdicts],
            "filter": "offline",
        }
        for number in range(2)
    ]


def write(folder: Path, content: Any = None, lines: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results_1.json").write_text(json.dumps(results() if content is None else content))
    rows = samples() if lines is None else lines
    (folder / f"samples_{TASK}_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edited(value: Any, path: str, to: Any) -> Any:
    """A copy with the value at a path replaced, or removed where ``to`` is ``...``."""
    found = copy.deepcopy(value)
    holder = found
    *parts, last = path.split("/")
    for part in parts:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    if to is ...:
        del holder[last]
    else:
        holder[int(last) if isinstance(holder, list) else last] = to
    return found


RECORD = f"configs/{TASK}/metadata/personalitybench"
BAD_RESULTS: list[tuple[str, Any, str]] = [
    ("configs", [], "configs"),
    ("configs", ..., "'configs' is missing"),
    ("configs", 5, "configs"),
    (f"configs/{TASK}", [], f"configs.{TASK}"),
    (RECORD, "x", "is no mapping"),
    (f"{RECORD}/target", "x", "target"),
    (f"{RECORD}/target", ..., "'target' is missing"),
    (f"{RECORD}/identity", ..., "'identity' is missing"),
    (f"{RECORD}/identity/method", [], "identity.method"),
    (f"{RECORD}/identity/method/strength", {}, "identity.method.strength"),
    (f"{RECORD}/identity/method/strength", float("nan"), "strength"),
    (f"{RECORD}/identity/seed", "0", "identity.seed"),
    (f"{RECORD}/identity/protocol/temperature", ..., "identity.protocol.temperature"),
    (f"{RECORD}/judges", {"offline": {}}, "judges.offline.id"),
    (f"{RECORD}/versions", [], "versions"),
    (f"{RECORD}/fit", {"seconds": -1}, "fit.seconds"),
    (f"{RECORD}/files", {"models": {"a": 1}}, "files.models"),
    ("config", ..., "'config' is missing"),
    ("config", [], "config"),
    ("config/model", ..., "'model' is missing"),
    ("config/model", 5, "model"),
    ("config/model_args", ..., "'model_args' is missing"),
    ("config/model_args", 5, "model_args"),
    ("config/model_args", "a,b,c", "model_args"),
    ("config/model_args", {"pretrained": ["x"]}, "model_args"),
    ("config/batch_size", ..., "'batch_size' is missing"),
    ("config/model_sha", 5, "model_sha"),
    ("n-samples", {TASK: []}, "n-samples"),
    ("n-samples", {TASK: {"effective": "2"}}, "n-samples"),
]


@pytest.mark.parametrize(("path", "to", "says"), BAD_RESULTS)
def test_damaged_results_are_refused_with_file_and_field(path: str, to: Any, says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "out", edited(results(), path, to))
    with pytest.raises(PersonalityBenchError, match=r"results_1\.json") as refused:
        list(read_cells(folder))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


BAD_SAMPLES: list[tuple[str, Any]] = [
    *(
        ("filtered_resps", [json.dumps({"trait": {"rating": value}, "fluency": {"rating": 3}})])
        for value in (6, float("nan"), None, True, "5", [], -1)
    ),
    *(("filtered_resps", value) for value in (..., [], [{}], ["{}"], [5], ["5"], ["[]"], None, 5, {}, [None])),
    *(("resps", value) for value in (..., [], [[]], [[5]], [[{}]], 5, None)),
    *(("doc", value) for value in (..., [], 5, {})),
    *((f"doc/{key}", value) for key in ("id", "trait", "question") for value in (..., 5, None, {})),
    ("doc/trait", "x"),
    ("filter", ...),
]


@pytest.mark.parametrize(("path", "to"), BAD_SAMPLES, ids=str)
def test_damaged_samples_are_refused_with_file_and_line(path: str, to: Any, tmp_path: Path) -> None:
    rows = samples()
    folder = write(tmp_path / "out", None, [rows[0], edited(rows[1], path, to)])
    with pytest.raises(PersonalityBenchError, match=r"samples_\S+\.jsonl:2 is not a sample") as refused:
        list(read_cells(folder))
    assert "\n" not in str(refused.value)


def test_the_command_refuses_them_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a", edited(results(), "configs", []))
    write(tmp_path / "b", None, [samples()[0], edited(samples()[1], "filtered_resps", ...)])
    for folder in ("a", "b"):
        line = one_line(run_command("leaderboard", "from-lm-eval", folder, "--no-floors", cwd=tmp_path))
        assert f"{folder}/" in line
    line = one_line(run_command("judge", "a", "--judge", "offline", cwd=tmp_path))
    assert "results_1.json" in line


def test_results_of_other_tasks_and_programs_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    (folder / "notes_2024-01-01T00-00-00.json").write_text("[]")
    (folder / "results_2.json").write_text(json.dumps({"configs": {"x": {"metadata": 5}, "y": {}}, "config": {}}))
    (cell,) = read_cells(folder)
    assert [answer.answer for answer in cell.answers] == ["Answer 0.", "Answer 1."]
    (row,) = build_board("b", [cell]).rows
    assert row.provenance.device == "cpu x86_64, float32"
    assert row.provenance.note == "The results do not record which weights answered: the revision is unstated."


def read(folder: Path, *, as_pages: bool) -> None:
    cells = list(read_cells(folder))
    board = build_board("b", cells) if cells else None
    if board is not None and as_pages:
        write_board(board, folder / "board", "b", pick_examples(cells))


def test_every_mutant_of_a_results_file_is_read_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    folder = write(tmp_path / "out")
    accepted = 0
    for number, mutant in enumerate(json_mutants(results(), mutant_count(), seed=3)):
        (folder / "results_1.json").write_bytes(mutant)
        accepted += assert_accepts_or_refuses(partial(read, folder, as_pages=number % 10 == 0), mutant)
    assert 0 < accepted < mutant_count()


def test_every_mutant_of_samples_is_read_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    folder = write(tmp_path / "out")
    accepted = 0
    for number, mutant in enumerate(jsonl_mutants(samples(), mutant_count(), seed=4)):
        (folder / f"samples_{TASK}_1.jsonl").write_bytes(mutant)
        accepted += assert_accepts_or_refuses(partial(read, folder, as_pages=number % 10 == 0), mutant)
    assert 0 < accepted < mutant_count()


# The identity that was recorded when the model answered


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("w")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def model_of(folder: Path) -> dict[str, str]:
    (task,) = read_tasks(folder)
    log_warnings([task])
    return dict(task.model)


@pytest.mark.parametrize(
    "bind",
    [
        lambda path: ({"pretrained": path, "version": 1, "target": "openness:high", "method": "none"}, None),
        lambda path: ({}, SimpleNamespace(pretrained=path, peft=None, delta=None)),
        lambda path: ({}, SimpleNamespace(model_args={"model": path, "dtype": "auto"})),
    ],
    ids=["arguments", "transformers", "vllm"],
)
def test_a_folder_that_changed_keeps_the_identity_that_was_recorded(
    bind: Callable[[str], tuple[dict[str, Any], Any]],
    weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = identify_folder(weights)
    files = record_files(*bind(str(weights)))
    folder = write(tmp_path / "out", results(str(weights), files))
    before = model_of(folder)
    assert before == {"name": "weights", "revision": expected.revision}
    assert caplog.text == ""
    (weights / "model.safetensors").write_text("trained on")
    assert model_of(folder) == before
    assert f"{weights} changed since lm_eval ran" in caplog.text
    caplog.clear()
    shutil.rmtree(weights)
    assert model_of(folder) == before
    assert caplog.text == ""


def test_adapters_and_tokenizers_keep_theirs(weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"pretrained": str(weights), "peft": str(tmp_path / "adapter"), "tokenizer": str(weights)}
    files = record_files(arguments, None)
    folder = write(tmp_path / "out", results(files=files, model_args=arguments))
    before = model_of(folder)
    assert before["name"] == "weights+adapter"
    assert before["revision"].count("sha256:") == 3
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    assert model_of(folder) == before
    assert f"{tmp_path / 'adapter'} changed" in caplog.text
    shutil.rmtree(tmp_path / "adapter")
    shutil.rmtree(weights)
    assert model_of(folder) == before


def test_what_was_not_recorded_is_unstated_and_never_read_from_today(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"pretrained": str(weights), "peft": str(tmp_path / "adapter")}
    folder = write(tmp_path / "out", results(model_args=arguments))
    found = model_of(folder)
    assert found == {"name": "weights+adapter", "revision": "unstated+peft=unstated"}
    assert "do not record which weights answered" in caplog.text
    shutil.rmtree(weights)
    assert model_of(folder) == found


def test_a_commit_of_the_hub_that_lm_eval_recorded_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "out", results("org/m", model_sha="c0ffee"))
    assert model_of(folder) == {"name": "org/m", "revision": "c0ffee"}
    assert caplog.text == ""


def test_files_that_cannot_be_read_stop_no_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert record_files({"pretrained": str(tmp_path)}, None) is None
    assert "will not record which weights answered" in caplog.text
    assert record_files({"method": "none", "artifact": str(tmp_path)}, None) is None


def hashed(rows: list[dict[str, Any]], prompts: str = "p") -> list[dict[str, Any]]:
    """Samples with the hashes and measures that lm-eval writes beside them."""
    hashes = [
        {f"{part}_hash": f"{part}{prompts}{row['doc_id']}" for part in ("doc", "prompt", "target")} for row in rows
    ]
    return [{**row, **each, "words": 2.0 + row["doc_id"]} for row, each in zip(rows, hashes, strict=True)]


def stated(prompts: str = "p") -> dict[str, Any]:
    """Results that state the hash of all prompts, and the mean of a measure."""
    parts = [f"{part}{prompts}{number}" for number in range(2) for part in ("doc", "prompt", "target")]
    return {
        **results(),
        "results": {TASK: {"alias": "x", "words,offline": 2.5}},
        "task_hashes": {TASK: hashlib.sha256("".join(parts).encode()).hexdigest()},
    }


def test_samples_of_their_own_results_are_read(tmp_path: Path) -> None:
    (cell,) = read_cells(write(tmp_path / "r", stated(), hashed(samples())))
    assert [answer.question_id for answer in cell.answers] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: edited(rows, "1/doc/target", "openness:low"), r"jsonl:2 is of the target 'openness:low'"),
        (lambda rows: edited(rows, "1/doc/target", None), r"jsonl:2 is of the target None"),
        (lambda _: hashed(samples(), "other"), r"jsonl holds other prompts than its results state"),
        (lambda rows: rows[::-1], r"jsonl holds other prompts than its results state"),
        (
            lambda rows: edited(rows, "0/words", 9.0),
            r"jsonl holds other answers .*\(mean words,offline 6 instead of 2.5\)",
        ),
    ],
)
def test_samples_of_another_call_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    """Of the other pole, of another method or order of questions, of another model."""
    folder = write(tmp_path / "r", stated(), change(hashed(samples())))
    with pytest.raises(DataError, match=says):
        list(read_cells(folder))
    (task,) = read_tasks(folder)
    with pytest.raises(DataError, match=says):
        list(task.answers())


def test_a_measure_that_some_samples_lack_is_not_compared(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", stated(), edited(hashed(samples()), "0/words", None))
    assert len(list(read_cells(folder))) == 1
