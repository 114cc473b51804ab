"""A report on neurons on a terminal of 80 columns."""

from __future__ import annotations

import math

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from personalitybench.neurons.report import NeuronReport, Spread
from personalitybench.traits import Pole, Target

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 64
"""Layers that a row of bars shows one by one; deeper models get one bar for several."""


def short(target: str) -> str:
    """A target in two characters, as papers write it: ``E+``, ``N-``."""
    parsed = Target.parse(target)
    return parsed.trait[0].upper() + ("+" if parsed.pole is Pole.HIGH else "-")


def title(report: NeuronReport) -> str:
    """What the report is about, in one line."""
    model = report.model or "a model that the files do not name"
    revision = f" @ {report.revision}" if report.revision else ""
    return f"Personality neurons of {model}{revision}: {report.layers} layers x {report.neurons:,} neurons"


def report_tables(report: NeuronReport) -> Group:
    """Make the tables: sets, layers, overlap, strongest neurons."""
    parts = [_sets(report), _layers(report)]
    if len(report.targets) > 1:
        parts.append(_overlap(report))
    if any(one.strongest for one in report.targets):
        parts.append(_strongest(report))
    return Group(Text(title(report), style="bold"), *parts)


def _sets(report: NeuronReport) -> Group:
    table = _table("Neurons")
    for name in ("", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("neurons", "of all", "|δ| min", "median", "max", "±"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.targets:
        row = (f"{one.neurons:,}", f"{one.share:.2%}", *_spread(one.delta), _number(one.median_error))
        table.add_row(short(one.target), one.target, *row)
    total = report.total
    table.add_section()
    table.add_row("", "all", f"{total.neurons:,}", "", *_spread(total.delta), "")
    table.add_row("", "distinct", f"{total.distinct:,}", f"{total.share:.2%}", "", "", "", "")
    return _with_words(
        table,
        "δ: how much more often a neuron is active than under the opposite pole. ±: median standard error of δ. "
        "all: a neuron counts in each set that it is in.",
    )


def _layers(report: NeuronReport) -> Group:
    together = math.ceil(report.layers / _WIDEST)
    most = max((max(one.by_layer) for one in report.targets), default=0)
    grouped = f", {together} layers a bar" if together > 1 else ""
    table = _table(f"Neurons by layer, 0 to {report.layers - 1}{grouped}")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    rows = {
        one.target: [sum(one.by_layer[start : start + together]) for start in range(0, report.layers, together)]
        for one in report.targets
    }
    scale = max((max(row) for row in rows.values()), default=0)
    for one in report.targets:
        peak = f"layer {one.by_layer.index(max(one.by_layer))}" if one.neurons else "–"
        table.add_row(short(one.target), bars(rows[one.target], scale), peak)
    return _with_words(
        table, f"Bars of all targets have one scale; a dot is a layer without any. Most in one layer: {most:,}."
    )


def bars(counts: list[int], most: int) -> str:
    """Counts as a row of bars, the height of ``most`` being full; a dot for none."""
    return "".join(_BARS[math.ceil(count / most * len(_BARS)) - 1] if count else "·" for count in counts)


def _overlap(report: NeuronReport) -> Group:
    table = _table("Overlap")
    table.add_column("", no_wrap=True)
    names = [short(one.target) for one in report.targets]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row, name in enumerate(names):
        cells = [
            f"{report.overlap.share[row][column]:.2f}" if column < row else str(report.overlap.shared[row][column])
            for column in range(len(names))
        ]
        table.add_row(name, *cells)
    return _with_words(
        table,
        "Below the diagonal: neurons in both sets / neurons of the smaller set. Above it: neurons in both. "
        "On it: neurons of the set. A fit never gives both poles of a trait the same neuron.",
    )


def _strongest(report: NeuronReport) -> Group:
    table = _table("Strongest neurons")
    table.add_column("", no_wrap=True)
    for name in ("layer", "neuron", "δ", "±", "pr", "a95", "also in"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.targets:
        for place, neuron in enumerate(one.strongest):
            table.add_row(
                short(one.target) if place == 0 else "",
                str(neuron.layer),
                str(neuron.index),
                *(_number(value) for value in (neuron.delta, neuron.error, neuron.probability, neuron.a95)),
                str(len(neuron.others) or "–"),
            )
    return _with_words(
        table,
        "pr: share of the tokens under the target in which it is active. a95: 95th percentile of its activation. "
        "also in: how many other targets' sets it is in.",
    )


def _with_words(table: Table, words: str) -> Group:
    """A table and what its figures mean; not a caption, which is no wider than the table."""
    return Group(table, Text(words, style="dim"))


def _table(name: str) -> Table:
    return Table(
        title=f"\n{name}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )


def _spread(spread: Spread | None) -> tuple[str, str, str]:
    return ("–", "–", "–") if spread is None else (_number(spread.min), _number(spread.median), _number(spread.max))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
