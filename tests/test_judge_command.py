"""``personalitybench judge``: a run's answers rated by a judge behind a server, with the real command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from tests.chat_server import ChatServer
from tests.test_runs import SUITE, TWO_TARGETS

pytestmark = pytest.mark.model

JUDGE = """
id: served
provider: chat
summary: for tests
settings: {{model: small, base_url: "{url}", sampling: {{temperature: 0, max_tokens: 60}}}}
"""


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "personalitybench.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )


def test_a_run_is_rated_by_another_judge(
    chat_server: ChatServer, tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First by its own, then by one behind a server: told what it takes, asked, and asked nothing the second time."""

    def answer(body: Any) -> str:
        return "It goes out a lot. [[5]]" if "xtraver" in str(body) else "It reads well. [[4]]"

    chat_server.answer = answer
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "served.yaml").write_text(JUDGE.format(url=chat_server.url))
    suite = tmp_path / "small.yaml"
    suite.write_text(SUITE.format(model=demo_model, methods="[none]", targets=TWO_TARGETS, dtype="float32"))
    assert command("run", "small.yaml", "--output", "out", folder=tmp_path).returncode == 0
    before = (tmp_path / "out" / "leaderboard.json").read_bytes()

    told = command("judge", "out", "--judge", "served", "--dry-run", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert not chat_server.requests
    row = [cell.strip() for line in told.stdout.splitlines() if "served" in line for cell in line.split("│")[1:-1]]
    assert row[:2] == ["served", str(8 + 2 * 160)], "answers and floors, each for its trait and for fluency"
    assert row[-1] == "no price known"

    (tmp_path / "two.yaml").write_text("{id: two, provider: panel, summary: x, settings: {judges: [served, offline]}}")
    told = command("judge", "out", "--judge", "two", "--dry-run", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.stdout.splitlines() if "two" in line]
    assert cells == [["two > served", *row[1:]]], "a panel costs what its members do"

    done = command("judge", "out", "--judge", "served", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = len(chat_server.requests)
    assert int(row[3].replace(",", "")) == asked > 0
    assert f"judge served: {asked} replies asked for, " in done.stdout
    progress = r"judge none by served: \d+ answers in [\d.]+ s, [\d.]+ answers/s, [1-9][\d,]* tokens"
    assert re.search(progress, done.stdout)
    board = json.loads((tmp_path / "out" / "leaderboard-served.json").read_text())
    assert board["judge"]["id"] == "served"
    # Whatever names extraversion is rated 5, and it is named to the judge of that trait each time.
    floors = {floor["kind"]: floor for floor in board["floors"]["rows"]}
    assert floors["keywords"]["targets"]["extraversion:high"]["mean"] == 5.0
    assert floors["keywords"]["targets"]["extraversion:low"]["mean"] == 1.0
    own = json.loads(before)["floors"]["rows"]
    assert [floor["kind"] for floor in own] == list(floors)
    assert own != board["floors"]["rows"], "each board has the floors of its own judge"
    # Rated 5 by name: 5 toward the high pole and 1 toward the low one make 6, the neutral sum of two poles.
    assert "6.00" in done.stdout
    assert (tmp_path / "out" / "leaderboard.json").read_bytes() == before

    command("judge", "out", "--judge", "served", folder=tmp_path)
    assert len(chat_server.requests) == asked
    plain = tmp_path / "out" / "suite.yaml"
    plain.write_text(plain.read_text().replace("floors: true", "floors: false"))
    assert command("judge", "out", "--judge", "served", folder=tmp_path).returncode == 0
    assert json.loads((tmp_path / "out" / "leaderboard-served.json").read_text())["floors"] is None
    refused = command("judge", "out", "--judge", "served", "--budget", "1", folder=tmp_path)
    assert refused.returncode == 2
    assert "no price of its model is known" in refused.stderr
    nothing = command("judge", "nowhere", "--judge", "served", folder=tmp_path)
    assert nothing.returncode == 2
    assert "nowhere holds no run" in nothing.stderr
