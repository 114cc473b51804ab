"""Ctrl-C in commands that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

INTERRUPTED = 130
"""Exit status, as a shell has it."""


@contextmanager
def resumable() -> Iterator[None]:
    """Answer Ctrl-C with one line instead of a traceback.

    Raises:
        typer.Exit: It was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: what is finished is kept; the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
