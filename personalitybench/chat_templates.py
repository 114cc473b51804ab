"""Chat templates of model folders: a template of a stranger cannot run on for ever or fill the memory.

A template is a program (loops, macros, string products), and jinja's sandbox limits neither time nor memory. So each
text is rendered in another process first, which has limits of both; only then the library renders it here. A probe
would not do, since a template sees what it is asked.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from personalitybench.errors import ModelError
from personalitybench.template_child import LONGEST_TEXT, MEMORY, SECONDS
from personalitybench.versions import drift_error

MAX_TEMPLATE = 1_000_000
"""Characters of a template."""

_BOUNDED = "_personalitybench_bounded"
_OF_TOKENIZING = frozenset(
    {
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("chat_template", "return_assistant_tokens_mask"),
    }
)
_EXCEEDED: Mapping[str, str] = {
    "memory": f"more than {MEMORY >> 20} MB of memory",
    "recursion": "more recursion than Python has",
    "too long": f"a text of more than {LONGEST_TEXT:,} characters",
}


def bound_chat_template(tokenizer: Any) -> None:
    """Have ``tokenizer.apply_chat_template`` raise :class:`ModelError` for a template that exceeds the limits.

    Args:
        tokenizer: A tokenizer of transformers, or None; nothing happens where it has no template, or is bounded.
    """
    render = getattr(tokenizer, "apply_chat_template", None)
    if getattr(tokenizer, "chat_template", None) is None or render is None or hasattr(render, _BOUNDED):
        return

    @functools.wraps(render)
    def bounded(conversation: Any, *args: Any, **kwargs: Any) -> Any:
        _check(tokenizer, conversation, kwargs)
        return render(conversation, *args, **kwargs)

    setattr(bounded, _BOUNDED, True)
    tokenizer.apply_chat_template = bounded


def _check(tokenizer: Any, conversation: Any, kwargs: Mapping[str, Any]) -> None:
    """Render a conversation in the other process.

    Raises:
        ModelError: A limit was exceeded.
    """
    name = getattr(tokenizer, "name_or_path", "") or "a tokenizer"
    try:
        template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
    except ValueError:
        return  # there is none by this name: the library says so
    if len(template) > MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name} has more than {MAX_TEMPLATE:,} characters: shorten it")
    several = bool(conversation) and isinstance(conversation[0], list | tuple)
    request = {
        **tokenizer.special_tokens_map,
        **{key: value for key, value in kwargs.items() if key not in _OF_TOKENIZING},
        "conversations": conversation if several else [conversation],
        "chat_template": template,
    }
    if reason := _RENDERER.exceeded(json.dumps(request, default=str)):
        raise ModelError(
            f"the chat template of {name} takes {reason} for one prompt: correct it, or take a model whose template "
            "can be trusted"
        )


class _Renderer:
    """The other process; started when it is first needed, and again after a template ended it."""

    def __init__(self) -> None:
        self._process: Any = None
        self._lock = Lock()

    def exceeded(self, request: str) -> str:
        """Return the limit that a request exceeds, in words; empty where it exceeds none."""
        with self._lock:
            process = self._started()
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                said = process.stdout.readline().strip()
            except OSError:
                said = ""
            if not said:
                status = process.wait()
                self._process = None
                timed_out = status == -getattr(signal, "SIGALRM", 0)
                return f"more than {SECONDS:g} seconds" if timed_out else f"its process to its end (status {status})"
            return _EXCEEDED.get(said, "")

    def _started(self) -> Any:
        if self._process is not None and self._process.poll() is None:
            return self._process
        child = Path(__file__).with_name("template_child.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._process.stdout.readline().strip() != "ready":
            self._process = None
            raise drift_error("transformers", "has no render_jinja_template in transformers.utils.chat_template_utils")
        return self._process


_RENDERER = _Renderer()
