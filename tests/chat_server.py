"""A server on loopback that speaks OpenAI's chat completions over real HTTP and fails as it is told to.

In a test: ``with ChatServer(latency=0.1) as server:`` (or the fixture ``chat_server``), then ``server.url`` is a
``base_url``. As a process of its own, for benchmarks: ``python -m tests.chat_server --latency 0.2 --mishaps 5:429``; it
prints its URL, serves until it is ended, and answers ``GET /report`` with what it counted. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """What one request meets instead of a good reply.

    ``kind``: a status (``429``, ``500``, ``401``, ``404``, ...), ``stall`` (no reply for ``seconds``), ``drip`` (a body
    that comes byte by byte for ``seconds``), ``hang-up`` (the connection is closed), ``garbage`` (not JSON),
    ``not-utf8``, ``other-json`` (JSON of another shape), ``refusal``, ``filter``, ``length``, ``empty``, ``echo`` (an
    error with all request headers in its message), ``raw`` (``body`` with status 200). With a status, ``body`` replaces
    the usual error.
    """

    kind: str
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None
    message: str = "as the script says"
    seconds: float = 3600.0
    body: bytes = b""


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    body: Body
    headers: Mapping[str, str]
    fault: str | None

    @property
    def text(self) -> str:
        """What the last message says."""
        return str(self.body["messages"][-1]["content"])


@dataclass(repr=False)
class ChatServer:
    """An HTTP/1.1 server with keep-alive in a thread of its own.

    Args:
        latency: Seconds until each reply, or a function of the request that gives them.
        key: The key it wants; any other is answered with 401. None: it asks for none.
        answer: Text of a good reply.
        rule: Decides for each request on its fault; it is told the request and how many are in flight.
        keep: Whether requests are kept in ``requests``.

    Attributes:
        script: Faults for the next requests, in order, before ``rule`` is asked.
        requests: What was asked.
        asked, faults: How often each last message was asked, and how often it met a fault.
        in_flight, most_in_flight: Requests between their last byte and their reply.
    """

    latency: float | Callable[[Body], float] = 0.0
    key: str | None = None
    answer: Callable[[Body], str] = lambda _: "A calm answer. [[3]]"
    rule: Callable[[Body, int], Fault | None] = lambda _, __: None
    keep: bool = True
    script: deque[Fault | None] = field(default_factory=deque)
    requests: list[Asked] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) and await self._serve(head, reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client went away, or the server is closing
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection stays open."""
        request, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if request.startswith("GET /report"):
            await _send(writer, 200, json.dumps(self.report()).encode())
            return True
        if not request.startswith("POST /v1/chat/completions "):
            return await self._other_page(request, headers, raw, writer)
        body = json.loads(raw)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self._fault(body, headers)
            await asyncio.sleep(self.latency if isinstance(self.latency, float | int) else self.latency(body))
            if fault is not None and fault.kind == "stall":
                await asyncio.sleep(fault.seconds)
        finally:
            self.in_flight -= 1
        if fault is not None and fault.kind in {"stall", "hang-up"}:
            return False
        if fault is not None and fault.kind == "drip":
            writer.write(b"HTTP/1.1 200 Scripted\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(int(fault.seconds / 0.05)):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        await _send(writer, *self._reply(body, headers, fault))
        return True

    async def _other_page(
        self, request: str, headers: Mapping[str, str], raw: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer what is no chat completion."""
        await _send(writer, 404, b'{"error": "no such page"}')
        return True

    def _fault(self, body: Body, headers: Mapping[str, str]) -> Fault | None:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            fault: Fault | None = Fault("401", code="invalid_api_key", message="Incorrect API key provided")
        elif self.script:
            fault = self.script.popleft()
        else:
            fault = self.rule(body, self.in_flight)
        asked = Asked(body, headers, fault.kind if fault else None)
        self.asked[asked.text] += 1
        self.faults[asked.text] += fault is not None
        if self.keep:
            self.requests.append(asked)
        return fault

    def _reply(
        self, body: Body, headers: Mapping[str, str], fault: Fault | None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        if fault is None:
            return 200, _completion(body, self.answer(body)), {}
        kind, extra = fault.kind, fault.headers
        shapes = {
            "raw": fault.body,
            "garbage": b"<html><body>502 Bad Gateway</body></html>",
            "not-utf8": b'{"choices": [{"message": {"content": "caf\xe9 [[4]]"}}]}',
            "other-json": b'{"detail": "no choices here"}',
            "refusal": _completion(body, None, refusal="I cannot rate this."),
            "filter": _completion(body, "", finish="content_filter"),
            "length": _completion(body, "The answer is [[5]] rather", finish="length"),
            "empty": _completion(body, " \n"),
        }
        if kind in shapes:
            return 200, shapes[kind], extra
        message = f"these headers are not wanted: {dict(headers)}" if kind == "echo" else fault.message
        error = {"error": {"message": message, "type": "scripted", "param": None, "code": fault.code}}
        return 400 if kind == "echo" else int(kind), fault.body or json.dumps(error).encode(), extra

    def report(self) -> dict[str, Any]:
        """What was counted, as plain data: ``needless`` are tries beyond one, and one for each fault met."""
        return {
            "requests": sum(self.asked.values()),
            "texts": len(self.asked),
            "faults": sum(self.faults.values()),
            "needless": sum(max(0, times - 1 - self.faults[text]) for text, times in self.asked.items()),
            "most_in_flight": self.most_in_flight,
        }


def _completion(body: Body, text: str | None, refusal: str | None = None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    prompt = sum(len(part["content"].split()) for part in body["messages"])
    completion = len((text or "").split())
    reply = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": f"{body['model']}-as-served",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    return json.dumps(reply).encode()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    lines = [f"HTTP/1.1 {status} Scripted", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


def uneven(least: float, most: float) -> Callable[[Body], float]:
    """Make a latency between two limits, by a hash of the request."""

    def latency(body: Body) -> float:
        drawn = int.from_bytes(hashlib.sha256(repr(body["messages"]).encode()).digest()[:8]) / 2**64
        return least + drawn * (most - least)

    return latency


def mishaps(
    shares: Mapping[str, float], headers: Mapping[str, Mapping[str, str]]
) -> Callable[[Body, int], Fault | None]:
    """Make a rule: of all requests, these shares in percent meet these faults.

    Which ones is decided by a hash of the text and of how often it was asked, so that it is the same in every run.
    """
    times: Counter[str] = Counter()

    def rule(body: Body, _: int) -> Fault | None:
        text = str(body["messages"][-1]["content"])
        times[text] += 1
        drawn = int.from_bytes(hashlib.sha256(f"{times[text]} {text}".encode()).digest()[:8]) / 2**64 * 100
        for kind, share in shares.items():
            if drawn < share:
                return Fault(kind, headers=headers.get(kind, {}))
            drawn -= share
        return None

    return rule


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--mishaps", nargs="*", default=[], help="PERCENT:KIND")
    parser.add_argument("--retry-after-ms", type=int, default=50)
    options = parser.parse_args()
    shares = {kind: float(share) for share, _, kind in (mishap.partition(":") for mishap in options.mishaps)}
    rule = mishaps(shares, {"429": {"retry-after-ms": str(options.retry_after_ms)}})
    with ChatServer(latency=options.latency, rule=rule, keep=False) as server:
        print(server.url, flush=True)  # noqa: T201 (how the parent learns the port)
        threading.Event().wait()


if __name__ == "__main__":
    main()
