"""Sessions under other versions of what computes: told in one line, kept, and shown in the provenance."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from personalitybench import version_log
from personalitybench.leaderboard.build import build_board
from personalitybench.leaderboard.render import read_board
from personalitybench.version_log import other_versions, record_session, session_versions
from tests.test_leaderboard import cell, ratings

OLD, NEW = {"lm_eval": "1.0", "peft": "2.0"}, {"lm_eval": "1.1", "torch": "3.0"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    return lambda versions: monkeypatch.setattr(version_log, "package_versions", lambda: dict(versions))


def test_a_session_under_the_same_versions_is_not_recorded_again(
    tmp_path: Path, installed: Callable[[dict[str, str]], None]
) -> None:
    installed(OLD)
    assert [record_session(tmp_path), record_session(tmp_path)] == ["", ""]
    assert session_versions(tmp_path) == [OLD]


def test_a_session_under_other_versions_is_appended_and_described(
    tmp_path: Path, installed: Callable[[dict[str, str]], None]
) -> None:
    installed(NEW)
    changed = "lm_eval 1.1 (before: 1.0), peft not installed (before: 2.0), torch 3.0 (before: none)"
    assert record_session(tmp_path, OLD) == changed
    assert record_session(tmp_path, OLD) == ""
    installed(OLD)
    assert record_session(tmp_path, OLD)
    assert session_versions(tmp_path) == [NEW, OLD]


def test_versions_besides_the_first_are_listed_once() -> None:
    assert other_versions(OLD, [NEW, OLD, NEW]) == [NEW]
    assert other_versions(OLD, []) == []


def test_a_row_has_the_versions_of_all_its_seeds() -> None:
    cells = [cell("extraversion:high", ratings(4.0), seed=seed) for seed in (0, 1)]
    made = [each.provenance.model_copy(update={"versions": v}) for each, v in zip(cells, (OLD, NEW), strict=True)]
    untried = [made[0], made[1].model_copy(update={"untried_versions": ["torch 3.0 (tried: <3)"]})]
    changed = [replace(each, provenance=provenance) for each, provenance in zip(cells, untried, strict=True)]
    (row,) = build_board("b", changed).rows
    assert (row.provenance.versions, row.provenance.other_versions) == (OLD, [NEW])
    assert row.provenance.untried_versions == ["torch 3.0 (tried: <3)"]


@pytest.mark.model
def test_a_run_that_is_resumed_under_other_versions_says_so(
    tiny_model: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A17: half of a sheet is written, then another version of peft is installed."""
    (tmp_path / "s.yaml").write_text(
        f"name: s\nmodels: [{{name: {tiny_model}, batch_size: 1, device: cpu, args: {{dtype: float32}}}}]\n"
        "methods: [none, simple]\ntargets: ['extraversion:high']\nquestions: {limit: 2}\nprotocol: {max_tokens: 4}\n"
        "floors: false\n"
    )
    first = command("run", "s.yaml", "--output", "out", "--stage", "generate")
    assert first.returncode == 0, first.stderr
    assert "resumed under" not in first.stdout
    call = next((tmp_path / "out" / "calls").glob("none-*"))
    answers = call / "extraversion-high" / "answers.jsonl"
    answers.with_suffix(".json").unlink()
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text(lines[0])

    fake = tmp_path / "fake" / "peft-99.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 99.9\n")
    path = os.pathsep.join(filter(None, [str(fake.parent), os.environ.get("PYTHONPATH", "")]))
    recorded = (call / "call.json").read_bytes()
    for session in range(2):
        done = command("run", "s.yaml", "--output", "out", PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stdout.splitlines() if "resumed under" in line]
        assert len(told) == (1 if session == 0 else 0)
        if told:
            assert told[0].startswith("generate none: resumed under peft 99.9 (before: ")
    assert answers.read_text().splitlines(keepends=True) == lines
    assert (call / "call.json").read_bytes() == recorded
    rows = {row.identity.method.name: row for row in read_board(tmp_path / "out" / "leaderboard.json").rows}
    made = rows["none"].provenance
    assert made.versions == json.loads(recorded)["provenance"]["versions"]
    assert [versions["peft"] for versions in made.other_versions] == ["99.9"]
    assert rows["simple"].provenance.other_versions == []
