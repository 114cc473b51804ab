"""Ratings by people: the table that they fill in, and the same after a spreadsheet and its owner were at it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError, DataError, StorageError
from personalitybench.judging.agreement.human import export_answers, read_ratings
from personalitybench.judging.agreement.table import ComparedAnswer
from personalitybench.judging.base import Rating

TEXTS = [
    '=HYPERLINK("http://x")',
    "+1 for that",
    "-",
    "@me",
    "\n=1+1",
    "  =1+1",
    "\uff1d1+1",
    'I said:\n\n"No; never.", then left.',
    "Fine, über fine.",
]
ANSWERS = [ComparedAnswer(f"q{n}", "What now?", text, "openness", "low", "p2") for n, text in enumerate(TEXTS)]


def exported(path: Path, answers: list[ComparedAnswer] = ANSWERS) -> list[dict[str, str]]:
    export_answers(answers, path)
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def filled(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def test_the_table_is_blind_and_holds_no_formula(tmp_path: Path) -> None:
    rows = exported(tmp_path / "rate.csv")
    assert list(rows[0]) == ["id", "trait", "question", "answer", "rater", "trait_rating", "fluency_rating"]
    assert {row["id"] for row in rows} == {f"answer-{answer.id}" for answer in ANSWERS}
    assert {row["answer"] for row in rows} == {
        "'" + text if text.lstrip()[0] in "=+-@\uff1d" else text for text in TEXTS
    }, "what looks like a formula is quoted, all else is as it was"
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert not any(row["rater"] + row["trait_rating"] + row["fluency_rating"] for row in rows)
    export_answers(ANSWERS, tmp_path / "rate.csv")  # the same again is no harm
    (tmp_path / "rate.csv").write_text("somebody's work")
    with pytest.raises(ConfigurationError, match="may hold ratings"):
        export_answers(ANSWERS, tmp_path / "rate.csv")
    assert (tmp_path / "rate.csv").read_text() == "somebody's work"


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_raters_become_columns(tmp_path: Path, delimiter: str, encoding: str) -> None:
    """Two raters in one file, a third in a file that says who it is; decimals as in Germany, some left empty."""
    rows = exported(tmp_path / "rate.csv")
    for row in rows:
        row["answer"] = "broken by a spreadsheet"
    first = [row | {"rater": "anna", "trait_rating": "4", "fluency_rating": "3,5"} for row in rows[:3]]
    second = [row | {"rater": "ben", "trait_rating": " 2.5 ", "fluency_rating": ""} for row in rows[:2]]
    both = filled(tmp_path / "both.csv", [*first, *second, *rows[3:]], delimiter, encoding)
    third = filled(tmp_path / "cleo.csv", [rows[0] | {"trait_rating": "1"}, rows[1]], delimiter, encoding)
    columns = {column.judge: column for column in read_ratings([both, third], ANSWERS)}
    assert list(columns) == ["human:anna", "human:ben", "human:cleo", "humans"]
    ids = [row["id"].removeprefix("answer-") for row in rows]
    assert columns["human:anna"].repeats[0][ids[2], "fluency"] == Rating(3.5)
    assert set(columns["human:ben"].repeats[0]) == {(ids[0], "trait"), (ids[1], "trait")}
    (means,) = columns["humans"].repeats
    assert means[ids[0], "trait"] == Rating(2.5)
    assert means[ids[1], "trait"] == Rating(3.25)
    assert means[ids[2], "trait"] == Rating(4)
    again = read_ratings([third, both], ANSWERS)
    assert [column.identity for column in again] == [column.identity for column in columns.values()]
    assert len({tuple(column.identity.items()) for column in again}) == 4


def test_one_rater_has_no_mean(tmp_path: Path) -> None:
    rows = exported(tmp_path / "rate.csv")
    (column,) = read_ratings([filled(tmp_path / "anna.csv", [rows[0] | {"fluency_rating": "5"}])], ANSWERS)
    assert column.judge == "human:anna"


@pytest.mark.parametrize("rating", ["0", "5.01", "six", "nan", "inf", "1-5", "4 or 5"])
def test_what_is_no_rating_is_told_with_its_line(tmp_path: Path, rating: str) -> None:
    """The line is that of the file, also behind an answer of several lines."""
    rows = sorted(exported(tmp_path / "rate.csv"), key=lambda row: "\n" not in row["answer"])
    path = filled(tmp_path / "x.csv", [rows[0], rows[1] | {"trait_rating": rating}])
    with pytest.raises(DataError, match=r"x\.csv:5: trait_rating is '.*': a rating is from 1 to 5"):
        read_ratings([path], ANSWERS)


def test_wrong_tables_are_told(tmp_path: Path) -> None:
    rows = exported(tmp_path / "rate.csv")
    with pytest.raises(DataError, match=r"a\.csv:2: there is no answer 'answer-1234'"):
        read_ratings([filled(tmp_path / "a.csv", [rows[0] | {"id": "answer-1234", "trait_rating": "3"}])], ANSWERS)
    with pytest.raises(DataError, match="has no column rater and no column fluency_rating"):
        read_ratings([filled(tmp_path / "b.csv", [{"id": "1", "trait_rating": "3"}])], ANSWERS)
    (tmp_path / "c.csv").write_bytes(b"id,rater\nanswer-1,J\xf6rg\n")
    with pytest.raises(DataError, match=r"c\.csv:2 is not UTF-8"):
        read_ratings([tmp_path / "c.csv"], ANSWERS)
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_ratings([tmp_path / "d.csv"], ANSWERS)
    with pytest.raises(DataError, match="nobody rated anything"):
        read_ratings([tmp_path / "rate.csv"], ANSWERS)
    with pytest.raises(StorageError, match="cannot read"):
        read_ratings([tmp_path / "none.csv"], ANSWERS)
    twice = [rows[0] | {"rater": "a", "trait_rating": "3"}, rows[0] | {"rater": "a", "trait_rating": "4"}]
    with pytest.raises(DataError, match=r"e\.csv:\d+: a gave answer .* 4 for trait, but 3 in .*e\.csv:2"):
        read_ratings([filled(tmp_path / "e.csv", twice)], ANSWERS)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_any_answer_survives_the_way_there_and_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever stands in answers, every row is found again by its id, and no cell begins as a formula does."""
    answers = [ComparedAnswer(f"q{n}", text, text, "openness", "low", "p2") for n, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("csv")
    rows = exported(folder / "rate.csv", answers)
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    path = filled(folder / "anna.csv", [row | {"trait_rating": "2"} for row in rows])
    (column,) = read_ratings([path], answers)
    assert {key for key, _ in column.repeats[0]} == {answer.id for answer in answers}


def test_a_long_answer_is_read(tmp_path: Path) -> None:
    """Longer than what the library for CSV takes for a mistake; its limit is as before afterwards."""
    before = csv.field_size_limit()
    answer = ComparedAnswer("q", "What now?", "word " * before, "openness", "low", "p2")
    row = {"id": answer.id, "answer": answer.answer, "rater": "anna", "trait_rating": "2", "fluency_rating": ""}
    (column,) = read_ratings([filled(tmp_path / "x.csv", [row])], [answer])
    assert column.repeats == [{(answer.id, "trait"): Rating(2)}]
    assert csv.field_size_limit() == before
