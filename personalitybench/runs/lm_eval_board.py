"""``personalitybench leaderboard from-lm-eval``: judged samples of lm-eval as boards with their floors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.judging.base import load_profile
from personalitybench.leaderboard.build import Cell, build_board
from personalitybench.leaderboard.examples import Example, pick_examples
from personalitybench.leaderboard.lm_eval_results import log_warnings, read_tasks
from personalitybench.leaderboard.mapped import calibrations_of, with_mapped
from personalitybench.leaderboard.schema import Leaderboard


def boards_of_folders(
    folders: Sequence[Path], name: str, console: Console, *, floors: bool, calibrations: Sequence[Path] = ()
) -> dict[str, tuple[Leaderboard, list[Example]]]:
    """Make a board for each judge.

    Args:
        folders: What lm_eval was given as ``--output_path``.
        name: Of the boards.
        console: Where progress goes.
        floors: Whether they have floors; those that are not on this machine yet are rated, which may cost something.
        calibrations: Files of ``judges calibrate``; the boards of their judges show mapped figures, too.

    Returns:
        Boards with a few answers to show beside them, by the judge's id, in the order of the results.

    Raises:
        DataError: There are no judged results, or one judge's profile or rubric changed between them.
    """
    tasks = [task for folder in folders for task in read_tasks(folder)]
    by_judge: dict[str, list[Cell]] = {}
    for task in tasks:
        for rated_by in task.judges.values():
            by_judge.setdefault(rated_by["id"], []).append(task.cell(rated_by, task.verdicts(rated_by)))
    log_warnings(tasks)
    if not by_judge:
        named = ", ".join(map(str, folders))
        raise DataError(f"{named}: no answers there were judged; 'personalitybench judge FOLDER --judge X' does it")
    mapped = calibrations_of(calibrations, [cells[0].judge for cells in by_judge.values()])
    boards = {}
    for judge, cells in by_judge.items():
        board = with_mapped(build_board(name, cells, caveat=_caveat(judge)), cells, mapped.get(judge))
        if floors:
            board = _with_floors(board, console)
        boards[judge] = (board, pick_examples(cells))
    return boards


def _with_floors(board: Leaderboard, console: Console) -> Leaderboard:
    from personalitybench.runs.floors import floors_by  # noqa: PLC0415 (only what rates needs what rating needs)
    from personalitybench.runs.progress import RunProgress  # noqa: PLC0415
    from personalitybench.runs.spending import report_spending  # noqa: PLC0415

    with RunProgress(console) as progress:
        found = floors_by(board.judge.model_dump(), progress)
        with suppress(ConfigurationError):  # a judge that is not known here was not asked
            report_spending([board.judge.id], progress)
    return board.model_copy(update={"floors": found})


def _caveat(judge: str) -> str:
    """The caveat of the judge that rated, where its profile is here."""
    try:
        return load_profile(judge).caveat
    except ConfigurationError:
        return ""
