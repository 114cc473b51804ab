"""A fit as files: all there is as JSON, and for people as Markdown and a static page."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from personalitybench.artifacts.report import CURVE_HEAD, FOLDER, ArtifactReport, curve_cells, facts
from personalitybench.costs import describe_bytes
from personalitybench.outside_text import escape_markdown
from personalitybench.pages import can_plot, markdown_head, markdown_row, page_template, write_files

CURVES = (
    "Loss is the mean loss of a token of the answers, in nats. Before and after are of held-out answers, which were "
    "not trained on: a ratio below 1 is what was learnt."
)
USE = f"A suite finds a fit by itself. For lm_eval, with the folder of the artifact in the place of {FOLDER}:"


def write_report(report: ArtifactReport, folder: Path) -> list[Path]:
    """Write ``artifact.json``, ``artifact.md`` and ``artifact.html``; returns their paths.

    Args:
        report: What to write.
        folder: Created if it is missing.

    Raises:
        StorageError: The folder is not writable.
    """
    return write_files(folder, "artifact", report, to_markdown(report), to_html(report))


def to_markdown(report: ArtifactReport) -> str:
    """The report as Markdown tables."""
    lines = [f"# {escape_markdown(report.name)}", "", f"Fit, {report.state}, {describe_bytes(report.bytes)}.", ""]
    lines += [f"Note: {escape_markdown(note)}.\n" for note in report.notes]
    lines += [*markdown_head(["", ""]), *(markdown_row(fact) for fact in facts(report))]
    if report.rows:
        lines += ["", "## What was found", "", *markdown_head(list(report.rows[0]))]
        lines += [markdown_row(list(row.values())) for row in report.rows]
    if report.curves:
        lines += ["", "## Training", "", CURVES, "", *markdown_head(CURVE_HEAD)]
        lines += [markdown_row(curve_cells(curve)) for curve in report.curves]
    if report.metadata:
        lines += ["", "## Use", "", USE, "", "```", f"--metadata '{json.dumps(report.metadata)}'", "```"]
    lines += ["", "## Files", "", *markdown_head(["file", "size"])]
    lines += [markdown_row([file.path, describe_bytes(file.bytes)]) for file in report.files]
    return "\n".join(lines) + "\n"


def to_html(report: ArtifactReport) -> str:
    """Make the static page (``leaderboards/artifact.html.j2``, everything escaped but our own SVG)."""
    drawn = [curve for curve in report.curves if curve.steps or curve.held_out]
    together, svg = _draw(report) if drawn and can_plot() else (1, None)
    template = page_template("artifact.html.j2", size=describe_bytes, cells=curve_cells)
    return template.render(
        report=report,
        facts=facts(report),
        svg=svg,
        together=together,
        missing=bool(drawn) and svg is None,
        head=CURVE_HEAD,
        about_curves=CURVES,
        use=USE,
        metadata=json.dumps(report.metadata),
    )


def _draw(report: ArtifactReport) -> tuple[int, Markup]:
    from personalitybench.artifacts import plots  # noqa: PLC0415 (heavy, and optional)

    # Names of targets are the only text in it that is read from a file, and Altair escapes what it is given.
    return plots.steps_a_point(report.curves), Markup(plots.draw(report.curves))  # noqa: S704
