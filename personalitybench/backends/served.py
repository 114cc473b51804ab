"""Answers of served models: only whole replies are answers, and failures are tried again, then missing.

lm-eval's classes for APIs make the payloads; :class:`ServedModel` sends them and reads the replies.
:func:`use_whole_replies` puts it before the class of a loaded model.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import TemplateAPI

from personalitybench import completions
from personalitybench.completions import NoAnswer
from personalitybench.errors import ModelError
from personalitybench.http_bodies import ENCODINGS, BoundedBody, UnreadableBodyError
from personalitybench.interrupts import run_coroutine
from personalitybench.network import check_network
from personalitybench.redaction import is_secret, redact
from personalitybench.workers import ANNOUNCED_WAIT, Workers

logger = logging.getLogger(__name__)

_FAILED_IN_A_ROW = 3
"""Requests that use up their tries one after another before no more are sent."""

_SHORTEST_SECRET = 8
_LONGEST_WAIT = 60.0  # seconds; lm-eval's own waits end at 10
_BLOCK = 1 << 16
_FINISHED = {"end_turn": completions.WHOLE, "stop_sequence": completions.WHOLE, "max_tokens": completions.CUT_OFF}
_CREDENTIALS = re.compile(r"Authorization|api-key|bearer", re.IGNORECASE)


class ServedModelError(ModelError):
    """A served model gave no answer to some requests.

    Attributes:
        answers: One for each request; None where there is none.
        fatal: Whether other requests fail, too.
    """

    def __init__(self, text: str, answers: Sequence[str | None], *, fatal: bool) -> None:
        super().__init__(text)
        self.answers = list(answers)
        self.fatal = fatal


class InterruptedAnswersError(KeyboardInterrupt):
    """Ctrl-C while a served model is asked.

    Attributes:
        answers: One for each request; None where there is none.
    """

    def __init__(self, answers: Sequence[str | None]) -> None:
        super().__init__()
        self.answers = list(answers)


class _StoppedError(Exception):
    """Other requests would fail, too."""


@dataclass(frozen=True)
class Failure:
    """A failed try.

    Attributes:
        detail: One short line.
        fatal: Whether another try is useless.
        wait: Seconds that the server asks for.
    """

    detail: str
    fatal: bool = False
    wait: float = 0.0


@dataclass
class _Progress:
    """Shared by the requests of one :meth:`ServedModel.generate_until`."""

    answers: list[str | None]
    failed_in_a_row: int = 0
    last: Failure | None = None
    failures: int = 0
    stopped: bool = False
    told: set[str] = field(default_factory=set)


class ServedModel(TemplateAPI):  # type: ignore[misc]  # lm-eval publishes no types
    """Mixin before one of lm-eval's classes for APIs; see :func:`use_whole_replies`."""

    think_end_token: str | None

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Return the answers in the order of the requests.

        Raises:
            ServedModelError: Some have none: the server failed ``max_retries`` times, or can never answer.
            InterruptedAnswersError: Ctrl-C was pressed. Replies in flight were waited for; a second Ctrl-C ends that.
        """
        payloads = [self._payload(*request.args[:2]) for request in requests]
        progress = _Progress([None] * len(payloads))
        try:
            run_coroutine(self._ask_all(payloads, progress))
        except KeyboardInterrupt:
            raise InterruptedAnswersError(progress.answers) from None
        finally:
            for request, answer in zip(requests, progress.answers, strict=True):
                if answer is not None and not isinstance(answer, NoAnswer):
                    self.cache_hook.add_partial("generate_until", request.args[:2], answer)
        if progress.last is not None:
            tries = "" if progress.last.fatal else f" after {self.max_retries} tries"
            more = f" (and {progress.failures - 1} more)" if progress.failures > 1 else ""
            text = f"served model {self.model!r}: {_address(self.base_url)} {progress.last.detail}{tries}{more}"
            raise ServedModelError(text, progress.answers, fatal=progress.stopped)
        return [answer or "" if not isinstance(answer, NoAnswer) else answer for answer in progress.answers]

    def _payload(self, context: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a request, made by lm-eval's class.

        Raises:
            ModelError: The prompt does not fit into ``max_length``; lm-eval would cut it from the left.
        """
        messages: list[Any] = [context]
        if self.tokenized_requests:
            new = int(settings.get("max_gen_toks", self._max_gen_toks))
            messages = [self.tok_encode(context, add_special_tokens=self.add_bos_token)]
            if len(messages[0]) + new > self.max_length:
                raise ModelError(
                    f"a prompt of {len(messages[0])} tokens and {new} new ones exceed the {self.max_length} tokens of "
                    f"model {self.model!r}: lower max_tokens, or raise max_length among the model's arguments"
                )
        made: dict[str, Any] = self._create_payload(
            self.create_message(messages),
            generate=True,
            gen_kwargs=copy.deepcopy(dict(settings)),
            seed=self._seed,
            eos=self.eos_string,
        )
        return made

    async def _ask_all(self, payloads: Sequence[Mapping[str, Any]], progress: _Progress) -> None:
        import aiohttp  # noqa: PLC0415 (optional; lm-eval's class has looked for it)

        concurrency = max(self._concurrent, self._batch_size)
        verify: Any = bool(self.verify_certificate)
        if verify and self.ca_cert_path:
            verify = ssl.create_default_context(cafile=self.ca_cert_path)
        numbered = iter(enumerate(payloads))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency, ssl=verify),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            headers={**self.header, "Accept-Encoding": ENCODINGS},
            auto_decompress=False,
            trust_env=True,
        ) as session:
            workers = Workers(_address(self.base_url), self.timeout)

            async def work() -> None:
                while not workers.stopping and (request := next(numbered, None)) is not None:
                    number, payload = request
                    outcome = await self._ask(session, payload, progress, workers)
                    if not isinstance(outcome, Failure):
                        progress.answers[number], progress.failed_in_a_row = outcome, 0
                    elif not workers.stopping:
                        progress.last, progress.failures = outcome, progress.failures + 1
                        progress.failed_in_a_row += 1
                        if outcome.fatal or progress.failed_in_a_row >= _FAILED_IN_A_ROW:
                            progress.stopped = True
                            raise _StoppedError

            with suppress(_StoppedError):
                await workers.run(work, min(concurrency, len(payloads)))

    async def _ask(
        self, session: Any, payload: Mapping[str, Any], progress: _Progress, workers: Workers
    ) -> str | Failure:
        """Ask once, and again up to ``max_retries`` tries in all, with lm-eval's waits."""
        outcome: str | Failure = Failure("was never asked")
        for attempt in range(max(1, self.max_retries)):
            if isinstance(outcome, Failure) and attempt:
                wait = min(_LONGEST_WAIT, max(outcome.wait, min(10.0, max(1.0, 0.5 * 2.0 ** (attempt - 1)))))
                if wait > ANNOUNCED_WAIT and outcome.detail not in progress.told:
                    progress.told.add(outcome.detail)
                    logger.warning("waiting %.0f s: %s %s", wait, _address(self.base_url), outcome.detail)
                await asyncio.sleep(wait)
            with workers.in_flight():
                outcome = await self._try(session, payload)
            if not isinstance(outcome, Failure) or outcome.fatal or workers.stopping:
                break
        return outcome

    async def _try(self, session: Any, payload: Mapping[str, Any]) -> str | Failure:
        """Send once. Errors of aiohttp hold the request with its headers, so none gets further."""
        import aiohttp  # noqa: PLC0415

        try:
            async with session.post(self.base_url, json=payload, allow_redirects=False) as response:
                body = BoundedBody(response.headers.get("Content-Encoding", ""))
                content = b"".join([body.decode(block) async for block in response.content.iter_chunked(_BLOCK)])
                return self._read(response.status, response.headers, content)
        except UnreadableBodyError as error:
            return Failure(f"sent an unreadable reply: {self._quote(str(error))}")
        except TimeoutError:
            return Failure(f"gave no reply within {self.timeout} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Failure(f"cannot be reached ({self._quote(f'{type(error).__name__}: {error}')})")

    def _read(self, status: int, headers: Mapping[str, str], content: bytes) -> str | Failure:
        """Read a response."""
        try:
            value: Any = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            value = None
        if not 200 <= status < 300:
            return self._read_status(status, headers, content if value is None else value)
        if value is None:
            return Failure(f"answered {status} without JSON ({self._quote(content[:4096].decode('utf-8', 'replace'))})")
        if (error := completions.reported_error(value)) is not None:
            code, said = completions.error_parts(error)
            return self._unanswered(code, said) or Failure(f"answered {status} with an error ({self._quote(said)})")
        try:
            return self._read_choice(*_first_choice(value))
        except (KeyError, IndexError, TypeError, AttributeError):
            return Failure(f"answered {status} without a completion ({self._quote(completions.dump(value))})")

    def _read_choice(self, message: Mapping[str, Any], finish: str) -> str | Failure:
        content, refusal = message["content"], message.get("refusal")
        if refusal or finish in {"content_filter", "refusal"}:
            return NoAnswer("refused", self._quote(str(refusal or "content filter")))
        if finish in completions.TOOL_CALLS or message.get("tool_calls"):
            return Failure("called a tool instead of answering")
        if finish not in {completions.WHOLE, completions.CUT_OFF}:
            return Failure(f"did not finish its reply (finish_reason {self._quote(finish)})")
        parts = completions.part_types(content)
        thought = parts & completions.THOUGHT_PARTS
        reasoned = bool(message.get("reasoning_content") or message.get("reasoning") or thought)
        text = completions.valid_text(self._without_keys(completions.message_text(content)))
        if not text.strip() and (finish == completions.CUT_OFF or reasoned):
            return NoAnswer(completions.UNFINISHED_THOUGHTS, f"no text before the reply ended ({finish})")
        if not isinstance(content, str | list) or (parts and "text" not in parts):
            return Failure("sent a reply without text")
        return self._without_thoughts(text, finished=reasoned or finish == completions.WHOLE)

    def _without_thoughts(self, text: str, *, finished: bool) -> str:
        if self.think_end_token:
            return completions.cut_thoughts(text, self.think_end_token, finished=finished)
        if "</think>" in text:
            _warn_about_thoughts()
        return text

    def _read_status(self, status: int, headers: Mapping[str, str], body: object) -> str | Failure:
        error = body.get("error", body) if isinstance(body, dict) else body
        if isinstance(error, bytes):
            error = error[:4096].decode("utf-8", "replace")
        code, said = completions.error_parts(error)
        quoted = self._quote(said)
        if 300 <= status < 400:
            return Failure(
                f"answered {status}: it redirects to {self._quote(headers.get('Location', 'nowhere'))}, and redirects "
                "are not followed; set base_url to the right address",
                fatal=True,
            )
        if status in {408, 409, 425, 429} or status >= 500:
            seconds = headers.get("Retry-After", "")
            wait = float(seconds) if re.fullmatch(r"\d{1,6}(?:\.\d+)?", seconds) else 0.0
            return Failure(f"answered {status} ({quoted})", fatal=code in completions.QUOTA_CODES, wait=wait)
        if status in {400, 413, 422} and (unanswered := self._unanswered(code, said)) is not None:
            return unanswered
        return Failure(f"answered {status} ({quoted})", fatal=True)

    def _unanswered(self, code: str, said: str) -> NoAnswer | None:
        """Return why this one question has no answer, if its error says so."""
        if code in completions.REFUSAL_CODES:
            return NoAnswer("refused", self._quote(said))
        if completions.TOO_LONG.search(f"{code} {said}"):
            return NoAnswer("too-long", self._quote(said))
        return None

    def _quote(self, text: str) -> str:
        """Return a server's words on one short line, without keys."""
        return completions.quote(self._without_keys(text))

    def _without_keys(self, text: str) -> str:
        """Return a text of the server, which may echo a request, without what secret headers hold."""
        for name, value in self.header.items():
            if not is_secret(name):
                continue
            for secret in (str(value), str(value).removeprefix("Bearer ")):
                if len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, "***")
        return text


def use_whole_replies(model: Any, think_end_token: str | None = None) -> None:
    """Make a loaded model of an API read replies as :class:`ServedModel` does; other models stay as they are.

    Args:
        model: A model of lm-eval.
        think_end_token: Text that ends the model's thoughts, for classes of lm-eval that do not know the argument.

    Raises:
        ModelError: It has no address, or the key is missing or cannot be one.
        ConfigurationError: A proxy or certificate that the environment names cannot be used.
    """
    if not isinstance(model, TemplateAPI) or isinstance(model, ServedModel):
        return
    hide_credentials()
    if urlsplit(str(model.base_url)).scheme not in {"http", "https"}:
        raise ModelError(f"served model {model.model!r} needs base_url, such as http://localhost:8000/v1/...")
    check_network("aiohttp", str(model.base_url))
    try:
        values = [str(value) for value in model.header.values()]
    except ValueError as error:  # lm-eval's: the variable of the key is not set
        raise ModelError(f"served model {model.model!r}: {completions.quote(str(error))}") from None
    if not all(value.isascii() and value.isprintable() for value in values):
        raise ModelError(f"served model {model.model!r}: its key has characters that no key has; copy it again")
    kind = type(model)
    model.__class__ = type(kind.__name__, (ServedModel, kind), {})
    model.think_end_token = think_end_token or getattr(model, "think_end_token", None)


class _HideCredentials(logging.Filter):
    """Replaces credentials in records; lm-eval and asyncio log aiohttp's errors with all request headers."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if _CREDENTIALS.search(text):
            record.msg, record.args = redact(text), ()
        if record.exc_info and _CREDENTIALS.search(repr(record.exc_info)):
            record.exc_info = None
        return True


_hide_credentials = _HideCredentials()


def hide_credentials() -> None:
    """Keep credentials out of the logs of lm-eval's API classes and of asyncio."""
    for name in ("lm_eval.models.api_models", "asyncio"):
        logging.getLogger(name).addFilter(_hide_credentials)


def _first_choice(value: Any) -> tuple[Mapping[str, Any], str]:
    """Return message and ``finish_reason`` of a chat completion, a completion, or a message of Anthropic's API."""
    if "choices" not in value and "stop_reason" in value:
        finish = str(value["stop_reason"])
        return {"content": value["content"]}, _FINISHED.get(finish, finish)
    choice = value["choices"][0]
    message = choice["message"] if "message" in choice else {"content": choice["text"]}
    return message, str(choice.get("finish_reason") or "missing")


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


@lru_cache(maxsize=1)
def _warn_about_thoughts() -> None:
    """Say once in a process that thoughts are part of answers."""
    logger.warning(
        "answers hold '</think>', so judges rate the model's thoughts, too: add think_end_token: </think> to the "
        "model's arguments"
    )
