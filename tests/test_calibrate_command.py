"""``personalitybench judges calibrate`` and what boards make of it, with judges behind a server and real commands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("openai")

from personalitybench.errors import ConfigurationError
from personalitybench.judging.agreement.calibration import read_calibration
from personalitybench.leaderboard.mapped import calibrations_of
from personalitybench.leaderboard.render import read_board
from personalitybench.runs.command import run_suite
from personalitybench.tasks import judge_fingerprint
from tests.chat_server import ChatServer
from tests.lm_eval_folders import made_up_answer
from tests.test_compare_command import ANSWERED

pytestmark = pytest.mark.model

PROFILE = """
id: {id}
provider: chat
summary: for tests
settings: {{model: {id}, base_url: "{url}", sampling: {{temperature: 0}}}}
"""
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def judges(chat_server: ChatServer, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A mild judge, whose ratings go with the length of the answer, and a strict one that gives one less."""

    def answer(body: dict[str, object]) -> str:
        mild = 2 + len(str(body["messages"])) % 4
        return f"It reads so. [[{mild if body['model'] == 'mild' else mild - 1}]]"

    chat_server.answer = answer
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("mild", "strict"):
        (tmp_path / f"{name}.yaml").write_text(PROFILE.format(id=name, url=chat_server.url))
    return str(tmp_path / "mild.yaml"), str(tmp_path / "strict.yaml")


@pytest.fixture
def run(tmp_path: Path, judges: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small run that the mild judge rated."""
    with ChatServer(answer=made_up_answer) as server:
        suite = tmp_path / "small.yaml"
        suite.write_text(ANSWERED.format(url=server.url) + f"judges: ['{judges[0]}']\nfloors: false\n")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")
        run_suite(str(suite), tmp_path / "run", (), Console(quiet=True))
    return tmp_path / "run"


def test_a_mild_judge_is_read_on_the_scale_of_a_strict_one(
    judges: tuple[str, str], run: Path, command: Command, tmp_path: Path, chat_server: ChatServer
) -> None:
    done = command("judges", "calibrate", *judges, "--answers", "gold", "--sample", "4")
    assert done.returncode == 0, done.stderr
    assert re.search(r"trait +│? *\d+ +│? *1\.00 \[1\.00, 1\.00\] +│? *0\.00", done.stdout), done.stdout
    calibration = read_calibration(tmp_path / "mild-to-strict.json")
    assert calibration.judge == judge_fingerprint(judges[0])
    assert calibration.maps["trait"].points == ((2, 1), (3, 2), (4, 3), (5, 4))

    before = read_board(run / "leaderboard.json")
    assert before.mapped_to is None
    asked = len(chat_server.requests)
    shown = command("judge", "run", "--judge", judges[0], "--calibration", "mild-to-strict.json")
    assert shown.returncode == 0, shown.stderr
    assert len(chat_server.requests) == asked
    after = read_board(run / "leaderboard.json")
    assert [row.average for row in after.rows] == [row.average for row in before.rows], "never instead"
    assert after.mapped_to is not None
    assert after.mapped_to.reference["id"] == "strict"
    assert (after.mapped_to.error_raw, after.mapped_to.error_mapped) == (1.0, 0.0)
    for row in after.rows:
        # Both poles' ratings are one less: the high pole loses what the low one gains.
        assert row.mapped is not None
        assert row.mapped.average.mean == pytest.approx(row.average.mean)
    assert "name the calibration" in command("leaderboard", "verify", "run").stderr
    verified = command("leaderboard", "verify", "run", "--calibration", "mild-to-strict.json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "mapped" in shown.stdout
    assert "on the scale of strict" in " ".join(shown.stdout.split())
    for page in ("index.html", "leaderboard.md"):
        assert "read on the scale of strict" in (run / page).read_text()


def test_people_are_a_reference(judges: tuple[str, str], command: Command, tmp_path: Path) -> None:
    assert command("judges", "compare", "--answers", "gold", "--sample", "4", "--export", "rate.csv").returncode == 0
    lines = (tmp_path / "rate.csv").read_text(encoding="utf-8-sig").splitlines()
    filled = [lines[0]]
    filled += [re.sub(r",,,$", f",anna,{number % 5 + 1},3", line) for number, line in enumerate(lines[1:])]
    (tmp_path / "rate.csv").write_text("\n".join(filled))
    done = command("judges", "calibrate", judges[0], "--answers", "gold", "--human", "rate.csv", "--output", "map.json")
    assert done.returncode == 0, done.stderr
    calibration = read_calibration(tmp_path / "map.json")
    assert calibration.reference["id"] == "human:anna"
    assert calibration.maps["trait"].n == 60, "four answers of each of fifteen poles"


def test_what_does_not_fit_is_refused(judges: tuple[str, str], command: Command, tmp_path: Path) -> None:
    alone = command("judges", "calibrate", judges[0], "--answers", "gold", "--sample", "1")
    assert alone.returncode == 2
    assert "name a second judge, or the ratings of people" in alone.stderr
    few = command("judges", "calibrate", *judges, "--answers", "gold", "--sample", "1")
    assert few.returncode == 2
    assert "rated too few of the same answers" in few.stderr
    assert command("judges", "calibrate", *judges, "--answers", "gold", "--sample", "4").returncode == 0
    made = tmp_path / "mild-to-strict.json"
    own, other = (judge_fingerprint(name) for name in judges)
    assert list(calibrations_of([made], [other, own])) == ["mild"]
    with pytest.raises(ConfigurationError, match="calibration of judge 'mild': the boards are of strict"):
        calibrations_of([made], [other])
    with pytest.raises(ConfigurationError, match="two calibrations of judge 'mild'"):
        calibrations_of([made, shutil.copy(made, tmp_path / "again.json")], [own])
    content = json.loads(made.read_text())
    content["maps"]["fluency"] = content["maps"].pop("trait")
    made.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="no map for trait ratings"):
        calibrations_of([made], [own])
