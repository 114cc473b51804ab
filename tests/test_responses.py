"""Replies of a judge in a file that is used by many at once, damaged, full, taken away, and killed while it writes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.errors import StorageError
from personalitybench.judging import responses
from personalitybench.judging.responses import ResponseStore, StoredResponse, request_key
from tests.conftest import REPOSITORY
from tests.killed_store import stored_response
from tests.test_files import full_after

MESSAGES = [{"role": "system", "content": "Rate."}, {"role": "user", "content": "Hello"}]
TEXT = st.text(st.characters(exclude_categories=()))  # with lone surrogates, NUL and all


def filled(path: Path, count: int, start: int = 0) -> dict[str, StoredResponse]:
    """Make a store of made-up responses and close it."""
    responses = dict(stored_response(number) for number in range(start, start + count))
    with ResponseStore(path) as store:
        store.put_many(responses.items())
    return responses


def damaged_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.damaged-*") if not path.name.endswith(("-wal", "-shm")))


def start_writer(path: Path, start: int, end: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.killed_store", str(path), str(start), str(end)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


# The key of a request


def test_a_key_depends_on_all_that_is_sent() -> None:
    sampling = {"temperature": 0.5, "seed": 1, "stop": ["a"]}
    variants = [
        ("judge", "http://a/v1", MESSAGES, sampling),
        ("other", "http://a/v1", MESSAGES, sampling),
        ("judge", "http://b/v1", MESSAGES, sampling),
        ("judge", "http://a/v1", MESSAGES[::-1], sampling),
        ("judge", "http://a/v1", MESSAGES[:1], sampling),
        ("judge", "http://a/v1", [MESSAGES[0], {"role": "user", "content": "hello"}], sampling),
        ("judge", "http://a/v1", MESSAGES, sampling | {"temperature": 1}),
        ("judge", "http://a/v1", MESSAGES, sampling | {"temperature": True}),
        ("judge", "http://a/v1", MESSAGES, sampling | {"stop": ["a", "b"]}),
        ("judge", "http://a/v1", MESSAGES, {}),
    ]
    keys = [request_key(*variant) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


def test_a_key_does_not_depend_on_how_the_same_is_written() -> None:
    key = request_key("judge", "http://a/v1", MESSAGES, {"temperature": 0, "inner": {"top": [1.0]}, "seed": 3})
    turned = tuple(dict(reversed(message.items())) for message in MESSAGES)
    assert key == request_key("judge", "http://a/v1/", turned, {"seed": 3, "inner": {"top": (1,)}, "temperature": 0.0})


def test_a_key_of_half_an_emoji_is_not_that_of_the_whole() -> None:
    def key(text: str) -> str:
        return request_key("judge", "", [{"role": "user", "content": text}], {})

    assert len({key("\ud83d"), key("\ud83d\ude00"), key("😀"), key("?")}) == 4


def test_a_key_of_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        request_key("judge", "", MESSAGES, {"temperature": float("nan")})


# Storing and finding


def test_what_is_stored_is_found_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "responses.db"
    first, second = stored_response(1), stored_response(2)
    with ResponseStore(path) as store:
        assert store.get(first[0]) is None
        store.put(*first)
        assert store.get(first[0]) == first[1]
    with ResponseStore(path) as store:
        assert store.get(first[0]) == first[1]
        assert store.get(second[0]) is None
        assert store.get_many([second[0], first[0], first[0]]) == {first[0]: first[1]}
        assert len(store) == 1
    code = "import sys; from pathlib import Path; from personalitybench.judging.responses import ResponseStore as S;"
    code += f"print(S(Path({str(path)!r})).get({first[0]!r}).text)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == first[1].text + "\n"


def test_the_first_of_a_key_stays(tmp_path: Path) -> None:
    key, response = stored_response(1)
    with ResponseStore(tmp_path / "responses.db") as store:
        store.put(key, response)
        store.put(key, replace(response, text="[[5]] now"))
        store.put_many([(key, replace(response, text="[[4]] now")), stored_response(2)])
        assert store.get(key) == response
        assert len(store) == 2


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1700])
def test_many_are_found_in_pieces(tmp_path: Path, count: int) -> None:
    responses = filled(tmp_path / "responses.db", count)
    missing = [stored_response(number)[0] for number in range(5000, 5000 + count)]
    keys = [key for pair in zip(responses, missing, strict=True) for key in pair]
    with ResponseStore(tmp_path / "responses.db") as store:
        assert store.get_many(iter(keys)) == responses


def test_reading_takes_keys_only_as_it_goes(tmp_path: Path) -> None:
    key, response = stored_response(3)
    with ResponseStore(tmp_path / "responses.db") as store:
        store.put(key, response)
        assert list(itertools.islice(store.read(itertools.repeat(key)), 5)) == [(key, response)] * 5, "without an end"


@given(text=TEXT, model=TEXT, reason=TEXT, created=TEXT, tokens=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
@settings(deadline=None, max_examples=50)
def test_any_text_comes_back_as_it_was(text: str, model: str, reason: str, created: str, tokens: Any) -> None:
    response = StoredResponse(text, model, reason, *tokens, created)
    with tempfile.TemporaryDirectory() as folder, ResponseStore(Path(folder) / "responses.db") as store:
        store.put(stored_response(0)[0], response)
        assert store.get(stored_response(0)[0]) == response


def test_a_key_is_a_hash(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "responses.db") as store, pytest.raises(ValueError, match="non-hexadecimal"):
        store.put("a question", stored_response(0)[1])


def test_people_can_read_the_file(tmp_path: Path) -> None:
    (response,) = filled(tmp_path / "responses.db", 1).values()
    rows = sqlite3.connect(tmp_path / "responses.db").execute("SELECT text, prompt_tokens FROM responses").fetchall()
    assert rows == [(response.text, response.prompt_tokens)]


# Many at once


def test_threads_share_a_store(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"

    def work(worker: int) -> None:
        for number in range(60):
            key, response = stored_response(number)
            store.put(key, replace(response, model=f"worker {worker}"))
            found = store.get(key)
            assert found is not None
            assert found.text == response.text

    with ResponseStore(path) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
        assert len(store) == 60


def test_processes_and_stores_share_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    writers = [start_writer(path, start, start + 200) for start in (0, 100, 200)]  # halves of them are the same keys
    with ResponseStore(path) as store:
        for number in range(400, 500):
            store.put(*stored_response(number))
        for writer in writers:
            output, _ = writer.communicate(timeout=120)
            assert writer.returncode == 0
            assert len(output.split()) == 200
        expected = dict(stored_response(number) for number in range(500))
        assert store.get_many(expected) == expected
    assert not damaged_files(tmp_path)


def test_a_kill_loses_nothing_that_was_said_to_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    done = 0
    for after in (1, 90, 233):
        writer = start_writer(path, done, 100_000)
        assert writer.stdout is not None
        said = [int(next(writer.stdout)) for _ in range(after)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout if line.endswith("\n")]  # between our last look and the kill
        writer.stdout.close()
        assert writer.wait(timeout=60) == -signal.SIGKILL
        expected = dict(stored_response(number) for number in said)
        with ResponseStore(path) as store:
            assert store.get_many(expected) == expected
            assert len(store) in {said[-1] + 1, said[-1] + 2}, "the one being written may be there, too"
        done = said[-1] + 1
    assert not damaged_files(tmp_path)


# Damage


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_in_a_page(path: Path) -> None:
    os.truncate(path, 5000)


def text_instead(path: Path) -> None:
    path.write_text("not a database\n" * 50)


def altered_letter(path: Path) -> None:
    """SQLite itself does not notice this: a rating turned into another."""
    data = path.read_bytes()
    assert data.count(b"company77 ") == 1
    path.write_bytes(data.replace(b"company77 ", b"company99 "))


@pytest.mark.parametrize(
    ("damage", "saved_at_least"),
    [(random_bytes, 0), (truncated, 100), (cut_in_a_page, 0), (text_instead, 0), (altered_letter, 299)],
)
def test_a_damaged_file_is_set_aside_and_what_is_right_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], saved_at_least: int
) -> None:
    path = tmp_path / "responses.db"
    responses = filled(path, 300)
    damage(path)
    bytes_before = path.read_bytes()
    with ResponseStore(path) as store:
        found = store.get_many(responses)
        assert found.items() <= responses.items(), "never a reply that was not given"
        assert saved_at_least <= len(found) < 300
        (aside,) = damaged_files(tmp_path)
        assert aside.read_bytes() == bytes_before, "what a person may repair is kept as it was"
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert str(path) in record.getMessage()
        assert aside.name in record.getMessage()
        assert f"; {len(found)} of its responses could be saved" in record.getMessage()
        store.put_many(responses.items())
        assert store.get_many(responses) == responses
    caplog.clear()
    with ResponseStore(path) as store:
        assert store.get_many(responses) == responses
    assert damaged_files(tmp_path) == [aside]
    assert not caplog.records


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_bytes_altered_anywhere_never_give_another_reply(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "responses.db"
        responses = filled(path, 150)
        start = data.draw(st.integers(100, path.stat().st_size - 1), label="where")  # 100: the header has its own test
        new = data.draw(st.binary(min_size=1, max_size=2000), label="what")
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(new)
        with ResponseStore(path) as store:
            found = store.get_many(responses)
            assert found.items() <= responses.items()
            store.put_many(responses.items())
            assert store.get_many(responses) == responses


def test_a_damaged_schema_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    """SQLite's complaint quotes it, and Python fails to decode the complaint."""
    path = tmp_path / "responses.db"
    responses = filled(path, 30)
    whole = path.read_bytes()
    start = whole.index(b"CREATE TABLE")
    for position in range(start, start + 200, 9):
        path.write_bytes(whole[:position] + b"\x80" + whole[position + 1 :])
        with ResponseStore(path) as store:
            assert store.get_many(responses).items() <= responses.items()
            store.put_many(responses.items())
            assert store.get_many(responses) == responses
        path.unlink()


def test_an_altered_header_is_set_aside_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    responses = filled(path, 30)
    whole = path.read_bytes()
    refused = []
    for position in range(100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            with ResponseStore(path) as store:
                assert store.get_many(responses).items() <= responses.items()
                store.put_many(responses.items())
                assert store.get_many(responses) == responses
        except StorageError as error:
            refused.append(position)
            assert str(path) in str(error)
        path.unlink()
    # The version of the format, and the marks by which a file is ours: it may be another's, so it is left to a person.
    assert refused == [18, *range(60, 64), *range(68, 72)]


def test_writes_of_a_damaged_file_are_not_played_into_the_new_one(tmp_path: Path) -> None:
    """Beside the file lies a log with what was written last; it belongs to the damaged file."""
    path = tmp_path / "responses.db"
    writer = start_writer(path, 0, 100_000)
    assert writer.stdout is not None
    for _ in range(20):
        next(writer.stdout)
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert Path(f"{path}-wal").stat().st_size > 0
    text_instead(path)
    responses = dict(stored_response(number) for number in range(20))
    with ResponseStore(path) as store:
        assert store.get_many(responses).items() <= responses.items()
        store.put_many(responses.items())
    with ResponseStore(path) as store:
        assert store.get_many(responses) == responses


def test_damage_while_two_have_it_open_is_set_aside_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "responses.db"
    responses = filled(path, 300)
    with ResponseStore(path) as one, ResponseStore(path) as other:
        altered_letter(path)
        assert one.get_many(responses) == other.get_many(responses)
        key, response = stored_response(1000)
        one.put(key, response)
        assert other.get(key) == response
        assert len(one) == len(other) == 300
    assert len(damaged_files(tmp_path)) == 1
    assert len(caplog.records) == 1


def test_a_file_that_is_deleted_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "responses.db"
    with ResponseStore(path) as store:
        store.put(*stored_response(1))
        shutil.rmtree(path.parent)
        assert store.get(stored_response(1)[0]) is None
        store.put(*stored_response(2))
    with ResponseStore(path) as store:
        assert store.get(stored_response(2)[0]) == stored_response(2)[1]


# What is no damage: the disk, permissions, other programs


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    path.mkdir()
    with pytest.raises(StorageError, match=r"responses\.db: it is a folder"):
        ResponseStore(path)
    assert path.is_dir()
    assert not damaged_files(tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match="cannot use the store"):
        ResponseStore(tmp_path / "cache" / "responses.db")
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(StorageError, match="Permission denied"):
        ResponseStore(folder / "responses.db")


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE places (url)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program or version"):
        ResponseStore(path)
    assert path.read_bytes() == before


def test_wait_for_a_process_that_keeps_the_file_is_announced_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(responses, "_ANNOUNCED_WAIT", 0.1)
    monkeypatch.setattr(responses, "_BUSY", 0.5)
    path = tmp_path / "responses.db"
    filled(path, 1)
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with ResponseStore(path) as store:
        writer.execute("BEGIN IMMEDIATE")
        assert len(store) == 1, "reading goes on"
        with pytest.raises(StorageError, match=r"another process has kept .*responses\.db for 0 s: wait for it"):
            store.put(*stored_response(1))
        threading.Timer(0.3, writer.rollback).start()
        store.put(*stored_response(1))
        assert len(store) == 2
    writer.close()
    assert caplog.text.count("waiting up to 0 s for another process that writes") == 2


def test_wait_to_open_the_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_BUSY", 0.2)
    path = tmp_path / "responses.db"
    told = r"another process has held .*opening or renaming .*responses\.db"
    with ResponseStore(path) as store, store._alone(), pytest.raises(StorageError, match=told):
        ResponseStore(path)


def test_a_full_disk_keeps_what_is_stored_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    responses = filled(path, 100)
    more = dict(stored_response(number) for number in range(100, 1000))
    with ResponseStore(path) as store:
        with (
            full_after(path.stat().st_size + 20_000),
            pytest.raises(StorageError, match="cannot use the store") as caught,
        ):
            for key, response in more.items():
                store.put(key, response)
                responses[key] = response
        assert "\n" not in str(caught.value)
        assert 100 < len(responses) < 1000, "some were stored, then it was full"
        assert store.get_many(responses) == responses
        store.put_many(more.items())
    with ResponseStore(path) as store:
        assert store.get_many(responses | more) == responses | more
    assert not damaged_files(tmp_path)


def test_many_are_stored_together_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    more = dict(stored_response(number) for number in range(1000))
    with ResponseStore(path) as store:
        with full_after(path.stat().st_size + 20_000), pytest.raises(StorageError):
            store.put_many(more.items())
        assert len(store) == 0


def test_another_process_that_writes_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    filled(path, 1)
    with ResponseStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        key, response = stored_response(5)
        waiting = threading.Thread(target=store.put, args=(key, response))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.execute("COMMIT")
        other.close()
        waiting.join(30)
        assert store.get(key) == response


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.db")
    store.close()
    store.close()
    with pytest.raises(StorageError, match="is closed"):
        store.get(stored_response(0)[0])


def test_a_response_is_plain_data() -> None:
    from dataclasses import asdict

    _, response = stored_response(4)
    assert StoredResponse(**json.loads(json.dumps(asdict(response)))) == response
