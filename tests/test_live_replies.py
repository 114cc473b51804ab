"""Orderly ends and several judges at once: what the server answered is kept, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench import workers
from personalitybench.errors import JudgeError
from personalitybench.judging import Rating, rate_all
from personalitybench.judging.base import JudgeProfile, create_judge
from personalitybench.judging.chat_judge import ChatJudge, store_path
from personalitybench.judging.paid import paid_judges, share_budget
from personalitybench.judging.prices import Price
from personalitybench.judging.responses import ResponseStore
from tests.chat_server import Body, ChatServer, Fault, uneven
from tests.killed_judge import items
from tests.test_chat_judge import KEY, profile

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server whose replies take from 0.05 to 0.5 seconds."""
    monkeypatch.setenv("TEST_KEY", KEY)
    with ChatServer(key=KEY, latency=uneven(0.05, 0.5)) as server:
        yield server


@pytest.fixture
def judge(server: ChatServer) -> Callable[..., ChatJudge]:
    def make(**changes: Any) -> ChatJudge:
        return ChatJudge(JudgeProfile.model_validate(wide_profile(server) | changes))

    return make


@pytest.fixture
def profile_file(server: ChatServer, tmp_path: Path) -> Path:
    path = tmp_path / "served.yaml"
    path.write_text(json.dumps(wide_profile(server)))
    return path


def wide_profile(server: ChatServer) -> dict[str, Any]:
    return profile(server) | {"client": {"concurrency": 64, "timeout": 20, "attempts": 2}}


def kept() -> int:
    with ResponseStore(store_path()) as store:
        return len(store)


def start(path: Path, count: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.killed_judge", str(path), str(count), *more]
    return subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fault_at(number: int, fault: Fault) -> Callable[[Body, int], Fault | None]:
    """Make a rule: the request of that number meets the fault."""
    count = iter(range(10**6))
    return lambda *_: fault if next(count) == number else None


# Orderly ends


def test_budget_is_not_exceeded_by_what_is_in_flight(judge: Callable[..., ChatJudge], server: ChatServer) -> None:
    careful = judge()
    careful.spending.price = Price(input=10.0, output=10.0)
    estimate = careful.estimate(items(1)).dollars or 0.0
    careful.spending.budget = 100 * estimate
    with pytest.raises(JudgeError, match=r"the budget of \$.* is spent .*the next request may cost"):
        rate_all(careful, items(1000))
    answered = len(server.requests)
    assert 100 < answered < 1000
    assert server.most_in_flight == 64
    assert 99 * estimate < (careful.spending.dollars or 0.0) <= 100 * estimate
    assert answered == kept() == careful.spending.calls
    assert not careful.spending.in_flight
    rate_all(judge(), items(1000))
    assert max(server.asked.values()) == 1


def test_budget_covers_replies_that_are_tried_again(judge: Callable[..., ChatJudge], server: ChatServer) -> None:
    """An unfinished reply is charged, too."""
    server.latency = 0.01
    server.answer = lambda _: "no rating " * 20
    text = {"role": "assistant", "content": "I am"}
    usage = {"prompt_tokens": 300, "completion_tokens": 60}
    body = {"choices": [{"message": text, "finish_reason": "error"}], "usage": usage}
    server.rule = lambda *_: Fault("raw", body=json.dumps(body).encode())
    careful = judge(client={"concurrency": 4, "attempts": 50})
    careful._client = replace(careful._client, backoff=0.001)
    careful.spending.price = Price(input=10.0, output=10.0)
    careful.spending.budget = 20 * 360 * 10 / 1e6
    with pytest.raises(JudgeError, match="the budget of"):
        rate_all(careful, items(8))
    assert 10 <= len(server.requests) <= 20
    assert (careful.spending.dollars or 0.0) <= careful.spending.budget


def test_budget_of_a_panel_covers_what_all_members_have_in_flight(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        member = wide_profile(server)
        member |= {"id": name, "settings": member["settings"] | {"model": name}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(member))
    panel = {"id": "both", "provider": "panel", "summary": "x", "settings": {"judges": ["one", "two"]}}
    (tmp_path / "both.yaml").write_text(json.dumps(panel))
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    create_judge.cache_clear()
    both = create_judge("both")
    members = paid_judges(both).values()
    for paid in members:
        paid.spending.price = Price(input=10.0, output=10.0)
    budget = 60 * (next(iter(members)).estimate(items(1)).dollars or 0.0)
    share_budget(both, budget)
    with pytest.raises(JudgeError, match="the judges of the panel"):
        rate_all(both, items(300))
    assert 0.9 * budget < next(iter(members)).spending.toward_budget <= budget
    assert len(server.requests) == kept()
    share_budget(both, None)
    rate_all(both, items(300))
    create_judge.cache_clear()
    assert len(server.requests) == 600


@pytest.mark.parametrize(
    "fault", [Fault("400", code="unknown_code"), Fault("401"), Fault("503", headers={"Retry-After": "100000"})]
)
def test_error_of_one_request_keeps_the_replies_in_flight(
    fault: Fault, judge: Callable[..., ChatJudge], server: ChatServer
) -> None:
    server.rule = fault_at(100, fault)
    ended = judge()
    with pytest.raises(JudgeError, match=f"answered {fault.kind}"):
        rate_all(ended, items(400))
    assert len(server.requests) - 1 == kept() == ended.spending.calls
    assert len(server.requests) < 400
    before = dict(server.asked)
    assert all(isinstance(verdict, Rating) for verdict in rate_all(judge(), items(400)))
    assert len(server.requests) == 401, "the one that failed is asked again"
    assert len(before) < 400


def test_error_of_the_caller_keeps_the_replies_in_flight(judge: Callable[..., ChatJudge], server: ChatServer) -> None:
    told = 0

    def report(more: int) -> None:
        nonlocal told
        told += more
        if told > 100:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rate_all(judge(), items(400), report)
    assert len(server.requests) == kept()
    rate_all(judge(), items(400))
    assert max(server.asked.values()) == 1


def test_requests_that_fail_are_not_tried_again_at_the_end(judge: Callable[..., ChatJudge], server: ChatServer) -> None:
    def rule(body: Body, _: int) -> Fault | None:
        return Fault("400") if "number 20." in str(body) else Fault("500")

    server.rule = rule
    with pytest.raises(JudgeError, match="answered 400"):
        rate_all(judge(client={"concurrency": 64, "timeout": 20, "attempts": 50}), items(64))
    before = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) == before, "nothing is sent any more"
    assert before < 64 * 3


@pytest.mark.parametrize("signals", [1, 2])
def test_interrupt_waits_for_replies_in_flight_and_a_second_one_does_not(
    signals: int, profile_file: Path, server: ChatServer, judge: Callable[..., ChatJudge]
) -> None:
    process = start(profile_file, 600)
    wait_until(lambda: len(server.requests) >= 200)
    if signals == 2:
        server.latency = 15.0
        time.sleep(1.0)  # what is in flight now takes long
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    if signals == 2:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told
    assert time.monotonic() - started < 10
    in_flight = 64 if signals == 2 else 0
    answered = len(server.requests)
    assert answered < 600
    assert answered - in_flight <= kept() <= answered
    server.latency = 0.01
    assert all(isinstance(verdict, Rating) for verdict in rate_all(judge(), items(600)))
    assert len(server.requests) <= 600 + in_flight
    assert signals == 2 or max(server.asked.values()) == 1


def test_interrupt_of_work_in_a_thread_keeps_the_replies_in_flight(
    judge: Callable[..., ChatJudge], server: ChatServer
) -> None:
    """In a notebook a loop runs already, and the work has a loop in another thread."""

    async def cell() -> None:
        timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        rate_all(judge(), items(2000))

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    assert 64 < len(server.requests) < 1000
    assert len(server.requests) == kept()


def test_long_wait_for_replies_in_flight_is_announced(
    judge: Callable[..., ChatJudge],
    server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workers, "ANNOUNCED_WAIT", 0.1)
    server.rule = fault_at(3, Fault("400"))
    server.latency = lambda body: 0.05 if "number 3." in str(body) else 1.0
    with pytest.raises(JudgeError):
        rate_all(judge(), items(20))
    assert f"waiting up to 20 s for 19 replies of {server.url} that are in flight" in caplog.text
    assert kept() == 19


def test_reply_that_never_comes_is_waited_for_until_its_timeout(
    judge: Callable[..., ChatJudge], server: ChatServer
) -> None:
    server.rule = lambda body, _: Fault("400") if "number 3." in str(body) else Fault("stall")
    started = time.monotonic()
    with pytest.raises(JudgeError):
        rate_all(judge(client={"timeout": 1.5, "attempts": 8}), items(20))
    assert time.monotonic() - started < 5
