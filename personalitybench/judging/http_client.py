"""Clients of openai's HTTP library that follow no redirect and read bodies up to a limit of bytes and time."""

from __future__ import annotations

import importlib
import time
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

from personalitybench.http_bodies import ENCODINGS, BoundedBody, UnreadableBodyError
from personalitybench.network import check_network, reporting_setup


def http_library(openai: ModuleType) -> Any:
    """Return the HTTP library that openai is built on: httpx, or its successor."""
    modules = (each.__module__.partition(".")[0] for each in openai.DefaultHttpxClient.__mro__)
    return importlib.import_module(next(name for name in modules if name.startswith("httpx")))


def async_client(openai: ModuleType, timeout: float, url: str | None = None) -> Any:
    """Return an asynchronous client for ``http_client`` of ``AsyncOpenAI``; every body is bounded.

    Raises:
        ConfigurationError: A proxy or certificate that the environment names cannot be used; ``url`` will be asked.
    """
    check_network("httpx", url)
    bounded = _stream_class(http_library(openai), timeout)

    async def bound(response: Any) -> None:
        response.stream = bounded(response)

    with reporting_setup():
        return openai.DefaultAsyncHttpxClient(**_options(timeout, bound))


def client(openai: ModuleType, timeout: float, unbounded: str, url: str | None = None) -> Any:
    """Return a client for ``http_client`` of ``OpenAI``; every body is bounded but those of paths ending as given.

    Raises:
        ConfigurationError: As for :func:`async_client`.
    """
    check_network("httpx", url)
    bounded = _stream_class(http_library(openai), timeout)

    def bound(response: Any) -> None:
        if not response.is_success or not response.request.url.path.endswith(unbounded):
            response.stream = bounded(response)

    with reporting_setup():
        return openai.DefaultHttpxClient(**_options(timeout, bound))


def _options(timeout: float, bound: Any) -> dict[str, Any]:
    hooks = {"response": [bound]}
    return {
        "timeout": timeout, "follow_redirects": False, "headers": {"accept-encoding": ENCODINGS}, "event_hooks": hooks
    }  # fmt: skip


def _stream_class(http: Any, timeout: float) -> Any:
    """Return the class of bodies that either kind of client reads up to the limit."""

    class BoundedStream(http.AsyncByteStream, http.SyncByteStream):  # type: ignore[misc]
        def __init__(self, response: Any) -> None:
            self._stream, self._body = response.stream, BoundedBody(response.headers.pop("content-encoding", ""))
            self._end = time.monotonic() + timeout

        def __iter__(self) -> Iterator[bytes]:
            for block in self._stream:
                if time.monotonic() > self._end:
                    raise UnreadableBodyError(f"the body took more than {timeout:g} s")
                yield self._body.decode(block)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for block in self._stream:
                yield self._body.decode(block)

        def close(self) -> None:
            self._stream.close()

        async def aclose(self) -> None:
            await self._stream.aclose()

    return BoundedStream
