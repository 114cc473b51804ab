"""Lines of ratings: what each must hold, none twice, and the models that gave them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from personalitybench.errors import StorageError
from personalitybench.files import Sheet
from personalitybench.judging.base import MAY_PASS, Unrated, count_models, verdict_from_json

ASPECTS = ("trait", "fluency")

Row = Mapping[str, Any]


def read_ratings(sheet: Sheet) -> Iterator[tuple[tuple[str, str | None], Row]]:
    """Yield the lines of ratings, each with the id and the hash of its answer.

    An answer has a second line only where the one before was unrated for a reason that may pass.

    Raises:
        StorageError: A line has no id, no rating from 1 to 5 and no reason, or repeats a rating.
    """
    lines: dict[tuple[str, str | None], tuple[int, Row]] = {}
    for number, row in enumerate(sheet.lines.read(), 1):
        if (problem := _problem_of(row)) is not None:
            raise StorageError(f"{sheet.path}:{number}{problem}: delete the file to have it made again")
        identity, digest = row["id"], row.get("answer_sha256")
        earlier = lines.get((identity, digest))
        if earlier is not None and not may_pass(earlier[1], MAY_PASS):
            raise StorageError(
                f"{sheet.path}:{number} repeats the rating of line {earlier[0]} (answer {identity}): delete the line "
                f"and {sheet.manifest.name}"
            )
        lines[identity, digest] = (number, row)
        yield (identity, digest), row


def may_pass(row: Row, reasons: Collection[str]) -> bool:
    """Return True if a line's answer is unrated, in an aspect, for one of these reasons."""
    verdicts = (verdict_from_json(row[aspect]) for aspect in ASPECTS)
    return any(isinstance(verdict, Unrated) and verdict.reason in reasons for verdict in verdicts)


def judge_models(sheet: Sheet) -> dict[str, int]:
    """Return the models that gave the ratings of a sheet, with their number; the last verdicts of an answer count."""
    rows = dict(read_ratings(sheet))
    return count_models(verdict_from_json(row[aspect]) for row in rows.values() for aspect in ASPECTS)


def _problem_of(row: Row) -> str | None:
    if not isinstance(row.get("id"), str):
        return " has no id of an answer"
    if not isinstance(row.get("answer_sha256"), str | None):
        return ": 'answer_sha256' is no text"
    for aspect in ASPECTS:
        if aspect not in row:
            return f": {aspect!r} is missing"
        try:
            verdict_from_json(row[aspect])
        except ValueError as error:
            return f": {aspect!r}: {error}"
    return None
