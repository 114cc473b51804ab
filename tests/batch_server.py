"""The chat server with OpenAI's Batch API: files and batches over real HTTP, which fail as they are told to.

``with BatchServer() as server:``; each new batch takes the next of ``server.plans``, and each endpoint (``upload``,
``create``, ``retrieve``, ``list``, ``content``, ``cancel``) the next of its ``server.mishaps``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.chat_server import Body, ChatServer, Fault, _send


@dataclass(frozen=True)
class Plan:
    """What becomes of a batch.

    Attributes:
        end: Its last state.
        polls: How often it is looked at before that, after ``validating`` and before ``finalizing``.
        fate: What becomes of a request, by its key and body: ``ok``, a kind of :class:`Fault` (in the output file for a
            200, else in the error file), ``missing`` (no line), ``expired`` or ``cancelled`` (a line without response).
        errors: Of a batch that fails.
        extra: Lines that are put among those of the output.
        twice: Whether each line of the output is there a second time, as another reply.
        alter: Changes the content of a file of results.
    """

    end: str = "completed"
    polls: int = 0
    fate: Callable[[str, Body], str] = lambda _, __: "ok"
    errors: Sequence[Mapping[str, Any]] = ()
    extra: Sequence[bytes] = ()
    twice: bool = False
    alter: Callable[[bytes], bytes] = lambda content: content


@dataclass(repr=False)
class BatchServer(ChatServer):
    """A chat server that has batches, too.

    Attributes:
        plans: For the next batches; then :class:`Plan` as it is.
        mishaps: For the next requests of an endpoint: a :class:`Fault` of which ``lost`` does what it is asked, and
            hangs up; ``stall`` never begins, ``cut`` ends in the middle of a body, ``drip`` comes byte by byte, and
            ``empty-list`` is a list that comes late.
        calls: How often each endpoint was asked.
        files, batches: By id.
        paid: How often the model wrote something for a key in a batch.
        most_requests: Of a batch; a larger one fails for what is under way at a time.
    """

    plans: deque[Plan] = field(default_factory=deque)
    mishaps: dict[str, deque[Fault]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    paid: Counter[str] = field(default_factory=Counter)
    most_requests: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._plans: dict[str, Plan] = {}

    def finish_soon(self, batch: str) -> None:
        """Let a batch end, whatever was planned for it."""
        self._plans[batch] = Plan()

    async def _other_page(
        self, request: str, headers: Mapping[str, str], raw: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        method, target, _ = request.split(" ")
        place = urlsplit(target)
        endpoint, argument = _endpoint(method, place.path.removeprefix("/v1/").split("/"))
        if not endpoint:
            return await super()._other_page(request, headers, raw, writer)
        self.calls[endpoint] += 1
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            error = {"error": {"message": f"Incorrect API key provided: {headers}", "code": "invalid_api_key"}}
            await _send(writer, 401, json.dumps(error).encode())
            return True
        waiting = self.mishaps.get(endpoint)
        fault = waiting.popleft() if waiting else None
        body = b""
        if fault is None or fault.kind in {"lost", "cut", "garbage"}:
            status, body = self._do(endpoint, argument, raw, headers, parse_qs(place.query))
        match fault.kind if fault is not None else "":
            case "":
                await _send(writer, status, body)
            case "garbage":
                await _send(writer, 200, b"<html>")
            case "empty-list":
                await _send(writer, 200, b'{"object": "list", "data": [], "has_more": false}')
            case "cut":
                writer.write(f"HTTP/1.1 200 Scripted\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body[: len(body) // 2])
                await writer.drain()
            case "drip":
                writer.write(b"HTTP/1.1 200 Scripted\r\nContent-Length: 1000000\r\n\r\n")
                for _ in range(int(fault.seconds / 0.05)):
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            case "stall":
                await asyncio.sleep(fault.seconds)
            case "lost" | "hang-up":
                pass
            case status_of_fault:
                error = {"error": {"message": fault.message, "type": "scripted", "code": fault.code}}
                await _send(writer, int(status_of_fault), json.dumps(error).encode(), fault.headers)
        return fault is None or fault.kind not in {"cut", "drip", "stall", "lost", "hang-up"}

    def _do(
        self, endpoint: str, argument: str, raw: bytes, headers: Mapping[str, str], query: Mapping[str, list[str]]
    ) -> tuple[int, bytes]:
        if endpoint in {"content", "retrieve", "cancel"} and argument not in {**self.files, **self.batches}:
            return 404, _json({"error": {"message": f"Nothing is known of {argument}", "code": None}})
        match endpoint:
            case "upload":
                name = f"file-{len(self.files) + 1}"
                self.files[name] = _uploaded(raw, headers)
                return 200, _json({"id": name, "object": "file", "purpose": "batch", "bytes": len(self.files[name])})
            case "content":
                return 200, self.files[argument]
            case "list":
                return 200, _json(self._list(query))
            case "create":
                return 200, _json(self._create(json.loads(raw)))
            case "cancel":
                self._plans[argument] = Plan(end="cancelled", fate=lambda _, __: "cancelled")
            case _:
                self._move(self.batches[argument])
        return 200, _json(self.batches[argument])

    def _list(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        everything = list(reversed(self.batches.values()))
        after = query.get("after", [""])[0]
        start = next((place + 1 for place, each in enumerate(everything) if each["id"] == after), 0)
        page = everything[start : start + int(query.get("limit", ["20"])[0])]
        return {"object": "list", "data": page, "has_more": start + len(page) < len(everything)}

    def _create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert asked["endpoint"] == "/v1/chat/completions"
        assert asked["completion_window"] == "24h"
        name = f"batch_{len(self.batches) + 1}"
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        assert all(line["method"] == "POST" and line["url"] == asked["endpoint"] for line in lines)
        self._plans[name] = self.plans.popleft() if self.plans else Plan()
        busy = sum(each["request_counts"]["total"] for each in self.batches.values() if "ended" not in each)
        if busy + len(lines) > self.most_requests:
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for small", "line": None}
            self._plans[name] = Plan(end="failed", errors=[error])
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "created_at": int(time.time()),
            "status": "validating",
            "polled": 0,
            **asked,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        return self.batches[name]

    def _move(self, batch: dict[str, Any]) -> None:
        """Let a batch go on, as it is looked at."""
        plan = self._plans[batch["id"]]
        batch["polled"] += 1
        if "ended" in batch:
            return
        if plan.end == "failed":
            batch["errors"] = {"object": "list", "data": list(plan.errors)}
        elif batch["polled"] <= plan.polls + 1:
            batch["status"] = "in_progress" if batch["polled"] <= plan.polls else "finalizing"
            batch["request_counts"]["completed"] = min(batch["polled"] - 1, batch["request_counts"]["total"])
            return
        else:
            self._write_results(batch, plan)
        batch["status"], batch["ended"] = plan.end, True

    def _write_results(self, batch: dict[str, Any], plan: Plan) -> None:
        output, errors = [], []
        for number, raw in enumerate(self.files[batch["input_file_id"]].splitlines()):
            asked = json.loads(raw)
            line: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": asked["custom_id"], "error": None}
            fate = plan.fate(asked["custom_id"], asked["body"])
            if fate == "missing":
                continue
            if fate in {"expired", "cancelled"}:
                line |= {"response": None, "error": {"code": f"batch_{fate}", "message": "It could not be executed."}}
                errors.append(line)
                continue
            fault = None if fate == "ok" else Fault(fate, code="server_error")
            if fate == "no-money":
                fault = Fault("429", code="insufficient_quota", message="You exceeded your current quota")
            status, body, _ = self._reply(asked["body"], {}, fault)
            line["response"] = {"status_code": status, "request_id": f"req_{number}", "body": json.loads(body)}
            (output if status == 200 else errors).append(line)
            self.paid[asked["custom_id"]] += status == 200
            if plan.twice and status == 200:
                again = json.loads(json.dumps(line))
                again["response"]["body"]["choices"][0]["message"]["content"] = "Another opinion. [[1]]"
                errors.append(again)
        output.sort(key=lambda line: hashlib.sha256(line["custom_id"].encode()).digest())  # not as they were sent
        batch["request_counts"] |= {"completed": len(output), "failed": len(errors)}
        for kind, lines in (("output_file_id", output), ("error_file_id", errors)):
            extra = list(plan.extra) if kind == "output_file_id" else []
            if lines or extra:
                name = f"file-{len(self.files) + 1}"
                written = [json.dumps(line, ensure_ascii=False).encode() for line in lines]
                self.files[name] = plan.alter(b"\n".join([*extra[:1], *written, *extra[1:]]) + b"\n")
                batch[kind] = name


def _endpoint(method: str, parts: list[str]) -> tuple[str, str]:
    """Name an endpoint, and what its path names."""
    known = {
        ("POST", "files"): "upload",
        ("GET", "files", "content"): "content",
        ("POST", "batches"): "create",
        ("GET", "batches"): "list",
        ("POST", "batches", "cancel"): "cancel",
    }
    argument = parts.pop(1) if len(parts) > 1 else ""
    if argument and (method, *parts) == ("GET", "batches"):
        return "retrieve", argument
    return known.get((method, *parts), ""), argument


def _uploaded(raw: bytes, headers: Mapping[str, str]) -> bytes:
    """Read the file and check the purpose in a form of several parts."""
    boundary = headers["content-type"].partition("boundary=")[2].encode()
    found = b""
    purpose = b""
    for part in raw.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            found = content.removesuffix(b"\r\n")
        elif b'name="purpose"' in head:
            purpose = content.strip()
    assert purpose == b"batch"
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
