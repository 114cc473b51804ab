"""Ctrl-C in commands that can be resumed, and in work of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

T = TypeVar("T")

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


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from code that is not asynchronous, also inside a running event loop (a notebook).

    Each Ctrl-C cancels it, and it is waited for: it may finish what it has begun.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def cancellable() -> T:
        begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(asyncio.run, cancellable())
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                result = done.result()
            except KeyboardInterrupt as error:
                interrupt = error
                loop, task = begun.result()
                if task is not None and not done.done():
                    loop.call_soon_threadsafe(task.cancel)
            except asyncio.CancelledError as error:
                raise interrupt or error from None
            else:
                return result
