"""A sweep of strengths as a figure: static SVG for the page, drawn with Altair where that is installed.

Text and lines take the colour of the page (``currentColor``), so the figure is readable on light and dark alike.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from personalitybench.leaderboard.schema import Sweep
from personalitybench.strengths import show_strength
from personalitybench.traits import TRAIT_NAMES, Pole, Target

if TYPE_CHECKING:
    import altair as alt

_COLOURS = {"high": "#3d84c6", "low": "#d9730d"}  # both at least 3:1 on white and on the page's dark ground
_PANEL = (195, 150)  # width and height in pixels
_INK = "currentColor"


def sweep_figure(sweep: Sweep) -> str:
    """Draw a sweep: a column for each trait; trait score above and fluency below, over strength, a line for each pole.

    Bands are 95 % intervals, rings the chosen strengths (dotted where no strength met the floor), dashes the floor.

    Returns:
        SVG to be put into a page.

    Raises:
        ImportError: Altair is not installed; ask :func:`personalitybench.pages.can_plot` first.
    """
    import altair as alt  # noqa: PLC0415 (optional)

    rows = _rows(sweep)
    base = alt.Chart(alt.InlineData(values=rows))
    scores = _panels(base, "score", "trait score", sweep)
    fluency = _panels(base, "fluency", "fluency", sweep)
    chart = (
        alt.vconcat(scores, fluency, spacing=12)
        .properties(background="transparent", description=_description(sweep))
        .configure(font="system-ui, sans-serif", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_INK, titleColor=_INK, gridColor=_INK, gridOpacity=0.12, domainColor=_INK, tickColor=_INK,
            domainOpacity=0.4, tickOpacity=0.4, titleFontWeight="normal", titleOpacity=0.75, labelFontSize=11,
            titleFontSize=12,
        )
        .configure_header(labelColor=_INK, labelFontSize=13, labelFontWeight="bold", labelPadding=6)
        .configure_legend(labelColor=_INK, labelFontSize=12, orient="top", title=None, symbolSize=70)
    )  # fmt: skip
    stream = io.StringIO()
    chart.save(stream, format="svg")
    return stream.getvalue()


def _rows(sweep: Sweep) -> list[dict[str, Any]]:
    """One row for each target and strength."""
    rows = []
    for name, found in sweep.targets.items():
        target = Target.parse(name)
        for point in found.points:
            result = point.result
            score_low, score_high = result.interval or (result.mean, result.mean)
            fluency_low, fluency_high = result.fluency_interval or (result.fluency, result.fluency)
            rows.append(
                {
                    "trait": target.trait,
                    "pole": str(target.pole),
                    "strength": point.strength,
                    "score": result.mean,
                    "score_low": score_low,
                    "score_high": score_high,
                    "fluency": result.fluency,
                    "fluency_low": fluency_low,
                    "fluency_high": fluency_high,
                    "floor": found.floor,
                    "mark": ("met" if found.floor_met else "failed") if point.strength == found.chosen else "",
                }
            )
    return rows


def _panels(base: alt.Chart, what: str, title: str, sweep: Sweep) -> alt.FacetChart:
    """Make a row of panels, one for each trait."""
    import altair as alt  # noqa: PLC0415 (optional)

    strengths = sorted({point.strength for found in sweep.targets.values() for point in found.points})
    traits = [name for name in TRAIT_NAMES if any(Target.parse(target).trait == name for target in sweep.targets)]
    upper = what == "score"
    x = alt.X(
        "strength:Q",
        axis=alt.Axis(
            values=strengths,
            labelExpr="'' + datum.value",  # as written: a format is rounded to the distance of the ticks
            grid=False,
            title=None if upper else "strength",
            labels=not upper,
        ),
        scale=alt.Scale(zero=False, nice=False, padding=8),
    )
    y = alt.Y(f"{what}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    poles = [str(pole) for pole in Pole]
    colour = alt.Color(
        "pole:N",
        scale=alt.Scale(domain=poles, range=[_COLOURS[pole] for pole in poles]),
        legend=alt.Legend(symbolOpacity=1) if upper else None,
    )
    band = base.mark_area(opacity=0.16).encode(x=x, y=alt.Y(f"{what}_low:Q", title=title), y2=f"{what}_high:Q")
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=36, opacity=1).encode(x=x, y=y)
    ring = base.mark_point(size=170, strokeWidth=2, opacity=1).encode(x=x, y=y)
    layers = [
        band,
        line,
        points,
        ring.transform_filter("datum.mark == 'met'"),
        ring.mark_point(size=170, strokeWidth=2, opacity=1, strokeDash=[2, 3]).transform_filter(
            "datum.mark == 'failed'"
        ),
    ]
    if not upper:
        lowest = min(strengths)
        floor = base.mark_rule(strokeDash=[5, 4], opacity=0.9).encode(y=alt.Y("floor:Q", title=title))
        layers.append(floor.transform_filter(f"datum.strength == {lowest}"))
    width, height = _PANEL
    header = alt.Header(title=None, labels=upper)
    return (
        alt.layer(*[layer.encode(color=colour) for layer in layers])
        .properties(width=width, height=height)
        .facet(column=alt.Column("trait:N", sort=traits, header=header), spacing=18)
    )


def _description(sweep: Sweep) -> str:
    """What the figure shows, for those who cannot see it; the figures stand in the table below it."""
    chosen = sweep.method.strength
    return (
        f"Trait score and fluency of {sweep.method.name} over strength, for both poles of each trait; "
        f"chosen strengths {show_strength(chosen) if chosen is not None else 'none'}"
    )
