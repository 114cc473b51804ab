"""Ratings by people: a table of answers to fill in, and what they filled in.

The table does not say which method wrote an answer or toward which pole, and its order is by chance, so that whoever
rates does not know. Only ids and ratings are read again, whatever a spreadsheet made of the texts.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from personalitybench.errors import ConfigurationError, DataError, StorageError
from personalitybench.files import content_hash, write_atomically
from personalitybench.judging.agreement.table import ASPECTS, Aspect, Column, ComparedAnswer, Verdicts
from personalitybench.judging.base import Rating, Verdict
from personalitybench.outside_files import open_regular

COLUMNS = ("id", "trait", "question", "answer", "rater", "trait_rating", "fluency_rating")
ALL = "humans"
"""Name of the mean of all people."""

_NEEDED = ("id", "rater", "trait_rating", "fluency_rating")
_PREFIX = "answer-"  # sixteen hex digits alone may look like a number: a spreadsheet makes 1.2E+15 of them
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # full-width ones, too
_SEPARATORS = ",;\t"


def export_answers(answers: Iterable[ComparedAnswer], path: Path) -> None:
    """Write a table for people to fill in; UTF-8 with the mark by which spreadsheets know it.

    Raises:
        ConfigurationError: Something else is there, perhaps ratings.
        StorageError: It cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for answer in sorted(answers, key=lambda answer: (answer.trait, answer.id)):
        texts = (answer.trait, answer.question, answer.answer)
        writer.writerow([_PREFIX + answer.id, *map(_plain, texts), "", "", ""])
    data = text.getvalue().encode("utf-8-sig", errors="replace")
    if path.exists() and (not path.is_file() or path.read_bytes() != data):
        raise ConfigurationError(
            f"{path} is there and may hold ratings: give --export another name, or delete it first"
        )
    write_atomically(path, data)


def read_ratings(paths: Sequence[Path], answers: Iterable[ComparedAnswer]) -> list[Column]:
    """Read filled-in tables: a column for each rater, and where there are several one of their means.

    Args:
        paths: Files with the columns ``id``, ``rater``, ``trait_rating`` and ``fluency_rating``, others are passed
            over; separated by commas, semicolons or tabs. A rating is from 1 to 5, decimals allowed; an empty one is
            none. Where a row has ratings and no rater, the file's name is the rater's.
        answers: What may have been rated.

    Raises:
        DataError: A file is not such a table; the text names the line.
        StorageError: A file cannot be read.
    """
    known = {answer.id for answer in answers}
    given: dict[str, dict[tuple[str, Aspect], _Given]] = {}
    for path in paths:
        for found in _read(path, known):
            own = given.setdefault(found.rater, {})
            earlier = own.setdefault((found.id, found.aspect), found)
            if earlier.value != found.value:
                raise DataError(
                    f"{found.place}: {found.rater} gave answer {found.id} {found.value:g} for {found.aspect}, but "
                    f"{earlier.value:g} in {earlier.place}: leave one of the two"
                )
    people = {
        rater: {key: found.value for key, found in sorted(ratings.items())} for rater, ratings in sorted(given.items())
    }
    if not people:
        names = ", ".join(map(str, paths))
        raise DataError(f"{names}: nobody rated anything: fill in the columns rater, trait_rating and fluency_rating")
    columns = [_column(f"human:{rater}", ratings) for rater, ratings in people.items()]
    if len(people) > 1:
        together: dict[tuple[str, Aspect], list[float]] = {}
        for ratings in people.values():
            for key, value in ratings.items():
                together.setdefault(key, []).append(value)
        means = {key: math.fsum(values) / len(values) for key, values in sorted(together.items())}
        columns.append(_column(ALL, means))
    return columns


@dataclass(frozen=True)
class _Given:
    """One rating as it stands in a file."""

    rater: str
    id: str
    aspect: Aspect
    value: float
    place: str


def _column(name: str, ratings: Mapping[tuple[str, Aspect], float]) -> Column:
    verdicts: dict[tuple[str, Aspect], Verdict] = {key: Rating(value) for key, value in ratings.items()}
    identity = {"id": name, "ratings_sha256": content_hash([[*key, value] for key, value in ratings.items()])}
    repeats: list[Verdicts] = [verdicts]
    return Column(name, identity, repeats)


def _plain(text: str) -> str:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _read(path: Path, known: set[str]) -> Iterator[_Given]:
    try:
        with open_regular(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line} is not UTF-8: save it as 'CSV UTF-8'") from error
    head = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=head.count)
    for line, row in _rows(path, text, separator):
        place = f"{path}:{line}"
        identity = row["id"].removeprefix(_PREFIX)
        ratings = {aspect: row[f"{aspect}_rating"] for aspect in ASPECTS}
        if not any(row.values()):
            continue
        if identity not in known:
            raise DataError(
                f"{place}: there is no answer {row['id']!r} among those that are compared: fill in the table that "
                "--export writes for the same --answers, and leave its ids as they are"
            )
        for aspect, written in ratings.items():
            if written:
                yield _Given(
                    row["rater"] or path.stem, identity, aspect, _rating(written, f"{aspect}_rating", place), place
                )


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line on which a row begins, and its cells that are read."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    places: dict[str, int] = {}
    line = 1
    limit = csv.field_size_limit(sys.maxsize)  # an answer may be longer than what the library takes for a mistake
    try:
        for cells in reader:
            if not places:
                places = {cell.strip().lower(): place for place, cell in enumerate(cells)}
                if missing := [name for name in _NEEDED if name not in places]:
                    raise DataError(
                        f"{path} has no column {' and no column '.join(missing)}: its first line must name "
                        f"{', '.join(_NEEDED)}, as in the table that --export writes"
                    )
            elif cells:
                yield line, {name: _cell(cells, places[name]) for name in _NEEDED}
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line} is not CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    if not places:
        raise DataError(f"{path} is empty: fill in the table that --export writes")


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place].strip() if place < len(cells) else ""


def _rating(written: str, column: str, place: str) -> float:
    try:
        value = float(written.replace(",", "."))
    except ValueError:
        value = math.nan
    if not 1.0 <= value <= 5.0:
        raise DataError(f"{place}: {column} is {written!r}: a rating is from 1 to 5, or empty where there is none")
    return value
