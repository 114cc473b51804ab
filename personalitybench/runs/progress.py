"""One progress display for all stages: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import time
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
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, label: str, *, total: int, done: int, unit: str) -> Stage:
        """Begin (or go on with) one piece of a stage.

        Args:
            name: Stage, such as ``generate``.
            label: Which piece of it.
            total: Its size.
            done: What was finished before.
            unit: What is counted.
        """
        return Stage(self, name, label, total=total, done=done, unit=unit)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)


class Stage:
    """One piece of a stage; a context manager that counts."""

    def __init__(self, parent: RunProgress, name: str, label: str, *, total: int, done: int, unit: str) -> None:
        self.parent = parent
        self.name = name
        self.label = label
        self.total = total
        self.done = self.before = done
        self.unit = unit
        self._bar: TaskID | None = None
        self._started = 0.0
        self._shown = 0.0

    def __enter__(self) -> Stage:
        self._started = self._shown = time.monotonic()
        bars = self.parent._bars
        self._bar = bars.add_task(f"{self.name} {self.label}", total=self.total, completed=self.done)
        return self

    def advance(self, count: int) -> None:
        """Count what is finished; in a log, say so every 20 seconds."""
        self.done += count
        bars = self.parent._bars
        if self._bar is not None:
            bars.update(self._bar, completed=self.done)
        now = time.monotonic()
        if bars.disable and now - self._shown > 20:
            self._shown = now
            rate = (self.done - self.before) / (now - self._started)
            left = (self.total - self.done) / rate if rate else 0.0
            self.parent.say(f"{self.name} {self.label}: {self.done}/{self.total} {self.unit}, about {left:.0f} s left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spent = time.monotonic() - self._started
        self.parent.seconds[self.name] = self.parent.seconds.get(self.name, 0.0) + spent
        bars = self.parent._bars
        if self._bar is not None:
            bars.remove_task(self._bar)
        made = self.done - self.before
        if kind is None and made:
            rate = f", {made / spent:.1f} {self.unit}/s" if spent > 0 else ""
            self.parent.say(f"{self.name} {self.label}: {made} {self.unit} in {spent:.1f} s{rate}")
