"""What a check is, and what comes of it."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personalitybench.checks.subject import Subject


class Outcome(StrEnum):
    """What came of a check. Only ``fail`` is a defect; a ``note`` is worth reading, and may be meant."""

    PASS = "pass"  # noqa: S105 (no password)
    NOTE = "note"
    SKIP = "skip"
    FAIL = "fail"


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
        check: Its name.
        promise: What a method promises, in a sentence.
        outcome: What came of it.
        reason: What was found; of a failure, what is wrong and where to look.
        seconds: How long it took.
    """

    check: str
    promise: str
    outcome: Outcome
    reason: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        return {
            "check": self.check,
            "promise": self.promise,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "seconds": round(self.seconds, 2),
        }


class BrokenPromiseError(Exception):
    """The method does not keep what the contract promises: the text says what is wrong, and where to look."""


class NotCheckedError(Exception):
    """This could not be checked: the text says why."""


class Note(str):
    """What a check that is passed found worth telling."""

    __slots__ = ()


@dataclass(frozen=True)
class Check:
    """One promise of the contract, and how it is put to the test.

    Attributes:
        name: How it is called.
        run: The test: gives what was found, raises :class:`BrokenPromiseError` or :class:`NotCheckedError`. The first
            paragraph of its docstring is the promise.
    """

    name: str
    run: Callable[[Subject], str]

    @property
    def promise(self) -> str:
        """What a method promises."""
        return " ".join((inspect.getdoc(self.run) or "").partition("\n\n")[0].split())


def describe_error(error: BaseException, kind: type) -> str:
    """Write an error as one line, with the line of the method's own module that it came from, if it did."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    try:
        own = inspect.getfile(kind)
    except (OSError, TypeError):  # a class of an interactive session
        own = ""
    places = [frame for frame in frames if frame.filename == own] or list(frames)
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return " ".join(text.split()) + where
