"""A dry run: within it nothing is fetched, loaded or written. Whoever would asks here first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_dry: ContextVar[bool] = ContextVar("a dry run", default=False)


@contextmanager
def dry_run() -> Iterator[None]:
    """Only look, within this: files that are not on this machine are errors, and so is writing one."""
    before = _dry.set(True)
    try:
        yield
    finally:
        _dry.reset(before)


def is_dry() -> bool:
    """Whether this is a dry run."""
    return _dry.get()
