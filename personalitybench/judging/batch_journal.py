"""What is known of batches on this machine, so that no kill at any moment makes anything be paid twice.

A part is what becomes one batch: a file of requests, and a record of how far it is. The record says what is going to
happen before it happens; what may have happened unrecorded is looked up at the server (:mod:`.batch`)::

    <cache>/judges/batches/<hash of server and model>/NAME/requests.jsonl    one line a request, until it is done
    <cache>/judges/batches/<hash of server and model>/NAME/part.json         the record

No process owns a part: whoever waits for it takes its lock for the next step, and the steps of one go on in another.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from personalitybench.errors import StorageError
from personalitybench.files import read_json, write_atomically, write_json
from personalitybench.locks import hold_lock
from personalitybench.outside_files import parse_json
from personalitybench.validation import validate

_OPENING = b'{"custom_id": "'
_LINE = re.compile(rb'\{"custom_id": "[0-9a-f]{64}", [\x20-\x7e]*\}\n')
_KEY = slice(len(_OPENING), len(_OPENING) + 64)
_UNFINISHED = ".new-"
_PATIENCE = 600.0  # seconds that another process may take to write what it will ask


@dataclass(frozen=True)
class Request:
    """A request as a line of a batch's file.

    Attributes:
        line: The line with its newline.
        prompt_tokens: What it sends, estimated.
        completion_tokens: What it may write.
    """

    line: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def key(self) -> str:
        """Key of its reply in the store, which is its ``custom_id``."""
        return self.line[_KEY].decode("ascii")

    @property
    def messages(self) -> list[dict[str, str]]:
        """Messages that it sends."""
        messages: list[dict[str, str]] = parse_json(self.line.decode("ascii"), finite=False)["body"]["messages"]
        return messages


class Part(BaseModel):
    """How far a part is.

    Attributes:
        name: Of its folder.
        planned: When it was written: ISO time, UTC.
        requests: How many.
        prompt_tokens, completion_tokens: That they send, estimated, and may write.
        asked: How often its requests were in a batch before.
        input_file: The uploaded file at the server.
        attempt: Number of the batch that was made of it, or was about to be; 0: none yet.
        batch: The batch at the server; None where none is known to be there.
        status: The batch's, in the server's words; ``planned`` before.
        completed, failed: Requests, as the server counts them.
        held: The server takes no more at once: to be sent when nothing else is under way.
        done: Its replies are kept, and nothing more comes of it.
        replies: How many came.
        followed_by: Parts that ask again what is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    planned: dt.datetime
    requests: int
    prompt_tokens: int
    completion_tokens: int
    asked: int = 0
    input_file: str | None = None
    attempt: int = 0
    batch: str | None = None
    status: str = "planned"
    completed: int = 0
    failed: int = 0
    held: bool = False
    done: bool = False
    replies: int = 0
    followed_by: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """Names the present attempt at the server."""
        return f"{self.name}.{self.attempt}"


class Journal:
    """The parts of one server and model, beneath one folder.

    Args:
        folder: Is made if it is missing.

    Raises:
        StorageError: It cannot be made. All methods raise it for what cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def open_parts(self) -> list[Part]:
        """Parts that are not done, the oldest first."""
        names = sorted(path.parent.name for path in self.folder.glob("[!.]*/part.json"))
        return [part for part in map(self.read, names) if not part.done]

    def read(self, name: str) -> Part:
        """Read the record of a part."""
        path = self.folder / name / "part.json"
        return validate(Part, read_json(path), f"record of a batch {path}")

    def write(self, part: Part) -> Part:
        """Write the record of a part; it is on disk when this returns."""
        write_json(self.folder / part.name / "part.json", part.model_dump(mode="json"))
        return part

    def exists(self, name: str) -> bool:
        """Whether there is such a part, done or not."""
        return (self.folder / name / "part.json").is_file()

    def requests_file(self, name: str) -> Path:
        """File of a part's requests; it is gone once the part is done."""
        return self.folder / name / "requests.jsonl"

    def lines(self, name: str) -> Iterator[bytes]:
        """Lines of a part's requests.

        Raises:
            StorageError: A line is not as it was written.
        """
        path = self.requests_file(name)
        with _reporting(path), path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not _LINE.fullmatch(line):
                    raise StorageError(
                        f"{path}:{number} was altered: restore the file, or delete the folder {path.parent}; then what "
                        "it held is asked, and paid, again"
                    )
                yield line

    def keys(self, name: str) -> set[str]:
        """Keys of a part's requests."""
        return {line[_KEY].decode("ascii") for line in self.lines(name)}

    def rewrite(self, part: Part, requests: Sequence[Request]) -> Part:
        """Leave fewer requests in a part that was never sent."""
        write_atomically(self.requests_file(part.name), b"".join(request.line for request in requests))
        update = {
            "requests": len(requests),
            "prompt_tokens": sum(request.prompt_tokens for request in requests),
            "completion_tokens": sum(request.completion_tokens for request in requests),
        }
        return self.write(part.model_copy(update=update))

    def finish(self, part: Part) -> Part:
        """Write the record of a part that is done, and give the room of its requests back."""
        self.write(part)
        self.requests_file(part.name).unlink(missing_ok=True)
        return part

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process decide meanwhile what is to be asked.

        Raises:
            StorageError: Another one takes too long.
        """
        with _reporting(self.folder), hold_lock(self.folder / ".plan.lock", "writing requests of batches", _PATIENCE):
            yield

    @contextmanager
    def step(self, name: str) -> Iterator[bool]:
        """Take a part for one step; False where another process is at it."""
        lock = FileLock(self.folder / f".{name}.lock", timeout=0)
        try:
            with _reporting(self.folder):
                lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def prepare(self, requests: Iterable[Request], *, most: int, most_bytes: int) -> list[Part]:
        """Write new parts that do not count yet (:meth:`publish`). Call it alone.

        Args:
            requests: Taken one by one.
            most: Requests of a part at most.
            most_bytes: Of its file at most.
        """
        for path in self.folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed here
            shutil.rmtree(path, ignore_errors=True)
        parts: list[Part] = []
        rest = _Lookahead(requests)
        stem = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        while rest.more:
            parts.append(self._write_new(f"{stem}-{len(parts) + 1:03}", rest, most, most_bytes))
        return parts

    def publish(self, parts: Iterable[Part]) -> None:
        """Let prepared parts count."""
        with _reporting(self.folder):
            for part in parts:
                (self.folder / f"{_UNFINISHED}{part.name}").rename(self.folder / part.name)

    def discard(self, parts: Iterable[Part]) -> None:
        """Take prepared parts away."""
        for part in parts:
            shutil.rmtree(self.folder / f"{_UNFINISHED}{part.name}", ignore_errors=True)

    def follow(self, part: Part, ending: str, requests: Iterable[Request], asked: int, *, held: bool = False) -> str:
        """Write the part that asks again what is missing of another. Call it alone; a second time does nothing.

        Returns:
            Its name, which depends on nothing but the other's and ``ending``.
        """
        name = f"{part.name}{ending}"
        if not self.exists(name):
            shutil.rmtree(self.folder / f"{_UNFINISHED}{name}", ignore_errors=True)
            new = self._write_new(name, _Lookahead(requests), part.requests, 1 << 62, asked=asked, held=held)
            self.publish([new])
        return name

    def _write_new(
        self, name: str, rest: _Lookahead, most: int, most_bytes: int, *, asked: int = 0, held: bool = False
    ) -> Part:
        folder = self.folder / f"{_UNFINISHED}{name}"
        count = size = sent = written = 0
        with _reporting(folder):
            folder.mkdir()
            with (folder / "requests.jsonl").open("wb") as stream:
                while rest.more and count < most and (not count or size + len(rest.first.line) <= most_bytes):
                    request = rest.take()
                    stream.write(request.line)
                    count, size = count + 1, size + len(request.line)
                    sent, written = sent + request.prompt_tokens, written + request.completion_tokens
                stream.flush()
                os.fsync(stream.fileno())
        part = Part(
            name=name,
            planned=dt.datetime.now(dt.UTC),
            requests=count,
            prompt_tokens=sent,
            completion_tokens=written,
            asked=asked,
            held=held,
        )
        write_json(folder / "part.json", part.model_dump(mode="json"))
        return part


class _Lookahead:
    """Requests of which the next one is known."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._rest = iter(requests)
        self._next = next(self._rest, None)

    @property
    def more(self) -> bool:
        return self._next is not None

    @property
    def first(self) -> Request:
        if self._next is None:
            raise IndexError("no request is left")
        return self._next

    def take(self) -> Request:
        taken, self._next = self.first, next(self._rest, None)
        return taken


def request_line(key: str, endpoint: str, body: object) -> bytes:
    """Write a request as a line of a batch's file. All in ASCII: no reader of lines finds another end in it."""
    value = {"custom_id": key, "method": "POST", "url": endpoint, "body": body}
    return json.dumps(value, allow_nan=False).encode("ascii") + b"\n"


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, Timeout):  # which is one, too
            raise
        raise StorageError(
            f"cannot use {path}: {error.strerror or error}; what was paid is kept, so the same command resumes once "
            "there is room and permission"
        ) from error
