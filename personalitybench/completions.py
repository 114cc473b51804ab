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

TOOL_CALLS = frozenset({"tool_calls", "function_call"})

THOUGHT_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""Types of the parts of a message that hold thoughts."""

# Codes of OpenAI's API; the other servers that were tried (vLLM, llama.cpp, Azure) are noted where they differ.
UNKNOWN_MODEL_CODES = frozenset({"model_not_found", "model_not_available", "model_deprecated", "DeploymentNotFound"})
QUOTA_CODES = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"})
REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation", "invalid_prompt"})
TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|maximum context length|string_above_max_length")

_QUOTED_CHARACTERS = 300
_KEY_LIKE = re.compile(r"\b(?:sk|hf)[-_][\w*.…-]+|(?<=Bearer )\S+", re.IGNORECASE)
_TAGS = r"(?:think|thinking|thought|thoughts|reasoning)"
_OPENED = rf"<{_TAGS}\b[^<>]*>|\[THINK\]"
_CLOSED = rf"</{_TAGS}\s*>|\[/THINK\]"
_THOUGHT = re.compile(rf"(?:{_OPENED}).*?(?:{_CLOSED}|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(_CLOSED, re.IGNORECASE)


UNFINISHED_THOUGHTS = "unfinished-thoughts"
"""Reason for no answer: the model's thoughts did not end within its tokens."""


class NoAnswer(str):
    """An empty answer with the reason why a model gave none; judges are not asked about it.

    Args:
        reason: Short machine-readable word, the ``reason`` of :class:`personalitybench.judging.base.Unrated`.
        detail: For people.
    """

    __slots__ = ("detail", "reason")
    reason: str
    detail: str

    def __new__(cls, reason: str, detail: str = "") -> NoAnswer:
        """Make an empty string that carries a reason."""
        made = super().__new__(cls)
        made.reason, made.detail = reason, detail
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Return the arguments that copies and pickles are made of."""
        return self.reason, self.detail


def message_text(content: object) -> str:
    """Return the text of a message: a string, or the parts of type ``text``; other parts are no text."""
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def part_types(content: object) -> set[str]:
    """Return the types of the parts of a message; empty where it is no list of parts."""
    parts = content if isinstance(content, list) else []
    return {str(part.get("type")) if isinstance(part, dict) else "unknown" for part in parts}


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


def valid_text(text: str) -> str:
    """Replace half surrogate pairs by U+FFFD: JSON can hold them, but neither a request nor a file in UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_thoughts(text: str) -> str:
    """Remove thoughts: ``<think>...</think>``, an opened thought that never ends, and text before a stray end tag.

    The tags ``think``, ``thinking``, ``thought``, ``thoughts``, ``reasoning`` and Mistral's ``[THINK]`` count. Takes
    time linear in the length.
    """
    return _THOUGHT_END.split(_THOUGHT.sub("", text))[-1]


def cut_thoughts(text: str, end_token: str, *, finished: bool) -> str:
    """Return the answer after the last end of a thought.

    Args:
        text: What the model generated.
        end_token: Text that ends its thoughts, such as ``</think>``.
        finished: Whether text without ``end_token`` can be an answer without thoughts.

    Returns:
        The answer, or :class:`NoAnswer` where the thoughts never end.
    """
    if end_token in text:
        return text.rsplit(end_token, maxsplit=1)[-1].lstrip()
    if finished and not opens_thought(text):
        return text
    return NoAnswer(UNFINISHED_THOUGHTS, f"the generated text does not hold {end_token!r}")


def opens_thought(text: str) -> bool:
    """Return whether a text begins a thought that it does not end."""
    opened = re.search(_OPENED, text, re.IGNORECASE)
    return opened is not None and _THOUGHT_END.search(text, opened.end()) is None


def quote(text: str) -> str:
    """Return a server's words on one short line, without key-like parts, control characters as escapes."""
    line = " ".join(_KEY_LIKE.sub("***", text[: 20 * _QUOTED_CHARACTERS]).split())
    line = "".join(each if each.isprintable() else each.encode("unicode_escape", "replace").decode() for each in line)
    return line if len(line) <= _QUOTED_CHARACTERS else f"{line[:_QUOTED_CHARACTERS]} ..."
