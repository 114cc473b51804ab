"""Pipes, devices, endless lines and links in folders that somebody sent: refused in one line, nothing is waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personalitybench.activations.interventions import FORMAT, FORMAT_VERSION, MANIFEST_FILE, TENSORS_FILE, Intervention
from personalitybench.errors import DataError, StorageError
from personalitybench.files import JsonLines, write_json
from personalitybench.judging.agreement.human import read_ratings
from personalitybench.leaderboard.lm_eval_samples import read_samples
from personalitybench.methods.lora_data import hash_of_file, read_answers
from personalitybench.outside_files import MAX_LINE_BYTES
from tests.security.terminal import one_line, run_command, write_judge


@pytest.fixture(autouse=True)
def impatience() -> Iterator[None]:
    """End a test that waits."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def read_intervention(path: Path) -> object:
    folder = path.parent / "intervention"
    folder.mkdir()
    path.rename(folder / TENSORS_FILE)
    write_json(folder / MANIFEST_FILE, {"format": FORMAT, "version": FORMAT_VERSION})
    return Intervention.load(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "lines": lambda path: list(JsonLines(path).read()),
    "samples": lambda path: list(read_samples(path, None, None)),
    "answers to train on": hash_of_file,
    "answers that were hashed": lambda path: read_answers(path, "sha256:0"),
    "table of people": lambda path: read_ratings([path], []),
    "intervention": read_intervention,
}


@pytest.mark.parametrize("make", [make_pipe, link_to_device])
@pytest.mark.parametrize("reader", READERS)
def test_what_never_ends_is_not_read(reader: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.jsonl")
    with pytest.raises((StorageError, DataError, ValueError), match="no regular file"):
        READERS[reader](tmp_path / "x.jsonl")


@pytest.mark.parametrize("reader", ["lines", "samples"])
def test_a_line_has_a_limit(reader: str, tmp_path: Path) -> None:
    with (tmp_path / "x.jsonl").open("wb") as stream:
        stream.truncate(MAX_LINE_BYTES * 40)  # a hole: no disk is used
    with pytest.raises((StorageError, DataError), match="a line of more than 32 MB, line 1"):
        READERS[reader](tmp_path / "x.jsonl")


def test_appending_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "authorized_keys"
    target.write_text("a key without a newline")
    (tmp_path / "versions.jsonl").symlink_to(target)
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "elsewhere")
    for name in ("versions.jsonl", "dangling.jsonl"):
        with pytest.raises(StorageError, match="nothing is appended"):
            JsonLines(tmp_path / name).append([{"a": 1}])
    assert target.read_text() == "a key without a newline"
    assert not (tmp_path / "elsewhere").exists()


SUITE = """
name: s
models: [{name: nothing, backend: dummy}]
methods: [none]
targets: ['openness:high']
questions: {limit: 1}
judges: [constant.yaml]
floors: false
"""


def test_judging_a_folder_writes_through_no_link(tmp_path: Path) -> None:
    found = write_judge(tmp_path, tmp_path / "packages")
    (tmp_path / "s.yaml").write_text(SUITE)
    assert run_command("run", "s.yaml", "--output", "theirs", cwd=tmp_path, **found).returncode == 0
    (ratings,) = (tmp_path / "theirs").rglob("constant-*.jsonl")
    ratings.unlink()
    ratings.with_suffix(".json").unlink()
    (tmp_path / "authorized_keys").write_text("a key without a newline")
    ratings.symlink_to(tmp_path / "authorized_keys")
    line = one_line(run_command("judge", "theirs", "--judge", "constant.yaml", cwd=tmp_path, **found))
    assert f"{ratings.name} is a link" in line
    assert (tmp_path / "authorized_keys").read_text() == "a key without a newline"
