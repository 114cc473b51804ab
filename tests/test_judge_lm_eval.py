"""``personalitybench judge`` on what lm_eval left: the boards that lm_eval's own judging gives, nothing paid twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("openai")

from personalitybench.cli import board_from_lm_eval
from personalitybench.errors import ConfigurationError, DataError, StorageError
from personalitybench.judging.base import create_judge
from personalitybench.runs.judge_command import judge_run
from tests.chat_server import ChatServer, Fault
from tests.lm_eval_folders import run_lm_eval
from tests.test_judge_command import JUDGE
from tests.test_verify import verify

pytestmark = pytest.mark.model

OTHER = """
id: other
provider: offline
summary: the offline judge by another name
settings: {heads: offline/heads.safetensors}
"""


@pytest.fixture(scope="module")
def folders(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``unjudged``, and ``both`` with the verdicts of two judges: the same answers."""
    folder = tmp_path_factory.mktemp("lm-eval")
    (folder / "other.yaml").write_text(OTHER)
    calls = {
        "unjudged": {"method": "simple", "judge": None},
        "both": {"method": "simple", "judge": ["offline", "other"]},
    }
    run_lm_eval(folder, calls, PERSONALITYBENCH_JUDGES=str(folder))
    return folder


@pytest.fixture
def copied(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(folders))
    create_judge.cache_clear()

    def copy(name: str) -> Path:
        shutil.copytree(folders / name, tmp_path / name)
        return tmp_path / name

    return copy


def judge(folder: Path, *judges: str, dry_run: bool = False) -> str:
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    judge_run(folder, judges, console, budget=None, dry_run=dry_run, floors=False)
    return console.export_text()


def sheets(folder: Path) -> list[Path]:
    return sorted((folder / "ratings").rglob("*.jsonl"))


def test_the_board_is_that_of_lm_eval(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("unjudged")
    assert "│ 8 " in judge(folder, "offline", dry_run=True)
    assert not sheets(folder)
    judge(folder, "offline")
    judged = copied("both")
    board_from_lm_eval([judged], output=tmp_path / "board", floors=False)
    assert {path.stem for path in (tmp_path / "board").glob("*.json")} == {"leaderboard", "leaderboard-other"}
    for made, expected in (
        ("leaderboard-offline.json", "leaderboard.json"),
        ("leaderboard-offline.md", "leaderboard.md"),
        ("leaderboard-offline.html", "index.html"),
    ):
        assert (folder / made).read_bytes() == (tmp_path / "board" / expected).read_bytes()
    assert "│ 0 " in judge(folder, "offline", dry_run=True)
    for answers, board in (
        (folder, folder / "leaderboard-offline.json"),
        (judged, tmp_path / "board/leaderboard.json"),
    ):
        assert verify(answers, board)[1] == ""
        board.write_text(board.read_text().replace('"n": 2', '"n": 3', 1))
        assert "n: the file says 3, the answers and ratings give 2" in verify(answers, board)[0]


def test_what_lm_eval_had_rated_is_not_rated_again(copied: Callable[[str], Path]) -> None:
    """Of two judges of one call each gets its board; a verdict that stands in the samples is the one that counts."""
    folder = copied("both")
    path = next(folder.rglob("samples_*high*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["filter"] == "other":
            line["filtered_resps"] = [json.dumps({"trait": {"rating": 5}, "fluency": {"rating": 2}, "text": {}})]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "│ 0 " in judge(folder, "other", dry_run=True)
    judge(folder, "offline", "other")
    (row,) = json.loads((folder / "leaderboard-other.json").read_text())["rows"]
    assert row["targets"]["extraversion:high"]["mean"] == 5
    (row,) = json.loads((folder / "leaderboard-offline.json").read_text())["rows"]
    assert row["targets"]["extraversion:high"]["mean"] < 5


def test_it_resumes_and_pays_nothing_twice(
    copied: Callable[[str], Path], chat_server: ChatServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sheet that a kill cut off amid a line is completed; with other answers in the samples all is rated anew."""
    (tmp_path / "served.yaml").write_text(JUDGE.format(url=chat_server.url))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = str(tmp_path / "served.yaml")
    folder = copied("unjudged")
    judge(folder, served)
    asked = len(chat_server.requests)
    assert asked > 4  # an answer that is there twice is rated once
    board = (folder / "leaderboard-served.json").read_bytes()
    whole = {path: path.read_bytes() for path in sheets(folder)}
    assert len(whole) == 2
    first = next(iter(whole))
    first.write_bytes(whole[first][:-7])
    with pytest.raises(StorageError, match="was altered after it was complete"):
        judge(folder, served)
    first.with_suffix(".json").unlink()
    judge(folder, served)
    assert len(chat_server.requests) == asked
    assert {path: path.read_bytes() for path in sheets(folder)} == whole
    assert (folder / "leaderboard-served.json").read_bytes() == board

    samples = next(folder.rglob("*/samples_*low*.jsonl"))
    samples.write_text(samples.read_text().replace('"resps": [["', '"resps": [["Quietly, I think. '))
    judge(folder, served)
    assert len(chat_server.requests) == asked + 4
    assert len(sheets(folder)) == 3


def test_an_answer_that_the_server_did_not_rate_is_asked_about_again(
    copied: Callable[[str], Path], chat_server: ChatServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that says nothing of the answer is not final; a refusal is, where nothing else was amiss."""
    client = "client: {attempts: 1, concurrency: 1}\n"
    (tmp_path / "served.yaml").write_text(JUDGE.format(url=chat_server.url) + client)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = str(tmp_path / "served.yaml")
    folder = copied("unjudged")
    chat_server.script.extend([Fault("garbage"), Fault("500"), Fault("refusal"), None])
    judge(folder, served)
    asked = len(chat_server.requests)
    rows = [json.loads(line) for path in sheets(folder) for line in path.read_text().splitlines()]
    reasons = [row[aspect].get("unrated") for row in rows for aspect in ("trait", "fluency")]
    assert sorted(set(filter(None, reasons))) == ["not-text", "refused", "unreachable"]
    assert "│ served │ 0 " not in judge(folder, served, dry_run=True)
    judge(folder, served)
    assert asked < len(chat_server.requests) <= asked + 3
    board = json.loads((folder / "leaderboard-served.json").read_text())["rows"][0]["targets"]
    assert {reason for target in board.values() for reason in target["unrated"]} <= {"refused"}
    asked = len(chat_server.requests)
    assert "│ served │ 0 " in judge(folder, served, dry_run=True)
    judge(folder, served)
    assert len(chat_server.requests) == asked


def test_what_cannot_make_a_board_is_refused_before_anything_is_asked(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("unjudged")
    with pytest.raises(ConfigurationError, match="say who rates them with --judge"):
        judge(folder)
    shutil.copytree(folder, folder / "again")
    with pytest.raises(DataError, match="two results for extraversion:high"):
        judge(folder, "offline")
    shutil.rmtree(folder / "again")
    samples = next(folder.rglob("samples_*low*.jsonl"))
    samples.write_text('{"filter": "unjudged"}\n')
    with pytest.raises(DataError, match=r"low.*jsonl:1 is not a sample of lm-eval"):
        judge(folder, "offline")
    samples.write_text("")
    with pytest.raises(DataError, match="holds 0 answers, but its results state 2"):
        judge(folder, "offline")
    samples.unlink()
    with pytest.raises(DataError, match="run lm_eval with --log_samples"):
        judge(folder, "offline")
    assert not sheets(folder)
    with pytest.raises(StorageError, match="no results of lm_eval"):
        judge(tmp_path / "nowhere", "offline")
