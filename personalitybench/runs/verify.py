"""``personalitybench leaderboard verify``: boards computed anew from the answers and ratings beside them.

Nothing is written, fetched, loaded or asked: identities of models and judges are those that were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from personalitybench.dry import dry_run
from personalitybench.errors import ConfigurationError, DataError, PersonalityBenchError
from personalitybench.files import read_json
from personalitybench.judging.agreement.calibration import Calibration
from personalitybench.judging.base import create_judge, fingerprint, is_profile_file, load_profile
from personalitybench.leaderboard.build import Cell, build_board
from personalitybench.leaderboard.differences import Difference, compare_boards
from personalitybench.leaderboard.floors import FLOORS_LATER, build_floors
from personalitybench.leaderboard.lm_eval_results import holds_results, read_cells
from personalitybench.leaderboard.mapped import calibrations_of, with_mapped
from personalitybench.leaderboard.render import read_board
from personalitybench.leaderboard.schema import JudgeId, Leaderboard, Sweep
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.lm_eval_folder import LmEvalFolder
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.stages import Run
from personalitybench.runs.store import RunFolder
from personalitybench.runs.suite import ModelSpec, Suite, load_suite
from personalitybench.validation import validate

_NOT_FROM_ANSWERS = ("source", "status", "schema_version")


def verify_boards(
    folders: Sequence[Path], boards: Sequence[Path], console: Console, calibrations: Sequence[Path] = ()
) -> None:
    """Compute boards anew and compare every figure; each difference is a line.

    Args:
        folders: A run's folder, or folders that lm_eval was given as ``--output_path``.
        boards: Board files; those of the first folder if empty.
        console: Where the results go.
        calibrations: Files of ``judges calibrate`` that mapped figures were read by.

    Raises:
        DataError: A figure differs, or there is nothing to compare.
    """
    files = list(boards) or sorted(folders[0].glob("leaderboard*.json"))
    if not files:
        raise DataError(f"{folders[0]} holds no leaderboard.json: name the board with --board")
    count = 0
    with dry_run():
        for file in files:
            count += _verify(file, folders, console, calibrations)
    if count:
        raise DataError(f"differences between the boards and their answers and ratings: {count}: make the boards again")


def _verify(file: Path, folders: Sequence[Path], console: Console, calibrations: Sequence[Path]) -> int:
    stated = read_json(file)
    if not isinstance(stated, dict) or not isinstance(stated.get("judge"), dict):
        raise DataError(f"{file} is not a leaderboard")
    if stated.get("status") == "published":
        raise DataError(f"{file} is a board of published figures: there are no answers to compute it from")
    judge = validate(JudgeId, stated["judge"], f"leaderboard {file}: judge").model_dump()
    calibration = calibrations_of(calibrations, [judge]).get(judge["id"])
    if stated.get("mapped_to") is not None and calibration is None:
        raise DataError(f"{file} has mapped figures: name the calibration that they were read by with --calibration")
    found = min((_differences(stated, board) for board in _compute(stated, judge, folders, calibration)), key=len)
    for difference in found:
        console.print(f"{file}: {difference}", soft_wrap=True)
    if not found:
        board = read_board(file)
        floors = "; null baselines not verified: their ratings are not on this machine"
        left_out = floors if board.floors and board.floors.rows and _null_baselines(stated, judge) is None else ""
        console.print(
            f"{file}: verified: all figures of {len(board.rows)} rows follow from the answers and ratings{left_out}",
            soft_wrap=True,
        )
    return len(found)


def _differences(stated: Mapping[str, Any], computed: Leaderboard) -> list[Difference]:
    ignored = [*_NOT_FROM_ANSWERS]
    if computed.floors is None:  # not asked for, or not on this machine
        ignored.append("floors")
    return compare_boards(stated, computed, ignored)


def _compute(
    stated: Mapping[str, Any], judge: Mapping[str, str], folders: Sequence[Path], calibration: Calibration | None
) -> list[Leaderboard]:
    """Compute the board; lm-eval's results may give two: with and without ratings that were made since."""
    floors, caveat = _null_baselines(stated, judge), _caveat(stated, judge)

    def build(name: str, cells: Sequence[Cell], sweeps: Sequence[Sweep] = ()) -> Leaderboard:
        board = build_board(name, cells, caveat=caveat, sweeps=sweeps, floors=floors)
        return with_mapped(board, cells, calibration)

    if (folders[0] / "suite.yaml").is_file():
        if len(folders) > 1:
            raise DataError(f"{folders[0]} is the folder of a run: name it alone")
        run = _recorded_run(folders[0], stated)
        return [build(run.suite.name, list(run.cells(judge)), run.sweeps())]
    if not all(map(holds_results, folders)):
        missing = next(folder for folder in folders if not holds_results(folder))
        raise DataError(f"{missing} holds no run (suite.yaml is missing) and no results of lm_eval (results_*.json)")
    name = str(stated.get("name", ""))
    boards, reason = [], None
    for cells in (_cells_of_results, _cells_of_folders):
        try:
            boards.append(build(name, cells(folders, judge)))
        except DataError as error:
            reason = error
    if not boards and reason is not None:
        raise reason
    return boards


def _cells_of_results(folders: Sequence[Path], judge: Mapping[str, str]) -> list[Cell]:
    """Cells as the judge rated them when lm_eval ran."""
    return [cell for folder in folders for cell in read_cells(folder) if cell.judge == judge]


def _cells_of_folders(folders: Sequence[Path], judge: Mapping[str, str]) -> list[Cell]:
    """Cells with the ratings that ``personalitybench judge`` made since."""
    with RunProgress(Console(quiet=True)) as progress:
        opened = [LmEvalFolder(folder, progress) for folder in folders]
    return [task.cell(judge, each.verdicts(task, judge)) for each in opened for task in each.tasks]


def _recorded_run(folder: Path, stated: Mapping[str, Any]) -> Run:
    suite = load_suite(str(folder / "suite.yaml"))
    progress = RunProgress(Console(quiet=True))
    return Run(suite, folder, progress, _RecordedCalls(suite, RunFolder(folder), stated))


class _RecordedCalls(CallFolders):
    """Calls whose models and judge are those that a board names, not those of this machine.

    Args:
        suite: The suite.
        store: The run's folder.
        stated: Content of the board file.
    """

    def __init__(self, suite: Suite, store: RunFolder, stated: Mapping[str, Any]) -> None:
        super().__init__(suite, store)
        rows = stated.get("rows")
        identities = [row.get("identity") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        self._models = [identity.get("model") for identity in identities if isinstance(identity, dict)]
        sweeps = stated.get("sweeps")
        self._sweeps = [sweep for sweep in sweeps if isinstance(sweep, dict)] if isinstance(sweeps, list) else []

    @property
    def tuning_judge(self) -> dict[str, str]:
        """Fingerprint of the judge whose ratings chose the strengths."""
        if self._sweeps:
            return validate(JudgeId, self._sweeps[0].get("judge") or {}, "sweeps.0.judge").model_dump()
        return super().tuning_judge

    def model_record(self, spec: ModelSpec) -> dict[str, str]:
        """Name and revision that a call recorded, that of the board's rows first."""
        recorded = self.recorded_models(spec)
        named = [record for record in recorded if record in self._models]
        return (named or recorded)[0] if recorded else super().model_record(spec)


def _null_baselines(stated: Mapping[str, Any], judge: Mapping[str, str]) -> Any:
    """Null baselines of the judge from the ratings on this machine; None where they are not here."""
    floors = stated.get("floors")
    if not isinstance(floors, dict) or floors.get("missing") or is_profile_file(judge["id"]):
        return None
    try:
        made = create_judge(judge["id"])
        computed = build_floors(made, FLOORS_LATER) if fingerprint(made) == judge else None
    except PersonalityBenchError:
        return None
    return None if computed is None or computed.missing else computed


def _caveat(stated: Mapping[str, Any], judge: Mapping[str, str]) -> str:
    """Caveat of the judge's profile; the file's where the profile is not here."""
    try:
        profile = load_profile(judge["id"])
    except ConfigurationError:
        return str(stated.get("caveat", ""))
    return profile.caveat if profile.sha256 == judge["profile_sha256"] else str(stated.get("caveat", ""))
