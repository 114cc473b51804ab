"""A report on neurons as files: all numbers as JSON, and for people as Markdown and a static page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from personalitybench.neurons.report import NeuronReport, Spread
from personalitybench.neurons.tables import title
from personalitybench.outside_text import escape_markdown
from personalitybench.pages import can_plot, markdown_head, markdown_row, page_template, write_files


def write_report(report: NeuronReport, folder: Path) -> list[Path]:
    """Write ``neurons.json``, ``neurons.md`` and ``neurons.html``; returns their paths.

    Args:
        report: What to write.
        folder: Created if it is missing.

    Raises:
        StorageError: The folder is not writable.
    """
    return write_files(folder, "neurons", report, to_markdown(report), to_html(report))


def to_markdown(report: NeuronReport) -> str:
    """The report as Markdown tables."""
    lines = ["# Personality neurons", "", f"{escape_markdown(title(report))}.", ""]
    lines += ["δ is how much more often a neuron is active than under the opposite pole.", ""]
    names = [_words(one.target) for one in report.targets]
    lines += markdown_head(
        ["target", "neurons", "of the model", "least δ", "median δ", "greatest δ", "median error of δ"]
    )
    for name, one in zip(names, report.targets, strict=True):
        delta = _spread(one.delta)
        lines.append(
            markdown_row([name, _count(one.neurons), _percent(one.share), *delta, number(one.median_error, 3)])
        )
    total = report.total
    lines.append(markdown_row(["all, by set", _count(total.neurons), "", *_spread(total.delta), ""]))
    lines.append(markdown_row(["distinct", _count(total.distinct), _percent(total.share), "", "", "", ""]))
    lines += ["", "## Neurons by layer", "", *markdown_head(["layer", *names])]
    lines += [markdown_row([layer, *(one.by_layer[layer] for one in report.targets)]) for layer in range(report.layers)]
    lines += ["", "## Overlap", ""]
    lines += ["Neurons in both sets / neurons of the smaller set, and in brackets neurons in both sets.", ""]
    lines += markdown_head(["", *names])
    for place, name in enumerate(names):
        shares, shared = report.overlap.share[place], report.overlap.shared[place]
        cells = [f"{share:.2f} ({count:,})" for share, count in zip(shares, shared, strict=True)]
        lines.append(markdown_row([name, *cells]))
    lines += ["", "## Strongest neurons", ""]
    lines += markdown_head(["target", "layer", "neuron", "δ", "error", "probability", "a95", "also in the sets of"])
    for name, one in zip(names, report.targets, strict=True):
        for neuron in one.strongest:
            figures = [number(value, 3) for value in (neuron.delta, neuron.error, neuron.probability, neuron.a95)]
            others = ", ".join(map(_words, neuron.others)) or "–"
            lines.append(markdown_row([name, neuron.layer, neuron.index, *figures, others]))
    return "\n".join(lines) + "\n"


def to_html(report: NeuronReport) -> str:
    """Make the static page (``leaderboards/neurons.html.j2``, everything escaped but our own SVG)."""
    template = page_template(
        "neurons.html.j2", number=number, count=_count, percent=_percent, words=_words, plain=_plain
    )
    return template.render(report=report, plots=_draw(report) if can_plot() else None, spread=_spread_cells)


def _draw(report: NeuronReport) -> dict[str, Markup]:
    from personalitybench.neurons.plots import draw  # noqa: PLC0415 (heavy, and optional)

    # Drawn from numbers and from names of targets, which are checked: nothing in it is the user's text.
    return {name: Markup(svg) for name, svg in vars(draw(report)).items()}  # noqa: S704


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def _spread_cells(spread: Spread | None) -> Markup:
    return Markup("").join(Markup("<td>{}</td>").format(figure) for figure in _spread(spread))


def _spread(spread: Spread | None) -> list[str]:
    values = (None, None, None) if spread is None else (spread.min, spread.median, spread.max)
    return [number(value, 3) for value in values]


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _words(target: str) -> str:
    return target.replace(":", " ")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
