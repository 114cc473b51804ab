"""Methods with a ready adapter: their fit leaves nothing, a setting names the folder, and rows hold its hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("peft")

from tests.security.terminal import one_line, run_command, write_judge, write_plug_in
from tests.test_adapters import write_adapter

pytestmark = pytest.mark.model

METHOD = '''
from dataclasses import replace
from personalitybench.methods.base import MethodSettings
from personalitybench.methods.none import Unprompted

class AdapterSettings(MethodSettings):
    folder: str = ""

class Plugin(Unprompted):
    """A ready adapter for all targets."""
    summary = "a ready adapter"
    needs = frozenset({"adapter"})
    Settings = AdapterSettings

    def __init__(self, settings, context):
        self.settings, self.context = settings, context

    def induce(self, target, strength, question):
        plain = replace(super().induce(target, None, question), method="ready/plugin")
        return replace(plain, adapter=self.settings.folder) if self.settings.folder else plain
'''
SUITE = """
name: s
models: [{name: %s, backend: personalitybench-hf, args: {dtype: float32}, device: cpu}]
methods: [{name: ready/plugin, settings: {folder: %s}}]
targets: ['openness:high', 'openness:low']
judges: [constant.yaml]
questions: {limit: 1}
protocol: {max_tokens: 2}
floors: false
"""


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A suite, a judge, a method and an adapter in ``ada``."""
    packages = tmp_path / "packages"
    found = write_judge(tmp_path, packages)
    write_plug_in(packages, "methods", "ready", METHOD)
    write_adapter(tiny_model, tmp_path / "ada", 1)
    (tmp_path / "s.yaml").write_text(SUITE % (tiny_model, tmp_path / "ada"))
    return tmp_path, found


def board(folder: Path) -> dict[str, str]:
    (row,) = json.loads((folder / "leaderboard.json").read_text())["rows"]
    return {"id": row["id"], "artifact": row["identity"]["method"]["artifact"]}


def test_a_ready_adapter_is_run_and_in_the_identity(place: tuple[Path, dict[str, str]], tiny_model: Path) -> None:
    folder, found = place
    plan = run_command("run", "s.yaml", "--dry-run", "--json", cwd=folder, **found)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["fits"] == []
    for _ in range(2):
        done = run_command("run", "s.yaml", "--output", "a", cwd=folder, **found)
        assert done.returncode == 0, done.stderr
    first = board(folder / "a")
    assert first["artifact"]
    done = run_command("judge", "a", "--judge", "constant.yaml", cwd=folder, **found)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "ada")
    write_adapter(tiny_model, folder / "ada", 2)
    done = run_command("run", "s.yaml", "--output", "a", cwd=folder, **found)
    assert done.returncode == 0, done.stderr
    second = board(folder / "a")
    assert second["id"] != first["id"]
    assert second["artifact"] != first["artifact"]
    assert len(list((folder / "a" / "calls").iterdir())) == 2


def test_an_adapter_that_is_not_there_is_one_line(place: tuple[Path, dict[str, str]]) -> None:
    folder, found = place
    shutil.rmtree(folder / "ada")
    for dry in ([], ["--dry-run"]):
        line = one_line(run_command("run", "s.yaml", "--output", "a", *dry, cwd=folder, **found))
        assert f"{folder / 'ada'} is missing or empty" in line


def test_fit_and_check_agree(place: tuple[Path, dict[str, str]], tiny_model: Path) -> None:
    folder, found = place
    chosen = ("--model", tiny_model, "--set", f"folder={folder / 'ada'}")
    done = run_command("fit", "ready/plugin", *chosen, "--backend", "personalitybench-hf", cwd=folder, **found)
    assert done.returncode == 0, done.stderr
    assert "fits nothing" in done.stdout
    done = run_command("methods", "check", "ready/plugin", *chosen, "--keep-going", "--json", cwd=folder, **found)
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert "it fits nothing; what it names is there" in checks["fit"]["reason"]
    assert [name for name in ("fit", "serialisable", "needs", "strength") if checks[name]["outcome"] != "pass"] == []
