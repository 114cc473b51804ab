"""Waits for locks, with real processes that hold them: announced, named, limited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from personalitybench import locks
from personalitybench.errors import StorageError
from personalitybench.files import locked

HOLD = (
    "import sys, time\nfrom filelock import FileLock\n"
    "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(float(sys.argv[2]))\n"
)
pytestmark = pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="the system does not tell who holds a lock")


class Holder:
    """Starts processes that hold a lock."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def hold(self, path: Path, seconds: float = 600) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process


@pytest.fixture
def holder() -> Iterator[Holder]:
    found = Holder()
    yield found
    for process in found.processes:
        process.kill()
        process.communicate()


def test_a_wait_is_announced_with_the_holder_and_ends_with_it(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "ANNOUNCED_AFTER", 0.2)
    process = holder.hold(tmp_path / "x.lock", 1.5)
    with locks.hold_lock(tmp_path / "x.lock", "fetching the demo model"):
        pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"process {process.pid}: 'kill {process.pid}' ends it" in said[0]
    assert "which is fetching the demo model" in said[0]
    assert "waits 1200 s at most" in said[0]


def test_a_lock_that_is_never_released_ends_the_wait(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "ANNOUNCED_AFTER", 0.1)
    process = holder.hold(tmp_path / "x.lock")
    started = time.monotonic()
    refusal = rf"has held .*x\.lock for 1 s, fitting: end it, then run this again \(process {process.pid}"
    with pytest.raises(StorageError, match=refusal), locks.hold_lock(tmp_path / "x.lock", "fitting", limit=1.0):
        pytest.fail("the lock is held")
    assert time.monotonic() - started < 5


def test_a_stopped_holder_blocks_for_less_than_the_limit(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "ANNOUNCED_AFTER", 0.2)
    monkeypatch.setattr(locks, "STOPPED_LIMIT", 0.5)
    process = holder.hold(tmp_path / "x.lock")
    os.kill(process.pid, signal.SIGSTOP)
    resumes = rf"which is stopped: 'kill -CONT {process.pid}' resumes it, 'kill -9 {process.pid}' ends it"
    with pytest.raises(StorageError, match=resumes), locks.hold_lock(tmp_path / "x.lock", "fitting"):
        pytest.fail("the lock is held")
    assert "which is stopped" in capsys.readouterr().err
    # It does what the line says.
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locks.hold_lock(tmp_path / "x.lock", "fitting"):
        pass


def test_a_short_wait_says_nothing(holder: Holder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder.hold(tmp_path / "x.lock", 0.5)
    with locks.hold_lock(tmp_path / "x.lock", "fitting"):
        pass
    assert capsys.readouterr().err == ""


def test_a_refusal_names_the_holder(holder: Holder, tmp_path: Path) -> None:
    process = holder.hold(tmp_path / ".fit.lock")
    refusal = rf"another process is fitting in .*\(process {process.pid}: "
    with pytest.raises(StorageError, match=refusal), locked(tmp_path / "fit", "fitting"):
        pytest.fail("the lock is held")


def test_without_a_list_of_locks_the_line_says_how_to_find_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    with FileLock(tmp_path / "x.lock"):
        monkeypatch.setattr(Path, "read_text", refuse)
        assert str(locks.find_holder(tmp_path / "x.lock")) == f"'lsof {tmp_path / 'x.lock'}' shows it"
    assert locks.find_holder(tmp_path / "nothing.lock").pid is None
