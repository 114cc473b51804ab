"""A board on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from personalitybench.costs import describe_cost
from personalitybench.leaderboard.fit_costs import fit_costs
from personalitybench.leaderboard.render import (
    floor_not_met,
    floor_rows,
    floors_missing,
    mapped_note,
    number,
    row_labels,
    text_mean,
    unrated_total,
    with_interval,
)
from personalitybench.leaderboard.schema import Leaderboard
from personalitybench.traits import TRAIT_NAMES

_LEGEND = (
    "Average and traits (O C E A N): sum of both poles' mean scores, 2-10, 6 is neutral; brackets: 95 % interval. "
    "flu.: the same for fluency. rep.: repeated word triples. cut: answers that end in mid-sentence. "
    "unr.: unrated answers."
)


_FLOORS_LEGEND = (
    "floor: what this judge gives to answers that do not show the target; a score not clearly above is no evidence."
)


def board_table(board: Leaderboard) -> Table:
    """Make a table: a row a method, the composites with an interval on the average, and how fluent it was."""
    labels = row_labels(board)
    floors = floor_rows(board)
    told = _FLOORS_LEGEND if floors else floors_missing(board)
    notes = [_LEGEND, mapped_note(board), told or "", *_floor_notes(board, labels), board.caveat]
    models = {row.identity.model.name for row in board.rows}
    one = f", model {next(iter(models))}" if len(models) == 1 else ""
    table = Table(
        title=f"{board.name}: judge {board.judge.id}{one}",
        caption="\n".join([*_fits(board), " ".join(filter(None, notes))]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    if not one:
        table.add_column("model", overflow="fold")
    table.add_column("method", min_width=10, overflow="fold")
    table.add_column("average", justify="right", no_wrap=True)
    if board.mapped_to:
        table.add_column("mapped", justify="right", no_wrap=True)
    for name in (*(trait[0].upper() for trait in TRAIT_NAMES), "flu.", "rep.", "cut", "unr."):
        table.add_column(name, justify="right", no_wrap=True)
    for row in board.rows:
        cells = [] if one else [row.identity.model.name.rpartition("/")[2]]
        protocol = row.identity.method.strength_protocol
        cells += [
            labels[row.id] + (f"\n{protocol}" if protocol else ""),
            with_interval(row.average),
        ]
        cells += [number(row.mapped.average.mean if row.mapped else None)] if board.mapped_to else []
        cells += [number(row.traits[name].mean, 1) if name in row.traits else "–" for name in TRAIT_NAMES]
        cells += [number(row.fluency_average.mean if row.fluency_average else None, 1)]
        cells += [number(text_mean(row, measure)) for measure in ("repetition", "unfinished")]
        cells += [unrated_total(row, board)]
        table.add_row(*cells)
    if floors:
        table.add_section()
    for floor in floors:
        cells = [] if one else [""]
        cells += [f"floor: {floor.kind}", with_interval(floor.average)]
        cells += ["–"] if board.mapped_to else []
        cells += [number(floor.traits[name].mean, 1) for name in TRAIT_NAMES]
        cells += [number(floor.fluency_average.mean, 1)]
        cells += [number(text_mean(floor, measure)) for measure in ("repetition", "unfinished")]
        table.add_row(*cells, unrated_total(floor, board), style="dim")
    return table


def _fits(board: Leaderboard) -> list[str]:
    """What the fits took, a line each: the table is as wide as a terminal without it."""
    return [f"fit of {label}: {describe_cost(cost)}" for label, cost in fit_costs(board).items()]


def _floor_notes(board: Leaderboard, labels: Mapping[str, str]) -> list[str]:
    """What to know of rows for which no strength was fluent enough."""
    failed = {labels[row.id]: (len(floor_not_met(row, board)), len(row.targets)) for row in board.rows}
    return [
        f"{label}: no strength met the floor of fluency for {count} of {total} targets, the most fluent was taken."
        for label, (count, total) in failed.items()
        if count
    ]
