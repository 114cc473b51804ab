"""Several judges that need the same replies at the same time: threads, processes, and processes that end."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.errors import JudgeError
from personalitybench.judging import Rating, Unrated, live_replies, rate_all
from personalitybench.judging.base import create_judge
from personalitybench.judging.chat_judge import ChatJudge, store_path
from personalitybench.judging.claims import Claims
from personalitybench.judging.prices import Price
from personalitybench.judging.responses import ResponseStore
from tests.chat_server import ChatServer, Fault
from tests.killed_judge import items
from tests.killed_store import stored_response
from tests.test_live_replies import judge, kept, profile_file, server, start, wait_until, wide_profile

__all__ = ["judge", "profile_file", "server"]

pytestmark = pytest.mark.usefixtures("cache")

KEYS = [stored_response(number)[0] for number in range(20)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseStore]:
    with ResponseStore(tmp_path / "replies.sqlite") as store:
        yield store


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "claims" in path.name]


def test_claimed_key_belongs_to_one_owner_until_it_is_released(store: ResponseStore) -> None:
    with Claims(store) as first, Claims(store) as second, ResponseStore(store.path) as same, Claims(same) as third:
        assert first.take(KEYS[:10]) == set(KEYS[:10])
        assert second.take(KEYS) == set(KEYS[10:])
        assert first.take(KEYS) == set(KEYS[:10]), "what it has it keeps"
        assert third.take(KEYS) == set()
        first.release()
        assert third.take(KEYS) == set(KEYS[:10])
        assert third.take(KEYS, by_force=True) == set(KEYS)
    assert leftovers(store.path.parent) == []
    with Claims(store) as last:
        assert last.take(KEYS) == set(KEYS)


def test_key_with_a_reply_is_not_claimed(store: ResponseStore) -> None:
    store.put(*stored_response(3))
    with Claims(store) as claims:
        assert claims.take(KEYS) == set(KEYS) - {KEYS[3]}


def test_claims_of_a_copied_cache_are_void(store: ResponseStore, tmp_path: Path) -> None:
    """Neither a process number nor a host says whether an owner lives: only its lock does."""
    with Claims(store) as claims:
        claims.take(KEYS)
        (tmp_path / "copy").mkdir()
        for path in tmp_path.glob("*replies*"):
            (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "copy" / leftovers(tmp_path)[0]).write_bytes(b"")
        with ResponseStore(tmp_path / "copy" / "replies.sqlite") as copy, Claims(copy) as other:
            assert other.take(KEYS) == set(KEYS)
        assert leftovers(tmp_path / "copy") == []


def test_claims_outlive_a_damaged_store(store: ResponseStore) -> None:
    with Claims(store) as claims:
        claims.take(KEYS)
        for path in store.path.parent.glob("replies.sqlite*"):
            path.unlink()
        claims.release()
        assert claims.take(KEYS) == set(KEYS)
        with sqlite3.connect(store.path) as connection:
            connection.execute("DROP TABLE claims")
        claims.release()
    assert not list(store.path.parent.glob("*.damaged-*"))


def test_lock_file_of_an_owner_that_was_killed_is_removed(store: ResponseStore) -> None:
    (store.path.parent / ".replies.sqlite.claims-0123456789abcdef").touch()
    with Claims(store) as living, Claims(store) as other:
        assert living.take(KEYS[:1]) == set(KEYS[:1])
        assert len(leftovers(store.path.parent)) == 1
        assert other.take(KEYS) == set(KEYS[1:])
        assert len(leftovers(store.path.parent)) == 2


def test_two_processes_in_opposite_orders_pay_once(profile_file: Path, server: ChatServer) -> None:
    both = [start(profile_file, 1500), start(profile_file, 1500, "reversed")]
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert (len(server.requests), kept()) == (1500, 1500)
    assert max(server.asked.values()) == 1
    assert leftovers(store_path().parent) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_process_takes_over_from_one_that_ends(
    end: signal.Signals, profile_file: Path, server: ChatServer, judge: Callable[..., ChatJudge]
) -> None:
    first = start(profile_file, 800)
    wait_until(lambda: len(server.requests) >= 200)
    second = start(profile_file, 800, "reversed")
    wait_until(lambda: len(server.requests) >= 350)
    first.send_signal(end)
    first.communicate(timeout=60)
    _, told = second.communicate(timeout=60)
    assert second.returncode == 0, told
    assert kept() == 800
    in_flight = 0 if end == signal.SIGINT else 2 * 64
    assert 800 <= len(server.requests) <= 800 + in_flight
    assert leftovers(store_path().parent) == []


def test_threads_and_members_of_a_panel_pay_once(
    judge: Callable[..., ChatJudge], server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(3) as threads:
        same = judge()
        found = list(threads.map(lambda each: rate_all(each, items(150)), [judge(), same, same]))
    assert found[0] == found[1] == found[2]
    assert len(server.requests) == 150
    assert same.spending.prompt_tokens in (0, sum(reply.prompt_tokens for reply in _replies()))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(wide_profile(server) | {"id": name}))
    panel = {"id": "both", "provider": "panel", "summary": "x", "settings": {"judges": ["one", "two"]}}
    (tmp_path / "both.yaml").write_text(json.dumps(panel))
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    create_judge.cache_clear()
    assert all(isinstance(verdict, Rating) for verdict in rate_all(create_judge("both"), items(300)))
    create_judge.cache_clear()
    assert len(server.requests) == 300


def _replies() -> list[Any]:
    with sqlite3.connect(store_path()) as connection:
        keys = [key.hex() for (key,) in connection.execute("SELECT key FROM responses")]
    with ResponseStore(store_path()) as store:
        return list(store.get_many(keys).values())


@pytest.mark.parametrize("failure", ["budget", "error", "unrated"])
def test_judge_takes_over_from_one_that_gives_up(
    failure: str, judge: Callable[..., ChatJudge], server: ChatServer
) -> None:
    server.latency = 0.3
    first, second = judge(), judge()
    if failure == "budget":
        first.spending.price = Price(input=10.0, output=10.0)
        first.spending.budget = 30 * (first.estimate(items(1)).dollars or 0.0)
    else:
        server.script.append(Fault({"error": "400", "unrated": "refusal"}[failure]))

    def rate_second() -> Any:
        wait_until(lambda: len(server.requests) > 0)
        return rate_all(second, items(100))

    with ThreadPoolExecutor(2) as threads:
        verdicts = threads.submit(rate_second)
        given_up = threads.submit(rate_all, first, items(100))
        assert all(isinstance(verdict, Rating) for verdict in verdicts.result())
        if failure == "unrated":
            assert sum(isinstance(verdict, Unrated) for verdict in given_up.result()) == 1
        else:
            with pytest.raises(JudgeError):
                given_up.result()
    assert len(server.requests) == 100 + (failure != "budget")
    assert kept() == 100


def test_wait_for_a_stopped_process_is_announced_and_ends(
    profile_file: Path,
    server: ChatServer,
    judge: Callable[..., ChatJudge],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(live_replies, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(live_replies, "ANNOUNCED_WAIT", 0.5)
    stopped = start(profile_file, 300)
    wait_until(lambda: len(server.requests) >= 100)
    server.latency = 3.0
    time.sleep(0.8)  # no reply comes any more, so nothing is being written
    stopped.send_signal(signal.SIGSTOP)
    server.latency = 0.05
    started = time.monotonic()
    rated = rate_all(judge(client={"concurrency": 64, "timeout": 1.0, "attempts": 2}), items(300))
    assert all(isinstance(verdict, Rating) for verdict in rated)
    assert 2.0 <= time.monotonic() - started < 15
    assert "replies that another judge or process is asking for; if none comes for 2 s they are asked" in caplog.text
    assert caplog.text.count("another judge or process") == 1
    stopped.kill()
    stopped.communicate(timeout=10)


def test_nothing_is_claimed_where_everything_is_kept(
    judge: Callable[..., ChatJudge], server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_all(judge(), items(10))
    monkeypatch.setattr(Claims, "take", lambda *_: pytest.fail("claimed"))
    assert len(rate_all(judge(), items(10))) == len(server.requests) == 10
