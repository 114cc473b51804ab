"""The pinned download against a real HTTP server on loopback, with everything that can go wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from personalitybench import downloads, transfers
from personalitybench.errors import DataError, StorageError
from personalitybench.files import git_blob_id
from personalitybench.questions import BLOB_IDS, OfficialSource
from personalitybench.transfers import Limits, SlowTransferError

PATH = "NPTI/dataset/test/Example.json"
BODY = b'{"question": "You find a purse. What do you do?"}\n' * 2000


class Server(ThreadingHTTPServer):
    """Serves files by path; ``respond`` may misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {PATH: BODY}
        self.mode = "good"
        self.requests = 0
        self.closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        body = self.server.files.get(self.path.lstrip("/"))
        mode = self.server.mode
        if mode == "flaky":  # one failure, then good
            mode = "error500" if self.server.requests == 1 else "good"
        if mode == "dead":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if body is None or mode == "error500":
            self.send_error(404 if body is None else 500)
            return
        if mode == "slow":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self._trickle(body)
            return
        if mode == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.server.closing.is_set():
                self.wfile.write(body)
            return
        if mode == "slow headers":
            self._trickle(b"HTTP/1.0 200 OK\r\nX-Long: " + body)
            return
        if mode == "altered":
            body = b"x" + body[1:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mode == "truncated" else body)

    def _trickle(self, body: bytes) -> None:
        """Send a byte now and then, until the test ends."""
        for byte in body:
            if self.server.closing.wait(0.1):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    monkeypatch.setenv("PERSONALITYBENCH_MIRROR", f"http://127.0.0.1:{found.server_port}")
    yield found
    found.closing.set()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def blob_id(tmp_path: Path) -> str:
    path = tmp_path / "body"
    path.write_bytes(BODY)
    return git_blob_id(path)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_fetches_once_then_reads_the_cache(server: Server, blob_id: str, cache: Path) -> None:
    first = downloads.fetch_pinned(PATH, blob_id)
    assert first.read_bytes() == BODY
    assert downloads.fetch_pinned(PATH, blob_id) == first
    assert server.requests == 1
    assert leftovers(cache) == ["Example.json"]


def test_a_passing_failure_is_tried_again(server: Server, blob_id: str) -> None:
    server.mode = "flaky"
    assert downloads.fetch_pinned(PATH, blob_id).read_bytes() == BODY


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("error500", "answered 500"),
        ("truncated", "IncompleteRead|broke off|ChunkedEncoding"),
        ("altered", "is not the pinned content"),
        ("dead", "cannot download"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_kept(
    server: Server, blob_id: str, cache: Path, mode: str, says: str
) -> None:
    server.mode = mode
    with pytest.raises(DataError, match=says):
        downloads.fetch_pinned(PATH, blob_id)
    assert leftovers(cache) == []
    server.mode = "good"
    assert downloads.fetch_pinned(PATH, blob_id).read_bytes() == BODY


@pytest.mark.parametrize("mode", ["slow", "slow headers"])
@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(total=60, rate=1000, window=0.5), r"sent \d+ bytes in"),
        (Limits(total=1, window=60), "took more than 1 s"),
    ],
)
def test_a_trickle_ends_with_one_line(
    server: Server, blob_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch, mode: str, limits: Limits, says: str
) -> None:
    server.mode = mode
    monkeypatch.setattr(downloads, "LIMITS", limits)
    started = time.monotonic()
    with pytest.raises(SlowTransferError, match=rf"{says}.*PERSONALITYBENCH_MIRROR.*--data-dir"):
        downloads.fetch_pinned(PATH, blob_id)
    assert time.monotonic() - started < 10
    assert leftovers(cache) == []


def test_an_endless_body_is_read_up_to_a_limit(
    server: Server, blob_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mode = "endless"
    monkeypatch.setattr(downloads, "_MAX_BYTES", 1_000_000)
    with pytest.raises(DataError, match="sent more than 1 MB"):
        downloads.fetch_pinned(PATH, blob_id)
    assert leftovers(cache) == []


def test_a_long_download_is_announced(
    server: Server, blob_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.mode = "slow"
    monkeypatch.setattr(downloads, "LIMITS", Limits(total=1.5))
    monkeypatch.setattr(transfers, "_ANNOUNCED_AFTER", 0.5)
    with pytest.raises(SlowTransferError):
        downloads.fetch_pinned(PATH, blob_id)
    assert "Example.json, 0.0 MB so far (ends after 1.5 s, or below 1 kB/s for 60 s)" in capsys.readouterr().err


def test_missing_file(server: Server, blob_id: str) -> None:
    with pytest.raises(DataError, match=r"answered 404.*--data-dir"):
        downloads.fetch_pinned("NPTI/dataset/test/Nothing.json", blob_id)
    assert server.requests == 1, "a file that is not there is not asked for again"
    with pytest.raises(DataError, match=r"to a mirror$"):  # a script has no place in a folder of data
        downloads.fetch_pinned("NPTI/code/nothing.py", blob_id)


def test_nobody_listens(cache: Path, blob_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PERSONALITYBENCH_MIRROR", f"http://127.0.0.1:{port}")
    with pytest.raises(DataError, match="PERSONALITYBENCH_MIRROR"):
        downloads.fetch_pinned(PATH, blob_id)


def test_corrupted_cache_file(server: Server, blob_id: str) -> None:
    path = downloads.fetch_pinned(PATH, blob_id)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DataError, match=r"is corrupted.*delete it"):
        downloads.fetch_pinned(PATH, blob_id)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the next test covers it")
def test_read_only_cache(server: Server, blob_id: str, cache: Path) -> None:
    cache.mkdir(mode=0o555)
    with pytest.raises((DataError, StorageError), match="PERSONALITYBENCH_CACHE"):
        downloads.fetch_pinned(PATH, blob_id)


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.EROFS, "PERSONALITYBENCH_CACHE"), (errno.ENOSPC, "free some space")]
)
def test_a_cache_that_cannot_be_written(
    server: Server, blob_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(DataError, match=advice):
        downloads.fetch_pinned(PATH, blob_id)
    assert leftovers(cache) == []


def test_cache_that_cannot_be_a_folder(server: Server, blob_id: str, cache: Path) -> None:
    cache.write_text("a file stands where the cache should be")
    with pytest.raises(StorageError, match="PERSONALITYBENCH_CACHE"):
        downloads.fetch_pinned(PATH, blob_id)


def _fetch(blob_id: str, results: multiprocessing.Queue[bytes]) -> None:
    results.put(downloads.fetch_pinned(PATH, blob_id).read_bytes())


def test_two_processes_at_once(server: Server, blob_id: str, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[bytes] = context.Queue()
    workers = [context.Process(target=_fetch, args=(blob_id, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [BODY, BODY]
    assert server.requests == 1
    assert leftovers(cache) == ["Example.json"]


def test_official_questions_through_the_server(
    server: Server, official_files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for relative in BLOB_IDS:
        name = relative.replace("test/", "evaluate/")
        if (official_files / name).is_file():
            server.files[f"NPTI/dataset/{relative}"] = (official_files / name).read_bytes()
    source = OfficialSource()
    table = source.questions("evaluate")
    assert len(table) == 459
    counts: Callable[[str], int] = table["trait"][:].count
    assert [counts(name) for name in ("openness", "conscientiousness", "extraversion")] == [90, 89, 90]
    assert [counts(name) for name in ("agreeableness", "neuroticism")] == [90, 100]
    assert len(set(table["id"])) == 459
    assert {len(texts) for texts in source.descriptions.values()} <= {79, 80}
    with pytest.raises(DataError, match="answered 404"):
        source.questions("identify", "openness")
