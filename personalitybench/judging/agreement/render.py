"""A report on agreement as files: all figures as JSON, and for people as Markdown and a static page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from personalitybench.judging.agreement import words
from personalitybench.judging.agreement.measures import CATEGORIES
from personalitybench.judging.agreement.plots import draw
from personalitybench.judging.agreement.schema import Agreement, AgreementReport, AspectFigures, Pair
from personalitybench.judging.agreement.words import MEASURES, number, with_interval
from personalitybench.outside_text import escape_markdown
from personalitybench.pages import HOW_TO_GET_PLOTS, can_plot, markdown_head, markdown_row, page_template, write_files


def write_report(report: AgreementReport, folder: Path) -> list[Path]:
    """Write ``agreement.json``, ``agreement.md`` and ``agreement.html``; returns their paths.

    Args:
        report: What to write.
        folder: Created if it is missing.

    Raises:
        StorageError: The folder is not writable.
    """
    return write_files(folder, "agreement", report, to_markdown(report), to_html(report))


def to_html(report: AgreementReport) -> str:
    """Make the static page (``leaderboards/agreement.html.j2``, everything escaped but our own SVG).

    Where what draws the plots is not installed it has none, and says how to get them.
    """
    template = page_template(
        "agreement.html.j2",
        number=number,
        bracket=words.bracket,
        with_interval=with_interval,
        name=words.pair_name,
        swaps=words.swaps,
        unrated=words.unrated,
        groups=words.groups,
        compared=words.compared,
    )
    # Markup: our own drawings, in which Altair escapes the names that it is given.
    plots = [{name: Markup(svg) for name, svg in draw(aspect).items()} for aspect in report.aspects if can_plot()]  # noqa: S704
    return template.render(
        report=report,
        plots=plots,
        title=words.title(report),
        intervals=words.about_intervals(report),
        headings=words.HEADINGS,
        measures=MEASURES,
        categories=CATEGORIES,
        together=words.together,
        undefined=words.UNDEFINED,
        how_to_get_plots=HOW_TO_GET_PLOTS,
    )


def to_markdown(report: AgreementReport) -> str:
    """The report as Markdown tables."""
    lines = [
        "# Agreement of judges",
        "",
        escape_markdown(f"{words.title(report)}. {words.about_intervals(report)}"),
        "",
    ]
    lines += [f"- {name}: {about}" for name, about in MEASURES.values()]
    lines += ["", words.UNDEFINED]
    for aspect in report.aspects:
        lines += ["", f"## {words.HEADINGS[aspect.aspect]}", "", *_judges(aspect, report.answers)]
        if aspect.pairs:
            head = ["judges", "answers", *(name for name, _ in MEASURES.values())]
            lines += [
                "",
                *markdown_head(head),
                *(markdown_row([words.pair_name(pair), *_cells(pair.overall)]) for pair in aspect.pairs),
            ]
            lines += ["", together] if (together := words.together(aspect)) else []
        lines += _methods(aspect, report)
        for pair in words.compared(aspect):
            lines += [
                "",
                f"### {escape_markdown(words.pair_name(pair))}: {aspect.aspect}",
                *_counts(pair),
                *_groups(pair),
            ]
    lines += ["", "## What the ratings depend on", "", *markdown_head(["judge", "identity"])]
    for judge, identity in report.identities.items():
        lines.append(
            markdown_row([judge, ", ".join(f"{key} {value}" for key, value in identity.items()) or words.DASH])
        )
    lines += ["", f"Made by personalitybench {escape_markdown(report.personalitybench)}."]
    return "\n".join(lines) + "\n"


def _judges(aspect: AspectFigures, answers: int) -> list[str]:
    """Coverage, length and retest of each judge."""
    of_trait = aspect.aspect == "trait"
    head = ["judge", f"rated of {answers:,}", "coverage", "unrated", "mean rating", "ρ with length"]
    head += ["ρ of the score toward the target with length"] if of_trait else []
    lines = markdown_head(head)
    for judge in aspect.judges:
        cells = [judge.judge, f"{judge.rated:,}", f"{judge.coverage:.1%}", words.unrated(judge)]
        cells += [with_interval(judge.mean), with_interval(judge.length.rating)]
        cells += [with_interval(judge.length.toward)] if of_trait else []
        lines.append(markdown_row(cells))
    again = [(judge.judge, judge.retest) for judge in aspect.judges if judge.retest is not None]
    if again:
        lines += ["", "The same asked again:", ""]
        lines += markdown_head(
            ["judge", "times", "answers", "rated only at times", "exact", "within one", "α", "|difference|"]
        )
    for name, retest in again:
        found = (retest.exact, retest.within_one, retest.alpha, retest.difference)
        lines.append(markdown_row([name, retest.repeats, retest.n, retest.partly, *map(with_interval, found)]))
    return lines


def _methods(aspect: AspectFigures, report: AgreementReport) -> list[str]:
    """Means by method, and how alike the judges order the methods."""
    if len(report.methods) < 2:
        return []
    about = "Mean score toward the target" if aspect.aspect == "trait" else "Mean rating"
    lines = ["", f"{about} of each method, over all answers that the judge rated (their number):", ""]
    lines += markdown_head(["method", *report.judges])
    for method in report.methods:
        means = [judge.methods[method] for judge in aspect.judges]
        lines.append(markdown_row([method, *(f"{with_interval(found.mean)} ({found.n:,})" for found in means)]))
    if aspect.pairs:
        lines += ["", "Order of the methods by these means, on the answers that both rated:", ""]
        lines += markdown_head(["judges", "methods", "Kendall τ", "Spearman ρ", "ordered in opposite ways"])
    for pair in aspect.pairs:
        order = pair.order
        found = [with_interval(order.kendall), with_interval(order.spearman)]
        lines.append(markdown_row([words.pair_name(pair), order.methods, *found, words.swaps(pair)]))
    return lines


def _counts(pair: Pair) -> list[str]:
    """Answers by both ratings."""
    lines = ["", escape_markdown(f"Answers by rounded rating of {pair.first} (down) and {pair.second} (across):"), ""]
    lines += markdown_head(["", *map(str, CATEGORIES)])
    return lines + [markdown_row([name, *row]) for name, row in zip(CATEGORIES, pair.counts, strict=True)]


def _groups(pair: Pair) -> list[str]:
    """Figures by trait, pole and method."""
    lines = []
    for by, parts in words.groups(pair).items():
        lines += ["", *markdown_head([by, "answers", *(name for name, _ in MEASURES.values())])]
        lines += [markdown_row([name, *_cells(found)]) for name, found in parts.items()]
    return lines


def _cells(found: Agreement) -> list[str]:
    return [f"{found.n:,}", *(with_interval(getattr(found, name)) for name in MEASURES)]
