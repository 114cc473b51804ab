"""One progress display for all stages: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """Shows how far each stage is. A context manager.

    Attributes:
        seconds: Time spent in each stage.
        bars: The bars; disabled where there is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def stage(
        self, name: str, label: str, *, total: int, done: int, unit: str, note: Callable[[], str] | None = None
    ) -> Stage:
        """Begin (or go on with) one piece of a stage.

        Args:
            name: Stage, such as ``generate``.
            label: Which piece of it.
            total: Its size.
            done: What was finished before.
            unit: What is counted.
            note: What is to be told besides, such as the cost so far.
        """
        return Stage(self, name, label, total=total, done=done, unit=unit, note=note)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text)


class Stage:
    """One piece of a stage; a context manager that counts."""

    def __init__(
        self,
        parent: RunProgress,
        name: str,
        label: str,
        *,
        total: int,
        done: int,
        unit: str,
        note: Callable[[], str] | None = None,
    ) -> None:
        self.parent = parent
        self.name = name
        self.label = label
        self.total = total
        self.done = self.before = done
        self.unit = unit
        self.note = note or (lambda: "")
        self._bars = parent.bars
        self._bar: TaskID | None = None
        self._step = ""
        self._started = 0.0
        self._shown = 0.0

    def __enter__(self) -> Stage:
        self._started = self._shown = time.monotonic()
        self._bar = self._bars.add_task(f"{self.name} {self.label}", total=self.total, completed=self.done, note="")
        return self

    def show(self, step: str, done: int, total: int) -> None:
        """Show a step of a piece of work that tells its own steps, such as a fit.

        Args:
            step: What is being done.
            done: How far it is.
            total: Its size.
        """
        if step != self._step:
            self._step, self.total, self.done, self.before = step, total, 0, 0
            if self._bar is not None:
                self._bars.update(self._bar, description=f"{self.name} {self.label} {step}", total=total)
        self.advance(done - self.done)

    def advance(self, count: int) -> None:
        """Count what is finished; in a log, say so every 20 seconds."""
        self.done += count
        if self._bar is not None:
            self._bars.update(self._bar, completed=self.done, note=self._told())
        now = time.monotonic()
        if self._bars.disable and now - self._shown > 20:
            self._shown = now
            what = " ".join(part for part in (self.name, self.label, self._step) if part)
            told = "".join(f", {part}" for part in (self._told(), self._left()) if part)
            self.parent.say(f"{what}: {self.done}/{self.total} {self.unit}{told}")

    def _rate(self) -> float:
        """What was finished here, per second; 0 where a step has its own measure."""
        spent = time.monotonic() - self._started
        return 0.0 if self._step or spent <= 0 else (self.done - self.before) / spent

    def _left(self) -> str:
        rate = self._rate()
        return f"about {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""

    def _told(self) -> str:
        rate = self._rate()
        return ", ".join(part for part in (f"{rate:.1f} {self.unit}/s" if rate > 0 else "", self.note()) if part)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spent = time.monotonic() - self._started
        self.parent.seconds[self.name] = self.parent.seconds.get(self.name, 0.0) + spent
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        made = self.done - self.before
        if kind is None and made:
            whole = "" if self._step else f"{made} {self.unit} in "
            told = f", {self._told()}" if self._told() else ""
            self.parent.say(f"{self.name} {self.label}: {whole}{spent:.1f} s{told}")
