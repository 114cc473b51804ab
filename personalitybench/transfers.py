"""Limits of downloads: a total time, a minimum rate, and a line on stderr where one takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from personalitybench.errors import DataError
from personalitybench.outside_text import echo

T = TypeVar("T")

_ANNOUNCED_AFTER = 5.0
_ANNOUNCED_EVERY = 30.0
_LOOK_SECONDS = 0.2


class SlowTransferError(DataError):
    """A download exceeded its time or fell below the minimum rate."""


@dataclass(frozen=True)
class Limits:
    """Limits of one download.

    Attributes:
        total: Seconds that it may take.
        rate: Bytes per second that must come on average over any ``window``; None where bytes are not counted.
        window: Seconds.
    """

    total: float = 600.0
    rate: float | None = 1000.0
    window: float = 60.0

    def __str__(self) -> str:
        slow = "" if self.rate is None else f", or below {self.rate / 1000:g} kB/s for {self.window:g} s"
        return f"ends after {self.total:g} s{slow}"


class RateMonitor:
    """Checks the progress of one download against its limits.

    Args:
        label: Subject of the error: ``https://host/file``.
        limits: The limits.
        advice: What to do, for the error.
    """

    def __init__(self, label: str, limits: Limits, advice: str) -> None:
        self._label, self._limits, self._advice = label, limits, advice
        self._started = self._window_start = time.monotonic()
        self._window_bytes = 0

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def check(self, received: int) -> None:
        """Compare the bytes that came so far with the limits.

        Raises:
            SlowTransferError: A limit is exceeded.
        """
        limits, now = self._limits, time.monotonic()
        if now - self._started > limits.total:
            raise SlowTransferError(f"{self._label} took more than {limits.total:g} s: {self._advice}")
        elapsed = now - self._window_start
        if limits.rate is None or elapsed < limits.window:
            return
        new = received - self._window_bytes
        if new < limits.rate * elapsed:
            raise SlowTransferError(f"{self._label} sent {new:,} bytes in {elapsed:.0f} s: {self._advice}")
        self._window_start, self._window_bytes = now, received


def watch(
    label: str, limits: Limits, advice: str, *, finished: Callable[[float], bool], received: Callable[[], int]
) -> None:
    """Wait for a download that another thread or process does.

    Args:
        label: As for :class:`RateMonitor`.
        limits: Its limits.
        advice: What to do, for the error.
        finished: Waits up to so many seconds and says whether the download ended.
        received: Bytes that came so far.

    Raises:
        SlowTransferError: A limit is exceeded; the caller ends the download.
    """
    monitor = RateMonitor(label, limits, advice)
    announce_at = _ANNOUNCED_AFTER
    while not finished(_LOOK_SECONDS):
        count = received()
        monitor.check(count)
        if monitor.seconds >= announce_at:
            came = f", {count / 1e6:.1f} MB so far" if limits.rate is not None else ""
            echo(f"personalitybench: waiting for {label}{came} ({limits})", err=True)
            announce_at += _ANNOUNCED_EVERY


class Transfer(Generic[T]):
    """A download in a thread of its own, so that no silence of a server can hold up the caller.

    Args:
        work: Does it; adds to :attr:`received` and ends early where :attr:`cancelled` is set.
    """

    def __init__(self, work: Callable[[Transfer[T]], T]) -> None:
        self._work = work
        self._ended = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.received = 0
        self.cancelled = threading.Event()

    def run(self, label: str, limits: Limits, advice: str) -> T:
        """Return what the work returns.

        Raises:
            SlowTransferError: A limit is exceeded; the thread ends with its next byte, or with the process.
        """
        threading.Thread(target=self._run, daemon=True, name=f"download of {label}").start()
        try:
            watch(label, limits, advice, finished=self._ended.wait, received=lambda: self.received)
        finally:
            self.cancelled.set()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work(self))
        except BaseException as error:  # noqa: BLE001 (raised by the caller)
            self._error = error
        finally:
            self._ended.set()
