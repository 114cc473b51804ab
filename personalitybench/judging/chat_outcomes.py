"""What a chat server's answer comes to: a reply, a reason why there is none, another try, or the end.

The chat client (:mod:`.chat_client`) sends; this module only reads. Nothing here ever makes a number of a failure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from personalitybench import completions
from personalitybench.completions import CUT_OFF, WHOLE, error_parts, message_text, reported_error, valid_text
from personalitybench.errors import JudgeError, JudgeModelError
from personalitybench.judging.base import Unrated
from personalitybench.outside_files import parse_json

LONGEST_WAIT = (
    600.0  # seconds that a server may ask for; a daily quota asks for hours, and that is for the user to know
)

_MODEL_CHARACTERS = 200  # of a model's name
_MOST_TOKENS = 1 << 31  # that a request can take; SQLite holds no number without limit
_ERROR_BYTES = 4096  # of an error that is no JSON
_SHORTEST_SECRET = 8  # characters; servers without keys are given words such as EMPTY, which may stand in any text
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


@dataclass(frozen=True)
class Reply:
    """What a chat model wrote.

    Attributes:
        text: The message, never empty.
        model: The model as the server names it.
        finish_reason: ``stop``, the one of whole replies.
        prompt_tokens, completion_tokens: As the server counted them; 0 if it did not.
    """

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Again:
    """Worth another try.

    Attributes:
        reason: The ``Unrated.reason`` if no try is left.
        detail: What went wrong, for people.
        wait: Seconds after which the server wants to be asked again, if it said so.
        turned_away: The server is asked too much.
    """

    reason: str
    detail: str
    wait: float | None = None
    turned_away: bool = False


@dataclass(frozen=True)
class Server:
    """What an error must say about a server, and what it must not.

    Attributes:
        address: Its base URL, without a query.
        model: The model that is asked for.
        key_variable: Environment variable of the key.
        key: The key itself.
    """

    address: str
    model: str
    key_variable: str
    key: str

    def __repr__(self) -> str:
        return f"Server({self.address!r}, {self.model!r}, {self.key_variable!r})"

    def without_key(self, text: str) -> str:
        """Take the key out of a text."""
        return text.replace(self.key, "***") if len(self.key) >= _SHORTEST_SECRET else text

    def quote(self, text: str) -> str:
        """Return a server's or library's words on one short line, without keys and control characters."""
        return completions.quote(self.without_key(text))


def read_body(body: bytes, server: Server) -> tuple[Reply | Unrated | Again | JudgeError, int, int]:
    """Read the body of a 200.

    Returns:
        The outcome, and the tokens of prompt and completion that the server counted (also where it is no reply).
    """
    try:
        value = read_json(body)
    except ValueError as error:
        return Again("not-text", f"the body is no JSON in UTF-8 ({server.quote(str(error))})"), 0, 0
    return read_completion(value, server)


def read_json(body: bytes) -> Any:
    """Read JSON from a server, with or without a byte order mark.

    Raises:
        ValueError: It is not UTF-8 or JSON, or exceeds a limit of :mod:`personalitybench.outside_files`.
    """
    return parse_json(body.decode("utf-8-sig"), finite=False)


def read_error(body: bytes) -> object:
    """Return the ``error`` of a body, or the body itself: as JSON, else as text."""
    try:
        value = read_json(body)
    except ValueError:
        return body[:_ERROR_BYTES].decode("utf-8", "replace")
    return value.get("error", value) if isinstance(value, dict) else value


def read_completion(value: Any, server: Server) -> tuple[Reply | Unrated | Again | JudgeError, int, int]:
    """Read a chat completion, as :func:`read_body` does, from decoded JSON.

    Only a ``finish_reason`` of ``stop`` makes a reply. An error beside the choices, in a choice or in its message, and
    every other ``finish_reason`` is a failure, whatever text came with it.
    """
    usage = value.get("usage") if isinstance(value, dict) else None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if (error := reported_error(value)) is not None:
        return _read_error(error, server), prompt, completion
    try:
        choice = value["choices"][0]
        message = choice["message"]
        finish = choice.get("finish_reason") or "missing"
        text, refusal, tools = message_text(message.get("content")), message.get("refusal"), message.get("tool_calls")
    except (KeyError, IndexError, TypeError, AttributeError):
        said = server.quote(completions.dump(value))
        return Again("not-text", f"the body is no chat completion: {said}"), 0, 0
    outcome: Reply | Unrated | Again | JudgeError
    if refusal or finish == "content_filter":
        outcome = Unrated("refused", server.quote(str(refusal or "content filter")))
    elif finish == CUT_OFF:
        outcome = Unrated("truncated", f"it reached the limit of tokens ({completion} were written)")
    elif tools or str(finish) in completions.TOOL_CALLS:
        outcome = Unrated("tool-call", "it called a tool instead of giving a rating")
    elif finish != WHOLE:
        outcome = Again("unreachable", f"the reply is not whole: finish_reason {server.quote(str(finish))}")
    elif not text.strip():
        outcome = Unrated("empty", "an empty message (finish_reason stop)")
    else:
        named = valid_text(server.without_key(str(value.get("model") or server.model))[:_MODEL_CHARACTERS])
        outcome = Reply(valid_text(server.without_key(text)), named, WHOLE, prompt, completion)
    return outcome, prompt, completion


def _read_error(error: object, server: Server) -> Unrated | Again | JudgeError:
    """Classify an error that came inside a 200."""
    code, said = error_parts(error)
    said = server.quote(said)
    if code in completions.REFUSAL_CODES:
        return Unrated("refused", said)
    where = f"{server.address} answered 200 with an error"
    return hopeless(where, 200, code, said, server) or Again("unreachable", f"an error inside a 200 ({said})")


def read_status(status: int, headers: Mapping[str, str], body: object, server: Server) -> Unrated | Again | JudgeError:
    """Read an answer that is no 200.

    Args:
        status: HTTP status.
        headers: Of the answer, found in lower case.
        body: Its ``error`` object, or the text if it is no JSON.
        server: For the texts.
    """
    code, said = error_parts(body)
    said = server.quote(said)
    where = f"{server.address} answered {status}"
    if error := _redirect(where, status, headers, server) or hopeless(where, status, code, said, server):
        return error
    if status in {408, 409, 429} or status >= 500:
        turned_away = status == 429 or code == "slow_down"
        wait = asked_wait(headers, rate_limits=turned_away)
        if wait is not None and wait > LONGEST_WAIT:
            return JudgeError(
                f"{server.address} answered {status} and wants {wait:.0f} s of pause: go on then ({said})"
            )
        return Again("unreachable", f"answered {status} ({said})", wait, turned_away)
    if code in completions.REFUSAL_CODES:
        return Unrated("refused", said)
    if status == 413 or (status in {400, 422} and completions.TOO_LONG.search(f"{code} {said}")):
        return Unrated("too-long", said)
    advice = {403: f"the key in {server.key_variable} may not do this", 404: "is the base_url right?"}.get(
        status, "it does not accept the request; check model, sampling and base_url"
    )
    return JudgeError(f"{server.address} answered {status}: {advice} ({said})")


def _redirect(where: str, status: int, headers: Mapping[str, str], server: Server) -> JudgeError | None:
    """Return the error of a redirect: it would take question and answer to an address that the user did not name."""
    if not 300 <= status < 400:
        return None
    to = f" to {server.quote(target)}" if (target := headers.get("location", "")) else ""
    return JudgeError(f"{where}: it redirects{to}; redirects are not followed, so set base_url to the right address")


def hopeless(where: str, status: int, code: str, said: str, server: Server) -> JudgeError | None:
    """Find what no other request to this server will change, either.

    Args:
        where: Who said so, for the text.
        status: HTTP status.
        code: What the server calls the error.
        said: Its message, as :meth:`Server.quote` gives it.
        server: For the texts.
    """
    if status == 401:  # not quoted: servers like to say which key it was
        return JudgeError(f"{where}: the key in {server.key_variable} is missing or wrong; set it to a valid one")
    if code in completions.UNKNOWN_MODEL_CODES or (status in {404, 410} and "model" in said.lower()):
        return JudgeModelError(f"{where}: model {server.model!r} is unknown there or retired ({said})")
    if code in completions.QUOTA_CODES:
        return JudgeError(f"{where}: the quota of the key in {server.key_variable} is used up ({said})")
    return None


def asked_wait(headers: Mapping[str, str], *, rate_limits: bool = True) -> float | None:
    """Find the seconds that a server wants to be left alone.

    ``retry-after-ms`` and ``Retry-After`` (seconds or a date) come first. Otherwise OpenAI's ``x-ratelimit-reset-*``
    (``6m0s``, ``20ms``): of the limits that are used up, or of both if it is not said which, the later one.

    Args:
        headers: Of the answer, found in lower case.
        rate_limits: Read the latter; OpenAI's servers send them with every answer, whatever its status.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, ""))
        if seconds is not None:
            return seconds / unit
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        pass
    else:  # a date without a zone is in UTC
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    if not rate_limits:
        return None
    resets = {kind: _duration(headers.get(f"x-ratelimit-reset-{kind}", "")) for kind in ("requests", "tokens")}
    used_up = [kind for kind in resets if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"]
    waits = [wait for kind in used_up or resets if (wait := resets[kind]) is not None]
    return max(waits, default=None)


def _count(usage: object, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count <= _MOST_TOKENS else 0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return _finite(number)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    if (number := _number(text)) is not None:  # some proxies send plain seconds
        return number
    found = _DURATION.fullmatch(text.strip())
    if found is None or not found.group(0):
        return None
    days, hours, minutes, seconds, thousandths = (float(part or 0) for part in found.groups())
    return _finite(((days * 24 + hours) * 60 + minutes) * 60 + seconds + thousandths / 1000)
