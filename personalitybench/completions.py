"""Completions as chat servers send them: text, errors inside a 200, thoughts, and quotations for messages.

Judges (:mod:`personalitybench.judging.chat_outcomes`) and served models (:mod:`personalitybench.backends.served`) read
replies by these rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

WHOLE = "stop"
"""The ``finish_reason`` of a whole reply."""

CUT_OFF = "length"
"""The ``finish_reason`` of a reply that reached the limit of tokens."""

REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|maximum context length|string_above_max_length")

_QUOTED_CHARACTERS = 300
_KEY_LIKE = re.compile(r"\b(?:sk|hf)[-_][\w*.…-]+|(?<=Bearer )\S+", re.IGNORECASE)
_TAGS = r"(?:think|thinking|thought|thoughts|reasoning)"
_OPENED = rf"<{_TAGS}\b[^<>]*>|\[THINK\]"
_CLOSED = rf"</{_TAGS}\s*>|\[/THINK\]"
_THOUGHT = re.compile(rf"(?:{_OPENED}).*?(?:{_CLOSED}|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(_CLOSED, re.IGNORECASE)


def message_text(content: object) -> str:
    """Return the text of a message: a string, or the parts of type ``text``; other parts are no text."""
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def reported_error(completion: object) -> object | None:
    """Return the error that a 200 reports at its top level, in a choice or in a message; None if it reports none."""
    choices = completion.get("choices") if isinstance(completion, dict) else None
    holders = [completion, *(choices if isinstance(choices, list) else [])]
    holders += [each.get("message") for each in holders if isinstance(each, dict)]
    return next((each["error"] for each in holders if isinstance(each, dict) and each.get("error")), None)


def error_parts(body: object) -> tuple[str, str]:
    """Return code and message of an error of any shape."""
    if not isinstance(body, dict):
        return "", str(body) if body else "no explanation"
    fields: Mapping[str, Any] = body
    code = fields.get("code") or fields.get("type") or ""
    return str(code), str(fields.get("message") or fields.get("detail") or dump(fields))


def dump(value: object) -> str:
    """Return a value as JSON for a quotation, or as much of it as can be written."""
    try:
        return json.dumps(value, default=str)
    except (RecursionError, ValueError):
        return f"deeply nested {type(value).__name__}"


def without_thoughts(text: str) -> str:
    """Remove thoughts: ``<think>...</think>``, an opened thought that never ends, and text before a stray end tag.

    The tags ``think``, ``thinking``, ``thought``, ``thoughts``, ``reasoning`` and Mistral's ``[THINK]`` count. Takes
    time linear in the length.
    """
    return _THOUGHT_END.split(_THOUGHT.sub("", text))[-1]


def opens_thought(text: str) -> bool:
    """Return whether a text begins a thought that it does not end."""
    opened = re.search(_OPENED, text, re.IGNORECASE)
    return opened is not None and _THOUGHT_END.search(text, opened.end()) is None


def quote(text: str) -> str:
    """Return a server's words on one short line, without key-like parts, control characters as escapes."""
    line = " ".join(_KEY_LIKE.sub("***", text[: 20 * _QUOTED_CHARACTERS]).split())
    line = "".join(each if each.isprintable() else each.encode("unicode_escape", "replace").decode() for each in line)
    return line if len(line) <= _QUOTED_CHARACTERS else f"{line[:_QUOTED_CHARACTERS]} ..."
