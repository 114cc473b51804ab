"""What the fits of a board's rows took: the same lines for the page, Markdown and a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from personalitybench.costs import FitCost, cost_cells, describe_cost
from personalitybench.leaderboard.schema import Leaderboard, Row

FITS_LEGEND = (
    "A method is fitted once for a model. Time is that of the machine that fitted; work that fits share counts in each."
)


def fit_costs(board: Leaderboard) -> dict[str, FitCost]:
    """What the fits took, by what to call each; rows that share a fit, as those of several strengths do, are one.

    Rows of methods that fit nothing, and fits of which nobody wrote down what they took, are left out.
    """
    fits: dict[str, Row] = {}
    for row in board.rows:
        cost = row.provenance.fit
        if cost is not None and describe_cost(cost):
            fits.setdefault(_fit_of(row), row)
    several = len({row.identity.model.name for row in board.rows}) > 1
    named: dict[str, FitCost] = {}
    for key, row in fits.items():
        label = _label(row, list(fits.values())) + (f" for {row.identity.model.name}" if several else "")
        if label in named:  # the same but for what is no setting, as the seed
            label += f", {key[:8]}"
        named[label] = row.provenance.fit or FitCost()
    return named


def _label(row: Row, rows: Sequence[Row]) -> str:
    """A method's name, with the settings in which it differs from others of the same method and model."""
    method = row.identity.method
    alike = [
        other.identity.method.settings
        for other in rows
        if other.identity.method.title == method.title and other.identity.model == row.identity.model
    ]
    differing = [
        f"{name}={value}"
        for name, value in method.settings.items()
        if any(name not in other or other[name] != value for other in alike)
    ]
    return f"{method.title} ({', '.join(differing)})" if differing else method.title


def fit_table(costs: Mapping[str, FitCost]) -> list[list[str]]:
    """The same as a table: a head, then a line for each fit; columns in which all is zero are left out."""
    cells = [cost_cells(cost) for cost in costs.values()]
    every = cost_cells(FitCost(**dict.fromkeys(FitCost.model_fields, 1)))
    heads = [name for name in every if any(name in row for row in cells)]
    rows = [[label, *(row.get(name, "–") for name in heads)] for label, row in zip(costs, cells, strict=True)]
    return [["fit", *heads], *rows]


def _fit_of(row: Row) -> str:
    """What rows of one fit have in common: the hash of its artifact, and whose it is."""
    model, method = row.identity.model, row.identity.method
    return f"{method.artifact or row.id}, {method.name} {method.version}, {model.name} {model.revision}"
