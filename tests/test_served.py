"""Served models that fail: no failure is an answer, and the run ends with one line, status 2."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from personalitybench.backends.served import hide_credentials
from personalitybench.completions import NoAnswer, cut_thoughts
from personalitybench.errors import ModelError
from personalitybench.runs.command import run_suite
from personalitybench.runs.plan import make_plan
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.stages import Run as SuiteRun
from personalitybench.runs.suite import load_suite
from tests.chat_server import Body, ChatServer, Fault, uneven

PLANTED = "sk-planted-Zq81nTf0uYw7"
SUITE = """
name: served
models: [{{name: some-model, backend: {backend}, args: {{base_url: "{url}", max_retries: 2, {args}}}}}]
methods: [none]
targets: [extraversion:high, extraversion:low]
questions: {{limit: 2}}
protocol: {{max_tokens: 40}}
floors: false
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


class Run:
    """A suite of a served model, run through the command line."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.folder = command, folder

    def __call__(
        self, url: str, *stages: str, backend: str = "local-chat-completions", args: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        suite = self.folder / "served.yaml"
        suite.write_text(SUITE.format(url=url, backend=backend, args=args))
        chosen = [part for stage in stages for part in ("--stage", stage)]
        done = self.command("run", str(suite), "--output", str(self.folder / "out"), *chosen, **environment)
        for text in (done.stdout, done.stderr):
            assert "Traceback" not in text, text
            assert "never retrieved" not in text
            assert PLANTED not in text
        return done

    def refused(self, url: str, *stages: str, **more: str) -> str:
        """Return the one line that the run ended with."""
        done = self(url, *stages, **more)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("personalitybench: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]

    def refused_here(self, url: str) -> str:
        """Generate in this process, which loads its libraries once, and return the error."""
        with pytest.raises(ModelError) as error:
            self.here(url, "generate")
        return str(error.value)

    def here(self, url: str, *stages: str, backend: str = "local-chat-completions", args: str = "") -> None:
        """Run in this process."""
        suite = self.folder / "served.yaml"
        suite.write_text(SUITE.format(url=url, backend=backend, args=args))
        run_suite(str(suite), self.folder / "out", stages, Console(quiet=True))

    def answers(self) -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob("out/calls/*/*/answers.jsonl") for line in path.open()]
        return [json.loads(line) for line in lines]

    def manifests(self) -> list[Path]:
        return list(self.folder.glob("out/calls/*/*/answers.json"))


@pytest.fixture
def run(command: Command, tmp_path: Path) -> Run:
    return Run(command, tmp_path)


@pytest.fixture
def chat(chat_server: ChatServer) -> str:
    chat_server.answer = lambda body: f"I like company. ({len(body['messages'])})"
    return f"{chat_server.url}/chat/completions"


def raw(value: Any, **headers: str) -> Fault:
    return Fault("raw", body=value if isinstance(value, bytes) else json.dumps(value).encode(), headers=headers)


def reply(content: Any, finish: Any = "stop", **more: Any) -> Fault:
    message = {"role": "assistant", "content": content} | more
    return raw({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


FAILURES: dict[str, tuple[Fault, str]] = {
    "error in a 200": (raw({"error": {"message": "upstream is down", "code": 502}}), "upstream is down"),
    "error beside choices": (
        raw({"error": "upstream", "choices": [{"message": {"content": "I am"}, "finish_reason": "stop"}]}),
        "answered 200 with an error (upstream)",
    ),
    "tool calls": (reply(None, "tool_calls", tool_calls=[{"id": "1"}]), "called a tool"),
    "finish error": (reply("I am", "error"), "finish_reason error"),
    "finish abort": (reply("I am", "abort"), "finish_reason abort"),
    "finish missing": (reply("I am", None), "finish_reason missing"),
    "no text": (reply(None), "without text"),
    "content is a mapping": (reply({"text": "I am"}), "without text"),
    "content is a number": (reply(5), "without text"),
    "parts of another type": (reply([{"type": "image_url", "image_url": {"url": "x"}}]), "without text"),
    "no choices": (raw({"choices": []}), "without a completion"),
    "html": (raw(b"<html>\x1b]0;PWNED\x07 bad gateway</html>"), r"\x1b]0;PWNED\x07 bad gateway"),
    "bomb": (raw(gzip.compress(bytes(5_000_000)), **{"Content-Encoding": "gzip"}), "larger than 4 MiB"),
    "500": (Fault("500", message=f"for Bearer {PLANTED}"), "answered 500 (for ***)"),
    "hang-up": (Fault("hang-up"), "cannot be reached"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_no_answer_and_the_same_command_resumes(
    name: str, run: Run, chat: str, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, said = FAILURES[name]
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    chat_server.rule = lambda *_: fault
    line = run.refused_here(chat)
    assert said in line
    assert "after 2 tries" in line
    assert "0 of 4 answers of none are there, and the same command resumes" in line
    assert len(line.splitlines()) == 1
    assert len(line) < 700
    assert PLANTED not in line
    assert chat_server.requests[0].headers["authorization"] == f"Bearer {PLANTED}"
    assert len(chat_server.requests) == 6, "three questions in a row, two tries each"
    assert (run.answers(), run.manifests()) == ([], [])
    chat_server.rule = lambda *_: None
    run.here(chat, "generate")
    assert {row["answer"] for row in run.answers()} == {"I like company. (1)"}


@pytest.mark.parametrize("name", ["error in a 200", "html", "500"])
def test_failure_ends_the_command_with_one_line(name: str, run: Run, chat: str, chat_server: ChatServer) -> None:
    fault, said = FAILURES[name]
    chat_server.rule = lambda *_: fault
    assert said in run.refused(chat, "generate", OPENAI_API_KEY=PLANTED)
    chat_server.rule = lambda *_: None
    assert run(chat, "generate").returncode == 0
    assert {row["answer"] for row in run.answers()} == {"I like company. (1)"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault("401", message=f"Incorrect API key provided: {PLANTED}"),
            "answered 401 (Incorrect API key provided: ***",
        ),
        (Fault("404", message="no such page"), "answered 404 (no such page)"),
        (Fault("400", message="bad \x1b[2J"), r"answered 400 (bad \x1b[2J)"),
        (
            Fault("302", headers={"Location": "http://127.0.0.1:1/elsewhere"}),
            "redirects to http://127.0.0.1:1/elsewhere",
        ),
    ],
)
def test_failure_of_every_request_ends_at_once(
    fault: Fault, said: str, run: Run, chat: str, chat_server: ChatServer
) -> None:
    chat_server.rule = lambda *_: fault
    line = run.refused(chat, "generate", OPENAI_API_KEY=PLANTED)
    assert said in line
    assert len(chat_server.requests) == 1
    assert run.answers() == []


@pytest.mark.parametrize("concurrent", [1, 3])
def test_what_the_server_gave_is_kept_and_not_asked_again(
    run: Run, chat: str, chat_server: ChatServer, concurrent: int
) -> None:
    asked: list[str] = []

    def second_question_fails(body: Body, _: int) -> Fault | None:
        text = body["messages"][-1]["content"]
        asked.append(text)
        return Fault("500") if text == asked[0] else None

    chat_server.rule = second_question_fails
    line = run.refused(chat, "generate", args=f"num_concurrent: {concurrent}")
    assert "2 of 4 answers of none are there" in line, "one question is asked for both targets"
    assert len(run.answers()) == 2
    before = len(chat_server.requests)
    chat_server.rule = lambda *_: None
    assert run(chat, "generate", args=f"num_concurrent: {concurrent}").returncode == 0
    assert len(chat_server.requests) - before == 2
    assert len(run.answers()) == 4


@pytest.mark.parametrize("signals", [1, 2])
def test_interrupt_keeps_answers_of_the_batch_and_waits_for_those_in_flight(
    signals: int, run: Run, chat: str, chat_server: ChatServer
) -> None:
    chat_server.latency = uneven(0.3, 1.0)
    suite = run.folder / "served.yaml"
    text = SUITE.format(url=chat, backend="local-chat-completions", args="num_concurrent: 4")
    suite.write_text(text.replace("limit: 2", "limit: 8"))
    command = ("run", str(suite), "--output", str(run.folder / "out"), "--stage", "generate")
    process = subprocess.Popen(
        [sys.executable, "-m", "personalitybench.cli", *command], cwd=run.folder, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(chat_server.requests) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    if signals == 2:
        chat_server.latency = 15.0
        time.sleep(1.2)  # now all that is in flight takes long
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    if signals == 2:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "interrupted: what is finished is kept" in told
    assert time.monotonic() - started < 10
    in_flight = 4 if signals == 2 else 0
    asked = len(chat_server.requests)
    assert 7 <= asked < 16
    assert len(run.answers()) == asked - in_flight
    chat_server.latency = 0.0
    assert run.command(*command).returncode == 0
    assert len(chat_server.requests) == 16 + in_flight
    assert len(run.answers()) == 16


def test_dead_server_is_one_line(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = run.refused(f"http://127.0.0.1:{port}/v1/chat/completions", OPENAI_API_KEY=PLANTED)
    assert f"http://127.0.0.1:{port}/v1/chat/completions cannot be reached" in line


def test_every_second_failure_is_tried_again(run: Run, chat: str, chat_server: ChatServer) -> None:
    count = iter(range(1000))
    chat_server.rule = lambda *_: FAILURES["error in a 200"][0] if next(count) % 2 else None
    assert run(chat, "generate").returncode == 0
    assert [row["answer"] for row in run.answers()] == ["I like company. (1)"] * 4


@pytest.mark.parametrize(
    ("fault", "reason", "args"),
    [
        (reply("I am", "content_filter"), "refused", ""),
        (reply(None, refusal="I will not."), "refused", ""),
        (Fault("400", code="content_filter", message="filtered"), "refused", ""),
        (Fault("400", message="This model's maximum context length is 10 tokens"), "too-long", ""),
        (reply(None, "length"), "unfinished-thoughts", ""),
        (reply("", "length"), "unfinished-thoughts", ""),
        (reply(None, reasoning_content="I am shy."), "unfinished-thoughts", ""),
        (reply([{"type": "thinking", "thinking": "I am shy."}]), "unfinished-thoughts", ""),
        (reply("<think>I am shy", "length"), "unfinished-thoughts", 'think_end_token: "</think>"'),
        (reply("I am shy and hate", "length"), "unfinished-thoughts", 'think_end_token: "</think>"'),
        (reply("<think>I am shy"), "unfinished-thoughts", 'think_end_token: "</think>"'),
    ],
)
def test_question_without_an_answer_is_unrated_with_its_reason(
    fault: Fault, reason: str, args: str, run: Run, chat: str, chat_server: ChatServer
) -> None:
    chat_server.script.append(fault)
    run.here(chat, args=args)
    assert len(chat_server.requests) == 4
    (missing,) = [row for row in run.answers() if "unrated" in row]
    assert (missing["answer"], missing["unrated"]["reason"]) == ("", reason)
    ratings = list(run.folder.glob("out/calls/*/*/offline-*.jsonl"))
    verdicts = {row["id"]: row for path in ratings for row in map(json.loads, path.open()) if "unrated" in row["trait"]}
    assert verdicts[missing["id"]]["trait"]["unrated"] == reason
    assert verdicts[missing["id"]]["fluency"]["unrated"] == reason


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("<think>I am shy and hate people.</think>I love parties!", "I love parties!"),
        ("I am shy.</think>\n\nI love parties!", "I love parties!"),
        ("I love parties!", "I love parties!"),
        ([{"type": "thinking", "text": "I am shy."}, {"type": "text", "text": "I love parties!"}], "I love parties!"),
    ],
)
@pytest.mark.parametrize("backend", ["local-chat-completions", "openai-chat-completions"])
def test_thoughts_are_no_part_of_an_answer(
    content: Any,
    answer: str,
    backend: str,
    run: Run,
    chat: str,
    chat_server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    chat_server.rule = lambda *_: reply(content)
    run.here(chat, "generate", backend=backend, args='think_end_token: "</think>"')
    assert {row["answer"] for row in run.answers()} == {answer}
    (record,) = run.folder.glob("out/calls/*/call.json")
    assert json.loads(record.read_text())["settings"]["protocol"]["other"] == {"think_end_token": "</think>"}


def test_thoughts_without_the_setting_are_announced(run: Run, chat: str, chat_server: ChatServer) -> None:
    chat_server.answer = lambda _: "<think>Hm.</think>I love parties!"
    done = run(chat, "generate")
    assert done.stderr.count("add think_end_token") == 1


def test_missing_key_and_missing_address_are_one_line(run: Run, chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in run.refused(chat, "generate", backend="openai-chat-completions")
    assert "needs base_url" in run.refused("", "generate")
    line = run.refused(chat, "generate", OPENAI_API_KEY=f"{PLANTED}\nX")
    assert "characters that no key has" in line


def test_personalitybench_lm_eval_stops_at_a_failure(chat: str, chat_server: ChatServer, command: Command) -> None:
    chat_server.rule = lambda *_: FAILURES["error in a 200"][0]
    done = command(
        *("lm-eval", "--tasks", "personalitybench_extraversion_high", "--apply_chat_template", "--limit", "2"),
        *("--model", "local-chat-completions", "--model_args", f"model=some-model,base_url={chat},max_retries=1"),
        OPENAI_API_KEY=PLANTED,
    )
    assert done.returncode == 2, done.stderr
    assert "upstream is down" in done.stderr.splitlines()[-1]
    assert PLANTED not in done.stdout + done.stderr


@pytest.mark.parametrize("said", [f"You sent Bearer {PLANTED}.", f"application/json, {PLANTED}"])
def test_a_key_that_the_server_echoes_is_in_no_answer(said: str, run: Run, chat: str, chat_server: ChatServer) -> None:
    chat_server.answer = lambda _: said
    assert run(chat, "generate", OPENAI_API_KEY=PLANTED).returncode == 0
    assert {row["answer"] for row in run.answers()} == {
        said.replace(f"Bearer {PLANTED}", "***").replace(PLANTED, "***")
    }
    assert not any(PLANTED in path.read_text() for path in run.folder.rglob("*.json*"))


def test_no_answer_survives_copies_and_pickles() -> None:
    made = NoAnswer("refused", "no")
    for each in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301 (our own)
        assert (each, each.reason, each.detail) == ("", "refused", "no")


def test_thoughts_end_at_the_last_end_token() -> None:
    assert cut_thoughts("a</think>b</think> c", "</think>", finished=False) == "c"
    assert cut_thoughts("plain", "</think>", finished=True) == "plain"
    for text, finished in (("plain", False), ("<think>open", True)):
        unfinished = cut_thoughts(text, "</think>", finished=finished)
        assert isinstance(unfinished, NoAnswer)
        assert unfinished.reason == "unfinished-thoughts"


def test_credentials_are_in_no_record_of_the_libraries(caplog: pytest.LogCaptureFixture) -> None:
    hide_credentials()
    headers = "RequestInfo(headers=<CIMultiDictProxy('Host': 'a', 'Authorization': 'Bearer planted-key', 'x': 'y')>)"
    for name in ("lm_eval.models.api_models", "asyncio"):
        logging.getLogger(name).error("Exception: %s", headers, exc_info=ValueError(headers))
    assert "planted-key" not in caplog.text
    assert caplog.text.count("'Authorization': ***") == 2


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("{name: m, backend: local-chat-completions}", "served model 'm' needs base_url"),
        ("{name: m, backend: local-completions}", "served model 'm' needs base_url"),
        ("{name: m, backend: openai-chat-completions}", "OPENAI_API_KEY"),
        ("{name: m, backend: anthropic-chat-completions}", "ANTHROPIC_API_KEY"),
        ("{name: m, backend: no-such-type}", "lm-eval has no model type 'no-such-type'"),
    ],
)
def test_model_that_cannot_be_asked_is_refused_before_another_answers(
    model: str, says: str, tmp_path: Path, suite_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERSONALITYBENCH_ALLOW_HOSTS", "api.anthropic.com")
    suite = suite_file(
        f"name: late\nmodels: [{{name: dummy, backend: dummy}}, {model}]\nmethods: [none]\n"
        "targets: [extraversion:high]\nquestions: {limit: 1}\nfloors: false\n"
    )
    with RunProgress(Console(quiet=True)) as progress, pytest.raises(ModelError, match=says):
        SuiteRun(load_suite(str(suite)), tmp_path / "out", progress).generate()
    assert list(tmp_path.glob("out/calls/*/*/answers.jsonl")) == []
    if "API_KEY" in says:  # prices are told without a key
        make_plan(load_suite(str(suite)), tmp_path / "out")
    else:
        with pytest.raises(ModelError, match=says):
            make_plan(load_suite(str(suite)), tmp_path / "out")
