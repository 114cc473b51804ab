"""Speaks OpenAI's Batch API: files up and down, batches made, looked up and found again.

Knows HTTP and its failures, as :mod:`.chat_client` does for single requests; what is to be done is :mod:`.batch`'s.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from personalitybench.completions import dump
from personalitybench.errors import JudgeError
from personalitybench.http_bodies import UnreadableBodyError
from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_client import ChatSettings, load_library
from personalitybench.judging.chat_outcomes import Again, read_error, read_json, read_status
from personalitybench.judging.http_client import client, http_library
from personalitybench.transfers import Limits, RateMonitor, SlowTransferError
from personalitybench.workers import ANNOUNCED_WAIT

ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
TAG = "personalitybench"
"""Key of a batch's metadata, by which it is found again."""

Object = Mapping[str, Any]
T = TypeVar("T")

_PAGE = 100  # batches that are listed at a time: the API's limit
_CLOCKS_DIFFER = 86_400.0  # seconds between this machine's clock and the server's at most
_LONGEST_BACKOFF = 16  # times the first one
_LONGEST_PARTIAL = 64 * 1024 * 1024  # bytes without an end of line: no line of a batch's output is that long
_FILE_LIMITS = Limits(total=4 * 3600.0)
_FILE_LINES = 30.0  # seconds between two lines that tell how far a file is
_NO_BATCHES = frozenset({404, 405, 501})
_jitter = secrets.SystemRandom()


class SilentServerError(JudgeError):
    """The server gave no usable answer in all tries; it may later."""


class BatchApi:
    """Asks one server; not for several threads.

    Args:
        settings: Whom to ask, and how often; ``sampling`` and ``concurrency`` say nothing here.
        say: Told of long waits.

    Attributes:
        server: For texts, without the key.

    Raises:
        ConfigurationError: No key, or none that can be one.
        MissingDependencyError: openai is not installed.
    """

    def __init__(self, settings: ChatSettings, say: Callable[[str], None]) -> None:
        self._say = say
        self.server = settings.server()
        self._settings = settings
        self._openai = load_library()
        self._http = http_library(self._openai)  # raises errors of its own in the middle of a body
        self._api = self._openai.OpenAI(
            api_key=self.server.key,
            base_url=settings.address,
            default_query=settings.query,
            max_retries=0,
            timeout=settings.timeout,
            http_client=client(self._openai, settings.timeout, unbounded="/content", url=settings.address),
        )

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def upload(self, path: Path, name: str) -> str:
        """Upload a file of requests; gives its id at the server.

        Raises:
            JudgeError: The server has no Batch API, or wants no such file.
        """

        def send() -> Any:
            with path.open("rb") as stream:
                return self._api.files.with_raw_response.create(file=(f"{name}.jsonl", stream), purpose="batch")

        return str(self._ask(send, missing=self._no_batches)["id"])

    def create(self, input_file: str, tag: str, since: float, *, perhaps_there: bool) -> Object:
        """Make a batch, once: where it is not certain that the server did not make it, it is looked for first.

        Args:
            input_file: Id of the uploaded file.
            tag: Names it, so that it can be found.
            since: When it was first tried to make it, in seconds since 1970.
            perhaps_there: An earlier try may have come through.
        """
        last: Again | None = None
        send = partial(
            self._api.batches.with_raw_response.create,
            input_file_id=input_file,
            endpoint=ENDPOINT,
            completion_window=WINDOW,
            metadata={TAG: tag},
        )
        for attempt in range(self._settings.attempts):
            if last is not None:
                self._sleep(attempt, last)
            if (perhaps_there or attempt) and (found := self._find(tag, since)):
                return self._only(found)
            outcome = self._try(send)
            if isinstance(outcome, Again):
                last = outcome
                continue
            batch = self._checked(outcome, "")
            # A try that seemed lost may have come through late.
            return self._only(self._find(tag, since) or [batch]) if perhaps_there or attempt else batch
        raise self._silent(last)

    def retrieve(self, batch: str, record: Path) -> Object:
        """Look up a batch.

        Args:
            batch: Its id.
            record: Folder of what is known of it here, for the error.

        Raises:
            SilentServerError: No answer now.
            JudgeError: The server does not know it.
        """
        return self._ask(
            partial(self._api.batches.with_raw_response.retrieve, batch),
            missing=f"it does not know the batch {batch}; was it made with another key than the one in "
            f"{self.server.key_variable}? If it is gone, delete {record}: then what it held is asked, and paid, again",
        )

    def read_file(self, file: str, take: Callable[[bytes], None], record: Path) -> None:
        """Read a file line by line; where the connection breaks all is read anew, so a line may be taken twice.

        Raises:
            SilentServerError: It cannot be read now.
            JudgeError: It is gone.
        """
        last = Again("unreachable", "never tried")
        for attempt in range(self._settings.attempts):
            if attempt:
                self._sleep(attempt, last)
            outcome = self._guarded(lambda: self._stream(file, take))
            if outcome is None:
                return
            last = self._again(
                outcome, f"it has no file {file} any more: delete {record}, then what it held is asked, and paid, again"
            )
        raise self._silent(last)

    def _stream(self, file: str, take: Callable[[bytes], None]) -> None:
        with self._api.files.with_streaming_response.content(file) as response:
            for line in _lines(self._watched(file, response.iter_bytes())):
                take(line)

    def _watched(self, file: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield blocks of a file; tell how far it is, and end a file that hardly comes."""
        monitor = RateMonitor(f"{self.server.address}, file {file},", _FILE_LIMITS, "it is read again")
        received, told = 0, ANNOUNCED_WAIT
        for block in blocks:
            received += len(block)
            monitor.check(received)
            if monitor.seconds > told:
                told = monitor.seconds + _FILE_LINES
                self._say(f"reading file {file} of the server: {received / 1e6:.1f} MB so far ({_FILE_LIMITS})")
            yield block

    def _find(self, tag: str, since: float) -> list[Object]:
        """Batches with a tag, the oldest first."""
        found: list[Object] = []
        after: str | None = None
        while True:
            given: dict[str, Any] = {"limit": _PAGE} | ({"after": after} if after else {})
            page = self._ask(
                partial(self._api.batches.with_raw_response.list, **given),
                missing=self._no_batches,
                key="data",
            )
            batches = [each for each in page["data"] if isinstance(each, dict) and isinstance(each.get("id"), str)]
            found += [each for each in batches if _mapping(each.get("metadata")).get(TAG) == tag]
            oldest = min(map(_created_at, batches), default=0.0)
            if not page.get("has_more") or not batches or oldest < since - _CLOCKS_DIFFER:
                return sorted(found, key=lambda each: (_created_at(each), each["id"]))
            after = batches[-1]["id"]

    def _only(self, batches: list[Object]) -> Object:
        """Keep the first of several that were made of one intent; the others are cancelled."""
        for extra in batches[1:]:
            if extra.get("status") in {"validating", "in_progress", "finalizing"}:
                self._try(partial(self._api.batches.with_raw_response.cancel, extra["id"]))
        return batches[0]

    def _ask(self, send: Callable[[], Any], *, missing: str, key: str = "id") -> Object:
        """Send until an object with this key comes back."""
        last = Again("unreachable", "never tried")
        for attempt in range(self._settings.attempts):
            if attempt:
                self._sleep(attempt, last)
            outcome = self._try(send, key)
            if not isinstance(outcome, Again):
                return self._checked(outcome, missing)
            last = outcome
        raise self._silent(last)

    def _try(self, send: Callable[[], Any], key: str = "id") -> Object | Again | tuple[int, JudgeError]:
        """Send once, and read an object."""

        def read() -> Object | Again:
            body = send().http_response.content
            try:
                value = read_json(body)
            except ValueError as error:
                return Again("not-text", f"the body is no JSON in UTF-8 ({self.server.quote(str(error))})")
            wanted = list if key == "data" else str
            if not isinstance(value, dict) or not isinstance(value.get(key), wanted):
                return Again("not-text", f"the body has no {key!r}: {self.server.quote(dump(value))}")
            return value

        return self._guarded(read)

    def _guarded(self, send: Callable[[], T]) -> T | Again | tuple[int, JudgeError]:
        """Do what sends. Errors are returned: the library's hold the request with its headers, and must not be chained.

        Returns:
            What came, or that it may be tried again, or the status and the error.
        """
        try:
            return send()
        except self._openai.APITimeoutError:
            return Again("unreachable", f"no reply within {self._settings.timeout:g} s")
        except (UnreadableBodyError, SlowTransferError) as error:
            return Again("not-text", str(error))
        except self._openai.APIStatusError as error:
            outcome = read_status(
                error.status_code, error.response.headers, read_error(error.response.content), self.server
            )
            if isinstance(outcome, Unrated):
                outcome = JudgeError(f"{self.server.address} answered {error.status_code} ({outcome.detail})")
            return outcome if isinstance(outcome, Again) else (error.status_code, outcome)
        except (self._openai.APIConnectionError, self._http.HTTPError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, UnreadableBodyError):
                return Again("not-text", str(cause))
            return Again("unreachable", f"no connection ({self.server.quote(f'{type(cause).__name__}: {cause}')})")

    @property
    def _no_batches(self) -> str:
        return "it has no Batch API under this base_url: leave --batch out"

    def _checked(self, outcome: Object | tuple[int, JudgeError], missing: str) -> Object:
        if isinstance(outcome, tuple):
            self._refused(*outcome, missing)
        return outcome

    def _again(self, outcome: Again | tuple[int, JudgeError], missing: str) -> Again:
        if isinstance(outcome, tuple):
            self._refused(*outcome, missing)
        return outcome

    def _refused(self, status: int, error: JudgeError, missing: str) -> NoReturn:
        if missing and status in _NO_BATCHES:
            raise JudgeError(f"{self.server.address} answered {status}: {missing}")
        raise error

    def _silent(self, last: Again | None) -> SilentServerError:
        said = "no try was made" if last is None else last.detail
        return SilentServerError(
            f"{self.server.address}: {self._settings.attempts} tries came to nothing ({said}); what is at the server "
            "goes on there, and the same command picks it up"
        )

    def _sleep(self, attempt: int, last: Again) -> None:
        """Wait as long as the server says, or longer each time."""
        own = self._settings.backoff * min(2.0 ** (attempt - 1), _LONGEST_BACKOFF) * _jitter.uniform(0.75, 1.25)
        wait = max(last.wait or 0.0, own)
        if wait > ANNOUNCED_WAIT:
            self._say(f"waiting {wait:.0f} s: {self.server.address}: {last.detail}; Ctrl-C ends it")
        time.sleep(wait)


def _mapping(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _created_at(batch: Object) -> float:
    created = batch.get("created_at")
    return float(created) if isinstance(created, int | float) and abs(created) < 1e12 else 0.0


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at line feeds alone: JSON may hold what else ends a line in Unicode."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_PARTIAL:
            rest = b""
    if rest:
        yield rest
