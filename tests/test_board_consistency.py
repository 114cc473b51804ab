"""A board file is believed only as far as its figures agree; a board says who computed them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from personalitybench.errors import PersonalityBenchError
from personalitybench.leaderboard.consistency import find_problem
from personalitybench.leaderboard.render import read_board, to_html, to_markdown, write_board
from personalitybench.leaderboard.schema import Row, RowIdentity
from personalitybench.leaderboard.summary import board_table
from personalitybench.resources import bundled
from tests.full_board import full_board
from tests.mutations import assert_accepts_or_refuses, json_mutants, mutant_count
from tests.security.terminal import one_line, run_command

RECOMPUTED = "Every figure is recomputed from the answers and ratings"
NOT_VERIFIED = "as the file says, not verified here"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(full_board().model_dump_json())
    return board


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path such as ``rows.0.average.mean``."""

    def edit(board: dict[str, Any]) -> None:
        holder: Any = board
        *parts, last = path.split(".")
        for part in parts:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        holder[int(last) if isinstance(holder, list) else last] = value

    return edit


def rename(board: dict[str, Any]) -> None:
    board["rows"][0]["identity"]["method"]["name"] = "other"


def of_another_judge(board: dict[str, Any]) -> None:
    row = board["rows"][0]
    row["identity"]["judge"]["id"] = "gpt-4o"
    row["id"] = Row.make_id(RowIdentity.model_validate(row["identity"]))


ONE_TARGET = "rows.0.targets.openness:high"
EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "average outside of its interval": (put("rows.0.average.mean", 9.99), "rows.0.average.interval"),
    "average and interval": (
        put("rows.0.average", {"mean": 9.95, "interval": [9.9, 10.0], "variance": None}),
        "rows.0.average.mean",
    ),
    "off the scale": (put("rows.0.average.mean", 99.0), "rows.0.average.mean"),
    "reversed interval": (put("rows.0.average.interval", [9.0, 4.0]), "is reversed"),
    "interval of a target": (put(f"{ONE_TARGET}.interval", [4.9, 1.2]), f"{ONE_TARGET}.interval"),
    "reversed order": (lambda board: board["rows"].reverse(), "is above that of the row before it"),
    "rated above n": (put(f"{ONE_TARGET}.rated", 500), f"{ONE_TARGET}.rated"),
    "negative count": (put(f"{ONE_TARGET}.rated", -1), f"{ONE_TARGET}.rated"),
    "unrated do not add up": (put(f"{ONE_TARGET}.unrated", {"refusal": 3}), f"{ONE_TARGET}.unrated"),
    "negative unrated": (put(f"{ONE_TARGET}.unrated", {"refusal": -1}), f"{ONE_TARGET}.unrated.refusal"),
    "no answers": (put(f"{ONE_TARGET}.n", 0), f"{ONE_TARGET}"),
    "more answers than questions": (put("rows.0.identity.data.questions", 2), "rows.0.id"),
    "coverage": (put(f"{ONE_TARGET}.coverage", 1.0), f"{ONE_TARGET}.coverage"),
    "a trait": (put("rows.0.traits.openness.mean", 9.0), "rows.0.traits.openness"),
    "a variance": (put("rows.0.traits.openness.variance", 0.01), "rows.0.traits.openness.variance"),
    "a target": (put(f"{ONE_TARGET}.mean", 4.9), "openness"),
    "fluency": (put("rows.0.fluency_average.mean", 4.0), "rows.0.fluency_average"),
    "a missing trait": (lambda board: board["rows"][0]["traits"].pop("openness"), "rows.0"),
    "an id": (put("rows.0.id", "0" * 16), "is not the hash of the row's identity"),
    "an identity": (rename, "is not the hash of the row's identity"),
    "one id twice": (lambda board: board["rows"].insert(1, board["rows"][0]), "is the id of rows.0, too"),
    "another judge": (of_another_judge, "rows.0.identity.judge"),
    "the board's judge": (put("judge.rubric_sha256", "x"), "rows.0.identity.judge"),
    "NaN": (put("rows.0.average.mean", float("nan")), "NaN"),
    "infinity": (put("rows.0.provenance.fit.seconds", float("inf")), "Infinity"),
    "infinity as a number": (put("rows.0.average.mean", "1e999"), "rows.0.average.mean"),
    "text instead of a number": (put("rows.0.average.mean", "5.3"), "rows.0.average.mean"),
    "true instead of a number": (put(f"{ONE_TARGET}.mean", True), f"{ONE_TARGET}.mean"),
    "mapped average": (put("rows.0.mapped.average.mean", 2.5), "rows.0.mapped.average"),
    "mapped figures of nobody": (put("mapped_to", None), "rows.0.mapped"),
    "mapped to nobody": (put("mapped_to.reference", {}), "mapped_to.reference"),
    "a null baseline": (put("floors.rows.0.average.mean", 2.5), "floors.rows.0.average"),
    "null baselines without traits": (put("floors.rows.0.traits", {}), "floors.rows.0.traits"),
    "null baselines without targets": (put("floors.rows.0.targets", {}), "floors.rows.0.targets"),
    "a choice": (put("sweeps.0.targets.openness:high.chosen", 1.0), "sweeps.0"),
    "a fluency of a sweep": (put("sweeps.0.targets.openness:high.points.0.result.fluency", 7), "sweeps.0"),
    "a sweep of no target": (put("sweeps.0.targets", {}), "sweeps.0.targets"),
    "a sweep of no strength": (put("sweeps.0.targets.openness:high.points", []), "points"),
    "an unknown target": (put("rows.0.targets.x:high", None), "rows.0.targets"),
    "parts of a combination": (
        put("rows.0.identity.method", {"name": "combined", "version": "1", "settings": {"parts": [{"x": 1}]}}),
        "settings.parts",
    ),
    "parts that are a number": (
        put("rows.0.identity.method", {"name": "combined", "version": "1", "settings": {"parts": 5}}),
        "settings.parts",
    ),
    "no strength": (put("rows.0.identity.method.strength", {}), "rows.0.identity.method.strength"),
    "a huge count": (put(f"{ONE_TARGET}.n", 10**299), f"{ONE_TARGET}.n"),
    "a count of many digits": (put(f"{ONE_TARGET}.n", "@" * 4001), "digits"),
    "half of a surrogate pair": (put("name", "a\ud800"), "surrogate"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_board_is_refused_with_file_and_field(case: str, content: dict[str, Any], tmp_path: Path) -> None:
    edit, says = EDITS[case]
    board = copy.deepcopy(content)
    edit(board)
    path = tmp_path / "board.json"
    text = json.dumps(board).replace(json.dumps("@" * 4001), "9" * 4001).replace('"1e999"', "1e999")
    path.write_text(text)
    with pytest.raises(PersonalityBenchError) as refused:
        read_board(path)
    assert str(path) in str(refused.value)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_computed_board_is_consistent_and_reads_back(content: dict[str, Any], tmp_path: Path) -> None:
    board = full_board()
    assert find_problem(board) is None
    path = write_board(board, tmp_path)[0]
    assert read_board(path) == board


def test_published_figures_agree_within_what_is_printed(tmp_path: Path) -> None:
    board = json.loads((bundled("leaderboards") / "paper" / "llama-3-8b-instruct.json").read_text())
    board["rows"][0]["average"]["mean"] = 9.99
    (tmp_path / "b.json").write_text(json.dumps(board))
    with pytest.raises(PersonalityBenchError, match=r"rows\.0\.average\.mean: 9.99 is not the mean of its parts"):
        read_board(tmp_path / "b.json")


def test_only_what_was_computed_in_this_command_says_so(tmp_path: Path) -> None:
    board = full_board()
    for text in (to_markdown(board), to_html(board)):
        assert RECOMPUTED not in text
        assert NOT_VERIFIED in text
    for text in (to_markdown(board, recomputed=True), to_html(board, recomputed=True)):
        assert RECOMPUTED in text
        assert NOT_VERIFIED not in text
    path = write_board(board, tmp_path / "made")[0]
    done = run_command("leaderboard", "show", str(path), "--output", str(tmp_path / "shown"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = [done.stdout, *(file.read_text() for file in (tmp_path / "shown").iterdir())]
    assert len(shown) == 4
    assert RECOMPUTED not in " ".join(" ".join(shown).split())
    assert NOT_VERIFIED in " ".join(done.stdout.split())


@pytest.mark.parametrize("stem", ["llama-3-8b-instruct", "other-models"])
def test_a_published_board_says_that_it_is_one(stem: str, tmp_path: Path) -> None:
    file = bundled("leaderboards") / "paper" / f"{stem}.json"
    done = run_command("leaderboard", "show", str(file), "--output", str(tmp_path / "shown"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [
        done.stdout,
        (tmp_path / "shown" / "leaderboard.md").read_text(),
        (tmp_path / "shown" / "index.html").read_text(),
    ]
    for text in told:
        assert "Published figures, not recomputed" in " ".join(text.split())
        assert RECOMPUTED not in " ".join(text.split())
    assert (tmp_path / "shown" / "leaderboard.json").read_text() == file.read_text(encoding="utf-8")


def test_show_refuses_an_edited_board_in_one_line(content: dict[str, Any], tmp_path: Path) -> None:
    board = copy.deepcopy(content)
    put("rows.0.average", {"mean": 9.95, "interval": [9.9, 10.0], "variance": None})(board)
    (tmp_path / "b.json").write_text(json.dumps(board))
    line = one_line(run_command("leaderboard", "show", "b.json", "--output", "shown", cwd=tmp_path))
    assert "b.json: rows.0.average.mean: 9.95 is not the mean of its parts" in line
    assert not (tmp_path / "shown").exists()


def test_every_mutant_of_a_board_is_shown_or_refused(content: dict[str, Any], tmp_path: Path) -> None:
    """Accepted mutants are written whole: as table, Markdown and page."""
    path = tmp_path / "board.json"
    console = Console(file=(tmp_path / "out").open("w"), width=80)

    def show() -> None:
        board = read_board(path)
        console.print(board_table(board))
        to_markdown(board)
        to_html(board)

    accepted = 0
    for number, mutant in enumerate(json_mutants(content, mutant_count(), seed=1)):
        path.write_bytes(mutant)
        accepted += assert_accepts_or_refuses(show if number % 10 == 0 else lambda: read_board(path), mutant)
    assert accepted < mutant_count() / 2
