"""A report on agreement on a terminal of 80 columns, where judges are numbered.

Figures by trait, pole and method are in the files.
"""

from __future__ import annotations

import re

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from personalitybench.judging.agreement import words
from personalitybench.judging.agreement.schema import AgreementReport, AspectFigures, Figure
from personalitybench.judging.agreement.words import number

_SHORT = {
    "exact": "exact", "within_one": "±1", "kappa": "κ", "alpha": "α", "spearman": "ρ", "bias": "bias",
    "difference": "|d|",
}  # fmt: skip

_LEGEND = (
    "Of ratings rounded to whole numbers: exact, the same; ±1, at most one apart; κ, quadratic weights; α, "
    "Krippendorff's, ordinal. As they are: ρ, Spearman; bias, the second judge's less the first's; |d|, mean absolute "
    "difference."
)


def report_tables(report: AgreementReport) -> Group:
    """Make the tables: judges, pairs, methods, for the trait and for fluency."""
    numbers = {name: str(place) for place, name in enumerate(report.judges, 1)}
    parts: list[RenderableType] = [Text(f"Agreement of judges. {words.title(report)}", style="bold")]
    parts += [Text(f"{place} {name}") for name, place in numbers.items()]
    for aspect in report.aspects:
        parts.append(_judges(aspect, numbers))
        if aspect.pairs:
            parts.append(_pairs(aspect, numbers))
        if together := words.together(aspect):
            parts.append(Text(together))
        if aspect.pairs and len(report.methods) > 1:
            parts.append(_order(aspect, numbers))
        if any(judge.retest for judge in aspect.judges):
            parts.append(_retest(aspect, numbers))
    parts.append(Text(f"\n{_LEGEND} {words.about_intervals(report, 'Beneath a figure')}", style="dim"))
    return Group(*parts)


def _judges(aspect: AspectFigures, numbers: dict[str, str]) -> Table:
    of_trait = aspect.aspect == "trait"
    figures = ["rated", "mean", "ρ length", *(["ρ toward"] if of_trait else [])]
    table = _table(f"{words.HEADINGS[aspect.aspect]}: the judges", "judge", figures)
    table.add_column("unrated", overflow="fold")
    for judge in aspect.judges:
        lengths = [judge.length.rating, *([judge.length.toward] if of_trait else [])]
        rated = Text(f"{judge.rated:,}\n{judge.coverage:.1%}")
        table.add_row(
            numbers[judge.judge],
            rated,
            *map(_cell, [judge.mean, *lengths]),
            Text(words.unrated(judge)),
        )
    return table


def _pairs(aspect: AspectFigures, numbers: dict[str, str]) -> Table:
    table = _table(f"{words.HEADINGS[aspect.aspect]}: two judges", "judges", ["n", *_SHORT.values()])
    for pair in aspect.pairs:
        found = [getattr(pair.overall, name) for name in _SHORT]
        table.add_row(f"{numbers[pair.first]} / {numbers[pair.second]}", f"{pair.overall.n:,}", *map(_cell, found))
    return table


def _order(aspect: AspectFigures, numbers: dict[str, str]) -> Table:
    table = _table(f"{words.HEADINGS[aspect.aspect]}: order of the methods", "judges", ["methods", "Kendall τ", "ρ"])
    table.add_column("ordered in opposite ways", overflow="fold")
    for pair in aspect.pairs:
        found = map(_cell, (pair.order.kendall, pair.order.spearman))
        table.add_row(
            f"{numbers[pair.first]} / {numbers[pair.second]}", str(pair.order.methods), *found, Text(words.swaps(pair))
        )
    return table


def _retest(aspect: AspectFigures, numbers: dict[str, str]) -> Table:
    figures = ["times", "n", "partly", "exact", "±1", "α", "|d|"]
    table = _table(f"{words.HEADINGS[aspect.aspect]}: the same asked again", "judge", figures)
    for judge in aspect.judges:
        if judge.retest is not None:
            again = judge.retest
            found = map(_cell, (again.exact, again.within_one, again.alpha, again.difference))
            table.add_row(
                numbers[judge.judge],
                str(again.repeats),
                f"{again.n:,}",
                f"{again.partly:,}",
                *found,
            )
    return table


def _cell(figure: Figure | None) -> Text:
    """A figure, and beneath it the ends of its interval without what every one would repeat."""
    if figure is None:
        return Text(words.DASH)
    cell = Text(number(figure.value))
    if figure.interval is not None:
        cell.append("\n" + " ".join(_short(end) for end in figure.interval), style="dim")
    return cell


def _short(value: float) -> str:
    """Two decimals without what says nothing: ``.07``, ``−.50``, ``1``, ``3.25``."""
    text = number(value)
    return text.removesuffix(".00") if text.endswith(".00") else re.sub(r"\b0\.", ".", text)


def _table(name: str, first: str, figures: list[str]) -> Table:
    table = Table(
        title=f"\n{name}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column(first, no_wrap=True)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table
