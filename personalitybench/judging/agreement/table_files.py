"""Frozen ratings: a table of answers and verdicts as one file, so that a judge that is gone can still be compared with.

JSON lines. The first says what it is, from where, and who rated; each further one is an answer with all verdicts::

    {"format": "personalitybench-ratings", "version": 1, "source": ..., "answers": 480,
     "judges": [{"judge": "offline", "identity": {...}, "repeats": 1}, ...]}
    {"id": ..., "question_id": ..., "question": ..., "answer": ..., "trait": ..., "pole": ..., "method": ...,
     "verdicts": {"offline": [{"trait": {"rating": 3.2}, "fluency": {"unrated": "refused"}}], ...}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.errors import DataError
from personalitybench.files import JsonLines, write_atomically
from personalitybench.judging.agreement.table import ASPECTS, Aspect, Column, ComparedAnswer, RatingTable
from personalitybench.judging.base import Verdict, verdict_from_json
from personalitybench.validation import validate

FORMAT: Literal["personalitybench-ratings"] = "personalitybench-ratings"

_HOW = "restore it, or make it again with 'personalitybench judges compare ... --output FOLDER'"


class _Judge(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: str
    identity: dict[str, str]
    repeats: int = Field(ge=0)


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["personalitybench-ratings"]
    version: Literal[1]
    source: str
    answers: int = Field(ge=0)
    judges: list[_Judge]


def write_table(table: RatingTable, path: Path) -> None:
    """Write a table whole or not at all.

    Raises:
        DataError: Two judges have one name.
        StorageError: It cannot be written.
    """
    names = [column.judge for column in table.columns]
    if len(set(names)) < len(names):
        raise DataError(f"two judges have one name, of {', '.join(sorted(names))}: name each once")
    judges = [
        {"judge": column.judge, "identity": dict(column.identity), "repeats": len(column.repeats)}
        for column in table.columns
    ]
    head = {"format": FORMAT, "version": 1, "source": table.source, "answers": len(table.answers), "judges": judges}
    lines = [head, *(_row(answer, table.columns) for answer in table.answers)]
    # Escapes instead of UTF-8: an answer may hold a lone surrogate, which UTF-8 cannot.
    write_atomically(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_table(path: Path) -> RatingTable:
    """Read what :func:`write_table` wrote.

    Raises:
        DataError: It is no such file, or it was altered.
        ConfigurationError: Its first line is of another version.
        StorageError: It cannot be read.
    """
    lines = JsonLines(path).read()
    first = next(lines, None)
    if first is None or first.get("format") != FORMAT:
        raise DataError(f"{path} holds no frozen ratings: name a ratings.jsonl that 'judges compare --output' wrote")
    head = validate(_Head, first, f"{path}:1")
    verdicts: list[list[dict[tuple[str, Aspect], Verdict]]] = [
        [{} for _ in range(judge.repeats)] for judge in head.judges
    ]
    answers = []
    for number, row in enumerate(lines, 2):
        try:
            answer = _read_row(row, head.judges, verdicts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}:{number} is no line of ratings ({error!r}): {_HOW}") from error
        if answer.id != row["id"]:
            raise DataError(f"{path}:{number}: the answer is not the one that was rated: {_HOW}")
        answers.append(answer)
    if len(answers) != head.answers:
        raise DataError(f"{path} holds {len(answers)} of {head.answers} answers: {_HOW}")
    columns = [
        Column(judge.judge, judge.identity, repeats) for judge, repeats in zip(head.judges, verdicts, strict=True)
    ]
    return RatingTable(head.source, answers, columns)


def _row(answer: ComparedAnswer, columns: Iterable[Column]) -> dict[str, Any]:
    verdicts = {
        column.judge: [
            {
                aspect: verdict.to_json()
                for aspect in ASPECTS
                if (verdict := repeat.get((answer.id, aspect))) is not None
            }
            for repeat in column.repeats
        ]
        for column in columns
    }
    return {"id": answer.id, **asdict(answer), "verdicts": verdicts}


def _read_row(
    row: Mapping[str, Any], judges: Iterable[_Judge], verdicts: Iterable[list[dict[tuple[str, Aspect], Verdict]]]
) -> ComparedAnswer:
    names = ("question_id", "question", "answer", "trait", "pole", "method")
    answer = ComparedAnswer(**{name: _text(row, name) for name in names})
    for judge, repeats in zip(judges, verdicts, strict=True):
        for repeat, found in zip(repeats, row["verdicts"][judge.judge], strict=True):
            for aspect in ASPECTS:
                if aspect in found:
                    repeat[answer.id, aspect] = verdict_from_json(found[aspect])
    return answer


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value
