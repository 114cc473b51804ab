"""Asks a judge that is a chat model behind an OpenAI-compatible API, many requests at once.

Between the rubric, which makes messages, and the parser, which reads a rating in the text that comes back. A server
that fails for a while is asked again; one that can never answer ends the work with one line; the rest is a reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from personalitybench.completions import valid_text
from personalitybench.errors import ConfigurationError, JudgeError, MissingDependencyError
from personalitybench.http_bodies import UnreadableBodyError
from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_outcomes import Again, Reply, Server, read_body, read_error, read_status
from personalitybench.judging.chat_window import Window
from personalitybench.judging.http_client import async_client
from personalitybench.workers import ANNOUNCED_WAIT, Workers

__all__ = ["ChatClient", "ChatSettings", "Reply"]

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"

Messages = Sequence[Mapping[str, str]]
Done = Callable[[int, Reply | Unrated], None]
More = Callable[[int], Mapping[str, Any]]
Admit = Callable[[int], Awaitable[None]]

_LONGEST_BACKOFF = 16  # times the first one
_NOT_SAMPLING = frozenset({"model", "messages", "stream", "n"})
_jitter = secrets.SystemRandom()


async def _admit_all(_: int) -> None:
    """Let every request be sent."""


@dataclass(frozen=True)
class ChatSettings:
    """Whom to ask, and how.

    Attributes:
        model: Name of the model at the server.
        base_url: Where it is (``http://localhost:8000/v1``); None is the OpenAI API, whatever ``OPENAI_BASE_URL`` says.
            A query (``?api-version=...``) goes along with each request.
        api_key_env: Environment variable with the key. The OpenAI API must have one; other servers may need none.
            The key goes to ``base_url``: name a variable of its own for each service.
        sampling: ``temperature``, ``max_tokens``, ``seed`` and so on, sent as they are, also those of other servers.
        concurrency: Most requests in flight.
        timeout: Seconds for one try.
        attempts: Tries in all for what may pass: lost connections, time-outs, 408, 409, 429, 5xx, unreadable bodies.
        backoff: Seconds before the second try where the server names none; doubles up to sixteen times that.

    Raises:
        ConfigurationError: A value is out of range.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 64
    timeout: float = 60.0
    attempts: int = 8
    backoff: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("attempts", 1), ("timeout", 0.001), ("backoff", 0.0)):
            if not getattr(self, name) >= least:
                raise ConfigurationError(f"judge model {self.model}: {name} must be at least {least}")
        if wrong := sorted(_NOT_SAMPLING & self.sampling.keys()):
            raise ConfigurationError(f"judge model {self.model}: {', '.join(wrong)} is not for sampling; take it out")
        parts = urlsplit(self.base_url or OPENAI_URL)
        try:
            usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # a port that is none
            usable = False
        if not usable:
            raise ConfigurationError(f"judge model {self.model}: base_url must be like http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ConfigurationError(
                f"judge model {self.model}: base_url has a user or password in it; name the variable of a key instead"
            )

    @property
    def address(self) -> str:
        """Where the server is, without the query."""
        parts = urlsplit(self.base_url or OPENAI_URL)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    @property
    def query(self) -> dict[str, str]:
        """Query of the address."""
        return dict(parse_qsl(urlsplit(self.base_url or "").query))

    def server(self) -> Server:
        """Read the key from the environment.

        Raises:
            ConfigurationError: There is none and the API needs one, or it cannot be one.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and self.base_url is None:
            raise ConfigurationError(f"judge model {self.model} needs a key: set {self.api_key_env}")
        if not key.isascii() or not key.isprintable() or " " in key:
            # The value would be in the text of the HTTP library's error.
            raise ConfigurationError(f"{self.api_key_env} has characters that no key has: copy the key again")
        return Server(self.address, self.model, self.api_key_env, key or "none")


class ChatClient:
    """Asks one chat model; made, used and closed within one event loop.

    Attributes:
        settings: What it was made from.
        window: How many requests may be in flight now, and are.
        requests: Tries that were sent so far.
        prompt_tokens, completion_tokens: Counted by the server so far, also where no rating came of it.

    Raises:
        ConfigurationError: No key, or none that can be one.
        MissingDependencyError: openai is not installed.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self.window = Window(settings.concurrency)
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self._announced_until = 0.0
        self._server = settings.server()
        self._workers = Workers(self._server.address, settings.timeout)
        self._openai = load_library()
        # Every try is ours: the library knows neither the window nor what an unreadable body is.
        self._api = self._openai.AsyncOpenAI(
            api_key=self._server.key,
            base_url=settings.address,
            default_query=settings.query,
            max_retries=0,
            timeout=settings.timeout,
            http_client=async_client(self._openai, settings.timeout, settings.address),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def ask(
        self, messages: Messages, more: Mapping[str, Any] | None = None, admit: Admit = _admit_all, number: int = 0
    ) -> Reply | Unrated:
        """Ask once, and again while that may help.

        Args:
            messages: Chat turns with ``role`` and ``content``.
            more: What this request says besides the sampling, such as ``response_format``.
            admit: Awaited before each try, with the number of the request.
            number: That number.

        Returns:
            The reply, or why there is none: ``refused``, ``truncated``, ``empty``, ``too-long`` (at the first try);
            ``not-text``, ``unreachable`` (when all tries are used up).

        Raises:
            JudgeError: No request can succeed: wrong key, no quota, bad request, a pause of hours.
            JudgeModelError: The model is unknown or retired.
        """
        turns = [{name: valid_text(text) for name, text in turn.items()} for turn in messages]
        body = {"messages": turns, **self.settings.sampling, **(more or {})}
        last = Again("unreachable", "never tried")
        for attempt in range(self.settings.attempts):
            if attempt:
                pause = self._pause(attempt, last)
                self._announce(pause, last)
                await asyncio.sleep(pause)
            await admit(number)
            sent = await self.window.enter()
            try:
                with self._workers.in_flight():
                    outcome = await self._try(body)
                if isinstance(outcome, Again) and outcome.turned_away:
                    self.window.turned_away(sent, outcome.wait)
                    self._announce(self.window.pause, outcome)
                elif isinstance(outcome, (Reply, Unrated)):
                    self.window.succeeded()
            finally:
                self.window.leave()
            if isinstance(outcome, JudgeError):
                raise outcome
            if not isinstance(outcome, Again):
                return outcome
            last = outcome
            if self._workers.stopping:
                return Unrated(last.reason, last.detail)
        return Unrated(last.reason, f"after {self.settings.attempts} tries: {last.detail}")

    async def ask_all(
        self, requests: Iterable[Messages], done: Done, more: More = lambda _: {}, admit: Admit = _admit_all
    ) -> None:
        """Ask many; at most ``concurrency`` of them are taken from ``requests`` and not done at any moment.

        An error or a cancellation ends it in order: nothing more is sent, and ``done`` is told of what is in flight,
        for which ``timeout`` is the limit. A cancellation meanwhile ends it at once.

        Args:
            requests: Messages of each request; taken one by one, as they are sent.
            done: Told the number of a request, from 0, and what came of it, as it comes (in no order).
            more: What the request of a number says besides the sampling.
            admit: Awaited with the number of a request before each time that it is sent.

        Raises:
            JudgeError: As :meth:`ask`. Errors of ``requests``, ``done`` and ``admit`` are raised, too; the first one.
        """
        numbered = iter(enumerate(requests))
        await self._workers.run(lambda: self._work(numbered, done, more, admit), self.settings.concurrency)

    async def _work(self, numbered: Iterator[tuple[int, Messages]], done: Done, more: More, admit: Admit) -> None:
        while not self._workers.stopping and (request := next(numbered, None)) is not None:
            number, messages = request
            done(number, await self.ask(messages, more(number), admit, number))

    async def _try(self, body: Mapping[str, Any]) -> Reply | Unrated | Again | JudgeError:
        """Send once. Errors are returned: the library's hold the request with its headers, and must not be chained."""
        self.requests += 1
        try:
            async with asyncio.timeout(self.settings.timeout):
                # All in extra_body, which goes out as it is: create() knows only OpenAI's settings, and its check of
                # the messages costs a seventh of a request's processor time.
                answer = await self._api.chat.completions.with_raw_response.create(
                    model=self.settings.model, messages=[], extra_body=body
                )
            outcome, prompt, completion = read_body(answer.http_response.content, self._server)
        except (TimeoutError, self._openai.APITimeoutError):
            return Again("unreachable", f"no reply within {self.settings.timeout:g} s")
        except UnreadableBodyError as error:
            return Again("not-text", str(error))
        except self._openai.APIStatusError as error:
            return read_status(
                error.status_code, error.response.headers, read_error(error.response.content), self._server
            )
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, UnreadableBodyError):
                return Again("not-text", str(cause))
            return Again("unreachable", f"no connection ({self._server.quote(f'{type(cause).__name__}: {cause}')})")
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        return outcome

    def _announce(self, wait: float, last: Again) -> None:
        """Tell of a long wait, once for all requests that wait at the same time."""
        now = asyncio.get_running_loop().time()
        if wait > ANNOUNCED_WAIT and now >= self._announced_until:
            self._announced_until = now + wait
            logger.warning("waiting %.0f s: %s: %s; Ctrl-C ends it", wait, self._server.address, last.detail)

    def _pause(self, attempt: int, last: Again) -> float:
        """Seconds before another try.

        As the server said; the window keeps a pause that is everyone's. Where it said nothing, or said too little last
        time, they double, spread so that those who failed together do not come back together.
        """
        said = 0.0 if last.turned_away else last.wait or 0.0
        if attempt == 1 and last.wait:
            return said
        own = self.settings.backoff * min(2.0 ** (attempt - 1), _LONGEST_BACKOFF) * _jitter.uniform(0.75, 1.25)
        return max(said, own)


def load_library() -> ModuleType:
    """Give openai, which is imported late: it takes half a second, and is optional.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import openai  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError(
            "a judge behind an API needs openai: pip install 'personalitybench[judge]'"
        ) from error
    return openai
