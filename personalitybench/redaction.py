"""Secrets taken out of text and values: by the names of arguments, by their form, and by the environment's keys.

Consoles, logs and error lines use it; it imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_SECRET = re.compile(
    r"(?:.*_)?(?:(?:auth|access|hf|hub|api|bearer|refresh|session)_?token|(?:api|access|secret|private)_?key|password"
    r"|passwd|passphrase|secret|credentials?|headers?|authorization|cookies?)|token|key|bearer|auth",
)
_SECRET_IN_TEXT = re.compile(
    r"((?:token|key|passwd|password|passphrase|secret|authorization|cookie)[\"']?\s*[=:]\s*)"
    r"(?:b?\"[^\"]*\"?|b?'[^']*'?|(?:(?:bearer|basic|token)\s+)?[^\s,}]+)",
    re.IGNORECASE,
)
_BEARER_IN_TEXT = re.compile(r"(\bbearer\s+)[^\s,}\"']+", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; servers without keys are given words such as EMPTY, which may stand in any text
CREDENTIALS_IN_TEXT = re.compile(r"://[^/\s@]{0,200}:[^/\s@]{0,200}@")


def is_secret(name: str) -> bool:
    """Whether an argument of this name holds a secret."""
    return _SECRET.fullmatch(name.lower().replace("-", "_")) is not None


def redact(value: Any) -> Any:
    """Return a value with secrets as ``***``: values of secret names, addresses, ``name=value`` and keys in text."""
    if isinstance(value, Mapping):
        return {name: "***" if is_secret(str(name)) else redact(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redact(part) for part in value]
    if isinstance(value, str):
        return "***" if is_address_with_secret(value) else _redact_text(value)
    return value


def hide_keys(text: str) -> str:
    """Return a text without the values of environment variables that hold secrets by name."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and is_secret(name):
            text = text.replace(value, "***")
    return text


def _redact_text(text: str) -> str:
    text = _SECRET_IN_TEXT.sub(r"\1***", hide_keys(text))
    return CREDENTIALS_IN_TEXT.sub("://***@", _BEARER_IN_TEXT.sub(r"\1***", text))


def is_address_with_secret(text: str) -> bool:
    """Whether a text is an address with a password or key in it."""
    try:
        parts = urlsplit(text)
        return bool(parts.scheme and parts.netloc) and (
            parts.password is not None or any(is_secret(name) for name, _ in parse_qsl(parts.query))
        )
    except ValueError:  # no address
        return False
