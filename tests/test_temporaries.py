"""What a kill leaves: told from what a living process writes, deleted by the next one in the folder and by prune."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from personalitybench.artifacts.kept import read_store
from personalitybench.files import locked, sweep, write_atomically
from personalitybench.temporaries import find_abandoned, remove_abandoned, temporary_file, temporary_folder
from tests.conftest import REPOSITORY

WRITE_FILE = (
    "import os, sys, time\nfrom pathlib import Path\nfrom personalitybench import files\n"
    "def hang(_):\n    print('writing', flush=True)\n    time.sleep(600)\n"
    "os.fsync = hang\n"
    "files.write_atomically(Path(sys.argv[1]), b'x' * 1000)\n"
)
WRITE_FOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom personalitybench.temporaries import temporary_folder\n"
    "with temporary_folder(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'half.whl').write_bytes(b'x' * 1000)\n    print('writing', flush=True)\n    time.sleep(600)\n"
)


class Writers:
    """Starts processes that hang while they write."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, code: str, target: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def writers() -> Iterator[Writers]:
    found = Writers()
    yield found
    for process in found.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("code", [WRITE_FILE, WRITE_FOLDER])
def test_a_living_writer_keeps_what_it_writes_and_a_killed_one_does_not(
    writers: Writers, tmp_path: Path, code: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    dead, living = (writers.start(code, folder / "answers.jsonl") for _ in range(2))
    assert find_abandoned(folder) == []
    kill(dead)
    (left,) = find_abandoned(folder)
    remove_abandoned(folder.iterdir())
    assert not left.exists()
    assert len(list(folder.iterdir())) == 1
    kill(living)
    sweep(folder)
    assert list(folder.iterdir()) == []


def test_the_next_holder_of_the_lock_deletes_them(writers: Writers, tmp_path: Path) -> None:
    fit = tmp_path / "fits" / "npti-1"
    for target in (fit / "fit.json", fit / "work" / "deep" / "answers.json"):
        target.parent.mkdir(parents=True, exist_ok=True)
        kill(writers.start(WRITE_FILE, target))
    kill(writers.start(WRITE_FOLDER, fit))
    (fit / ".config.original").write_text("of the user")  # no extension of ours
    (fit / "artifact.abcdefgh").write_text("of the user")
    with locked(fit, "fitting"):
        pass
    names = sorted(path.name for path in (tmp_path / "fits").rglob("*"))
    assert names == [".config.original", ".npti-1.lock", "artifact.abcdefgh", "deep", "npti-1", "work"]


def test_prune_tells_of_them_and_deletes_them(writers: Writers, cache: Path) -> None:
    from tests.test_artifacts import command

    models, tables, official = (cache / name for name in ("models", "tables", "official/1/test"))
    for folder in (models, tables, official):
        folder.mkdir(parents=True)
    kill(writers.start(WRITE_FOLDER, models / "SmolLM2"))
    kill(writers.start(WRITE_FOLDER, tables / "evaluate-openness"))
    kill(writers.start(WRITE_FILE, official / "Openness.json"))
    writers.start(WRITE_FOLDER, models / "MiniLM")
    expected = "3.0 kB were left by processes that were killed (3 temporary files and folders)"
    assert len(read_store().leftovers) == 3
    assert any(expected in " ".join(command("list")) for _ in range(1))
    assert expected in " ".join(command("prune", "--leftovers", "--dry-run"))
    assert len(read_store().leftovers) == 3
    done = command("prune", "--leftovers")
    assert done[-1] == "freed: 3.0 kB"
    assert read_store().leftovers == []
    assert [path.name[:8] for path in models.iterdir()] == [".MiniLM."]


def test_writing_leaves_nothing_and_takes_no_file_of_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "{}")
    with temporary_folder(tmp_path / "folder") as folder, temporary_file(tmp_path / "b.json") as (_, file):
        assert find_abandoned(tmp_path, recursive=True) == []
        folder.rename(tmp_path / "folder")
        file.replace(tmp_path / "b.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "folder"]


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    target.write_text("{}")
    (tmp_path / ".kept.json.abcdefgh").symlink_to(target)
    (tmp_path / ".gone.json.abcdefgh").symlink_to(tmp_path / "nothing")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
