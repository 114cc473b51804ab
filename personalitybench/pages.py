"""Reports as people read them: the environment of the static pages, the look of plots, Markdown tables, three files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from pydantic import BaseModel

from personalitybench.files import write_atomically, write_json
from personalitybench.outside_text import escape_markdown
from personalitybench.resources import bundled


def page_template(file: str, /, **filters: Callable[..., Any]) -> Template:
    """Load a page's template; everything in it is escaped.

    Args:
        file: In ``leaderboards/``.
        filters: Filters of this page.
    """
    environment = Environment(
        loader=FileSystemLoader(bundled("leaderboards")),
        autoescape=select_autoescape(enabled_extensions=("html", "j2"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(file)


HOW_TO_GET_PLOTS = "pip install 'personalitybench[plots]'"
NO_PLOTS = f"plots need altair and vl-convert: {HOW_TO_GET_PLOTS}; the page is written without them"
"""What a command says that wrote a page without its plots."""


def can_plot() -> bool:
    """Whether what draws the figures is installed."""
    return all(find_spec(name) is not None for name in ("altair", "vl_convert"))


INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
"""Colours of ``leaderboards/style.css``, which a browser resolves inside an inline SVG: one drawing, light and dark."""


def chart_svg(chart: Any) -> str:
    """Draw an Altair chart as an SVG element in the pages' fonts and colours; nothing is fetched to view it."""
    styled = (
        # A browser's font may be wider than the one that is measured with: room for it on the left, and no cuts.
        chart.configure(background="transparent", font="system-ui, sans-serif", padding={"left": 24, "right": 24})
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT, titleColor=SOFT, titleFontWeight="normal", domainColor=LINE, tickColor=LINE,
            gridColor=LINE, labelFontSize=11, titleFontSize=11, labelLimit=0,
        )
        .configure_axisX(grid=False)
        .configure_header(labelColor=INK, labelFontSize=12, labelFontWeight="bold")
    )  # fmt: skip
    text = io.StringIO()
    styled.save(text, format="svg")
    return text.getvalue()


def markdown_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [markdown_row(names), markdown_row(["---"] * len(names))]


def markdown_row(cells: Sequence[object]) -> str:
    """One line of a Markdown table; cells are escaped as :func:`escape_markdown` says."""
    return "| " + " | ".join(_markdown_cell(cell) for cell in cells) + " |"


def _markdown_cell(value: object) -> str:
    # A backslash before a bar would take the escape of the bar away.
    return re.sub(r"\\*\|", lambda match: match[0][:-1] * 2 + "\\|", escape_markdown(value))


def write_files(folder: Path, stem: str, report: BaseModel, markdown: str, page: str) -> list[Path]:
    """Write ``STEM.json``, ``STEM.md`` and ``STEM.html``; returns their paths.

    Args:
        folder: Created if it is missing.
        stem: What they are called.
        report: All of it, as data.
        markdown: The same as Markdown.
        page: The same as a page.

    Raises:
        StorageError: The folder is not writable.
    """
    paths = [folder / f"{stem}.{ending}" for ending in ("json", "md", "html")]
    write_json(paths[0], report.model_dump(mode="json"))
    write_atomically(paths[1], markdown)
    write_atomically(paths[2], page)
    return paths
