"""Commands in a process of their own, with a pipe or a pseudo-terminal as output."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "personalitybench"]


def run_command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with pipes."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
    )


def run_on_terminal(*arguments: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run the command line on a pseudo-terminal; returns its exit status and all that it wrote."""
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"} | environment
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment, stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    written = b""
    while block := _read(parent):
        written += block
    os.close(parent)
    return process.wait(timeout=60), written.decode(errors="replace")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux, once the other side is closed
        return b""


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a refusal: exit status 2, one line, no traceback."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("personalitybench: "), lines[0]
    return lines[0]


def write_plug_in(folder: Path, group: str, name: str, code: str) -> dict[str, str]:
    """Write a package that registers ``Plugin`` of ``code`` as ``NAME/plugin``; returns its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[personalitybench.{group}]\nplugin = {name}:Plugin\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


CONSTANT_JUDGE = '''
from personalitybench.judging.base import Rating

class Plugin:
    """Rates everything 4."""

    at_a_time = 8
    summary = "rates everything 4"
    rubric_sha256 = "none"

    def __init__(self, profile):
        self.profile = profile

    async def rate(self, items, report=None):
        if report is not None:
            report(len(items))
        return [Rating(4.0)] * len(items)
'''


def write_judge(folder: Path, packages: Path, extra: str = "") -> dict[str, str]:
    """Write ``FOLDER/constant.yaml``, a judge without a network; returns the environment that finds its provider."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"id: constant\nprovider: constant_judge/plugin\nsummary: rates everything 4\n{extra}"
    (folder / "constant.yaml").write_text(text)
    return write_plug_in(packages, "judges", "constant_judge", CONSTANT_JUDGE)
