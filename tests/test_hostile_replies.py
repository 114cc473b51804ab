"""Replies and batch files that no server should send: read, refused or counted, and never a traceback."""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.errors import JudgeError, StorageError
from personalitybench.judging import Rating, Unrated, rate_all
from personalitybench.judging.base import JudgeProfile
from personalitybench.judging.batch import journal_folder
from personalitybench.judging.chat_judge import ChatJudge
from tests.batch_server import BatchServer, Plan
from tests.chat_server import Fault
from tests.killed_judge import items
from tests.test_chat_judge import KEY, profile

pytestmark = pytest.mark.usefixtures("cache")

RATED = Rating(3.0, "A calm answer.")
DEEP = b"[" * 900 + b"]" * 900
LONG = b"9" * 5000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    monkeypatch.setenv("TEST_KEY", KEY)
    with BatchServer(key=KEY) as server:
        yield server


@pytest.fixture
def judge(server: BatchServer) -> Callable[..., ChatJudge]:
    def make() -> ChatJudge:
        client = {"timeout": 5, "attempts": 2, "batch": {"poll": 0.01}}
        made = ChatJudge(JudgeProfile.model_validate(profile(server) | {"client": client}))
        made._client = replace(made._client, backoff=0.01)
        return made

    return make


def completion(message: bytes = b'{"content": "Fine. [[4]]"}', more: bytes = b"", choice: bytes = b"") -> bytes:
    return b'{"choices": [{"message": %s, "finish_reason": "stop"%s}]%s}' % (message, choice, more)


BODIES = {
    "bom": (codecs.BOM_UTF8 + completion(), True),
    "huge tokens": (completion(more=b', "usage": {"prompt_tokens": 1%s}' % (b"0" * 250)), True),
    "endless tokens": (completion(more=b', "usage": {"prompt_tokens": %s}' % LONG), False),
    "tokens of other types": (completion(more=b', "usage": {"prompt_tokens": NaN, "completion_tokens": true}'), True),
    "half a pair in the model": (completion(more=rb', "model": "\ud800x"'), True),
    "half a pair in the text": (completion(rb'{"content": "\udfff fine. [[4]]"}'), True),
    "half a pair in a refusal": (completion(rb'{"content": null, "refusal": "\ud800"}'), False),
    "half a pair in an error": (rb'{"error": {"message": "\ud800", "code": "\udfff"}}', False),
    "deep": (DEEP, False),
    "deep in a field": (completion(more=b', "x": ' + DEEP), False),
    "deep in an error": (b'{"error": {"message": %s, "code": %s}}' % (DEEP, DEEP), False),
    "endless depth": (b'{"a":' * 200_000, False),
    "choices are a mapping": (b'{"choices": {"0": {}}}', False),
    "error is a list": (completion(choice=b', "error": [[1], {"a": null}]'), False),
    "utf-16": (completion().decode().encode("utf-16"), False),
}


@pytest.mark.parametrize("name", BODIES)
def test_body_of_a_reply_is_read_or_a_reason(name: str, judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    body, is_reply = BODIES[name]
    server.rule = lambda *_: Fault("raw", body=body)
    (verdict,) = rate_all(judge(), items(1))
    assert isinstance(verdict, Rating if is_reply else Unrated)
    json.dumps(verdict.to_json(), ensure_ascii=False).encode()
    asked = len(server.requests)
    assert rate_all(judge(), items(1)) == [verdict], "the same when it is read from the store"
    assert (len(server.requests) == asked) == is_reply


@pytest.mark.parametrize("status", ["400", "404", "500"])
@pytest.mark.parametrize("name", BODIES)
def test_body_of_an_error_is_quoted_in_one_line(
    name: str, status: str, judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    server.rule = lambda *_: Fault(status, body=BODIES[name][0])
    try:
        (verdict,) = rate_all(judge(), items(1))
    except JudgeError as error:
        said = str(error)
    else:
        said = str(getattr(verdict, "detail", ""))
    assert f"answered {status}" in said
    assert len(said) < 700
    assert said.isprintable()


def each_line(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Make a change of every line of a file."""
    return lambda content: b"".join(
        json.dumps(change(json.loads(line))).encode() + b"\n" for line in content.splitlines()
    )


def with_response(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    return each_line(lambda line: line | {"response": change(line["response"])})


FILES = {
    "bom": lambda content: codecs.BOM_UTF8 + content,
    "crlf": lambda content: content.replace(b"\n", b"\r\n"),
    "boms of joined files": lambda content: b"".join(codecs.BOM_UTF8 + line for line in content.splitlines(True)),
    "body as text": with_response(lambda response: response | {"body": json.dumps(response["body"])}),
    "body as text with a bom": with_response(
        lambda response: response | {"body": "\ufeff" + json.dumps(response["body"])}
    ),
    "response as text": with_response(json.dumps),
    "status as text": with_response(lambda response: response | {"status_code": "200"}),
}


@pytest.mark.parametrize("name", FILES)
def test_batch_file_of_another_form_is_read(name: str, judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    server.plans.append(Plan(alter=FILES[name]))
    told: list[str] = []
    judge().fetch_in_batches(items(3), told.append)
    assert len(server.batches) == 1, told
    assert rate_all(judge(), items(3)) == [RATED] * 3
    assert not server.requests


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("status", ["200", "400", '"odd"', "1" + "0" * 200, LONG.decode()])
def test_batch_line_of_any_content_is_read_or_a_reason(
    name: str, status: str, judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    def alter(content: bytes) -> bytes:
        first, *others = content.splitlines(keepends=True)
        body = BODIES[name][0].removeprefix(codecs.BOM_UTF8)
        key = json.loads(first)["custom_id"].encode()
        line = b'{"custom_id": "%s", "response": {"status_code": %s, "body": %s}}' % (key, status.encode(), body)
        return b"".join([line + b"\n", *others])

    server.plans.extend([Plan(alter=alter)] * 3)
    asked = judge()
    try:
        asked.fetch_in_batches(items(3), lambda _: None)
    except JudgeError as error:
        assert str(error).isprintable()
    server.plans.clear()
    assert sum(verdict == RATED for verdict in rate_all(asked, items(3))) >= 2


def test_batch_objects_of_other_types_are_no_traceback(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    foreign = {"id": "foreign", "metadata": [1], "created_at": "soon", "errors": [], "request_counts": {"total": 0}}
    server.batches["foreign"] = {**foreign, "ended": True}
    server.mishaps["create"] = deque([Fault("lost")])
    move = server._move

    def odd(batch: dict[str, Any]) -> None:
        move(batch)
        if "ended" not in batch:
            batch |= {"status": {"is": "\ud800" * 100}, "errors": [7]}

    server._move = odd  # type: ignore[method-assign]
    server.plans.append(Plan(polls=3))
    told: list[str] = []
    judge().fetch_in_batches(items(2), told.append)
    assert len(server.paid) == 2
    assert all(line.isprintable() and len(line) < 300 for line in told)


def test_altered_journal_is_one_line(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    server.plans.append(Plan(polls=10**6))

    def interrupt(line: str) -> None:
        if "in_progress" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge().fetch_in_batches(items(2), interrupt)
    (path,) = journal_folder(judge()._client).glob("*/requests.jsonl")
    content = path.read_bytes()
    for altered in (b"\xff" + content, content[:-1], content.replace(b'"custom_id": "', b'"custom_id": "g', 1), DEEP):
        path.write_bytes(altered)
        with pytest.raises(StorageError, match=r"requests.jsonl:\d was altered: restore the file, or delete"):
            judge().fetch_in_batches(items(2), lambda _: None)
    path.write_bytes(content)
    server.finish_soon("batch_1")
    judge().fetch_in_batches(items(2), lambda _: None)
    assert rate_all(judge(), items(2)) == [RATED] * 2
