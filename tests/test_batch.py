"""Replies in batches, from a real server on loopback that fails in the documented ways: what is kept, asked, paid."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.errors import JudgeError, JudgeModelError, StorageError
from personalitybench.judging import Rating, RatingRequest, Unrated, batch, batch_api, batch_journal, rate_all
from personalitybench.judging.base import JudgeProfile
from personalitybench.judging.batch import journal_folder
from personalitybench.judging.batch_journal import Journal, Part
from personalitybench.judging.batch_results import Results
from personalitybench.judging.chat_client import ChatSettings
from personalitybench.judging.chat_judge import ChatJudge, store_path
from personalitybench.judging.prices import Price
from personalitybench.judging.responses import ResponseStore, StoredResponse
from personalitybench.transfers import Limits
from tests.batch_server import BatchServer, Plan
from tests.chat_server import Fault
from tests.killed_judge import items
from tests.test_chat_judge import KEY, profile

pytestmark = pytest.mark.usefixtures("cache")

RATED = Rating(3.0, "A calm answer.")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    monkeypatch.setenv("TEST_KEY", KEY)
    with BatchServer(key=KEY) as server:
        yield server


@pytest.fixture
def judge(server: BatchServer) -> Callable[..., ChatJudge]:
    def make(*, client: dict[str, Any] | None = None, **batch: Any) -> ChatJudge:
        options = {"timeout": 5, "attempts": 3, "batch": {"poll": 0.01} | batch} | (client or {})
        made = ChatJudge(JudgeProfile.model_validate(profile(server) | {"client": options}))
        made._client = replace(made._client, backoff=0.01)
        return made

    return make


def open_parts(server: BatchServer) -> list[Part]:
    return Journal(journal_folder(ChatSettings(model="small", base_url=server.url))).open_parts()


def deque_of(*faults: Fault) -> deque[Fault]:
    return deque(faults)


def fate(kind: str, text: str = "number 0") -> Callable[[str, Any], str]:
    """One answer's request meets this, the others do well."""
    return lambda _, body: kind if text in body["messages"][-1]["content"] else "ok"


def test_replies_come_in_batches_and_are_where_live_ones_are(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    asked = [
        *items(20),
        items(1)[0],
        RatingRequest("?", " …", "openness"),
        RatingRequest("?", "Half \ud83d", "fluency"),
    ]
    told: list[str] = []
    server.plans.append(Plan(polls=3))
    server.answer = lambda body: f"Two\u2028lines\x85of {len(body['messages'])}. [[3]]"
    first = judge(requests=7)
    first.spending.price = Price(input=10.0, output=0.0, batch_discount=0.5)
    first.fetch_in_batches(asked, told.append)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [7, 7, 7]
    assert set(server.paid.values()) == {1}
    assert len(server.paid) == 21, "equal requests once, the answer without a word never"
    assert told[0] == "batches: 21 requests in 3; a batch may take up to 24 hours"
    assert any(line.startswith("batch batch_1: in_progress, ") and " of 7, 0:00:0" in line for line in told)
    assert any("batch_3: completed, 7 of 7" in line for line in told)
    assert not open_parts(server)

    verdicts = rate_all(first, asked)
    assert verdicts[:21] == [Rating(3.0, "Two\u2028lines\x85of 2.")] * 21
    assert isinstance(verdicts[21], Unrated)
    assert not server.requests, "nothing was asked live"
    spent = first.spending
    assert (spent.calls, spent.batch_calls, spent.prompt_tokens) == (0, 21, 0)
    assert spent.batch_prompt_tokens > 1000
    assert spent.dollars == pytest.approx(spent.batch_prompt_tokens * 10.0 / 1e6 / 2)

    # What went in a batch is what goes live, so that it is the same reply.
    live = ChatJudge(first.profile)
    live.profile.settings["sampling"]["temperature"] = 0
    sent = [json.loads(line)["body"] for line in server.files["file-1"].splitlines()]
    other = ChatJudge(first.profile.model_copy(update={"settings": first.profile.settings | {"rubric": "project"}}))
    rate_all(other, items(30)[20:21])
    assert server.requests[0].body.keys() == sent[0].keys()
    assert sent[0]["max_tokens"] == 60
    assert sent[0]["messages"][0] == server.requests[0].body["messages"][0]

    told.clear()
    judge().fetch_in_batches(asked, told.append)
    assert not told
    assert len(server.batches) == 3


def test_a_file_keeps_to_its_limit_of_bytes(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    judge(bytes=6000).fetch_in_batches(items(12), lambda _: None)
    sizes = [len(content) for name, content in server.files.items() if content.startswith(b'{"custom_id"')]
    assert len(sizes) > 3
    assert max(sizes) <= 6000
    assert len(server.paid) == 12
    judge(bytes=10).fetch_in_batches(items(14), lambda _: None)
    assert len(server.paid) == 14, "a request that is larger alone goes alone"


@pytest.mark.parametrize(("kind", "reason"), [("refusal", "refused"), ("length", "truncated"), ("empty", "empty")])
def test_a_reason_is_a_reason_in_a_batch_too_and_is_not_kept(
    judge: Callable[..., ChatJudge], server: BatchServer, kind: str, reason: str
) -> None:
    server.plans.append(Plan(fate=fate(kind)))
    first = judge()
    first.fetch_in_batches(items(3), lambda _: None)
    failed, *others = rate_all(first, items(3))
    assert isinstance(failed, Unrated)
    assert failed.reason == reason
    assert others == [RATED, RATED]
    assert not server.requests
    assert len(server.batches) == 1, "it is not asked again now"
    assert rate_all(judge(), items(3)) == [RATED] * 3, "but by the next command"
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["500", "429", "missing", "expired", "other-json"])
def test_what_came_to_nothing_is_asked_again_twice_and_then_live(
    judge: Callable[..., ChatJudge], server: BatchServer, kind: str
) -> None:
    told: list[str] = []
    server.plans.extend([Plan(fate=fate(kind))] * 3)
    judge().fetch_in_batches(items(4), told.append)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [4, 1, 1]
    assert "batch batch_1: 1 requests came to nothing and are asked again" in told
    assert "batch batch_3: 1 requests came to nothing" in told
    assert not open_parts(server)
    assert rate_all(judge(), items(4)) == [RATED] * 4
    assert len(server.requests) == 1


def test_an_expired_batch_keeps_what_was_done(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    server.plans.append(Plan(end="expired", fate=fate("expired", "number 1")))
    judge().fetch_in_batches(items(12), lambda _: None)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [12, 3]
    assert set(server.paid.values()) == {1}


def test_a_batch_that_fails_is_made_again_without_the_lines_that_are_wrong(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    wrong = {"code": "invalid_request", "message": "This line is not parseable", "line": 2}
    unnamed = {"code": "server_error", "message": "Something else", "line": None}
    server.plans.extend([Plan(end="failed", errors=[wrong]), Plan(end="failed", errors=[unnamed]), Plan()])
    told: list[str] = []
    judge().fetch_in_batches(items(4), told.append)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [4, 3, 3]
    assert "batch batch_1 failed: This line is not parseable (invalid_request, line 2)" in told
    assert len(server.paid) == 3
    assert rate_all(judge(), items(4)) == [RATED] * 4
    assert len(server.requests) == 1


def test_what_no_request_can_change_ends_the_work_with_one_line(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    gone = {"code": "model_not_found", "message": "The model `small` does not exist", "line": None}
    server.plans.append(Plan(end="failed", errors=[gone]))
    with pytest.raises(JudgeModelError, match=r"refused a batch: model 'small' is unknown there or retired"):
        judge().fetch_in_batches(items(3), lambda _: None)
    server.plans.append(Plan(fate=fate("no-money")))
    with pytest.raises(JudgeError, match="the quota of the key in TEST_KEY is used up"):
        judge().fetch_in_batches(items(3), lambda _: None)
    assert len(server.batches) == 2, "neither is asked again by itself"
    assert not open_parts(server)
    judge().fetch_in_batches(items(3), lambda _: None)
    assert set(server.paid.values()) == {1}, "what came before is kept"


def test_a_cancelled_batch_is_not_made_again_by_itself(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    server.plans.append(Plan(end="cancelled", fate=fate("cancelled", "number 1")))
    with pytest.raises(JudgeError, match=r"batch_1 was cancelled at the server: 9 of 12 replies came and are kept"):
        judge().fetch_in_batches(items(12), lambda _: None)
    judge().fetch_in_batches(items(12), lambda _: None)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [12, 3]
    assert set(server.paid.values()) == {1}


def test_lines_that_are_garbage_foreign_or_there_twice(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    foreign = json.dumps({"custom_id": "f" * 64, "response": {"status_code": 200, "body": {}}, "error": None})
    extra = [b"\xff\xfe not JSON", b"[1, 2]", b"{}", b'{"custom_id": 7}', b"", b"[" * 3000, foreign.encode()]
    server.plans.append(Plan(extra=extra, twice=True))
    told: list[str] = []
    judge().fetch_in_batches(items(5), told.append)
    assert "batch batch_1: 6 lines of its files are no results of ours" in told
    assert rate_all(judge(), items(5)) == [RATED] * 5, "the first of two replies counts"
    assert not server.requests


def test_a_batch_that_is_too_much_at_once_waits_or_is_halved(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    server.most_requests = 8
    told: list[str] = []
    judge(requests=6).fetch_in_batches(items(18), told.append)
    assert "batch batch_2: the server takes no more at once; it is sent when others are done" in told
    judge().fetch_in_batches(items(48), told.append)
    assert any("too much for the server at once; it is sent in halves" in line for line in told)
    assert len(server.paid) == 48
    assert set(server.paid.values()) == {1}
    assert not server.requests
    server.most_requests = 0
    with pytest.raises(JudgeError, match="takes no batch at all now: Enqueued token limit"):
        judge().fetch_in_batches(items(49), told.append)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        (endpoint, kind)
        for endpoint in ("upload", "create", "retrieve", "content")
        for kind in ("429", "500", "hang-up", "lost", "garbage", "stall", "cut")
        if (endpoint, kind) != ("content", "garbage")  # garbage in a file is a matter of its lines
    ],
)
def test_mishaps_of_every_endpoint_pass(
    judge: Callable[..., ChatJudge], server: BatchServer, endpoint: str, kind: str
) -> None:
    fault = Fault(kind, headers={"retry-after-ms": "20"} if kind == "429" else {}, seconds=0.3)
    server.mishaps[endpoint] = deque([fault] * (1 + (kind == "500")))
    if endpoint == "create":
        server.mishaps["list"] = deque_of(Fault("500"))
    told: list[str] = []
    judge(client={"timeout": 0.2, "attempts": 4, "batch": {"poll": 0.01}}).fetch_in_batches(items(3), told.append)
    assert not any(server.mishaps.values())
    assert len(server.paid) == 3
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == 1, "a batch that was made unheard is found again"
    assert rate_all(judge(), items(3)) == [RATED] * 3
    assert not server.requests


def test_of_two_batches_of_one_intent_one_is_cancelled(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    """The list comes late: the first batch is not in it when it is looked for, and is when the second is there."""
    server.mishaps = {"create": deque_of(Fault("lost")), "list": deque_of(Fault("empty-list"))}
    judge().fetch_in_batches(items(3), lambda _: None)
    assert server.calls["create"] == 2
    assert server.calls["cancel"] == 1
    assert set(server.paid.values()) == {1}


def test_a_server_that_falls_silent_is_waited_for_and_one_that_never_speaks_is_not(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    told: list[str] = []
    client = {"timeout": 5, "attempts": 1}
    server.mishaps = {"retrieve": deque_of(*[Fault("503")] * 4)}
    judge(client=client | {"batch": {"poll": 0.01}}).fetch_in_batches(items(2), told.append)
    assert any("1 tries came to nothing (answered 503" in line for line in told)
    server.mishaps = {"upload": deque_of(Fault("503"))}
    with pytest.raises(JudgeError, match="the same command picks it up"):
        judge(client=client | {"batch": {"poll": 0.01}}).fetch_in_batches(items(4), told.append)
    judge().fetch_in_batches(items(4), told.append)
    assert len(server.batches) == 2
    server.mishaps = {"retrieve": deque_of(Fault("503"))}
    with pytest.raises(JudgeError, match="came to nothing"):
        judge(client=client | {"batch": {"poll": 0.01, "silence": 1e-6}}).fetch_in_batches(items(6), told.append)
    judge().fetch_in_batches(items(6), told.append)
    assert set(server.paid.values()) == {1}


def test_what_is_being_asked_live_is_in_no_batch(judge: Callable[..., ChatJudge], server: BatchServer) -> None:
    server.latency = 2.0
    with ThreadPoolExecutor(1) as thread:
        live = thread.submit(rate_all, judge(), items(5))
        while len(server.requests) < 5:
            time.sleep(0.01)
        judge().fetch_in_batches(items(12), lambda _: None)
        assert [each["request_counts"]["total"] for each in server.batches.values()] == [7]
        assert rate_all(judge(), items(12)) == [RATED] * 12, "after a wait for what is asked live"
        assert live.result() == [RATED] * 5
    assert len(server.requests) == 5


def test_waits_are_told_and_end(
    judge: Callable[..., ChatJudge], server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_REMINDER", 0.1)
    monkeypatch.setattr(batch, "_LONGEST_BATCH", 1.0)
    server.plans.append(Plan(polls=10**6))
    told: list[str] = []
    with pytest.raises(JudgeError, match=r"no batch ended for 0 hours \(batch_1 in_progress\): see the batches"):
        judge().fetch_in_batches(items(2), told.append)
    assert 3 <= told.count("batches: waiting for 1 (batch_1 in_progress); Ctrl-C ends it") <= 10
    server.finish_soon("batch_1")
    judge().fetch_in_batches(items(2), told.append)
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize("endpoint", ["upload", "create", "retrieve", "content"])
def test_body_that_comes_byte_by_byte_is_left(
    endpoint: str, judge: Callable[..., ChatJudge], server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "_FILE_LIMITS", Limits(window=0.3))
    monkeypatch.setattr(batch_api, "ANNOUNCED_WAIT", 0.1)
    server.mishaps[endpoint] = deque_of(Fault("drip", seconds=20.0))
    told: list[str] = []
    started = time.monotonic()
    judge(client={"timeout": 0.5, "attempts": 3, "batch": {"poll": 0.01}}).fetch_in_batches(items(3), told.append)
    assert time.monotonic() - started < 10
    assert any("reading file file-2 of the server: 0.0 MB so far" in line for line in told) == (endpoint == "content")
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == 1


def test_lock_of_another_process_is_waited_for_with_a_limit(
    judge: Callable[..., ChatJudge], server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_journal, "_PATIENCE", 0.2)
    journal = Journal(journal_folder(judge()._client))
    with journal.alone(), pytest.raises(StorageError, match=r"another process has held .*writing requests of batches"):
        judge().fetch_in_batches(items(2), lambda _: None)
    assert not server.calls


@pytest.mark.parametrize("endpoint", ["upload", "create", "retrieve", "content"])
def test_pause_of_a_batch_endpoint_is_told_and_a_pause_of_hours_ends(
    endpoint: str, judge: Callable[..., ChatJudge], server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "ANNOUNCED_WAIT", 0.5)
    server.mishaps[endpoint] = deque_of(
        Fault("503", headers={"Retry-After": "1"}), Fault("503", headers={"Retry-After": "100000"})
    )
    told: list[str] = []
    with pytest.raises(JudgeError, match="answered 503 and wants 100000 s of pause"):
        judge().fetch_in_batches(items(2), told.append)
    assert sum("waiting 1 s: " in line and "answered 503" in line for line in told) == 1
    judge().fetch_in_batches(items(2), told.append)
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == 1


def test_a_server_without_batches_says_so(
    judge: Callable[..., ChatJudge], server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mishaps["upload"] = deque_of(Fault("404", message="no such page"))
    with pytest.raises(JudgeError, match=r"answered 404: it has no Batch API under this base_url: leave --batch out"):
        judge().fetch_in_batches(items(2), lambda _: None)
    server.plans.append(Plan(polls=10**6))
    with pytest.raises(KeyboardInterrupt):
        judge().fetch_in_batches(items(2), _interrupt_at("in_progress"))
    server.mishaps["retrieve"] = deque_of(Fault("404"))
    with pytest.raises(JudgeError, match="does not know the batch batch_1; was it made with another key"):
        judge().fetch_in_batches(items(2), lambda _: None)


def _interrupt_at(word: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        if word in line:
            raise KeyboardInterrupt

    return say


def test_the_estimate_must_fit_the_budget_before_anything_is_sent(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    dear = judge(requests=5)
    dear.spending.price = Price(input=1000.0, output=0.0, batch_discount=0.5)
    estimate = dear.estimate_batches(items(10))
    full = dear.estimate(items(10))
    assert (estimate.ratings, estimate.calls, estimate.under_way) == (10, 10, 0)
    assert estimate.dollars is not None
    assert full.dollars is not None
    assert estimate.dollars == pytest.approx(full.dollars / 2)
    dear.spending.budget = estimate.dollars * 0.99
    with pytest.raises(JudgeError, match=r"the batch of 10 requests may cost \$.* does not allow: nothing of it was"):
        dear.fetch_in_batches(items(10), lambda _: None)
    assert not server.calls
    assert not open_parts(server)
    dear.spending.budget = estimate.dollars * 1.01
    dear.fetch_in_batches(items(10), lambda _: None)
    assert len(server.paid) == 10
    with pytest.raises(JudgeError, match=r"after \$.* that are spent"):
        dear.fetch_in_batches(items(30), lambda _: None)
    assert len(server.paid) == 10


def test_an_interrupted_wait_goes_on_and_live_judging_can_tell(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    told: list[str] = []
    server.plans.append(Plan(polls=3))
    with pytest.raises(KeyboardInterrupt):
        judge().fetch_in_batches(items(5), lambda line: (told.append(line), _interrupt_at("in_progress")(line)))  # type: ignore[func-returns-value]
    assert told[-1] == "the batches go on at the server; the same command picks them up and pays nothing twice"
    assert judge().has_batches()
    estimate = judge().estimate_batches(items(7))
    assert (estimate.calls, estimate.under_way) == (2, 5)
    judge().fetch_in_batches(items(7), told.append)
    assert "batches: 1 of an earlier command are gone on with" in told
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [5, 2]
    assert set(server.paid.values()) == {1}
    assert not judge().has_batches()


def test_what_was_asked_live_meanwhile_is_taken_out_of_a_part_that_was_never_sent(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    server.mishaps["upload"] = deque_of(*[Fault("500")] * 3)
    with pytest.raises(JudgeError, match="came to nothing"):
        judge().fetch_in_batches(items(5), lambda _: None)
    (part,) = open_parts(server)
    assert (part.requests, part.batch) == (5, None)
    rate_all(judge(), items(2))
    judge().fetch_in_batches(items(5), lambda _: None)
    assert [each["request_counts"]["total"] for each in server.batches.values()] == [3]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ({}, {"finish_reason": "error"}),
        ({}, {"finish_reason": "abort"}),
        ({}, {"finish_reason": None}),
        ({}, {"error": {"code": 502, "message": "upstream is down"}}),
        ({"error": {"code": "expired", "message": "too late"}}, {}),
    ],
)
def test_failure_with_text_in_a_batch_is_missing(
    line: dict[str, Any], body: dict[str, Any], server: BatchServer, cache: Any
) -> None:
    choice = {"message": {"content": "If it were social it would be [[5]]. But"}, "finish_reason": "stop"} | body
    response = {"status_code": 200, "body": {"choices": [choice]}}
    with ResponseStore(store_path()) as store:
        results = Results({"a"}, store, ChatSettings(model="small", base_url=server.url).server())
        results.take(json.dumps({"custom_id": "a", "response": response} | line).encode())
        assert (results.missing, results.hopeless) == ({"a"}, None)
        assert len(store) == 0


def test_failure_that_an_earlier_version_kept_is_asked_again(
    judge: Callable[..., ChatJudge], server: BatchServer
) -> None:
    made = judge()
    (wanted,) = made._wanted(items(1))
    failed = StoredResponse("it would be [[5]]. But", "small", "error", 7, 3, "2026-11-22T12:00:00Z")
    with ResponseStore(store_path()) as store:
        store.put(wanted.key, failed)
    assert list(rate_all(made, items(1))) == [RATED]
    with ResponseStore(store_path()) as store:
        assert store.whole([wanted.key])[wanted.key].finish_reason == "stop"
