"""Lines of answers and ratings: what is refused, with file and line, although the manifest fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalitybench.errors import StorageError
from personalitybench.files import Sheet
from personalitybench.judging.rating_lines import judge_models, read_ratings
from personalitybench.runs.answer_lines import read_answers
from personalitybench.runs.rating import current_ratings, judged_ids
from tests.mutations import assert_accepts_or_refuses, jsonl_mutants, mutant_count

RATINGS: list[dict[str, Any]] = [
    {"id": "a", "answer_sha256": "1", "trait": {"rating": 4.0, "model": "m"}, "fluency": {"rating": 5}},
    {"id": "b", "answer_sha256": "2", "trait": {"unrated": "unreachable"}, "fluency": {"rating": 5.0}},
    {"id": "b", "answer_sha256": "2", "trait": {"rating": 2.0, "basis": {"x": 1}}, "fluency": {"rating": 5.0}},
    {"id": "c", "trait": {"unrated": "refusal", "detail": "d"}, "fluency": {"unrated": "refusal"}},
]
ANSWERS: list[dict[str, Any]] = [
    {"id": "a", "trait": "openness", "question": "q?", "prompt": "p", "answer": "x"},
    {"id": "b", "trait": "openness", "question": "q?", "prompt": "p", "answer": "\ud83d"},
    {"id": "c", "trait": "openness", "question": "q?", "prompt": "p", "answer": "", "unrated": {"reason": "refused"}},
]


def sheet_of(folder: Path, content: bytes) -> Sheet:
    """A sheet whose manifest fits."""
    sheet = Sheet(folder / "sheet.jsonl")
    sheet.path.write_bytes(content)
    sheet.manifest.unlink(missing_ok=True)
    sheet.finish()
    return sheet


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    "trait",
    [
        *({"rating": value} for value in (6, 0.99, float("nan"), float("inf"), True, "5", None, [], {}, 10**299)),
        *({"unrated": value} for value in (None, 1, True, {}, [])),
        *({}, None, 3, "5", [], {"rating": 3.0, "basis": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("aspect", ["trait", "fluency"])
def test_what_is_no_verdict_is_refused_with_its_line(aspect: str, trait: Any, tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, lines([RATINGS[0], RATINGS[2] | {aspect: trait}]))
    assert sheet.complete
    with pytest.raises(StorageError, match=rf"sheet\.jsonl:2: '{aspect}': ") as refused:
        list(read_ratings(sheet))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["id", "trait", "fluency"])
def test_a_line_without_a_key_is_refused(key: str, tmp_path: Path) -> None:
    row = {name: value for name, value in RATINGS[0].items() if name != key}
    with pytest.raises(StorageError, match=r"sheet\.jsonl:1.*" + key):
        list(read_ratings(sheet_of(tmp_path, lines([row]))))


def test_a_rating_twice_is_refused_and_one_that_was_asked_again_is_not(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, lines(RATINGS))
    assert [row["trait"] for _, row in read_ratings(sheet)] == [row["trait"] for row in RATINGS]
    for repeated in (RATINGS[0], RATINGS[2], RATINGS[3], RATINGS[0] | {"trait": {"rating": 1.0}}):
        with pytest.raises(StorageError, match=r"sheet\.jsonl:5 repeats the rating of line \d"):
            list(read_ratings(sheet_of(tmp_path, lines([*RATINGS, repeated]))))


def test_ratings_of_another_answer_are_no_repeat(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, lines([RATINGS[0], RATINGS[0] | {"answer_sha256": "3"}]))
    assert len(list(read_ratings(sheet))) == 2


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"answer": 5}, "'answer' is no text"),
        ({"answer": None}, "'answer' is no text"),
        ({"id": 1}, "'id' is no text"),
        ({"id": "\ud800"}, "'id' holds half of a surrogate pair"),
        ({"question": []}, "'question' is no text"),
        ({"trait": "x"}, "unknown trait 'x'"),
        ({"unrated": "x"}, "'unrated' has no reason"),
        ({"unrated": {}}, "'unrated' has no reason"),
        ({"id": "a"}, "repeats the answer of line 1"),
    ],
)
def test_what_is_no_answer_is_refused_with_its_line(edit: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"sheet\.jsonl:2") as refused:
        read_answers(sheet_of(tmp_path, lines([ANSWERS[0], ANSWERS[1] | edit])))
    assert says in str(refused.value)


@pytest.mark.parametrize("manifest", ["[]", "null", "5", '{"sha256": 5}', "{}"])
def test_a_manifest_that_is_none_is_an_altered_sheet(manifest: str, tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, lines(ANSWERS))
    sheet.manifest.write_text(manifest)
    with pytest.raises(StorageError, match="was altered after it was complete"):
        _ = sheet.complete


@pytest.mark.parametrize("key", ["id", "trait", "question", "answer"])
def test_an_answer_without_a_key_is_refused(key: str, tmp_path: Path) -> None:
    row = {name: value for name, value in ANSWERS[0].items() if name != key}
    with pytest.raises(StorageError, match=rf"sheet\.jsonl:1: '{key}' is missing"):
        read_answers(sheet_of(tmp_path, lines([row])))


def read_all_ratings(sheet: Sheet) -> None:
    list(read_ratings(sheet))
    current_ratings(ANSWERS, sheet)
    judged_ids(ANSWERS, sheet, {"unreachable"})
    judge_models(sheet)


@pytest.mark.parametrize(
    ("rows", "read"), [(RATINGS, read_all_ratings), (ANSWERS, read_answers)], ids=["ratings", "answers"]
)
def test_every_mutant_of_a_sheet_is_read_or_refused(
    rows: list[dict[str, Any]], read: Callable[[Sheet], object], tmp_path: Path
) -> None:
    def attempt(content: bytes) -> None:
        read(sheet_of(tmp_path, content))

    accepted = sum(
        assert_accepts_or_refuses(lambda mutant=mutant: attempt(mutant), mutant)
        for mutant in jsonl_mutants(rows, mutant_count(), seed=2)
    )
    assert 0 < accepted < mutant_count()
