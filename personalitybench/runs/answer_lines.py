"""Lines of answers: what each must hold, and none twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.instance import Instance

from personalitybench.completions import NoAnswer
from personalitybench.errors import StorageError
from personalitybench.files import Sheet
from personalitybench.outside_files import is_broken
from personalitybench.tasks import UNRATED
from personalitybench.traits import TRAIT_NAMES

Row = Mapping[str, Any]


def answer_line(request: Instance, answer: str | None) -> dict[str, Any]:
    """Return the line of an answer; of one that the model did not give it says why."""
    row = {
        "id": request.doc["id"],
        "trait": request.doc["trait"],
        "question": request.doc["question"],
        "prompt": request.args[0],
        "answer": str(answer or ""),
    }
    if isinstance(answer, NoAnswer):
        row[UNRATED] = {"reason": answer.reason, "detail": answer.detail}
    return row


def read_answers(sheet: Sheet) -> list[dict[str, Any]]:
    """Read a sheet of answers.

    Raises:
        StorageError: A line lacks a field, has one of another type, or repeats the answer to a question.
    """
    rows = []
    lines: dict[str, int] = {}
    for number, row in enumerate(sheet.lines.read(), 1):
        if (problem := _problem_of_answer(row)) is not None:
            raise StorageError(
                f"{sheet.path}:{number}: {problem}: restore the file, or delete it and {sheet.manifest.name}"
            )
        if (first := lines.setdefault(row["id"], number)) != number:
            raise StorageError(
                f"{sheet.path}:{number} repeats the answer of line {first}: delete the line and "
                f"{sheet.manifest.name}, and run the stage that made it again"
            )
        rows.append(row)
    return rows


def _problem_of_answer(row: Row) -> str | None:
    for field in ("id", "trait", "question", "answer"):
        if not isinstance(row.get(field), str):
            return f"{field!r} is missing" if field not in row else f"{field!r} is no text"
    if is_broken(row["id"]):
        return "'id' holds half of a surrogate pair"
    if row["trait"] not in TRAIT_NAMES:
        return f"unknown trait {row['trait']!r}"
    reason = row.get(UNRATED)
    if reason is not None and not (isinstance(reason, dict) and isinstance(reason.get("reason"), str)):
        return f"{UNRATED!r} has no reason"
    return None
