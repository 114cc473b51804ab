"""A board on a terminal."""

from __future__ import annotations

from rich.table import Table

from personalitybench.leaderboard.render import method_label, number, text_mean, unrated_total, with_interval
from personalitybench.leaderboard.schema import Leaderboard
from personalitybench.traits import TRAIT_NAMES


def board_table(board: Leaderboard) -> Table:
    """Make a table: a row a method, the composites (2-10) with intervals on the average, and how fluent it was."""
    models = {row.identity.model.name for row in board.rows}
    one = f", model {models.pop()}" if len(models) == 1 else ""
    table = Table(
        title=f"{board.name}: composites 2-10, 6 is neutral (judge {board.judge.id}{one})",
        caption=board.caveat or None,
    )
    if not one:
        table.add_column("model")
    table.add_column("method", no_wrap=True)
    table.add_column("average [95 %]", justify="right", no_wrap=True)
    for name in TRAIT_NAMES:
        table.add_column(name[:5] + ".", justify="right")
    for name in ("fluency", "repet.", "unfin.", "unrated"):
        table.add_column(name, justify="right")
    for row in board.rows:
        cells = [] if one else [row.identity.model.name]
        cells += [method_label(row), with_interval(row.average).replace("[", r"\[")]
        cells += [number(row.traits[name].mean) if name in row.traits else "–" for name in TRAIT_NAMES]
        cells += [number(row.fluency_average.mean if row.fluency_average else None)]
        cells += [number(text_mean(row, measure)) for measure in ("repetition", "unfinished")]
        cells += [str(unrated_total(row)) if row.targets else "–"]
        table.add_row(*cells)
    return table
