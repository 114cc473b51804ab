"""What a chat server's answers come to: bodies, statuses, and how long it wants to be left alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.completions import valid_text
from personalitybench.errors import JudgeError, JudgeModelError
from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_outcomes import (
    Again,
    Reply,
    Server,
    asked_wait,
    read_body,
    read_status,
)

KEY = "sk-planted-0123456789"
SERVER = Server("http://judge.example/v1", "judge-1", "JUDGE_KEY", KEY)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "finish_reason", "prompt_tokens", "refusal", "text", "error"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def completion(content: Any, finish: Any = "stop", **message: Any) -> bytes:
    choice = {"message": {"content": content} | message, "finish_reason": finish}
    return json.dumps(
        {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    ).encode()


def outcome(body: bytes) -> Reply | Unrated | Again | JudgeError:
    return read_body(body, SERVER)[0]


def test_a_reply_with_its_usage() -> None:
    assert read_body(completion("Warm. [[4]]"), SERVER) == (Reply("Warm. [[4]]", "m", "stop", 7, 3), 7, 3)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion(None, refusal="No."), "refused"),
        (completion("[[5]]", "content_filter"), "refused"),
        (completion("It is [[5]] rather", "length"), "truncated"),
        (completion(None, "length"), "truncated"),
        (completion(" \n\t"), "empty"),
        (completion(None, "tool_calls"), "tool-call"),
        (completion("It is [[5]]", "tool_calls"), "tool-call"),
        (completion("It is [[5]]", "function_call"), "tool-call"),
        (completion("It is [[5]]", tool_calls=[{"id": "1"}]), "tool-call"),
        (completion([{"type": "thinking", "text": "[[5]]"}, {"type": "reasoning", "text": "[[5]]"}]), "empty"),
        (completion([{"text": "[[5]]"}]), "empty"),
        (completion([]), "empty"),
    ],
)
def test_no_reply_has_a_reason_and_is_still_paid(body: bytes, reason: str) -> None:
    found, prompt, written = read_body(body, SERVER)
    assert isinstance(found, Unrated)
    assert (found.reason, prompt, written) == (reason, 7, 3)
    assert found.detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"choices": [{"message": {"content": "caf\xe9"}}]}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 200_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b"null",
        b'"text"',
        b"[]",
        b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": "hello"}]}',
    ],
    ids=range(12),
)
def test_what_is_no_completion_is_worth_another_try(body: bytes) -> None:
    found = outcome(body)
    assert isinstance(found, Again)
    assert found.reason == "not-text"
    assert not found.turned_away
    assert len(found.detail) < 500


@pytest.mark.parametrize("finish", [None, "", "error", "abort", "cancelled", "STOP", "eos", 7, ["stop"], {"a": 1}])
def test_finish_reason_other_than_stop_is_tried_again(finish: Any) -> None:
    found, prompt, written = read_body(completion("If it were social it would be [[5]]. But", finish), SERVER)
    assert isinstance(found, Again)
    assert (found.reason, prompt, written) == ("unreachable", 7, 3)
    assert "not whole" in found.detail


def test_missing_finish_reason_is_tried_again() -> None:
    found = outcome(b'{"choices": [{"message": {"content": "[[2]]"}}]}')
    assert isinstance(found, Again)
    assert "missing" in found.detail


@pytest.mark.parametrize("place", ["top", "choice", "message", "later choice", "alone"])
@pytest.mark.parametrize("error", [{"code": 502, "message": "upstream is down"}, "upstream is down"])
def test_error_inside_a_200_is_no_reply(place: str, error: object) -> None:
    value = json.loads(completion("It is [[5]]"))
    holders = {"top": value, "choice": value["choices"][0], "message": value["choices"][0]["message"], "alone": {}}
    if place == "later choice":
        value["choices"].append({"error": error})
    else:
        holders[place]["error"] = error
    found = outcome(json.dumps(holders["alone"] or value).encode())
    assert isinstance(found, Again)
    assert found.reason == "unreachable"
    assert "upstream is down" in found.detail


@pytest.mark.parametrize("error", [None, "", {}])
def test_empty_error_is_no_error(error: object) -> None:
    value = json.loads(completion("It is [[5]]")) | {"error": error}
    assert isinstance(outcome(json.dumps(value).encode()), Reply)


def test_error_inside_a_200_is_classified_by_its_code() -> None:
    def coded(code: str) -> object:
        return outcome(json.dumps({"error": {"code": code, "message": "no"}, "choices": []}).encode())

    assert coded("content_filter") == Unrated("refused", "no")
    assert isinstance(coded("model_not_found"), JudgeModelError)
    assert isinstance(coded("insufficient_quota"), JudgeError)


def test_only_parts_of_type_text_are_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "thinking", "text": "[[5]]"}]
    found = outcome(completion([*parts, {"type": "text", "text": "[[2]]"}, {"type": "text", "text": ["[[5]]"]}]))
    assert found == Reply("a[[2]]", "m", "stop", 7, 3)


def test_redirect_is_one_clear_error() -> None:
    found = read_status(307, {"location": "http://elsewhere.example/\x1b[2J"}, "", SERVER)
    assert isinstance(found, JudgeError)
    assert "answered 307: it redirects to http://elsewhere.example/\\x1b[2J; redirects are not followed" in str(found)


@given(JSON)
def test_any_json_is_read_without_a_crash(value: Any) -> None:
    for body in (value, {"choices": [value]}, {"choices": [{"message": value}], "usage": value}):
        found = outcome(json.dumps(body).encode())
        assert isinstance(found, (Again, Unrated, Reply, JudgeError))
        if isinstance(found, Reply):
            assert found.text.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_a_crash(body: bytes) -> None:
    assert isinstance(outcome(body), (Again, Unrated, Reply, JudgeError))


def test_half_surrogate_pairs_do_not_get_further() -> None:
    found = outcome(b'{"choices": [{"message": {"content": "\\ud800[[3]] \\ud83d\\ude00"}, "finish_reason": "stop"}]}')
    assert isinstance(found, Reply)
    assert found.text == "\ufffd[[3]] \U0001f600"
    assert [valid_text(text) for text in ("a\ud800b", "\udc00", "\ufeffx")] == ["a\ufffdb", "\ufffd", "\ufeffx"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 +99999999999999999999"}, None),
        ({"x-ratelimit-reset-requests": f"{'9' * 400}h"}, None),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}, 0.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "1d"}, 86400.0),
        ({"x-ratelimit-reset-tokens": "1.5"}, 1.5),
        ({"x-ratelimit-reset-tokens": "later"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "2s"}, 2.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "9s",
                "x-ratelimit-remaining-tokens": "500",
            },
            1.0,
        ),
        ({"retry-after": "2", "x-ratelimit-reset-requests": "9s"}, 2.0),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers) == seconds


def test_a_date_to_wait_for() -> None:
    wait = asked_wait({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)})
    assert wait is not None
    assert 27 < wait <= 30


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    found = read_status(status, {"retry-after": "2"}, {"message": "busy"}, SERVER)
    assert found == Again("unreachable", f"answered {status} (busy)", 2.0, turned_away=status == 429)


def test_slow_down_is_too_many_requests() -> None:
    found = read_status(503, {}, {"code": "slow_down", "message": "Slow down"}, SERVER)
    assert isinstance(found, Again)
    assert found.turned_away


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
@pytest.mark.parametrize("headers", [{"retry-after": "86400"}, {"retry-after-ms": "86400000"}])
def test_a_pause_of_hours_ends_the_work(status: int, headers: dict[str, str]) -> None:
    found = read_status(status, headers, {"message": "daily limit"}, SERVER)
    assert isinstance(found, JudgeError)
    assert f"answered {status} and wants 86400 s of pause" in str(found)


def test_limits_that_are_told_with_every_answer_are_no_pause_of_a_failing_server() -> None:
    headers = {"x-ratelimit-reset-requests": "24h", "x-ratelimit-remaining-requests": "0"}
    assert read_status(500, headers, "", SERVER) == Again("unreachable", "answered 500 (no explanation)")
    assert isinstance(read_status(429, headers, {}, SERVER), JudgeError)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (
            401,
            {"message": f"Incorrect API key provided: {KEY}"},
            JudgeError,
            "the key in JUDGE_KEY is missing or wrong",
        ),
        (403, {"message": "Country not supported"}, JudgeError, "Country not supported"),
        (
            403,
            {"code": "model_not_found", "message": "no access"},
            JudgeModelError,
            "'judge-1' is unknown there or retired",
        ),
        (404, {"code": "model_not_found", "message": "has been deprecated"}, JudgeModelError, "has been deprecated"),
        (404, {"code": 404, "message": "The model `judge-1` does not exist."}, JudgeModelError, "does not exist"),
        (404, "<html>nothing here</html>", JudgeError, "is the base_url right?"),
        (
            429,
            {"code": "insufficient_quota", "message": "check your plan"},
            JudgeError,
            "quota of the key in JUDGE_KEY",
        ),
        (400, {"message": "temperature must be below 2"}, JudgeError, "temperature must be below 2"),
        (422, {"detail": [{"msg": "bad"}]}, JudgeError, "check model, sampling"),
        (302, "", JudgeError, "redirects are not followed"),
    ],
)
def test_what_cannot_pass_is_an_error(status: int, body: object, kind: type[JudgeError], said: str) -> None:
    found = read_status(status, {}, body, SERVER)
    assert type(found) is kind
    assert said in str(found)
    assert f"http://judge.example/v1 answered {status}" in str(found)
    assert "\n" not in str(found)
    assert KEY not in str(found)


def test_one_answer_that_is_refused_or_too_long_is_no_error_of_all() -> None:
    refused = read_status(400, {}, {"code": "content_filter", "message": "filtered"}, SERVER)
    assert refused == Unrated("refused", "filtered")
    long = read_status(400, {}, {"code": 400, "message": "This model's maximum context length is 4096 tokens"}, SERVER)
    assert isinstance(long, Unrated)
    assert long.reason == "too-long"
    assert read_status(413, {}, "", SERVER) == Unrated("too-long", "no explanation")


@given(st.integers(300, 599), JSON)
def test_any_error_body_is_one_short_line(status: int, body: Any) -> None:
    found = read_status(status, {}, body, SERVER)
    text = str(found) if isinstance(found, JudgeError) else found.detail
    assert "\n" not in text
    assert len(text) < 600


def test_a_word_in_place_of_a_key_is_no_secret() -> None:
    """Servers without keys are given EMPTY or the like: that must not be cut out of what a judge says."""
    server = Server("http://localhost/v1", "m", "JUDGE_KEY", "EMPTY")
    assert server.without_key("an EMPTY answer") == "an EMPTY answer"
    assert SERVER.quote(f"a {KEY}\nb sk-proj-abc*****xyz") == "a *** b ***"
