"""Frozen ratings are read as they were written, and what was altered is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import DataError, PersonalityBenchError
from personalitybench.judging.agreement.table import Column, ComparedAnswer, RatingTable
from personalitybench.judging.agreement.table_files import read_table, write_table
from personalitybench.judging.base import Rating, Unrated, Verdict

ANSWERS = [ComparedAnswer(f"q{n}", "What now?", f"I wait {n} days.", "openness", "high", "p2") for n in range(3)]
FIRST, SECOND, THIRD = (answer.id for answer in ANSWERS)
TABLE = RatingTable(
    "run demo",
    ANSWERS,
    [
        Column(
            "mine",
            {"id": "mine", "rubric_sha256": "0"},
            [{(FIRST, "trait"): Rating(3.25, "why"), (THIRD, "fluency"): Rating(1.0)}, {}],
        ),
        Column("human:anna", {"id": "human:anna"}, [{(SECOND, "trait"): Unrated("refused", "no")}]),
    ],
)


def test_written_and_read(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "new" / "ratings.jsonl")
    assert read_table(tmp_path / "new" / "ratings.jsonl") == TABLE
    before = (tmp_path / "new" / "ratings.jsonl").read_bytes()
    write_table(read_table(tmp_path / "new" / "ratings.jsonl"), tmp_path / "new" / "ratings.jsonl")
    assert (tmp_path / "new" / "ratings.jsonl").read_bytes() == before
    with pytest.raises(DataError, match="two judges have one name"):
        write_table(replace(TABLE, columns=[TABLE.columns[0]] * 2), tmp_path / "other.jsonl")


VERDICTS = st.one_of(st.floats(1, 5).map(Rating), st.builds(Unrated, st.text(), st.text()))


@given(st.text(), st.lists(VERDICTS, min_size=1, max_size=3))
def test_any_text_and_verdict(tmp_path_factory: pytest.TempPathFactory, text: str, verdicts: list[Verdict]) -> None:
    path = tmp_path_factory.mktemp("table") / "ratings.jsonl"
    answer = ComparedAnswer("q", text, text, "openness", "high", text)
    table = RatingTable(text, [answer], [Column("mine", {}, [{(answer.id, "trait"): verdict} for verdict in verdicts])])
    write_table(table, path)
    assert read_table(path) == table


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("I wait 1 days.", "I wait 9 days.", ":3: the answer is not the one that was rated"),
        ('"rating": 3.25', '"rating": 7', ":2 is no line of ratings"),
        ('"rating": 3.25', '"rating": "x"', ":2 is no line of ratings"),
        ('"verdicts"', '"verdict"', "is no line of ratings"),
        ('"pole": "high"', '"pole": 1', "is no line of ratings"),
        ('"version": 1', '"version": 2', "ratings.jsonl:1"),
        ("personalitybench-ratings", "other", "holds no frozen ratings"),
        ('"repeats": 2', '"repeats": 1', "is no line of ratings"),
        ('"answers": 3', '"answers": 4', "holds 3 of 4 answers"),
    ],
)
def test_altered(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "ratings.jsonl"
    write_table(TABLE, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PersonalityBenchError) as error:
        read_table(path)
    assert told in str(error.value)


def test_cut_off(tmp_path: Path) -> None:
    """A file that was cut off, at a line or amid it, is not taken for a smaller table."""
    path = tmp_path / "ratings.jsonl"
    write_table(TABLE, path)
    whole = path.read_bytes()
    for length in (0, len(whole) - 1, whole.rindex(b"\n", 0, -1) + 1, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"of 3 answers|no frozen ratings"):
            read_table(path)
    assert json.loads(whole.splitlines()[0])["answers"] == 3
