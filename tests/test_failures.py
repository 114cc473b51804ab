"""The outer boundary: whatever ends a command is one line, and the status is never 0."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
import requests

from personalitybench import failures
from personalitybench.errors import DataError
from personalitybench.failures import DEFECT, TRACEBACK_VARIABLE, USER_ERROR, describe_failure, format_traceback
from tests.conftest import REPOSITORY

Command = Callable[..., subprocess.CompletedProcess[str]]
PYTHON = [sys.executable, "-m", "personalitybench.cli"]
BOARD = str(REPOSITORY / "leaderboards" / "paper" / "llama-3-8b-instruct.json")


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 (its traceback is what is tested)
    except BaseException as caught:  # noqa: BLE001 (with its traceback)
        return caught


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DataError("questions are missing"), "questions are missing"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), r"No space left on device \(runs/x\): free some"),
        (PermissionError(errno.EACCES, "Permission denied", b"runs/x"), r"denied \(runs/x\): name a file or folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), "name a shorter path"),
        (OSError(errno.EIO, "Input/output error", "x"), "check the disk"),
        (OSError("Can't load it"), "Can't load it"),
        (MemoryError(), "MemoryError.*free some memory"),
        (RecursionError("too deep"), "nested too deeply"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"), "as UTF-8"),
        (sqlite3.OperationalError("disk I/O error"), "disk I/O error.*healthy disk"),
        (jinja2.UndefinedError("'x' is undefined"), "correct the template"),
        (re.error("nothing to repeat"), "correct the regular expression"),
        (requests.exceptions.ProxyError("refused"), "check the network, proxies and certificates"),
        (ModuleNotFoundError("No module named 'vllm_x'", name="vllm_x"), "needs vllm_x, which is not installed"),
        (ImportError("x.so: failed to map segment from shared object"), "free some memory"),
        (ExceptionGroup("tasks", [ConnectionResetError(errno.ECONNRESET, "reset by peer")]), "reset by peer"),
    ],
)
def test_obstacles_are_one_line_with_status_2(error: BaseException, says: str) -> None:
    text, status = describe_failure(raised(error))
    assert status == USER_ERROR
    assert re.search(says, text), text
    assert len(text) < 1000


def test_errors_of_libraries_that_are_optional() -> None:
    safetensors = pytest.importorskip("safetensors")
    assert "weights is damaged" in describe_failure(raised(safetensors.SafetensorError("header too large")))[0]
    openai = pytest.importorskip("openai")
    assert "check the server" in describe_failure(raised(openai.OpenAIError("no key")))[0]
    torch = pytest.importorskip("torch")
    assert "lower batch_size" in describe_failure(raised(torch.OutOfMemoryError("CUDA out of memory")))[0]


def test_a_defect_is_one_line_that_says_how_to_see_the_traceback() -> None:
    text, status = describe_failure(raised(KeyError("trait")))
    assert status == DEFECT
    assert text.startswith("defect: KeyError: 'trait' (tests.test_failures:")
    assert f"please report this ({TRACEBACK_VARIABLE}=1 shows the traceback)" in text


def test_secrets_are_in_no_line_and_no_traceback() -> None:
    error = raised(ValueError("cannot use http://user:hunter2@host/ with api_key=sk-abcdef"))
    for text in (describe_failure(error)[0], format_traceback(error)):
        assert "abcdef" not in text


def test_a_variable_that_a_library_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "some_library.py"
    module.write_text('import os\nLIMIT = int(os.environ.get("SOME_LIMIT", "1"))\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SOME_LIMIT", "nonsense")
    with pytest.raises(ValueError, match="nonsense") as caught:
        __import__("some_library")
    text, status = describe_failure(caught.value)
    assert (status, text.startswith("the environment variable SOME_LIMIT=nonsense cannot be used")) == (2, True)


def test_every_library_of_the_table_names_a_class() -> None:
    for name in failures._LIBRARY_ERRORS:
        assert re.fullmatch(r"[a-z]\w*\.[A-Za-z]+", name)


def shell(line: str, tmp_path: Path, **environment: str) -> tuple[list[int], str]:
    """Run a line in bash; gives the statuses of its last pipe and what came on standard error."""
    done = subprocess.run(
        ["bash", "-c", f'{line}; echo "${{PIPESTATUS[@]}}" > statuses'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PB": " ".join(PYTHON)} | environment,
        timeout=300,
        check=False,
    )
    return [int(word) for word in (tmp_path / "statuses").read_text().split()], done.stderr


@pytest.mark.parametrize("command", [f"leaderboard show {BOARD}", "leaderboard schema", "--help", "--version"])
def test_output_that_nobody_reads_ends_by_the_signal(command: str, tmp_path: Path) -> None:
    statuses, said = shell(f"(sleep 0.2; exec $PB {command}) | true", tmp_path)
    assert (statuses, said) == ([141, 0], "")


@pytest.mark.parametrize("command", [f"leaderboard show {BOARD}", "leaderboard schema", "--help", "--version"])
@pytest.mark.parametrize("target", ["/dev/full", "&-"])
def test_output_that_cannot_be_written_is_one_line(command: str, target: str, tmp_path: Path) -> None:
    if target == "/dev/full" and not Path(target).exists():
        pytest.skip("no such device here")
    statuses, said = shell(f"$PB {command} >{target}", tmp_path)
    assert statuses == [2]
    assert re.fullmatch(r"personalitybench: cannot write standard output \(.*\): name another file or pipe.*\n", said)


def test_closed_standard_error_and_input(tmp_path: Path) -> None:
    assert shell("$PB --version <&- 2>&-", tmp_path) == ([0], "")
    assert shell("$PB run nothing.yaml <&- 2>&-", tmp_path) == ([2], "")


def test_ctrl_c_outside_of_a_resumable_command(tmp_path: Path) -> None:
    code = (
        "from personalitybench import cli\n"
        "def interrupt(*_, **__):\n    raise KeyboardInterrupt\n"
        "cli.app = interrupt\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (130, "personalitybench: interrupted\n")


def test_a_defect_has_status_1_and_its_traceback_on_demand(tmp_path: Path) -> None:
    code = "from personalitybench import cli\ndef fail():\n    {}['x']\ncli.app = fail\ncli.main()\n"
    for variable, lines in (("", 1), ("1", 6)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {TRACEBACK_VARIABLE: variable},
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("personalitybench: defect: KeyError: 'x'")
        assert (len(done.stderr.splitlines()) > 1) == (lines > 1)
        assert ("Traceback" in done.stderr) == (lines > 1)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PERSONALITYBENCH_CACHE", "~nosuchuser/x", "PERSONALITYBENCH_CACHE=~nosuchuser/x: Could not determine home"),
        ("PERSONALITYBENCH_CACHE", "/dev/null", "cannot create the cache folder"),
        ("PERSONALITYBENCH_JUDGES", "~nosuchuser/x", "PERSONALITYBENCH_JUDGES=~nosuchuser/x: Could not determine"),
        ("PERSONALITYBENCH_JUDGES", "/dev/null", "PERSONALITYBENCH_JUDGES=/dev/null is no folder"),
        ("PERSONALITYBENCH_DATA", "~nosuchuser/x", "PERSONALITYBENCH_DATA=~nosuchuser/x: Could not determine home"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "the environment variable HF_HUB_DOWNLOAD_TIMEOUT=abc cannot be used"),
    ],
)
def test_variables_with_nonsense_are_named(
    command: Command, tmp_path: Path, variable: str, value: str, says: str
) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "mine.yaml"
    suite = {
        "name": "mine",
        "models": [{"name": "nothing", "backend": "dummy"}],
        "methods": ["none"],
        "targets": ["openness:high"],
        "judges": ["offline"],
        "questions": {"source": "official", "limit": 1},
    }
    path.write_text(json.dumps(suite))
    done = command("run", str(path), **{variable: value})
    assert done.returncode == 2
    assert re.fullmatch(rf"personalitybench: .*{re.escape(says)}.*\n", done.stderr)


def test_suites_that_are_no_files(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in (".", "pipe.yaml", "/dev/zero"):
        done = command("run", name)
        assert (done.returncode, "is no regular file" in done.stderr) == (2, True), done.stderr
    done = command("run", "/proc/self/mem")
    assert (done.returncode, "cannot read suite" in done.stderr) == (2, True)


def test_an_error_in_a_plug_in_names_the_plug_in(command: Command, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    record = packages / "needy-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[personalitybench.methods]\nbroken = needy:Broken\n")
    (packages / "needy.py").write_text(
        "from personalitybench.methods.none import Unprompted\n"
        "class Broken(Unprompted):\n"
        "    def induce(self, *_, **__):\n        return {}['missing']\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nmodels: [{name: nothing, backend: dummy}]\nmethods: [needy/broken]\ntargets: ['openness:high']\n"
        "judges: [offline]\nquestions: {source: sample, limit: 1}\nprotocol: {max_tokens: 4}\n"
    )
    done = command("run", str(path), "--stage", "generate", PYTHONPATH=f"{packages}{os.pathsep}{REPOSITORY}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("personalitybench:")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "method 'needy/broken' of the package needy 1.0 failed at needy:4: KeyError: 'missing'" in lines[-1]
