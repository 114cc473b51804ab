"""lm-eval's results as they come from its Python API and from ``--output_path NAME.json``, whole and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from personalitybench.errors import DataError
from personalitybench.leaderboard.lm_eval_results import holds_results, read_cells, read_tasks
from personalitybench.leaderboard.lm_eval_samples import StatedSamples, read_samples
from personalitybench.model_identity import identify_folder
from personalitybench.tasks import tasks_folder
from tests.test_leaderboard import cell, ratings

_API = """
import json, sys
import lm_eval
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
tasks, tiny, other = sys.argv[1:]
metadata = {"method": "none", "judge": ["offline", "copy"], "max_tokens": 4}
def evaluate(output, model, args, device="cpu"):
    tracker = EvaluationTracker(output_path=output)
    results = lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=["personalitybench_extraversion_high"], limit=2, batch_size=2,
        device=device, apply_chat_template=True, evaluation_tracker=tracker, log_samples=True,
        task_manager=TaskManager(include_path=tasks, metadata=metadata), metadata=metadata)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
evaluate("text", "hf", f"pretrained={tiny},dtype=float32")
evaluate("text", "hf", f"pretrained={other},dtype=float32")
evaluate("mapping", "hf", {"pretrained": tiny, "dtype": "float32"})
evaluate("named/run1.json", "hf", f"pretrained={tiny},dtype=float32")
evaluate("object", HFLM(pretrained=tiny, dtype="float32", device="cpu", batch_size=2), None)
"""
_COPY = "{id: copy, provider: offline, summary: x, settings: {heads: offline/heads.safetensors}}"


@pytest.fixture(scope="module")
def results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that the Python API left; their samples have two judges."""
    folder = tmp_path_factory.mktemp("results")
    other = folder / "tiny2"
    shutil.copytree(tiny_model, other)
    generation = other / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"top_k": 7}))
    (folder / "judges").mkdir()
    (folder / "judges" / "copy.yaml").write_text(_COPY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_JUDGES", str(folder / "judges"))
        done = subprocess.run(
            [sys.executable, "-c", _API, str(tasks_folder()), str(tiny_model), str(other)],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=900,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        shutil.copytree(results / name, tmp_path / name)
        return tmp_path / name

    return copy


def samples_of(folder: Path) -> Path:
    (path,) = folder.rglob("samples_*.jsonl")
    return path


@pytest.mark.model
def test_a_model_given_as_text_is_identified_as_one_given_as_a_mapping(results: Path, tiny_model: Path) -> None:
    """F08: two models of one folder are two; each has its name and the hash of its files."""
    models = [dict(task.model) for task in read_tasks(results / "text")]
    expected = [identify_folder(folder) for folder in (tiny_model, results / "tiny2")]
    assert sorted(model["name"] for model in models) == sorted(identity.name for identity in expected)
    assert {model["revision"] for model in models} == {identity.revision for identity in expected}
    (mapping,) = read_tasks(results / "mapping")
    assert dict(mapping.model) in models
    assert mapping.provenance in [task.provenance for task in read_tasks(results / "text")]


@pytest.mark.model
def test_a_model_given_as_an_object_is_refused(
    results: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with pytest.raises(DataError, match="does not name the model that answered"):
        list(read_tasks(results / "object"))
    done = command("leaderboard", "from-lm-eval", str(results / "object"), "--output", "board")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give simple_evaluate the model type as text, and model_args" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.model
def test_results_named_by_the_output_path_are_found(
    results: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """F09: in the folder, as the file itself, and beside other results."""
    folder = results / "named"
    (file,) = folder.glob("run1_*.json")
    (task,) = read_tasks(folder)
    assert task.samples == samples_of(folder)
    assert [found.samples for found in read_tasks(file)] == [task.samples]
    assert holds_results(folder)
    shutil.copytree(folder, tmp_path / "both")
    shutil.copytree(results / "text", tmp_path / "both" / "text")
    (tmp_path / "both" / "other_2024-01-01T00-00-00.000001.json").write_text("[1]")
    (tmp_path / "both" / "notes.json").write_text("{")
    assert len(list(read_tasks(tmp_path / "both"))) == 3
    for name in (folder, file):
        shutil.rmtree(tmp_path / "board", ignore_errors=True)
        done = command("leaderboard", "from-lm-eval", str(name), "--output", "board", "--no-floors")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "board" / "leaderboard.json").is_file()


@pytest.mark.model
def test_a_whole_last_line_without_a_newline_counts(copied: Callable[[str], Path]) -> None:
    folder = copied("mapping")
    before = list(read_cells(folder))
    path = samples_of(folder)
    path.write_bytes(path.read_bytes()[:-1])
    assert [each.answers for each in read_cells(folder)] == [each.answers for each in before]
    assert [len(each.answers) for each in before] == [2, 2]


@pytest.mark.model
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-50]], r"samples_\S+\.jsonl:4 is not JSON \(the file is cut off\)"),
        (lambda lines: [*lines, lines[0]], r"samples_\S+\.jsonl:5 repeats the sample of line 1"),
        (lambda lines: [lines[0], lines[1], *lines[1:]], r"samples_\S+\.jsonl:3 repeats the sample of line 2"),
        (lambda lines: lines[1:], r"samples_\S+\.jsonl holds 1 answers, but its results state 2"),
        (lambda lines: lines[:-1], r"samples_\S+\.jsonl holds 1 answers, but its results state 2"),
        (lambda _: [], r"samples_\S+\.jsonl holds 0 answers, but its results state 2"),
        (lambda lines: [lines[0], b"[]\n", *lines[1:]], r"samples_\S+\.jsonl:2 is not a JSON object"),
        (lambda lines: [b"{}\n", *lines], r"samples_\S+\.jsonl:1 is not a sample of lm-eval"),
        (lambda lines: [lines[0][:40] + b"\n", *lines[1:]], r"samples_\S+\.jsonl:1 is not JSON:"),
    ],
)
def test_damaged_samples_are_refused_with_file_and_line(
    copied: Callable[[str], Path], damage: Callable[[list[bytes]], list[bytes]], says: str
) -> None:
    """F10 and A32. The first two lines are of one judge, the others of the second."""
    folder = copied("mapping")
    path = samples_of(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_bytes(b"".join(damage(lines)))
    with pytest.raises(DataError, match=says) as caught:
        list(read_cells(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.model
@pytest.mark.parametrize("command_line", [("leaderboard", "from-lm-eval"), ("judge", "--judge", "offline")])
def test_every_command_refuses_repeated_samples_before_anything_is_rated(
    copied: Callable[[str], Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
    command_line: tuple[str, ...],
) -> None:
    folder = copied("mapping")
    path = samples_of(folder)
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + first)
    name, *options = command_line
    done = command(name, *([*options, str(folder)] if name == "leaderboard" else [str(folder), *options]))
    assert (done.returncode, done.stdout) == (2, "")
    assert ":5 repeats the sample of line 1" in done.stderr
    assert not (folder / "ratings").exists() or not list((folder / "ratings").rglob("*.jsonl"))


def test_results_that_state_no_number_of_samples_are_read(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"filter": "f", "doc": {"id": "a"}}\n{"filter": "g", "doc": {"id": "a"}}\n')
    assert [number for number, _ in read_samples(path, None, None)] == [1]
    assert [number for number, _ in read_samples(path, "g", StatedSamples(count=1))] == [2]


def test_an_answer_that_is_twice_in_a_cell_is_refused() -> None:
    from dataclasses import replace

    from personalitybench.leaderboard.build import build_board

    once = cell("extraversion:high", ratings(4.0, 2.0))
    twice = replace(once, answers=[*once.answers, once.answers[0]])
    with pytest.raises(DataError, match=r"two answers to question .* for extraversion:high of method 'simple', seed 0"):
        build_board("b", [twice])


@pytest.mark.model
def test_a_repeated_line_in_a_sheet_of_answers_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The manifest is deleted and made again by the run, as a user may do."""
    from personalitybench.errors import StorageError
    from tests.test_runs import SUITE, run

    suite = tmp_path / "small.yaml"
    text = SUITE.format(model=tiny_model, methods="[none]", targets="['extraversion:high']", dtype="float32")
    suite.write_text(text + "floors: false\n")
    run(suite, tmp_path / "out")
    answers = next((tmp_path / "out").rglob("answers.jsonl"))
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join([*lines, lines[0]]))
    answers.with_suffix(".json").unlink(missing_ok=True)
    with pytest.raises(StorageError, match=r"answers\.jsonl:3 repeats the answer of line 1"):
        run(suite, tmp_path / "out")
    answers.write_text("".join(lines))
    answers.with_suffix(".json").unlink(missing_ok=True)
    run(suite, tmp_path / "out")


def test_other_json_files_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "notes_2024.json").write_text("{}")
    assert not holds_results(tmp_path)
