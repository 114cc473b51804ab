"""Broken profiles, plug-ins, caches and output paths: a finding of the commands that look, one line of the others."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personalitybench.files import cache_folder
from tests.security.terminal import COMMAND, one_line, run_command, write_plug_in

SUITE = """
name: s
models: [{name: %s, %s}]
methods: [none]
targets: ['openness:high']
questions: {limit: 1}
protocol: {max_tokens: 2}
floors: false
"""
DUMMY = SUITE % ("nothing", "backend: dummy")


@pytest.fixture
def profiles(tmp_path: Path) -> dict[str, str]:
    """A folder of judge profiles, one of them usable."""
    folder = tmp_path / "judges"
    folder.mkdir()
    (folder / "broken.yaml").write_text("id: [")
    (folder / "twice.yaml").write_text("id: twice\nid: twice\n")
    (folder / "strange.yaml").write_text("id: strange\nprovider: their/judge\nsummary: s\n")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "mine.yaml").write_text("id: mine\nprovider: chat\nsummary: mine is usable\n")
    return {"PERSONALITYBENCH_JUDGES": str(folder), "COLUMNS": "200"}


@pytest.mark.parametrize("command", ["doctor", "judges"])
def test_a_broken_profile_is_a_finding(command: str, profiles: dict[str, str], tmp_path: Path) -> None:
    done = run_command(command, cwd=tmp_path, **profiles)
    assert done.returncode == 0, done.stderr
    rows = {name: next(line for line in done.stdout.splitlines() if f" {name} " in line) for name in
            ("broken", "twice", "strange", "bytes", "mine", "offline")}  # fmt: skip
    for name in ("broken", "twice", "strange", "bytes"):
        assert " no " in rows[name]
    assert "on lines 1 and 2" in done.stdout
    assert "their/judge" in done.stdout
    assert "mine is usable" in rows["mine"]


@pytest.mark.parametrize("cache", ["file/x", "~nosuchuser/x", "/dev/null/x"])
def test_a_cache_that_cannot_be_made_is_a_finding(cache: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_command("doctor", cwd=tmp_path, PERSONALITYBENCH_CACHE=cache, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert " no " in next(line for line in done.stdout.splitlines() if " cache " in line)
    assert "offline" in done.stdout
    for command in (("judges",), ("methods",)):
        assert run_command(*command, cwd=tmp_path, PERSONALITYBENCH_CACHE=cache).returncode == 0
    line = one_line(run_command("artifacts", "list", cwd=tmp_path, PERSONALITYBENCH_CACHE=cache))
    assert "PERSONALITYBENCH_CACHE" in line


@pytest.mark.parametrize(
    ("code", "says"),
    [("raise RuntimeError('broken')", "RuntimeError: broken"), ("import sys; sys.exit(3)", "SystemExit: 3"),
     ("Plugin = object()", "it is no method"), ("1 +", "SyntaxError"),
     ("class PanicException(BaseException): pass\nraise PanicException('of Rust')", "PanicException: of Rust")],
    ids=["raises", "exits", "no method", "syntax", "panics"],
)  # fmt: skip
def test_a_broken_plug_in_is_a_finding_of_methods(code: str, says: str, tmp_path: Path) -> None:
    found = write_plug_in(tmp_path / "packages", "methods", "theirs", code)
    done = run_command("methods", cwd=tmp_path, COLUMNS="200", **found)
    assert done.returncode == 0, done.stderr
    assert "npti" in done.stdout
    assert says in " ".join(done.stdout.split())
    assert "theirs/plugin" in one_line(run_command("methods", "show", "theirs/plugin", cwd=tmp_path, **found))


def test_a_key_that_a_plug_in_quotes_is_in_no_output(tmp_path: Path) -> None:
    code = (
        "import os, logging\n"
        "logging.warning('\\x1b]0;PWNED\\x07 %s', os.environ['HF_TOKEN'])\n"
        "raise RuntimeError(os.environ['HF_TOKEN'])"
    )
    found = write_plug_in(tmp_path / "packages", "methods", "theirs", code) | {"HF_TOKEN": "planted-4711"}
    for command in (("methods",), ("methods", "show", "theirs/plugin"), ("methods", "check", "theirs/plugin")):
        done = run_command(*command, cwd=tmp_path, COLUMNS="200", PERSONALITYBENCH_TRACEBACK="1", **found)
        assert "RuntimeError: ***" in " ".join((done.stdout + done.stderr).split())
        assert "planted-4711" not in done.stdout + done.stderr
        assert r"\u001b]0;PWNED\u0007 ***" in done.stderr


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("output", ["file", "file/below", "/dev/null/x", "/dev/null", "dangling", "a" * 300])
def test_an_output_that_is_no_folder_is_refused_before_anything_runs(
    output: str, dry: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing" / "here")
    (tmp_path / "s.yaml").write_text(DUMMY)
    line = one_line(run_command("run", "s.yaml", "--output", output, *dry, cwd=tmp_path))
    assert "--output" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [("run", "a" * 300), ("run", "s.yaml"), ("run", "/proc/self/mem"), ("model", "~nosuchuser/x"), ("model", "a" * 300),
     ("judge", ".", "--judge", "a" * 300 + ".yaml"), ("judges", "attack", "/proc/self/mem.yaml")],
    ids=["suite", "name", "memory", "user", "model", "profile", "missing"],
)  # fmt: skip
def test_paths_and_names_that_cannot_be_are_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(DUMMY.replace("name: s", "name: " + "s" * 300, 1))
    (tmp_path / "suite.yaml").write_text(DUMMY)
    one_line(run_command(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(
    "option",
    [("--model", ""), ("--model", "x" * 5000), ("--model", b"\xff\xfe"), ("--backend", ""), ("--revision", "")],
    ids=["no name", "long name", "bytes", "no backend", "no revision"],
)  # fmt: skip
def test_options_of_a_fit_that_name_nothing_are_one_line(option: tuple[str, str | bytes], tmp_path: Path) -> None:
    name, value = option
    one_line(run_command("fit", "none", "--model", "m", name, os.fsdecode(value), cwd=tmp_path))


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path) -> None:
    assert "name is empty" in one_line(run_command("model", "", cwd=tmp_path))


def without_privilege() -> None:
    """Let the administrator obey permissions as well: drop CAP_DAC_OVERRIDE and its relatives before a command."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="permissions of Linux")
def test_a_read_only_cache_that_holds_what_is_needed_is_used(demo_model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "models").mkdir(parents=True)
    shutil.copytree(demo_model, cache / "models" / demo_model.name)
    for path in sorted(cache.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    cache.chmod(0o555)
    (tmp_path / "s.yaml").write_text(SUITE % ("demo", "args: {dtype: bfloat16}"))
    environment = os.environ | {"PERSONALITYBENCH_CACHE": str(cache)}
    try:
        for arguments in (["model", "demo"], ["run", "s.yaml", "--stage", "generate"], ["doctor"]):
            done = subprocess.run(
                [*COMMAND, *arguments],
                cwd=tmp_path,
                env=environment,
                preexec_fn=without_privilege if os.geteuid() == 0 else None,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
        assert "read-only" in " ".join(done.stdout.split())
        assert sorted(path.name for path in cache.iterdir()) == ["models"]
    finally:
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755)


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalitybench.errors import StorageError

    (tmp_path / "file").touch()
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="PERSONALITYBENCH_CACHE"):
        cache_folder("fits")
