"""``personalitybench leaderboard from-lm-eval``: judged samples of lm-eval as a board, with its floors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from personalitybench.errors import ConfigurationError
from personalitybench.judging.base import load_profile
from personalitybench.leaderboard.build import Cell, build_board
from personalitybench.leaderboard.lm_eval_results import read_cells
from personalitybench.leaderboard.schema import Leaderboard


def board_of_folders(
    folders: Sequence[Path], name: str, console: Console, *, floors: bool
) -> tuple[Leaderboard, list[Cell]]:
    """Make a board.

    Args:
        folders: What lm_eval was given as ``--output_path``.
        name: Of the board.
        console: Where progress goes.
        floors: Whether it has floors; those that are not on this machine yet are rated, which may cost something.

    Returns:
        The board and the cells that it is made from.

    Raises:
        DataError: There are no results, or they are of several judges.
    """
    cells = [cell for folder in folders for cell in read_cells(folder)]
    board = build_board(name, cells, caveat=_caveat(cells))
    if floors:
        from personalitybench.runs.floors import floors_by  # noqa: PLC0415 (only what rates needs what rating needs)
        from personalitybench.runs.progress import RunProgress  # noqa: PLC0415
        from personalitybench.runs.spending import report_spending  # noqa: PLC0415

        rated_by = board.judge.model_dump()
        with RunProgress(console) as progress:
            found = floors_by(rated_by, progress)
            with suppress(ConfigurationError):  # a judge that is not known here was not asked
                report_spending([rated_by["id"]], progress)
        board = board.model_copy(update={"floors": found})
    return board, cells


def _caveat(cells: Sequence[Cell]) -> str:
    """The caveat of the judge that rated, where its profile is here."""
    try:
        return load_profile(cells[0].judge["id"]).caveat if cells else ""
    except ConfigurationError:
        return ""
