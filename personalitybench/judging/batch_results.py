"""Reads the output and error files of a batch, by the same rules as live replies.

What is a reply goes into the store and nowhere else. What is a reason (refused, truncated) is a reason here, too; what
is neither is missing, and :mod:`.batch` has it asked again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from personalitybench.completions import error_parts
from personalitybench.errors import JudgeError
from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_outcomes import (
    Again,
    Reply,
    Server,
    hopeless,
    read_completion,
    read_json,
    read_status,
)
from personalitybench.judging.responses import ResponseStore, StoredResponse

_AT_ONCE = 500  # replies that are written with one wait for the disk


class BatchError(NamedTuple):
    """Why a batch failed as a whole: ``line`` is that of its file, from 1, if it is one line's fault."""

    code: str
    said: str
    line: int | None


@dataclass
class Results:
    """What came of the requests of one batch, read line by line; a line may come twice.

    Attributes:
        keys: Of the requests; lines of others are passed over.
        store: Where replies go.
        server: For texts, and what they must not hold.
        replied: Keys whose replies came.
        unrated: Why others will have none.
        hopeless: What no further request to this server will change, if a line says so.
        garbage: Lines that cannot be read, or belong to no request.
        prompt_tokens, completion_tokens: As the server counted them, also where it is no reply.
    """

    keys: set[str]
    store: ResponseStore
    server: Server
    replied: set[str] = field(default_factory=set)
    unrated: dict[str, Unrated] = field(default_factory=dict)
    hopeless: JudgeError | None = None
    garbage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _counted: set[str] = field(default_factory=set)
    _waiting: list[tuple[str, StoredResponse]] = field(default_factory=list)

    @property
    def missing(self) -> set[str]:
        """Keys of which nothing came but failures that may pass."""
        return self.keys - self.replied - self.unrated.keys()

    def take(self, line: bytes) -> None:
        """Read a line.

        Raises:
            StorageError: A reply cannot be kept.
        """
        if not line.strip():
            return
        try:
            value = read_json(line)
            key = value["custom_id"]
        except (ValueError, TypeError, KeyError):
            self.garbage += 1
            return
        if not isinstance(key, str) or key not in self.keys:
            self.garbage += 1
            return
        if key in self.replied or key in self.unrated:  # the first one counts
            return
        outcome, prompt, completion = self._read(value)
        if key not in self._counted and prompt + completion:
            self._counted.add(key)
            self.prompt_tokens += prompt
            self.completion_tokens += completion
        if isinstance(outcome, Reply):
            self.replied.add(key)
            self._waiting.append((key, to_store(outcome)))
            if len(self._waiting) >= _AT_ONCE:
                self.keep()
        elif isinstance(outcome, Unrated):
            self.unrated[key] = outcome
        elif isinstance(outcome, JudgeError):
            self.hopeless = self.hopeless or outcome

    def keep(self) -> None:
        """Write what has not been written yet.

        Raises:
            StorageError: It cannot be.
        """
        self.store.put_many(self._waiting)
        self._waiting = []

    def _read(self, value: Mapping[str, Any]) -> tuple[Reply | Unrated | Again | JudgeError, int, int]:
        """Read ``response`` (a status and a body) or ``error`` (a code and a message); each may be JSON as text."""
        response = _from_text(value.get("response"))
        if isinstance(response, dict):
            status, body = _from_text(response.get("status_code")), _from_text(response.get("body"))
            if status == 200 and not value.get("error"):
                return read_completion(body, self.server)
            if isinstance(status, int) and status != 200:
                said = body.get("error", body) if isinstance(body, dict) else body
                return read_status(status, {}, said, self.server), 0, 0
        code, text = error_parts(_from_text(value.get("error")))
        said = self.server.quote(text)
        where = f"{self.server.address}, in a batch"
        return hopeless(where, 400, code, said, self.server) or Again("unreachable", said), 0, 0


def _from_text(value: object) -> object:
    """Return the value of JSON as text; other values and texts as they are."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value.encode("utf-8", "surrogatepass"))
    except ValueError:
        return value


def to_store(reply: Reply) -> StoredResponse:
    """Give a reply as the store keeps it."""
    return StoredResponse(
        text=reply.text,
        model=reply.model,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def read_errors(batch: Mapping[str, Any]) -> list[BatchError]:
    """Read what a batch failed for."""
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, dict) else None
    found = []
    for error in data if isinstance(data, list) else []:
        code, said = error_parts(error)
        line = error.get("line") if isinstance(error, dict) else None
        found.append(BatchError(code, said, line if type(line) is int else None))
    return found


def find_hopeless(errors: Iterable[BatchError], server: Server) -> JudgeError | None:
    """Find what no further request to this server will change."""
    for code, said, _ in errors:
        where = f"{server.address} refused a batch"
        if error := hopeless(where, 400, code, server.quote(said), server):
            return error
    return None


def quote(errors: Sequence[BatchError], server: Server) -> str:
    """Give the first error, and how many more there are."""
    code, said, line = errors[0]
    where = "" if line is None else f", line {line}"
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return server.quote(f"{said} ({code}{where}){more}")
