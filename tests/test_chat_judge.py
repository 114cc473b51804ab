"""A judge that is a chat model, against a real server on loopback: what is asked, kept, paid, and no number."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.errors import ConfigurationError, JudgeError, JudgeModelError, StorageError
from personalitybench.judging import Rating, RatingRequest, Unrated, rate_all
from personalitybench.judging.base import JudgeProfile, create_judge, judge_names, load_profile
from personalitybench.judging.chat_judge import ChatJudge, store_path
from personalitybench.judging.prices import Price
from personalitybench.judging.responses import ResponseStore
from personalitybench.judging.rubrics import AGAIN
from tests.chat_server import ChatServer, Fault
from tests.killed_judge import items

pytestmark = pytest.mark.usefixtures("cache")

KEY = "planted-key-0123456789"


@pytest.fixture
def judge(chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ChatJudge]:
    chat_server.key = KEY
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(**changes: Any) -> ChatJudge:
        return ChatJudge(JudgeProfile.model_validate(profile(chat_server) | changes))

    return make


def profile(server: ChatServer) -> dict[str, Any]:
    return {
        "id": "served",
        "provider": "chat",
        "summary": "for tests",
        "settings": {
            "model": "small",
            "base_url": server.url,
            "api_key_env": "TEST_KEY",
            "sampling": {"temperature": 0, "max_tokens": 60},
        },
        "client": {"concurrency": 8, "timeout": 5, "attempts": 2},
    }


def test_a_reply_is_asked_for_once_and_read_again_for_nothing(
    judge: Callable[..., ChatJudge], chat_server: ChatServer
) -> None:
    asked = [*items(5), items(1)[0], RatingRequest("?", " …", "openness"), RatingRequest("?", "Fine.", "fluency")]
    reported: list[int] = []
    verdicts = rate_all(judge(), asked, reported.append)
    assert verdicts[0] == Rating(3.0, "A calm answer.")
    assert verdicts[5] == verdicts[0]
    assert verdicts[6] == Unrated("empty_answer", "the answer has no word")
    assert isinstance(verdicts[7], Rating)
    assert sum(reported) == len(asked)
    assert len(chat_server.requests) == 6, "equal items once, the one without a word never"
    assert chat_server.requests[0].body["max_tokens"] == 60
    again = judge()
    assert rate_all(again, asked) == verdicts
    assert len(chat_server.requests) == 6
    assert (again.spending.calls, again.spending.kept) == (0, 6)
    other = judge(settings=profile(chat_server)["settings"] | {"sampling": {"temperature": 1}})
    rate_all(other, asked[:1])
    assert len(chat_server.requests) == 7, "another way to sample is another reply"


def test_a_reply_without_a_rating_is_asked_for_once_more(
    judge: Callable[..., ChatJudge], chat_server: ChatServer
) -> None:
    def answer(body: Any) -> str:
        follows_up = body["messages"][-1]["content"] == AGAIN
        return {True: "[[4]]" if "number 0" in str(body) else "no", False: "I would rather not say."}[follows_up]

    chat_server.answer = answer
    for _ in range(2):  # the second time from what was kept
        first, second = rate_all(judge(), items(2))
        assert first == Rating(4.0)
        assert isinstance(second, Unrated)
        assert second.reason == "no-rating"
        assert len(chat_server.requests) == 4
    conversation = chat_server.requests[-1].body["messages"]
    assert [turn["role"] for turn in conversation][-3:] == ["user", "assistant", "user"]
    assert conversation[-2]["content"] == "I would rather not say."


@pytest.mark.parametrize(
    ("kind", "reason", "tries"),
    [("500", "unreachable", 2), ("refusal", "refused", 1), ("length", "truncated", 1), ("garbage", "not-text", 2)],
)
def test_a_failure_is_a_reason_and_is_not_kept(
    judge: Callable[..., ChatJudge], chat_server: ChatServer, kind: str, reason: str, tries: int
) -> None:
    chat_server.script.extend([Fault(kind)] * tries)
    (verdict,) = rate_all(judge(), items(1))
    assert isinstance(verdict, Unrated)
    assert verdict.reason == reason
    assert rate_all(judge(), items(1)) == [Rating(3.0, "A calm answer.")], "asked anew"
    assert len(chat_server.requests) == tries + 1


def test_a_server_that_is_gone_ends_the_work(judge: Callable[..., ChatJudge], chat_server: ChatServer) -> None:
    chat_server.script.extend([Fault("refusal")] * 20)  # says something of the answer: the server is there
    assert len(rate_all(judge(), items(20))) == 20
    chat_server.rule = lambda body, in_flight: Fault("hang-up")
    with pytest.raises(
        JudgeError, match=r"8 requests in a row failed after all their tries.*see that the server is up"
    ):
        rate_all(judge(), items(60))
    assert len(chat_server.requests) < 20 + 2 * 40, "two tries each, and not of all"
    chat_server.rule = lambda body, in_flight: None
    assert all(isinstance(verdict, Rating) for verdict in rate_all(judge(), items(60)))


def test_a_failure_that_was_paid_is_counted(judge: Callable[..., ChatJudge], chat_server: ChatServer) -> None:
    chat_server.script.append(Fault("length"))
    paid = judge()
    rate_all(paid, items(1))
    assert paid.spending.calls == 0
    assert paid.spending.prompt_tokens > 0


def test_nothing_more_is_paid_once_nothing_can_be_kept(
    judge: Callable[..., ChatJudge], chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write replies.sqlite: No space left on device")

    monkeypatch.setattr(ResponseStore, "put_many", full)
    chat_server.latency = 0.02
    with pytest.raises(StorageError, match="No space left"):
        rate_all(judge(), items(500))
    assert len(chat_server.requests) < 100


def test_a_budget_ends_the_work_and_loses_nothing(judge: Callable[..., ChatJudge], chat_server: ChatServer) -> None:
    careful = judge()
    careful.spending.price = Price(input=1000.0, output=0.0)
    rate_all(careful, items(1))
    dollars = careful.spending.dollars
    assert dollars is not None
    assert dollars > 0
    careful.spending.budget = 4.5 * dollars
    with pytest.raises(JudgeError, match=r"judge served: the budget of \$.* is spent .*goes on with a larger one"):
        rate_all(careful, items(40))
    paid = len(chat_server.requests)
    assert 2 <= paid <= 4
    assert (careful.spending.dollars or 0.0) <= 4.5 * dollars
    rate_all(judge(), items(40))
    assert len(chat_server.requests) == 40
    estimate = judge().estimate(items(45))
    assert (estimate.ratings, estimate.kept, estimate.calls) == (45, 40, 5)
    assert estimate.dollars is None, "no price is known"
    assert estimate.prompt_tokens > 5 * 100
    assert estimate.completion_tokens == 5 * 60


def test_killed_amid_two_thousand_and_none_is_paid_twice(
    chat_server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_server.key, chat_server.latency = KEY, 0.02
    monkeypatch.setenv("TEST_KEY", KEY)
    path = tmp_path / "served.yaml"
    path.write_text(json.dumps(profile(chat_server)))
    process = subprocess.Popen([sys.executable, "-m", "tests.killed_judge", str(path), "2000"], env=os.environ)
    while process.poll() is None and len(chat_server.requests) < 700:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    before = len(chat_server.requests)
    assert all(isinstance(verdict, Rating) for verdict in rate_all(ChatJudge(load_profile(str(path))), items(2000)))
    in_flight = profile(chat_server)["client"]["concurrency"]
    assert 700 <= before < 2000
    # A kill loses what was under way, and what came while the last replies were being written.
    assert len(chat_server.requests) <= 2000 + 3 * in_flight
    assert max(chat_server.asked.values()) <= 2


def test_a_model_that_is_gone_names_its_successors(judge: Callable[..., ChatJudge], chat_server: ChatServer) -> None:
    chat_server.script.append(Fault("404", code="model_not_found"))
    sunset = {"date": "2027-01-14", "status": "reported", "source": "a post", "successors": ["gpt-6-luna"]}
    with pytest.raises(
        JudgeModelError,
        match=r"reported to be shut down on 2027-01-14.*succeed it: gpt-6-luna\. Their.*judges calibrate NEW",
    ):
        rate_all(judge(sunset=sunset), items(1))


def test_a_wrong_key_ends_the_work_and_no_key_is_told(
    judge: Callable[..., ChatJudge],
    chat_server: ChatServer,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rate_all(judge(), items(2))
    monkeypatch.setenv("TEST_KEY", "wrong-key-9876543210")
    with caplog.at_level(logging.DEBUG), pytest.raises(JudgeError) as error:
        rate_all(judge(), items(30))
    assert "\n" not in str(error.value)
    assert len(chat_server.requests) <= 2 + 8
    told = [str(error.value), repr(error.value), caplog.text]
    kept = [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert kept
    for key in (KEY, "wrong-key-9876543210"):
        assert not any(key in text for text in told)
        assert not any(key.encode() in content for content in kept)


def test_a_warning_sixty_days_before_the_end() -> None:
    found = load_profile("gpt-4o-2024-08-06")
    assert found.warning(dt.date(2026, 11, 14)) is None
    text = found.warning(dt.date(2026, 11, 15))
    assert text is not None
    assert "reported to be shut down on 2027-01-14 (several independent posts" in text
    assert found.warning(dt.date(2027, 3, 1)) is not None


def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_server: ChatServer) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(profile(chat_server) | {"id": "mine"}))
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    assert {"mine", "offline", "gpt-4o-2024-08-06"} <= set(judge_names())
    assert "prices" not in judge_names()
    assert load_profile("mine").settings["base_url"] == chat_server.url
    with pytest.raises(ConfigurationError, match="unknown judge 'prices'"):
        load_profile("prices")
    (tmp_path / "wrong.yaml").write_text("id: wrong\nprovider: chat\nsummary: x\nsettings: {model: m, colour: red}\n")
    with pytest.raises(ConfigurationError, match=r"judge profile 'wrong': settings.*colour"):
        create_judge("wrong")


def test_ratings_depend_on_settings_and_texts_not_on_how_they_are_asked(judge: Callable[..., ChatJudge]) -> None:
    one, patient = judge(), judge(client={"concurrency": 1})
    assert one.profile.sha256 == patient.profile.sha256
    assert one.rubric_sha256 == patient.rubric_sha256
    other = judge(settings=one.profile.settings | {"model": "large"})
    assert other.profile.sha256 != one.profile.sha256
    assert store_path().name == "replies.sqlite"


def test_a_repeat_is_another_reply_to_the_same_question(
    judge: Callable[..., ChatJudge], chat_server: ChatServer
) -> None:
    once, again = (RatingRequest("What now?", "I walk.", "openness", repeat) for repeat in (0, 1))
    for _ in range(2):
        assert len(rate_all(judge(), [once, again, again])) == 3
    assert len(chat_server.requests) == 2
    assert chat_server.requests[0].body == chat_server.requests[1].body
