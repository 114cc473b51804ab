"""The boards of a run: written beside its answers, shown as a table, named by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.leaderboard.examples import Example
from personalitybench.leaderboard.render import write_board
from personalitybench.leaderboard.schema import Leaderboard
from personalitybench.leaderboard.summary import board_table


def publish(
    boards: Mapping[str, tuple[Leaderboard, list[Example]]], folder: Path, judges: Sequence[str], console: Console
) -> None:
    """Write boards that were just computed from answers and ratings, and print them.

    Args:
        boards: Board and examples by judge.
        folder: Of the run.
        judges: Of its suite, if it has one; the board of the first is ``leaderboard``, those of others carry their
            judge's name.
        console: Where the tables and paths go.
    """
    paths = []
    for judge, (board, examples) in boards.items():
        stem = "leaderboard" if judge in judges[:1] else f"leaderboard-{board.judge.id}"
        paths += write_board(board, folder, stem, examples, recomputed=True)
    for board, _ in boards.values():
        console.print(board_table(board))
    for path in paths:
        console.print(str(path.resolve()), soft_wrap=True)
