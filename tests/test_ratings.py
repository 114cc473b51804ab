"""Ratings belong to the answers that were rated: in a run, in a comparison, and in sheets of earlier versions."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalitybench.errors import StorageError
from personalitybench.files import Sheet
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.rating import answer_sha256, current_ratings, judged_ids, without_verdict
from tests.test_runs import SUITE, TWO_TARGETS, run

ANSWERS = [{"id": "a", "answer": "Yes."}, {"id": "b", "answer": "No, cut \ud83d here."}]


def line(answer: dict[str, str], rating: int = 3, **changes: Any) -> dict[str, Any]:
    verdicts = {"trait": {"rating": rating}, "fluency": {"rating": rating}}
    return {"id": answer["id"], "answer_sha256": answer_sha256(answer), **verdicts, **changes}


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    return Sheet(tmp_path / "ratings.jsonl")


def test_the_hash_of_an_answer_is_that_of_its_text() -> None:
    assert answer_sha256(ANSWERS[0]) == hashlib.sha256(b"Yes.").hexdigest()


def test_a_rating_of_another_answer_is_missing(sheet: Sheet) -> None:
    sheet.lines.append([line(ANSWERS[0]), line({"id": "b", "answer": "Another answer."})])
    assert judged_ids(ANSWERS, sheet) == {"a"}
    assert list(without_verdict(ANSWERS, sheet)) == [ANSWERS[1]]
    sheet.lines.append([line(ANSWERS[1], 5)])
    assert current_ratings(ANSWERS, sheet)["b"]["trait"] == {"rating": 5}


def test_the_last_rating_of_an_answer_counts(sheet: Sheet) -> None:
    again = line(ANSWERS[0], trait={"unrated": "unreachable"})
    sheet.lines.append([again, line(ANSWERS[0], 2), line({"id": "a", "answer": "Other."}, 5)])
    assert current_ratings(ANSWERS, sheet)["a"]["trait"] == {"rating": 2}


def test_a_rating_without_a_hash_counts_for_its_id(sheet: Sheet) -> None:
    """Sheets of earlier versions stay readable."""
    old = line(ANSWERS[0], 4)
    del old["answer_sha256"]
    sheet.lines.append([old])
    assert current_ratings(ANSWERS, sheet)["a"]["trait"] == {"rating": 4}
    sheet.lines.append([line(ANSWERS[0], 5)])
    assert current_ratings(ANSWERS, sheet)["a"]["trait"] == {"rating": 5}


def test_a_line_without_an_id_is_refused_with_its_number(sheet: Sheet) -> None:
    sheet.lines.append([line(ANSWERS[0]), {"trait": {"rating": 1}}])
    with pytest.raises(StorageError, match=r"ratings\.jsonl:2 has no id"):
        judged_ids(ANSWERS, sheet)


def test_reasons_that_pass_are_asked_again(sheet: Sheet) -> None:
    sheet.lines.append([line(ANSWERS[0], trait={"unrated": "unreachable"})])
    assert judged_ids(ANSWERS, sheet) == {"a"}
    assert judged_ids(ANSWERS, sheet, {"unreachable"}) == set()


@pytest.mark.model
def test_answers_that_were_made_again_are_rated_again(
    tiny_model: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A1: delete answers as the error says; other ones get ratings of their own, and nothing else is rated."""
    suite = tmp_path / "small.yaml"
    text = SUITE.format(model=tiny_model, methods="[none, p2]", targets=TWO_TARGETS, dtype="float32")
    suite.write_text(text + "floors: false\n")
    run(suite, tmp_path / "out")
    call = next((tmp_path / "out" / "calls").glob("p2-*"))
    answers = call / "extraversion-high" / "answers.jsonl"
    (ratings,) = answers.parent.glob("offline-*.jsonl")
    rows = [json.loads(each) for each in answers.read_text().splitlines()]
    rated = [json.loads(each) for each in ratings.read_text().splitlines()]
    assert [each["answer_sha256"] for each in rated] == [answer_sha256(row) for row in rows]

    # The same answers with other ratings stand for ratings that the new answers never got.
    changed = Sheet(answers)
    changed.reopen()
    answers.unlink()
    changed.lines.append([row | {"answer": row["answer"] + " I love parties and meeting people!"} for row in rows])
    changed.finish()
    score = command("run", "small.yaml", "--output", "out", "--stage", "score")
    assert score.returncode == 2
    assert "run the stage 'judge' first" in score.stderr
    told = command("judge", "out", "--dry-run")
    assert told.returncode == 0, told.stderr
    cells = [cell.strip() for each in told.stdout.splitlines() if "offline" in each for cell in each.split("│")[1:-1]]
    assert cells[1] == "4", "two answers, each for its trait and for fluency"
    done = command("run", "small.yaml", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "judge p2" in done.stdout
    assert "judge none" not in done.stdout
    after = [json.loads(each) for each in ratings.read_text().splitlines()]
    assert after[:2] == rated
    assert len(after) == 4

    for sheet in (tmp_path / "out").rglob("offline-*.json*"):
        if "calls" in sheet.parts:
            sheet.unlink()
    board = (tmp_path / "out" / "leaderboard.json").read_bytes()
    run(suite, tmp_path / "out")
    assert (tmp_path / "out" / "leaderboard.json").read_bytes() == board, "as if everything were rated afresh"


@pytest.mark.model
def test_a_comparison_does_not_take_ratings_of_other_answers(tiny_model: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from personalitybench.runs.answer_sources import open_source
    from personalitybench.tasks import judge_fingerprint

    suite = tmp_path / "small.yaml"
    suite.write_text(
        SUITE.format(model=tiny_model, methods="[none]", targets=TWO_TARGETS, dtype="float32") + "floors: false\n"
    )
    run(suite, tmp_path / "out")
    with open(os.devnull, "w") as nowhere, RunProgress(Console(file=nowhere)) as progress:  # noqa: PTH123
        source = open_source(str(tmp_path / "out"), progress)
        assert len(source.known(judge_fingerprint("offline"))) == 2 * len(source.answers)
        answers = Sheet(next((tmp_path / "out").rglob("extraversion-high/answers.jsonl")))
        rows = [{**row, "answer": f"{row['answer']} {row['id']}"} for row in answers.lines.read()]
        answers.reopen()
        answers.path.unlink()
        answers.lines.append(rows)
        answers.finish()
        source = open_source(str(tmp_path / "out"), progress)
        known = source.known(judge_fingerprint("offline"))
    assert len(known) == 2 * (len(source.answers) - len(rows))
