"""Answers of one's own to train ``lora`` on: a file of JSON lines, checked line by line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.outside_files import open_regular, parse_json
from personalitybench.traits import TARGETS, Target
from personalitybench.validation import validate

PREFIX = "sha256:"
"""What a hash is written with, in place of the file whose content it is of."""


class AnswerLine(BaseModel):
    """One line; further keys are passed over.

    Attributes:
        target: ``extraversion:high``.
        question: What was asked.
        answer: What was answered.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    target: str
    question: str = Field(min_length=1)
    answer: str


def hash_of_file(path: Path) -> str:
    """Hash of a file's content, as settings, fits and rows show it.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with open_regular(path) as stream:
            return PREFIX + hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}): name a file of JSON lines") from error


def read_answers(path: Path, content: str) -> dict[Target, list[tuple[str, str]]]:
    """Read questions and answers by target.

    Args:
        path: The file.
        content: Its hash, from :func:`hash_of_file`.

    Returns:
        Targets in their usual order; those that the file does not have are left out.

    Raises:
        DataError: The file is another than was hashed, or empty, or a line is wrong; the text names it.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): name a file of JSON lines") from error
    if PREFIX + hashlib.sha256(data).hexdigest() != content:
        raise DataError(f"{path} was changed since this fit began: run the fit again")
    found: dict[Target, list[tuple[str, str]]] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse_json(raw.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{where} is not JSON in UTF-8 ({error}): write one object a line") from error
        if not isinstance(value, dict):
            raise DataError(f"{where} is no JSON object: write target, question and answer")
        try:
            line = validate(AnswerLine, value, where)
            target = Target.parse(line.target)
        except ConfigurationError as error:
            text = str(error)
            raise DataError(text if text.startswith(where) else f"{where}: {text}") from error
        found.setdefault(target, []).append((line.question, line.answer))
    if not found:
        raise DataError(f"{path} has no line: write target, question and answer, one object a line")
    return {target: found[target] for target in TARGETS if target in found}
