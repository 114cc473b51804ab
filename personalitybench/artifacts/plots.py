"""Curves of training as SVG that stands inside the page, in the page's colours: nothing is fetched to view it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import altair as alt
import vl_convert  # noqa: F401 (what altair draws with: its absence must show here, not in the middle of a drawing)

from personalitybench.errors import ConfigurationError
from personalitybench.pages import chart_svg
from personalitybench.training.curves import Curve
from personalitybench.traits import Pole, Target

MOST_POINTS = 80
"""Points of a line; of more steps, neighbours are averaged, or the page would hold every step of a long training."""

KINDS = ("training", "held out")
_COLOURS = alt.Scale(domain=list(KINDS), range=["var(--mark)", "var(--second)"])


def draw(curves: Sequence[Curve]) -> str:
    """One small plot for each target, all on one scale: high poles above, low poles below."""
    rows = [row for curve in curves for row in _rows(curve)]
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4, format=",d"))
    y = alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    colour = alt.Color("kind:N", scale=_COLOURS, legend=None)
    line = base.transform_filter("datum.kind == 'training'").mark_line(strokeWidth=1.25).encode(x=x, y=y, color=colour)
    held_out = base.transform_filter("datum.kind == 'held out'")
    dashes = held_out.mark_line(strokeWidth=1.25, strokeDash=[4, 3]).encode(x=x, y=y, color=colour)
    points = held_out.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour)
    names = [curve.target.replace(":", " ") for curve in sorted(curves, key=_row)]
    columns = sum(_row(curve) == _row(min(curves, key=_row)) for curve in curves)
    chart = (
        alt.layer(line, dashes, points)
        .properties(width=190, height=120)
        .facet(facet=alt.Facet("target:N", sort=names, title=None), columns=min(5, columns), spacing=14)
    )
    return chart_svg(chart)


def steps_a_point(curves: Sequence[Curve]) -> int:
    """How many steps are averaged to a point of the longest line."""
    return -(-max(len(curve.steps) for curve in curves) // MOST_POINTS)


def _rows(curve: Curve) -> list[dict[str, Any]]:
    name = curve.target.replace(":", " ")
    together = -(-len(curve.steps) // MOST_POINTS) or 1
    groups = [curve.steps[start : start + together] for start in range(0, len(curve.steps), together)]
    trained = [(group[-1].step, fmean(step.loss for step in group)) for group in groups]
    rows = [{"target": name, "kind": KINDS[0], "step": step, "loss": loss} for step, loss in trained]
    return rows + [{"target": name, "kind": KINDS[1], "step": one.step, "loss": one.loss} for one in curve.held_out]


def _row(curve: Curve) -> int:
    """In which row of plots a curve stands."""
    try:
        return list(Pole).index(Target.parse(curve.target).pole)
    except ConfigurationError:
        return len(Pole)  # trained toward something that is no target
