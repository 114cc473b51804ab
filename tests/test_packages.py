"""Packages fetched with pip from registries on loopback that hang or trickle; pip ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from personalitybench import packages
from personalitybench.errors import ModelError
from personalitybench.transfers import Limits

pytest.importorskip("pip")


class Registry(ThreadingHTTPServer):
    """A registry with one package, whose wheel comes slowly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.downloading = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        if not self.path.endswith(".whl"):
            body = b'<a href="/files/slow-1.0-py3-none-any.whl">slow-1.0-py3-none-any.whl</a>'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.server.downloading.set()
        while not self.server.closing.wait(0.1):
            self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    found = Registry()
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{found.server_port}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield found
    found.closing.set()
    found.shutdown()
    thread.join()
    found.server_close()


def children(folder: Path) -> list[int]:
    """Processes whose command names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command and b"download" in command:
            found.append(int(path.parent.name))
    return found


def test_a_slow_registry_ends_with_one_line_and_without_pip(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "LIMITS", Limits(total=60, rate=1000, window=6))
    with pytest.raises(ModelError, match=r"package slow sent [\d,]+ bytes in \d+ s: check that pip works"):
        packages.download_package("slow==1.0", tmp_path, "package slow")
    assert registry.downloading.is_set()
    assert children(tmp_path) == []


def test_what_pip_says_is_the_reason(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot download the package other \(.*slow==2\.0.*\): check that pip"):
        packages.download_package("slow==2.0", tmp_path, "package other")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_pip_dies_with_a_parent_that_is_killed(registry: Registry, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom personalitybench.packages import download_package\n"
        "download_package('slow==1.0', Path(sys.argv[1]), 'package slow')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        assert registry.downloading.wait(60)
        assert children(tmp_path)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while children(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(tmp_path) == []
