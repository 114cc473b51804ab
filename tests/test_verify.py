"""``leaderboard verify``: boards computed anew from the answers and ratings beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from personalitybench.console import PlainConsole
from personalitybench.errors import PersonalityBenchError
from personalitybench.files import Sheet
from personalitybench.leaderboard.differences import compare_boards
from personalitybench.runs.verify import verify_boards
from tests.full_board import full_board
from tests.mutations import assert_accepts_or_refuses, json_mutants, jsonl_mutants, mutant_count
from tests.security.terminal import one_line, run_command
from tests.test_runs import SUITE, TWO_TARGETS, run

SLOW_COUNT = max(30, mutant_count() // 50)
"""Mutants of a file that a whole board is made from anew; its readers get all of them in other tests."""

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ratings are replaced by made-up ones: the tiny model says nothing that can be rated."""
    folder = tmp_path_factory.mktemp("verified")
    shutil.copytree(tiny_model, folder / "model")
    suite = folder / "small.yaml"
    suite.write_text(SUITE.format(model=folder / "model", methods="[none, p2]", targets=TWO_TARGETS, dtype="float32"))
    run(suite, folder / "run")
    for number, path in enumerate(sorted((folder / "run").glob("calls/*/*/offline-*.jsonl"))):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for place, row in enumerate(rows):
            row |= {"trait": {"rating": 2.0 + number / 2 + place / 4}, "fluency": {"rating": 4.0}}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        Sheet(path).finish()
    run(suite, folder / "run", "score")
    return folder / "run"


def verify(folder: Path, *boards: Path, calibrations: Sequence[Path] = ()) -> tuple[str, str]:
    """The lines of the command, and its error; empty if there is none."""
    console = PlainConsole(record=True, width=200, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    try:
        verify_boards([folder], boards, console, calibrations)
    except PersonalityBenchError as error:
        return console.export_text(), str(error)
    return console.export_text(), ""


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit_board(folder: Path, edit: Edit) -> None:
    path = folder / "leaderboard.json"
    board = json.loads(path.read_text())
    edit(board)
    path.write_text(json.dumps(board))


@pytest.mark.model
def test_a_run_is_verified_without_its_model_and_writes_nothing(copied: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    empty = tmp_path / "cache"
    done = run_command("leaderboard", "verify", "run", cwd=tmp_path, PERSONALITYBENCH_CACHE=str(empty))
    assert done.returncode == 0, done.stderr
    assert "verified: all figures of 2 rows" in done.stdout
    assert "null baselines not verified" in done.stdout
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    assert not empty.exists()
    done = run_command("leaderboard", "verify", "run", cwd=tmp_path)
    assert (done.returncode, "not verified" in done.stdout) == (0, False), done.stderr


@pytest.mark.model
@pytest.mark.parametrize("state", ["changed", "gone"])
def test_a_model_that_changed_since_is_the_one_that_was_recorded(state: str, finished: Path) -> None:
    config = finished.parent / "model" / "config.json"
    before = config.read_text()
    try:
        config.write_text(before + " ") if state == "changed" else config.parent.rename(finished.parent / "moved")
        lines, error = verify(finished)
    finally:
        if state == "gone":
            (finished.parent / "moved").rename(config.parent)
        config.write_text(before)
    assert error == ""
    assert "verified: all figures of 2 rows" in lines


def average(board: dict[str, Any]) -> None:
    board["rows"][0]["average"] = {"mean": 9.95, "interval": [9.9, 10.0], "variance": None}


EDITS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "an average": (
        average,
        ("average.mean: the file says 9.95, the answers and ratings give ", "average.interval.0: "),
    ),
    "an order": (lambda board: board["rows"].reverse(), ("rows: the file says the order ",)),
    "a missing row": (
        lambda board: board["rows"].pop(),
        ("the file says nothing, the answers and ratings give a row",),
    ),
    "a count": (
        lambda board: board["rows"][0]["targets"]["extraversion:high"].update(rated=500),
        ("targets.extraversion:high.rated: the file says 500, the answers and ratings give 2",),
    ),
    "an id": (lambda board: board["rows"][0].update(id="0" * 16), ('rows.0.id: the file says "0000000000000000"',)),
    "a name": (lambda board: board.update(name="theirs"), ('name: the file says "theirs"',)),
    "a caveat": (lambda board: board.update(caveat=""), ('caveat: the file says ""',)),
    "versions": (
        lambda board: board["rows"][0]["provenance"]["versions"].update(torch="9"),
        ('provenance.versions.torch: the file says "9"',),
    ),
    "a row twice": (lambda board: board["rows"].insert(0, board["rows"][0]), (" a second time",)),
    "no rows": (lambda board: board.update(rows=None), ("rows: the file says null",)),
}


@pytest.mark.model
@pytest.mark.parametrize("case", EDITS)
def test_each_difference_is_a_line_with_both_values(case: str, copied: Path) -> None:
    edit, lines = EDITS[case]
    edit_board(copied, edit)
    printed, error = verify(copied)
    assert "between the boards and their answers and ratings" in error
    for line in lines:
        assert line in printed
    assert all(line.startswith(f"{copied / 'leaderboard.json'}: ") for line in printed.splitlines())


@pytest.mark.model
def test_ratings_that_were_edited_with_their_manifest_differ(copied: Path, tmp_path: Path) -> None:
    path = next(copied.glob("calls/none-*/extraversion-high/offline-*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["trait"] = {"rating": 5.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "was altered after it was complete" in verify(copied)[1]
    Sheet(path).finish()
    done = run_command("leaderboard", "verify", "run", cwd=tmp_path)
    assert "between the boards and their answers and ratings" in one_line(done)
    assert "targets.extraversion:high.mean: the file says " in done.stdout


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: folder.mkdir(), "holds no leaderboard.json"),
        (lambda folder: (folder.mkdir(), (folder / "leaderboard.json").write_text("{}")), "is not a leaderboard"),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "leaderboard.json").write_text('{"status": "published", "judge": {}}'),
            ),
            "published figures",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "leaderboard.json").write_text(
                    '{"judge": {"id": "j", "profile_sha256": "p", "rubric_sha256": "r"}}'
                ),
            ),
            "holds no run",
        ),
    ],
)
def test_without_answers_there_is_nothing_to_verify(
    prepare: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "x")
    assert says in verify(tmp_path / "x")[1]


@pytest.mark.model
@pytest.mark.parametrize("name", ["answers.jsonl", "offline-*.jsonl"])
def test_every_mutant_of_a_sheet_with_a_manifest_that_fits_is_verified_or_refused(name: str, copied: Path) -> None:
    path = next(copied.glob(f"calls/none-*/extraversion-high/{name}"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def attempt(mutant: bytes) -> None:
        path.write_bytes(mutant)
        Sheet(path).manifest.unlink(missing_ok=True)
        Sheet(path).finish()
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            verify_boards([copied], [], PlainConsole(file=nowhere))

    for mutant in jsonl_mutants(rows, SLOW_COUNT, seed=5):
        assert_accepts_or_refuses(lambda mutant=mutant: attempt(mutant), mutant)


@pytest.mark.model
def test_every_mutant_of_a_record_of_a_call_is_verified_or_refused(copied: Path) -> None:
    path = next(copied.glob("calls/none-*/call.json"))

    def attempt(mutant: bytes) -> None:
        path.write_bytes(mutant)
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            verify_boards([copied], [], PlainConsole(file=nowhere))

    for mutant in json_mutants(json.loads(path.read_text()), SLOW_COUNT, seed=6):
        assert_accepts_or_refuses(lambda mutant=mutant: attempt(mutant), mutant)


@pytest.mark.model
def test_every_mutant_of_a_board_is_compared_or_refused(copied: Path) -> None:
    path = copied / "leaderboard.json"

    def attempt(mutant: bytes) -> None:
        path.write_bytes(mutant)
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            verify_boards([copied], [], PlainConsole(file=nowhere))

    for mutant in json_mutants(json.loads(path.read_text()), SLOW_COUNT, seed=7):
        assert_accepts_or_refuses(lambda mutant=mutant: attempt(mutant), mutant)


def test_files_of_earlier_versions_lack_fields_of_the_provenance() -> None:
    board = full_board()
    stated = json.loads(board.model_dump_json())
    for row in stated["rows"]:
        del row["provenance"]["judge_models"]
    del stated["rows"][1]["identity"]["protocol"]["left_out"]
    assert compare_boards(stated, board) == []
    stated["rows"][0]["average"]["mean"] += 1e-6
    assert compare_boards(stated, board) == []
    stated["rows"][0]["average"]["mean"] += 1e-4
    assert [one.field for one in compare_boards(stated, board)] == [f"rows.{board.rows[0].id}.average.mean"]


@pytest.mark.parametrize(("move", "count"), [(0.003, 0), (0.02, 1)])
def test_null_baselines_may_be_rounded_by_another_machine(move: float, count: int) -> None:
    board = full_board()
    stated = board.model_dump(mode="json")
    stated["floors"]["rows"][0]["average"]["mean"] += move
    assert len(compare_boards(stated, board)) == count
    row = stated["rows"][0]
    row["average"]["mean"] += 0.003
    assert f"rows.{row['id']}.average.mean" in {each.field for each in compare_boards(stated, board)}
