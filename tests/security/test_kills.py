"""Kills at changes of the file system: the same command then leaves, byte for byte, what one run leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lora_answers import own_lines, write
from tests.plugins import write_judge

pytestmark = pytest.mark.model

SUITE = """
name: killed
models: [{{name: {model}, backend: personalitybench-hf, batch_size: 4, device: cpu, args: {{dtype: float32}}}}]
methods:
  - none
  - simple
  - name: npti
    settings: {{questions: 4, max_tokens: 4, batch_size: 4, shards: 2, selection: own-pole, threshold: 0.01}}
    strengths: [0.5, 1.0]
    choose_on: dev
  - name: lora
    settings: {{data: {data}, rank: 2, epochs: 1, learning_rate: 0.01, train_batch_size: 4}}
    strengths: [1.0]
targets: ['extraversion:high', 'extraversion:low']
judges: [{judge}]
questions: {{limit: 2}}
tuning: {{slack: 0.0}}
protocol: {{max_tokens: 8}}
"""
TIMES = re.compile(rb'"(?:[a-z_]*seconds|train|generate|read)": [0-9.e-]+|[0-9.]+ s\b')
"""How long things took, as records and pages of fits say it: the only thing that two runs may differ in."""
RECORDS_OF_TIME = {"seconds.jsonl", "sessions.jsonl"}


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name, hidden ones too, without times; locks are files of no content."""
    return {
        str(path.relative_to(folder)): TIMES.sub(b"", path.read_bytes()) if path.name not in RECORDS_OF_TIME else b""
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.parametrize("every", [pytest.param(5, marks=pytest.mark.slow), 400])
def test_killed_at_changes_of_the_file_system(every: int, lively_model: Path, tmp_path: Path) -> None:
    judge = write_judge(tmp_path, "kills")
    data = write(tmp_path / "own.jsonl", own_lines())
    (tmp_path / "suite.yaml").write_text(SUITE.format(model=lively_model, data=data, judge=judge))
    command = [sys.executable, "-m", "tests.killed_points", str(tmp_path), str(every), "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    )
    assert not done.returncode, done.stderr
    assert int(done.stdout) > 100
    whole = tree(tmp_path / "whole")
    board = json.loads((tmp_path / "whole" / "run" / "leaderboard.json").read_text())
    assert {row["identity"]["method"]["name"] for row in board["rows"]} == {"none", "simple", "npti", "lora"}
    points = sorted((tmp_path / "points").iterdir())
    assert len(points) >= int(done.stdout) // every
    for point in points:
        found = tree(point)
        assert found.keys() == whole.keys(), point.name
        assert [name for name in whole if found[name] != whole[name]] == [], point.name
