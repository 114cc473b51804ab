"""Renders chat templates in a process of its own, within limits; :mod:`personalitybench.chat_templates` starts it.

Run as a script. Each line of standard input is a JSON object of arguments of ``render_jinja_template``; each line of
standard output says what came of one: ``ok``, or the limit that was exceeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 512 << 20  # bytes, besides what the libraries have taken when they are loaded
LONGEST_TEXT = 4_000_000  # characters


def main() -> None:
    """Answer lines until there are no more. A template that runs too long ends the process (SIGALRM)."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 (a second)

    _limit_memory()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        answers.write(_render(render_jinja_template, line) + "\n")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.flush()


def _render(render: Any, line: str) -> str:
    try:
        rendered = render(**json.loads(line))
        texts = rendered[0] if isinstance(rendered, tuple) else rendered
        return "too long" if max(map(len, texts), default=0) > LONGEST_TEXT else "ok"
    except MemoryError:
        return "memory"
    except RecursionError:
        return "recursion"
    except Exception:  # noqa: BLE001 (the caller renders it, too, and raises the same)
        return "ok"


def _limit_memory() -> None:
    """Limit what is taken from here on, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 (not on Windows)

        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        taken = int(found[1]) * 1024 if found else 0
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, taken + MEMORY))


if __name__ == "__main__":
    main()
