"""A command that is killed right before or after its N-th change of the file system, N from the caller.

``python -m tests.killed_points FOLDER EVERY OFFSET`` loads the libraries and then forks a process for each
point: it runs FOLDER/suite.yaml, with an empty cache of its own, until it
kills itself. Another process then gives the same command again, without a kill. Both write into
``points/N-before`` or ``points/N-after``, and a process that is never killed into ``whole``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from personalitybench.runs.command import run_suite
from tests import plugins

__all__ = ["plugins"]  # imported for what it registers

CHANGES = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")


class Points:
    """Count changes of the file system; kill this process at one of them."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.count, self._at, self._after = 0, at, after

    def watch(self) -> None:
        for name in CHANGES:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self._at and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            number = self.count
            try:
                return real(*arguments, **named)
            finally:
                if number == self._at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted


def work(suite: Path, folder: Path) -> None:
    """Run a suite, with outputs and cache in a folder."""
    os.environ["PERSONALITYBENCH_CACHE"] = str(folder / "cache")
    run_suite(str(suite), folder / "run", [], Console(file=open(os.devnull, "w")))  # noqa: PTH123, SIM115


def forked(suite: Path, folder: Path, at: int | None, after: bool = False) -> int | None:
    """Run the suite in a process of its own; how many changes it made, or None if it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        points = Points(at, after)
        points.watch()
        try:
            work(suite, folder)
            os.write(writing, str(points.count).encode())
        except BaseException:  # noqa: BLE001 (the fork ends here, whatever happens)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    if status:
        raise SystemExit(f"{folder.name}: ended with status {os.waitstatus_to_exitcode(status)}")
    return int(said)


def main(folder: Path, every: int, offset: int) -> None:
    """Kill at each ``every``-th point after the ``offset``-th, in turn right before and right after it."""
    suite = folder / "suite.yaml"
    for library in ("lm_eval.models.huggingface", "peft", "scipy.stats", "sklearn.linear_model"):
        importlib.import_module(library)  # once for all forks; nothing is trained, which no fork survives
    changes = forked(suite, folder / "whole", None)
    assert changes is not None
    for turn, number in enumerate(range(1 + offset, changes + 1, every)):
        after = bool(turn % 2)
        place = folder / "points" / f"{number}-{'after' if after else 'before'}"
        if forked(suite, place, number, after) is not None:
            raise SystemExit(f"{place.name}: not killed")
        forked(suite, place, None)
    print(changes)  # noqa: T201 (read by the test)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
