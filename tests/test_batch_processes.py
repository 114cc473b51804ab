"""Batches and processes: killed at every step, two at once, interrupted in the command line; no key anywhere."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("openai")

from personalitybench.errors import ConfigurationError, JudgeError
from personalitybench.files import Sheet
from personalitybench.judging import create_judge, rate_all
from personalitybench.judging.base import load_profile
from personalitybench.judging.chat_judge import ChatJudge
from personalitybench.judging.paid import paid_judges, share_budget
from personalitybench.judging.prices import Price
from personalitybench.runs.batches import check_batches, fetch_in_batches, tell_waiting
from personalitybench.runs.command import run_suite
from personalitybench.runs.judge_command import judge_run
from tests.batch_server import BatchServer, Plan
from tests.chat_server import Fault
from tests.killed_judge import items
from tests.test_chat_judge import KEY, profile
from tests.test_runs import SUITE, TWO_TARGETS


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    monkeypatch.setenv("TEST_KEY", KEY)
    with BatchServer(key=KEY) as server:
        yield server


@pytest.fixture
def served(server: BatchServer, tmp_path: Path) -> Callable[..., Path]:
    """Write the judge's profile."""

    def write(**batch: float) -> Path:
        client = {"timeout": 5, "attempts": 2, "batch": {"poll": 0.02} | batch}
        path = tmp_path / "served.yaml"
        path.write_text(json.dumps(profile(server) | {"client": client}))
        return path

    return write


def test_killed_at_every_step_and_nothing_is_paid_twice(server: BatchServer, served: Callable[..., Path]) -> None:
    """A batch, and the one that asks again for the request that came to nothing in it."""
    count = 2
    met: Counter[str] = Counter()

    def once(key: str, body: object) -> str:
        met[key] += 1
        return "500" if met[key] == 1 and "number 0" in str(body) else "ok"

    server.plans = _Endless(Plan(fate=once))
    found = subprocess.run(
        [sys.executable, "-m", "tests.killed_batch", str(served()), str(count)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [line["first"] for line in lines] == [-9] * (len(lines) - 1) + [0]
    assert {line["second"] for line in lines} == {0}, found.stderr
    assert len(lines) > 30, "so many steps are there"
    assert len(server.paid) == count * len(lines) + 1
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == 2 * len(lines) + 1


class _Endless(list[Plan]):
    """The same plan for every batch."""

    def __init__(self, plan: Plan) -> None:
        super().__init__([plan])

    def popleft(self) -> Plan:
        return self[0]


@pytest.mark.usefixtures("cache")
def test_two_processes_at_once_share_what_is_under_way(server: BatchServer, served: Callable[..., Path]) -> None:
    for _ in range(6):
        server.plans.append(Plan(polls=30))
    path = str(served(requests=5))
    both = [
        subprocess.Popen([sys.executable, "-m", "tests.killed_batch", path, "30", *part], env=os.environ)
        for part in (("0", "20"), ("10", "30"))
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(server.paid) == 30
    assert set(server.paid.values()) == {1}
    assert len(rate_all(ChatJudge(load_profile(path)), items(30))) == 30
    assert not server.requests


@pytest.mark.usefixtures("cache")
def test_no_key_is_told(
    server: BatchServer,
    served: Callable[..., Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    path = str(served())
    server.answer = lambda _: f"Your key is {KEY}. [[2]]"
    error = {"code": "odd", "message": f"odd key {KEY}", "line": None}
    server.plans.extend([Plan(end="failed", errors=[error]), Plan(extra=[KEY.encode()])])
    server.mishaps["retrieve"] = _faults(Fault("500", message=f"what is {KEY}?"))
    with caplog.at_level(logging.DEBUG):
        ChatJudge(load_profile(path)).fetch_in_batches(items(3), told.append)
        wrong = "wrong-key-9876543210"
        monkeypatch.setenv("TEST_KEY", wrong)
        with pytest.raises(JudgeError, match="the key in TEST_KEY is missing or wrong") as refused:
            ChatJudge(load_profile(path)).fetch_in_batches(items(5), told.append)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    texts = [*told, str(refused.value), repr(refused.value), caplog.text]
    kept = [file.read_bytes() for file in cache.rglob("*") if file.is_file()]
    assert any(b"Your key is ***" in content for content in kept)
    for key in (KEY, wrong):
        assert not any(key in text for text in texts)
        assert not any(key.encode() in content for content in kept)


def _faults(*faults: Fault) -> object:
    from collections import deque

    return deque(faults)


@pytest.mark.model
def test_a_run_is_rated_in_batches(
    server: BatchServer,
    served: Callable[..., Path],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told what it takes, interrupted while it waits, gone on with, and asked nothing the second time."""
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(served(poll=0.2).parent))
    suite = tmp_path / "small.yaml"
    text = SUITE.format(model=tiny_model, methods="[none]", targets=TWO_TARGETS, dtype="float32")
    suite.write_text(f"{text}\njudges: [served]\nfloors: false\n")
    run = tmp_path / "out"
    run_suite(str(suite), run, ["generate"], Console(quiet=True))
    for path in run.glob("calls/*/*/answers.jsonl"):  # a random model writes no word
        rows = [row | {"answer": f"I sang {number} songs."} for number, row in enumerate(Sheet(path).lines.read())]
        path.unlink()
        Sheet(path).lines.append(rows)
        Sheet(path).finish()
    with pytest.raises(ConfigurationError, match="judge offline cannot rate in batches: leave --batch out"):
        judge_run(run, ["offline"], Console(quiet=True), budget=None, dry_run=False, batch=True)
    told = judged(run, dry_run=True)
    row = [cell.strip() for line in told.splitlines() if "served" in line for cell in line.split("│")[1:-1]]
    assert row[:4] == ["served", "8", "0", "0"]
    calls = int(row[4])
    assert calls > 0
    assert not server.calls

    server.plans.append(Plan(polls=10**6))
    waiting = subprocess.Popen(
        [sys.executable, "-m", "personalitybench.cli", "run", str(suite), "--output", str(run), "--batch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    deadline = time.monotonic() + 120
    while server.calls["retrieve"] < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, output
    assert f"judge served: batches: {calls} requests in 1; a batch may take up to 24 hours" in output
    assert "judge served: batch batch_1: in_progress, " in output
    assert "judge served: the batches go on at the server; the same command picks them up" in output
    told = judged(run, dry_run=True)
    row = [cell.strip() for line in told.splitlines() if "served" in line for cell in line.split("│")[1:-1]]
    assert row[:5] == ["served", "8", "0", str(calls), "0"]
    warned: list[str] = []
    tell_waiting(["served"], lambda _: items(1), warned.append)
    assert not warned, "of these none is in a batch"

    server.finish_soon("batch_1")
    told = judged(run)
    assert f"judge served: 0 replies asked for, {calls} fetched in batches, " in told
    assert len(server.batches) == 1
    assert not server.requests
    assert json.loads((run / "leaderboard.json").read_text())["judge"]["id"] == "served"


def judged(run: Path, *, dry_run: bool = False) -> str:
    """What ``personalitybench judge RUN --batch`` tells."""
    console = Console(record=True, width=200, file=io.StringIO())
    judge_run(run, [], console, budget=None, dry_run=dry_run, batch=True)
    return console.export_text()


@pytest.mark.usefixtures("cache")
def test_a_panel_fetches_in_batches_and_shares_its_budget(
    server: BatchServer, served: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(served().read_text())
    for name in ("one", "two"):
        member = first | {"id": name, "settings": first["settings"] | {"model": name, "rubric": "matrix"}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(member))
    panel = {"id": "both", "provider": "panel", "summary": "x", "settings": {"judges": ["one", "two"]}}
    (tmp_path / "both.yaml").write_text(json.dumps(panel))
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    create_judge.cache_clear()
    check_batches(["both"])
    members = paid_judges(create_judge("both"))
    for paid in members.values():
        paid.spending.price = Price(input=1000.0, output=0.0)
    costs = [paid.estimate(items(4)).dollars or 0.0 for paid in members.values()]
    share_budget(create_judge("both"), 1.5 * costs[0])
    told: list[str] = []
    with pytest.raises(JudgeError, match=r"after \$.* that are spent or under way"):
        fetch_in_batches(["both"], lambda _: items(4), told.append)
    assert len(server.batches) == 1
    told.clear()
    tell_waiting(["both"], lambda _: items(4), told.append)
    assert [line.partition(";")[0] for line in told] == [
        "judge both > one: 4 of these requests are in batches that were begun"
    ]
    share_budget(create_judge("both"), 3 * costs[0])
    fetch_in_batches(["both"], lambda _: items(4), told.append)
    create_judge.cache_clear()
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [4, 4]
    sent = [json.loads(content.splitlines()[0])["body"] for content in server.files.values() if b'"url"' in content]
    assert [body["model"] for body in sent] == ["one", "two"]
    assert all(body["response_format"]["type"] == "json_schema" for body in sent)
