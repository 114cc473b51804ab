"""Escapes for text from outside: names, paths, settings, and messages of servers, plug-ins and libraries.

A terminal, a log and a Markdown file get such text through these functions; pages escape it in their templates.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys

import typer
from markupsafe import Markup

from personalitybench.redaction import hide_keys

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls; tab and newline are layout
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks
    "\u2028\u2029\ud800-\udfff]"  # separators of lines, halves of surrogate pairs
)
_UNSAFE_IN_MARKDOWN = {"&": "&amp;", "<": "&lt;", "](": "]\\(", "]:": "]\\:"}


def escape_controls(text: str) -> str:
    r"""Return text with control characters and direction marks as JSON escapes, such as ``\u001b``."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def single_line(text: str) -> str:
    """Return text in one line: runs of white space as one space, controls escaped."""
    return escape_controls(" ".join(re.split(r"[ \t\r\n]+", text.strip())))


def escape_markdown(text: object) -> str:
    """Return text for a line of Markdown: no HTML, no link, no image, no further line.

    Text that is ``markupsafe.Markup`` is Markdown already; only its line breaks and controls are replaced.
    """
    line = single_line(str(text))
    if isinstance(text, Markup):
        return line
    return re.sub(r"[&<]|\][(:]", lambda match: _UNSAFE_IN_MARKDOWN[match[0]], line)


def echo(text: object, *, err: bool = False) -> None:
    """Print text with its controls escaped and the environment's keys hidden."""
    typer.echo(escape_controls(hide_keys(str(text))), err=err)


def echo_path(path: object) -> None:
    """Print a path for a shell's ``$(...)``: exact in a pipe, with its controls escaped on a terminal."""
    if sys.stdout.isatty():
        echo(path)
    else:
        typer.echo(os.fsencode(str(path)))


def prepare_output() -> None:
    """Have stdout, stderr and log records print any text, also where the terminal is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")
    logging.setLogRecordFactory(_SafeRecord)  # libraries and plug-ins have handlers of their own
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_EscapingFormatter())


class _SafeRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return escape_controls(hide_keys(super().getMessage()))


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(hide_keys(super().format(record)))
