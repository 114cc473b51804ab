"""Files on a disk that fills up, under a process that is killed, and altered by hand."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.errors import StorageError
from personalitybench.files import (
    JsonLines,
    cache_folder,
    canonical_json,
    content_hash,
    git_blob_id,
    read_json,
    sha256_file,
    write_atomically,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=5)


@contextmanager
def full_at_flush() -> Iterator[None]:
    """A disk that takes the bytes and then finds no room for them."""

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the kernel writes what still fits and refuses the rest."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_midway() -> Any:
    return full_after(1000)


FULL_DISKS = pytest.mark.parametrize(
    ("disk", "says"), [(full_at_flush, "No space left"), (full_midway, "File too large")], ids=["flush", "midway"]
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, "one, longer than the next\n")
    write_atomically(path, b"\x00two\xff")
    assert path.read_bytes() == b"\x00two\xff"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644, "other users of a machine may read what one user made"


@FULL_DISKS
@pytest.mark.parametrize("old", [b"what was there", None])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, disk: Callable[[], Any], says: str, old: bytes | None
) -> None:
    path = tmp_path / "board.json"
    if old is not None:
        path.write_bytes(old)
    with disk(), pytest.raises(StorageError, match=says) as caught:
        write_atomically(path, "x" * 100_000)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert names(tmp_path) == ([] if old is None else ["board.json"])
    assert old is None or path.read_bytes() == old
    write_atomically(path, "room again")
    assert path.read_text() == "room again"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "runs" / "one.json", "{}")
    with pytest.raises(StorageError, match="cannot write"):
        JsonLines(tmp_path / "runs" / "one.jsonl").append([{"a": 1}])
    assert (tmp_path / "runs").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(StorageError, match="Permission denied"):
        write_atomically(folder / "one.json", "{}")


@given(value=JSON)
@settings(deadline=None)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        write_json(path, value)
        assert read_json(path) == value
        assert path.read_bytes().endswith(b"\n")


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"mean": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"mean": math.nan})
    assert read_json(path) == {"mean": 1.5}
    assert names(tmp_path) == ["value.json"]


def test_json_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(StorageError, match=r"cannot read .*value\.json"):
        read_json(path)
    for damaged in (b"", b'{"a": ', b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="is not JSON"):
            read_json(path)


@given(value=st.dictionaries(st.text(), JSON), order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_equal_values_have_equal_hashes_whatever_the_order_of_keys(value: dict[str, Any], order: Any) -> None:
    keys = list(value)
    order.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert canonical_json(shuffled) == canonical_json(value)
    assert content_hash(shuffled) == content_hash(value)
    assert json.loads(canonical_json(value)) == value
    assert content_hash(value) != content_hash([value])


@pytest.mark.parametrize(
    "content",
    [b"", b"one\r\ntwo\n", "é — ü".encode(), bytes(range(256)) * 10_000],
    ids=["empty", "lines", "unicode", "binary"],
)
def test_a_blob_id_is_the_one_that_git_gives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", str(path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert git_blob_id(path) == git.stdout.strip()
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_the_cache_is_where_the_variable_says(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_folder("tables", "one")
    assert folder == cache / "tables" / "one"
    assert folder.is_dir()
    monkeypatch.delenv("PERSONALITYBENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "caches"))
    assert tmp_path / "home" in cache_folder("models").parents


def test_a_cache_that_cannot_be_made_names_its_variable(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(StorageError, match=r"cannot create the cache folder .*PERSONALITYBENCH_CACHE"):
        cache_folder("tables")


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "runs" / "answers.jsonl")
    assert list(lines.read()) == []
    lines.append([])
    assert names(tmp_path) == [], "nothing to append makes no file"
    lines.append({"n": n} for n in range(3))
    lines.append([{"text": "two\nlines\u2028é"}])
    assert list(lines.read()) == [{"n": 0}, {"n": 1}, {"n": 2}, {"text": "two\nlines\u2028é"}]


@given(rows=ROWS, more=ROWS, data=st.data())
@settings(deadline=None)
def test_a_kill_at_any_byte_loses_only_the_line_being_written(
    rows: list[dict[str, Any]], more: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = JsonLines(Path(folder) / "rows.jsonl")
        ends = [0]
        for row in rows:
            lines.append([row])
            ends.append(lines.path.stat().st_size)
        if rows:
            cut = data.draw(st.integers(0, ends[-1]), label="cut at")
            os.truncate(lines.path, cut)
            complete = rows[: sum(end <= cut for end in ends) - 1]
        else:
            complete = []
        before = lines.path.read_bytes() if rows else b""
        assert list(lines.read()) == complete
        assert (lines.path.read_bytes() if rows else b"") == before, "reading changes nothing"
        lines.append(more)
        assert list(lines.read()) == complete + more
        if more:
            assert lines.path.read_bytes().count(b"\n") == len(complete) + len(more)


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 65_537, 300_000])
def test_a_long_torn_line_is_cut_off(tmp_path: Path, length: int) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    for kept in ([], [{"n": 1}]):
        lines.path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in kept) + b"x" * length)
        assert list(lines.read()) == kept
        lines.append([{"n": 2}])
        assert list(lines.read()) == [*kept, {"n": 2}]


@FULL_DISKS
def test_appending_to_a_full_disk_keeps_what_is_complete_and_goes_on_later(
    tmp_path: Path, disk: Callable[[], Any], says: str
) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    first = [{"n": n, "text": "é" * 20} for n in range(5)]
    second = [{"n": n, "text": "x" * 90} for n in range(5, 40)]
    lines.append(first)
    with disk(), pytest.raises(StorageError, match=says) as caught:
        lines.append(second)
    assert str(lines.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = list(lines.read())
    assert kept[:5] == first
    assert kept == (first + second)[: len(kept)], "what was written is whole lines in their order"
    assert names(tmp_path) == ["rows.jsonl"]
    rest = (first + second)[len(kept) :]
    lines.append([*rest, {"n": "last"}])
    assert list(lines.read()) == [*first, *second, {"n": "last"}]


def test_the_disk_that_fills_midway_really_tears_a_line(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    with full_after(1000), pytest.raises(StorageError):
        lines.append([{"text": "x" * 90}] * 40)
    torn = lines.path.read_bytes()
    assert len(torn) == 1000
    assert not torn.endswith(b"\n")
    assert 0 < len(list(lines.read())) < 10


@pytest.mark.parametrize("altered", [b"not json", b"[1]", b"3", b"", b"\xff\xfe"])
def test_a_complete_line_that_is_no_object_is_an_alteration(tmp_path: Path, altered: bytes) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.path.write_bytes(b'{"n": 1}\n' + altered + b'\n{"n": 3}\n')
    found = lines.read()
    assert next(found) == {"n": 1}
    with pytest.raises(StorageError, match=r"rows\.jsonl:2 is not a JSON object"):
        next(found)


def test_rows_that_cannot_be_written_leave_the_file_alone(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.append([{"n": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append([{"n": 2}, {"n": math.inf}])
    assert list(lines.read()) == [{"n": 1}]


def test_half_an_emoji_is_kept(tmp_path: Path) -> None:
    """A server that cuts an answer inside an escaped surrogate pair sends a lone one; json.loads accepts it."""
    lines = JsonLines(tmp_path / "rows.jsonl")
    answer = json.loads('"Of course \\ud83d"')
    lines.append([{"answer": answer}])
    assert list(lines.read()) == [{"answer": answer}]
