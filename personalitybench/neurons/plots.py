"""The plots of a report on neurons, as SVG that stands inside the page: drawn here, nothing is fetched to view it.

Colours are the page's CSS variables, which a browser resolves inside an inline SVG; so one drawing serves the light
and the dark page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert  # noqa: F401 (what altair draws with: its absence must show here, not in the middle of a drawing)

from personalitybench.neurons.report import NeuronReport
from personalitybench.pages import INK, LINE, SOFT, chart_svg
from personalitybench.traits import TRAIT_NAMES, Pole, Target

POLES = alt.Scale(domain=[str(pole) for pole in Pole], range=["var(--mark)", "var(--second)"])
CELL = (88, 40)
"""Width and height of a cell of the heatmap, in pixels."""

LEAST_TOP = 0.25
"""Share at which the heatmap's colour is full at the earliest, so that a few shared neurons do not look like many."""


@dataclass(frozen=True)
class Plots:
    """SVG texts.

    Attributes:
        layers: Neurons by layer, one small plot for each target.
        deltas: How many neurons have at least so great a δ, one small plot for each trait.
        overlap: What the sets of two targets share.
    """

    layers: str
    deltas: str
    overlap: str


def draw(report: NeuronReport) -> Plots:
    """Draw all plots of a report."""
    return Plots(chart_svg(layers_chart(report)), chart_svg(deltas_chart(report)), chart_svg(overlap_chart(report)))


def layers_chart(report: NeuronReport) -> Any:
    """Bars by layer: a column for each trait, a row for each pole."""
    rows = [
        {**_names(one.target), "layer": layer, "neurons": count}
        for one in report.targets
        for layer, count in enumerate(one.by_layer)
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(values=_ticks(report.layers), labelAngle=0)),
            y=alt.Y("neurons:Q", title="neurons", axis=alt.Axis(tickCount=4)),
            color=alt.Color("pole:N", scale=POLES, legend=None),
        )
        .properties(width=200, height=110)
    )
    traits = _traits(report)
    return chart.facet(
        column=alt.Column("trait:N", sort=traits, title=None),
        row=alt.Row("pole:N", sort=[str(pole) for pole in Pole], title=None, header=alt.Header(labelAngle=0)),
        spacing=14,
    )


def deltas_chart(report: NeuronReport) -> Any:
    """Steps down from all neurons of a set to its strongest: a column for each trait, both poles in one plot."""
    rows = [
        {**_names(one.target), "delta": delta, "neurons": count}
        for one in report.targets
        for delta, count in zip(report.delta_grid, one.at_least, strict=True)
        if count
    ]
    least = min((one.delta.min for one in report.targets if one.delta), default=0.0)
    first = max((value for value in report.delta_grid if value <= least), default=0.0)
    chart = (
        alt.Chart(alt.InlineData(values=[row for row in rows if row["delta"] >= first]))
        .mark_line(interpolate="step-after", strokeWidth=1.75)
        .encode(
            x=alt.X(
                "delta:Q",
                title="|δ| at least",
                scale=alt.Scale(zero=False),
                axis=alt.Axis(tickCount=5, labelFlush=False),
            ),
            y=alt.Y(
                "neurons:Q",
                title="neurons",
                scale=alt.Scale(type="log", domainMin=1),
                axis=alt.Axis(values=[10**power for power in range(8)], format=",d"),
            ),
            color=alt.Color("pole:N", scale=POLES, legend=None),
        )
        .properties(width=200, height=140)
    )
    return chart.facet(column=alt.Column("trait:N", sort=_traits(report), title=None), spacing=14)


def overlap_chart(report: NeuronReport) -> Any:
    """Heatmap of the shares, both figures written into each cell."""
    names = [one.target.replace(":", " ") for one in report.targets]
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(names):
        for other, column in enumerate(names):
            shared, share = report.overlap.shared[place][other], report.overlap.share[place][other]
            own = place == other
            cell = {"row": row, "column": column, "share": 0.0 if own else share}
            large, small, size = ("", "", f"{shared:,}") if own else (f"{share:.2f}", f"{shared:,}", "")
            rows.append({**cell, "large": large, "small": small, "size": size})
    top = max([LEAST_TOP, *(row["share"] for row in rows)])
    cells = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("column:N", sort=names, title=None, axis=alt.Axis(orient="top", labelAngle=-35)),
        y=alt.Y("row:N", sort=names, title=None),
    )
    shares = cells.mark_rect(fill="var(--mark)", stroke=LINE).encode(
        fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, top], range=[0, 0.6]), legend=None)
    )
    large = cells.mark_text(dy=-6, fontSize=13, fill=INK).encode(text="large:N")
    small = cells.mark_text(dy=9, fontSize=11, fill=INK).encode(text="small:N")
    own_size = cells.mark_text(fontSize=12, fill=SOFT).encode(text="size:N")
    width, height = (pixels * len(names) for pixels in CELL)
    return (shares + large + small + own_size).properties(width=width, height=height)


def _names(target: str) -> dict[str, Any]:
    parsed = Target.parse(target)
    return {"trait": parsed.trait, "pole": str(parsed.pole)}


def _traits(report: NeuronReport) -> list[str]:
    there = {Target.parse(one.target).trait for one in report.targets}
    return [name for name in TRAIT_NAMES if name in there]


def _ticks(layers: int) -> list[int]:
    """Layers that are named on an axis, about six."""
    step = next((one for one in (1, 2, 5, 10, 20, 50) if layers / one <= 8), 100)
    return list(range(0, layers, step))
