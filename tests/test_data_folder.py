"""A local copy of the official data: a run's suite keeps its folder, so later commands ask the same questions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from personalitybench.errors import ConfigurationError
from personalitybench.questions import DATA_VARIABLE, open_source
from personalitybench.resources import bundled
from personalitybench.runs.suite import load_suite
from tests.security.terminal import one_line, run_command, write_judge

SUITE = """
name: s
models: [{name: nothing, backend: dummy}]
methods: [none]
targets: ['openness:high']
judges: [constant.yaml]
questions: {source: official, limit: 2}
floors: false
"""
LATER = [
    ("judge", "out/run", "--judge", "constant.yaml"),
    ("judges", "compare", "constant.yaml", "--answers", "out/run"),
]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A suite, a judge and a copy of data in ``data``."""
    found = write_judge(tmp_path, tmp_path / "packages") | {DATA_VARIABLE: ""}
    (tmp_path / "s.yaml").write_text(SUITE)
    shutil.copytree(bundled("tasks", "sample"), tmp_path / "data")
    return tmp_path, found


@pytest.mark.parametrize("by_variable", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_later_commands_find_the_copy(folder: tuple[Path, dict[str, str]], by_variable: bool) -> None:
    cwd, found = folder
    named = () if by_variable else ("--data-dir", "data")
    variable = {DATA_VARIABLE: "data"} if by_variable else {}
    done = run_command("run", "s.yaml", "--output", "out/run", *named, cwd=cwd, **found | variable)
    assert done.returncode == 0, done.stderr
    kept = yaml.safe_load((cwd / "out" / "run" / "suite.yaml").read_text())
    assert kept["questions"]["data_dir"] == str(cwd / "data")
    for command in LATER:
        done = run_command(*command, cwd=cwd, **found)
        assert done.returncode == 0, done.stderr
    (cwd / "elsewhere").mkdir()
    shutil.copy(cwd / "constant.yaml", cwd / "elsewhere" / "constant.yaml")
    done = run_command("judge", "../out/run", "--judge", "constant.yaml", cwd=cwd / "elsewhere", **found)
    assert done.returncode == 0, done.stderr


def test_a_copy_that_moved_is_named_by_the_variable(folder: tuple[Path, dict[str, str]]) -> None:
    cwd, found = folder
    done = run_command("run", "s.yaml", "--output", "out/run", "--data-dir", "data", cwd=cwd, **found)
    assert done.returncode == 0, done.stderr
    (cwd / "data").rename(cwd / "moved")
    done = run_command(*LATER[0], cwd=cwd, **found | {DATA_VARIABLE: "moved"})
    assert done.returncode == 0, done.stderr
    shutil.copytree(cwd / "moved", cwd / "other")
    (cwd / "other" / "test" / "Openness.json").write_text('{"question": "Another one?"}\n')
    for command in (LATER[0], ("run", "s.yaml", "--output", "out/run", "--stage", "score", "--data-dir", "other")):
        line = one_line(run_command(*command, cwd=cwd, **found | {DATA_VARIABLE: "other"}))
        assert "out/run are of the questions official:" in line
        assert f"name the folder of their data in {DATA_VARIABLE}" in line


@pytest.mark.parametrize("name", ["~nosuchuser-4711/x", "a\0b"])
def test_a_name_that_can_be_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    with pytest.raises(ConfigurationError, match=r"data folder .*: name a folder"):
        load_suite(str(tmp_path / "s.yaml")).with_data(Path(name))


def test_data_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    shutil.copytree(bundled("tasks", "sample"), tmp_path / "data")
    for path in (tmp_path / "data" / "test" / "Openness.json", tmp_path / "data" / "description.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    source = open_source("official", tmp_path / "data")
    assert len(source.questions("evaluate", "openness")) > 0
    assert all(source.descriptions.values())
