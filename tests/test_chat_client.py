"""The chat client against a real HTTP server that fails in all the ways that servers do."""

from __future__ import annotations

import asyncio
import gzip
import logging
import subprocess
import sys
import textwrap
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from personalitybench.errors import ConfigurationError, JudgeError, JudgeModelError, MissingDependencyError
from personalitybench.judging import chat_client
from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_client import ChatClient, ChatSettings, Reply
from tests.chat_server import Asked, ChatServer, Fault
from tests.conftest import REPOSITORY

PLANTED = "sk-planted-Zq81nTf0uYw7"
REPLY = b'{"choices": [{"message": {"content": "%s"}, "finish_reason": "stop"}]}'


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You are a judge."}, {"role": "user", "content": text}]


def settings(server: ChatServer, **changes: Any) -> ChatSettings:
    return ChatSettings(**{"model": "judge-1", "base_url": server.url, "timeout": 10.0, "backoff": 0.01} | changes)


def ask(server: ChatServer, text: str = "An answer.", **changes: Any) -> Reply | Unrated:
    async def one() -> Reply | Unrated:
        async with ChatClient(settings(server, **changes)) as client:
            return await client.ask(asking(text))

    return asyncio.run(one())


def ask_all(server: ChatServer, count: int, **changes: Any) -> tuple[dict[int, Reply | Unrated], ChatClient]:
    found: dict[int, Reply | Unrated] = {}

    async def all_of_them() -> ChatClient:
        async with ChatClient(settings(server, **changes)) as client:
            await client.ask_all((asking(f"answer {number}") for number in range(count)), found.__setitem__)
            return client

    return found, asyncio.run(all_of_them())


def test_what_is_sent_and_what_comes_back(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    chat_server.key = PLANTED
    sampling = {
        "temperature": 0.0,
        "max_tokens": 80,
        "seed": 3,
        "top_k": 1,
        "chat_template_kwargs": {"thinking": False},
    }
    reply = ask(chat_server, "Ünder \ud800 pressure", sampling=sampling)
    assert reply == Reply("A calm answer. [[3]]", "judge-1-as-served", "stop", 7, 4)
    (asked,) = chat_server.requests
    assert asked.body == {"model": "judge-1", "messages": asking("Ünder \ufffd pressure")} | sampling


def test_a_server_of_ones_own_needs_no_key(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert isinstance(ask(chat_server), Reply)


def test_the_openai_api_needs_one_and_no_variable_leads_elsewhere(
    chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="gpt-4o needs a key: set OPENAI_API_KEY"):
        ChatClient(ChatSettings("gpt-4o"))
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    client = ChatClient(ChatSettings("gpt-4o"))
    assert str(client._api.base_url) == "https://api.openai.com/v1/"


@pytest.mark.parametrize(
    ("fault", "reason"), [("refusal", "refused"), ("filter", "refused"), ("length", "truncated"), ("empty", "empty")]
)
def test_no_reply_has_a_reason_and_is_not_asked_again(chat_server: ChatServer, fault: str, reason: str) -> None:
    chat_server.script.append(Fault(fault))
    found = ask(chat_server)
    assert isinstance(found, Unrated)
    assert found.reason == reason
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize("fault", ["408", "409", "429", "500", "503", "hang-up", "garbage", "not-utf8", "other-json"])
def test_what_passes_is_asked_again_as_often_as_it_needs(chat_server: ChatServer, fault: str) -> None:
    chat_server.script.extend([Fault(fault), Fault(fault)])
    assert isinstance(ask(chat_server), Reply)
    assert [asked.fault for asked in chat_server.requests] == [fault, fault, None]


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("500", "unreachable", "after 3 tries: answered 500 (as the script says)"),
        ("429", "unreachable", "after 3 tries: answered 429 (as the script says)"),
        ("hang-up", "unreachable", "after 3 tries: no connection (RemoteProtocolError: Server disconnected"),
        ("garbage", "not-text", "after 3 tries: the body is no JSON in UTF-8"),
        ("not-utf8", "not-text", "after 3 tries: the body is no JSON in UTF-8"),
        ("other-json", "not-text", 'after 3 tries: the body is no chat completion: {"detail": "no choices here"}'),
    ],
)
def test_what_does_not_pass_ends_with_its_reason(chat_server: ChatServer, fault: str, reason: str, detail: str) -> None:
    chat_server.rule = lambda *_: Fault(fault)
    found = ask(chat_server, attempts=3)
    assert isinstance(found, Unrated)
    assert found.reason == reason
    assert found.detail.startswith(detail)
    assert len(chat_server.requests) == 3


def test_a_stall_is_left_at_the_time_limit(chat_server: ChatServer) -> None:
    chat_server.script.append(Fault("stall"))
    started = time.monotonic()
    assert isinstance(ask(chat_server, timeout=0.4), Reply)
    assert 0.4 <= time.monotonic() - started < 5
    chat_server.rule = lambda *_: Fault("stall")
    found = ask(chat_server, timeout=0.2, attempts=2)
    assert found == Unrated("unreachable", "after 2 tries: no reply within 0.2 s")


def test_a_body_that_never_ends_is_left_at_the_time_limit(chat_server: ChatServer) -> None:
    """Each byte comes in time, the reply does not."""
    chat_server.rule = lambda *_: Fault("drip", seconds=20.0)
    started = time.monotonic()
    assert ask(chat_server, timeout=0.4, attempts=1) == Unrated("unreachable", "after 1 tries: no reply within 0.4 s")
    assert time.monotonic() - started < 10


def test_without_a_word_the_pauses_double(chat_server: ChatServer) -> None:
    chat_server.script.extend([Fault("500"), Fault("429")])
    started = time.monotonic()
    assert isinstance(ask(chat_server, backoff=0.2), Reply)
    assert time.monotonic() - started >= (0.2 + 0.4) * 0.75


def test_a_server_that_is_not_there() -> None:
    with ChatServer() as server:
        gone = settings(server, attempts=2)

    async def one() -> Reply | Unrated:
        async with ChatClient(gone) as client:
            return await client.ask(asking("x"))

    found = asyncio.run(one())
    assert isinstance(found, Unrated)
    assert found.reason == "unreachable"
    assert "no connection (ConnectError: " in found.detail


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "1"}, {"retry-after-ms": "1000"}, {"x-ratelimit-reset-requests": "1s"}]
)
def test_a_server_is_left_alone_as_long_as_it_says(chat_server: ChatServer, headers: dict[str, str]) -> None:
    """All requests wait, also those that were not turned away themselves."""
    chat_server.script.append(Fault("429", headers=headers))
    times: list[float] = []
    chat_server.answer = lambda _: times.append(time.monotonic()) or "[[3]]"  # type: ignore[func-returns-value]
    started = time.monotonic()
    found, _ = ask_all(chat_server, 3, concurrency=1)
    assert all(isinstance(outcome, Reply) for outcome in found.values())
    assert min(times) - started >= 1.0
    assert len(chat_server.requests) == 4


def test_a_failing_server_names_its_wait_too(chat_server: ChatServer) -> None:
    chat_server.script.append(Fault("503", headers={"Retry-After": "1"}))
    started = time.monotonic()
    assert isinstance(ask(chat_server), Reply)
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("fault", ["429", "503"])
def test_a_long_wait_is_announced_once_and_a_longer_one_ends(
    chat_server: ChatServer, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chat_client, "ANNOUNCED_WAIT", 0.3)
    chat_server.latency = 0.1
    chat_server.script.extend([Fault(fault, headers={"Retry-After": "1"})] * 4)
    ask_all(chat_server, 8, concurrency=4)
    assert caplog.text.count(f"waiting 1 s: {chat_server.url}: answered {fault} (as the script says)") == 1
    chat_server.script.append(Fault(fault, headers={"Retry-After": "100000"}))
    started = time.monotonic()
    with pytest.raises(JudgeError, match=f"answered {fault} and wants 100000 s of pause"):
        ask_all(chat_server, 8)
    assert time.monotonic() - started < 5


def test_all_are_asked_once_and_no_more_than_allowed_at_a_time(chat_server: ChatServer) -> None:
    chat_server.latency = 0.02
    chat_server.answer = lambda body: f"{body['messages'][-1]['content']} [[2]]"
    found, client = ask_all(chat_server, 100, concurrency=8)
    assert sorted(found) == list(range(100))
    for number, outcome in found.items():
        assert isinstance(outcome, Reply)
        assert outcome.text == f"answer {number} [[2]]", "each request has its own reply"
    assert chat_server.most_in_flight == 8
    assert chat_server.report()["requests"] == client.requests == 100
    assert client.prompt_tokens == 100 * 6
    assert client.completion_tokens == 100 * 3


def test_requests_are_taken_as_they_are_sent(chat_server: ChatServer) -> None:
    """Memory stays flat for any number of requests: none is taken before there is a place for it."""
    taken = done = ahead = 0

    def requests() -> Iterator[list[dict[str, str]]]:
        nonlocal taken, ahead
        for number in range(60):
            taken += 1
            ahead = max(ahead, taken - done)
            yield asking(f"answer {number}")

    def count(_: int, __: Reply | Unrated) -> None:
        nonlocal done
        done += 1
        tasks.add(len(asyncio.all_tasks()))

    tasks: set[int] = set()

    async def all_of_them() -> None:
        async with ChatClient(settings(chat_server, concurrency=4)) as client:
            await client.ask_all(requests(), count)

    asyncio.run(all_of_them())
    assert done == 60
    assert ahead == 4
    assert max(tasks) <= 6, "one for each place, and what runs them"


def test_it_finds_what_a_server_bears(chat_server: ChatServer) -> None:
    """Four at a time and no more: after a few it was too much for, the client stays about there and loses nothing."""
    chat_server.latency = 0.02
    chat_server.rule = lambda _, in_flight: Fault("429", headers={"retry-after-ms": "5"}) if in_flight > 4 else None
    found, client = ask_all(chat_server, 200, concurrency=32, attempts=20)
    assert all(isinstance(outcome, Reply) for outcome in found.values())
    assert client.window.limit <= 6
    assert client.window.in_flight == 0
    report = chat_server.report()
    assert report["needless"] == 0
    assert report["faults"] < 100


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault("401"), JudgeError, "the key in OPENAI_API_KEY is missing or wrong"),
        (Fault("403", message="Country not supported"), JudgeError, "Country not supported"),
        (Fault("404", code="model_not_found", message="gone"), JudgeModelError, "model 'judge-1' is unknown"),
        (Fault("400", message="temperature is too hot"), JudgeError, "temperature is too hot"),
        (Fault("429", code="insufficient_quota"), JudgeError, "quota"),
    ],
)
def test_what_can_never_succeed_ends_all_at_once(
    chat_server: ChatServer, fault: Fault, kind: type[JudgeError], said: str
) -> None:
    chat_server.rule = lambda *_: fault
    with pytest.raises(JudgeError, match=said) as caught:
        ask_all(chat_server, 1000, concurrency=4, backoff=5.0)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(chat_server.requests) <= 8, "those in flight, and no retry"


def test_who_stops_listening_stops_the_asking(chat_server: ChatServer) -> None:
    """The listener's own error comes out, and it is told of what was in flight."""
    chat_server.latency = 0.01

    class SpentError(Exception):
        pass

    def listen(number: int, _: Reply | Unrated) -> None:
        if number == 20:
            raise SpentError

    async def all_of_them() -> int:
        async with ChatClient(settings(chat_server, concurrency=4)) as client:
            with pytest.raises(SpentError):
                await client.ask_all((asking(f"answer {number}") for number in range(1000)), listen)
            return len(asyncio.all_tasks())

    assert asyncio.run(all_of_them()) == 1, "nothing runs on"
    assert len(chat_server.requests) < 40


def test_an_error_of_whoever_makes_the_requests_comes_out(chat_server: ChatServer) -> None:
    def requests() -> Iterator[list[dict[str, str]]]:
        yield asking("one")
        raise KeyError("broken")

    async def all_of_them() -> None:
        async with ChatClient(settings(chat_server)) as client:
            await client.ask_all(requests(), lambda *_: None)

    with pytest.raises(KeyError, match="broken"):
        asyncio.run(all_of_them())


def test_it_can_be_cancelled(chat_server: ChatServer) -> None:
    chat_server.latency = 30.0

    async def stopped() -> int:
        async with ChatClient(settings(chat_server, concurrency=4, timeout=1.0)) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.ask_all([asking("a"), asking("b")], lambda *_: None)
            assert client.window.in_flight == 0
            return len(asyncio.all_tasks())

    assert asyncio.run(stopped()) == 1


def test_the_key_is_in_no_text(
    chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the server repeats it, in tracebacks with local variables, chained errors and debug logs."""
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    for name in (None, "openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    texts: list[str] = []

    def name_successors(error: JudgeError) -> None:
        raise JudgeModelError(f"{error}; try another") from error

    def collect(run: Callable[[], object]) -> None:
        try:
            texts.append(repr(run()))
        except JudgeError as error:
            assert error.__context__ is None, "the library's error holds the request and its headers"
            with pytest.raises(JudgeModelError) as chained:
                name_successors(error)
            shown = traceback.TracebackException.from_exception(chained.value, capture_locals=True)
            texts.extend([*shown.format(), repr(error), str(error.args), repr(vars(error))])

    for fault in (
        Fault("echo"),
        Fault("401", message=f"Incorrect API key provided: {PLANTED}"),
        Fault("404", code="model_not_found", message=f"not for {PLANTED}"),
        Fault("500", message=f"Bearer {PLANTED}"),
        Fault("429", message=PLANTED * 30, headers={"Retry-After": "9999"}),
        Fault("hang-up"),
        Fault("garbage"),
        Fault("stall"),
    ):
        chat_server.rule = lambda *_, fault=fault: fault
        collect(lambda: ask(chat_server, attempts=2, timeout=0.3))
        collect(lambda: ask_all(chat_server, 2, attempts=2, timeout=0.3))
    chat_server.rule = lambda *_: None
    chat_server.answer = lambda _: f"You sent {PLANTED}. [[3]]"
    reply = ask(chat_server)
    assert isinstance(reply, Reply)
    assert reply.text == "You sent ***. [[3]]", "what is kept in files does not have it, either"
    texts += [repr(reply), repr(settings(chat_server)), repr(ChatClient(settings(chat_server)).__dict__), caplog.text]
    assert chat_server.requests[0].headers["authorization"] == f"Bearer {PLANTED}", "it was really sent"
    assert any("these headers are not wanted" in text for text in texts), "and really echoed"
    assert [text for text in texts if PLANTED in text or PLANTED[3:] in text] == []


def test_a_key_that_cannot_be_one_is_not_shown(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (f"{PLANTED}\nX-Other: 1", f"{PLANTED} second", f"{PLANTED}é"):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        with pytest.raises(ConfigurationError, match="OPENAI_API_KEY has characters that no key has") as caught:
            ask(chat_server)
        assert PLANTED not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {PLANTED}\n")
    chat_server.key = PLANTED
    assert isinstance(ask(chat_server), Reply), "a line end around it is forgiven"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"timeout": float("nan")}, "timeout must be at least"),
        ({"sampling": {"stream": True, "n": 2}}, "n, stream is not for sampling"),
        ({"base_url": "localhost:8000"}, "base_url must be like"),
        ({"base_url": "http://localhost:99999/v1"}, "base_url must be like"),
        ({"base_url": f"http://me:{PLANTED}@localhost/v1"}, "base_url has a user or password"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        ChatSettings(**{"model": "judge-1"} | changes)
    assert PLANTED not in str(caught.value)


def test_without_the_package(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'personalitybench\[judge\]'"):
        ChatClient(settings(chat_server))


def test_the_package_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, personalitybench.judging.chat_client as c; c.ChatSettings('m'); sys.exit('openai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_server_counts_what_was_needless() -> None:
    """The benchmark relies on it: asked more often than the faults it met require."""
    server = ChatServer()
    server.script.append(Fault("500"))
    for _ in range(4):
        server._fault({"model": "m", "messages": asking("same")}, {})
    assert server.report() == {"requests": 4, "texts": 1, "faults": 1, "needless": 2, "most_in_flight": 0}
    assert [asked.text for asked in server.requests] == ["same"] * 4
    assert isinstance(server.requests[0], Asked)


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_redirects_are_not_followed(chat_server: ChatServer, status: str) -> None:
    with ChatServer() as elsewhere:
        chat_server.script.append(Fault(status, headers={"Location": f"{elsewhere.url}/chat/completions"}))
        with pytest.raises(JudgeError, match=f"answered {status}: it redirects to {elsewhere.url}"):
            ask(chat_server)
        assert elsewhere.requests == [], "neither question nor answer left for another host"


def test_redirects_within_the_origin_are_not_followed_either(chat_server: ChatServer) -> None:
    chat_server.script.append(Fault("302", headers={"Location": "/v1/chat/completions"}))
    with pytest.raises(JudgeError, match="redirects are not followed"):
        ask(chat_server)
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_replies_are_read(chat_server: ChatServer, encoding: str) -> None:
    body = REPLY % b"[[4]]"
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    chat_server.script.append(Fault("raw", headers={"Content-Encoding": encoding}, body=packed))
    assert ask(chat_server) == Reply("[[4]]", "judge-1", "stop", 0, 0)
    assert chat_server.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, REPLY % (b"x" * 5_000_000), "larger than 4 MiB"),
        ({"Content-Encoding": "gzip"}, gzip.compress(bytes(5_000_000)), "larger than 4 MiB"),
        ({"Content-Encoding": "gzip"}, b"no gzip at all", "damaged"),
        ({"Content-Encoding": "br"}, b"x", "'br', which was not asked for"),
    ],
    ids=["plain", "bomb", "damaged", "other"],
)
def test_bodies_out_of_bounds_are_tried_again_then_unrated(
    chat_server: ChatServer, headers: dict[str, str], body: bytes, said: str
) -> None:
    chat_server.rule = lambda *_: Fault("raw", headers=headers, body=body)
    unrated = ask(chat_server, attempts=2)
    assert isinstance(unrated, Unrated)
    assert unrated.reason == "not-text"
    assert said in unrated.detail
    assert len(chat_server.requests) == 2


def test_gzip_bomb_takes_little_memory() -> None:
    """A body of 1 GB, sent as 1 MB to eight requests at once."""
    script = """
        import asyncio, gzip, resource, sys, zlib
        from personalitybench.judging.chat_client import ChatClient, ChatSettings
        from tests.chat_server import ChatServer, Fault
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
        async def ask(url):
            async with ChatClient(ChatSettings("m", url, attempts=1, concurrency=8)) as client:
                await client.ask_all([[{"role": "user", "content": str(n)}] for n in range(8)], lambda n, r: print(r))
        with ChatServer(rule=lambda *_: Fault("raw", headers={"Content-Encoding": "gzip"}, body=bomb)) as server:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            asyncio.run(ask(server.url))
            print("grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.stdout.count("larger than 4 MiB") == 8
    assert int(done.stdout.split("grew ")[1]) < 200, "megabytes"
