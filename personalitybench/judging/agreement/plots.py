"""The plots of a report on agreement, as SVG that stands inside the page: drawn here, nothing is fetched to view it.

Colours are the page's CSS variables, which a browser resolves inside an inline SVG; so one drawing serves the light
and the dark page.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from personalitybench.judging.agreement.measures import CATEGORIES
from personalitybench.judging.agreement.schema import Agreement, AspectFigures, Figure, Pair
from personalitybench.judging.agreement.words import MEASURES, compared, pair_name

if TYPE_CHECKING:
    import altair as alt

INK, SOFT, LINE, MARK = "var(--ink)", "var(--soft)", "var(--line)", "var(--mark)"
CELL = 38
"""Width and height of a cell of a heat map, in pixels."""

AT_A_LOOK = ("exact", "within_one", "kappa", "alpha", "spearman")
"""Measures of which more is better."""

_IN_A_ROW = 4
_LONGEST_NAME = 200  # pixels for the name of a judge
_LONGEST_LABEL = 380  # for those of two


def draw(aspect: AspectFigures) -> dict[str, str]:
    """Draw the plots of one aspect.

    Returns:
        SVG by name: ``look`` (the figures of all pairs with their intervals), ``ratings`` (a heat map for each pair),
        ``bias`` (by trait). One that would be empty is left out.

    Raises:
        ImportError: Altair is not installed; ask :func:`personalitybench.pages.can_plot` first.
    """
    pairs = compared(aspect)
    if not pairs:
        return {}
    return {
        "look": _svg(look_chart(pairs), left=48),
        "ratings": _svg(ratings_chart(pairs)),
        "bias": _svg(bias_chart(pairs)),
    }


def look_chart(pairs: list[Pair]) -> Any:
    """Figures of all pairs as points with their intervals: a panel for each measure, a line for each pair."""
    rows: list[dict[str, Any]] = [
        {"pair": pair_name(pair), "measure": MEASURES[name][0], **_ends(getattr(pair.overall, name))}
        for pair in pairs
        for name in AT_A_LOOK
    ]
    least = min([0.0, *(row["low"] for row in rows if row["low"] is not None)])
    return _points(
        rows,
        panels=("measure", [MEASURES[name][0] for name in AT_A_LOOK]),
        lines=("pair", [pair_name(pair) for pair in pairs]),
        ticks=[tick / 2 for tick in range(-2 if least < -0.5 else -1 if least < 0 else 0, 3)],
        width=150,
    )


def ratings_chart(pairs: list[Pair]) -> Any:
    """Heat maps of both judges' ratings: on the outlined diagonal they agree."""
    import altair as alt  # noqa: PLC0415 (optional)

    charts = [_heat_map(pair) for pair in pairs]
    return alt.concat(*charts, columns=_IN_A_ROW, spacing=34)


def bias_chart(pairs: list[Pair]) -> Any:
    """Bias of the second judge by trait, with intervals: a panel for each pair."""
    rows: list[dict[str, Any]] = [
        {"pair": _two_lines(pair), "group": name, **_ends(found.bias)}
        for pair in pairs
        for name, found in _traits(pair).items()
    ]
    widest = max([0.5, *(abs(row[end]) for row in rows for end in ("low", "high") if row[end] is not None)])
    step = 0.5 if widest <= 1 else 1.0
    count = math.ceil(widest / step)
    names = list(dict.fromkeys(name for pair in pairs for name in _traits(pair)))
    return _points(
        rows,
        panels=("pair", [_two_lines(pair) for pair in pairs]),
        lines=("group", names),
        ticks=[tick * step for tick in range(-count, count + 1)],
        width=210,
    )


def _two_lines(pair: Pair) -> str:
    """The names of a pair, for above a panel."""
    return f"{pair.first} /\n{pair.second}"


def _traits(pair: Pair) -> dict[str, Agreement]:
    return {"all answers": pair.overall, **(pair.by_trait if len(pair.by_trait) > 1 else {})}


def _ends(figure: Figure) -> dict[str, float | None]:
    low, high = figure.interval or (figure.value, figure.value)
    return {"value": figure.value, "low": low, "high": high}


def _points(
    rows: list[dict[str, Any]],
    *,
    panels: tuple[str, list[str]],
    lines: tuple[str, list[str]],
    ticks: list[float],
    width: int,
) -> Any:
    """Points with intervals, a rule at 0.

    Args:
        rows: Data with ``value``, ``low``, ``high`` and both fields.
        panels: Field that makes the panels, side by side, and the order of its values.
        lines: Field that makes the lines of each panel, and the order of its values.
        ticks: Of the axis, which ends at the first and the last.
        width: Of a panel, in pixels.
    """
    import altair as alt  # noqa: PLC0415 (optional)

    there = [row for row in rows if row["value"] is not None]
    # As written: a format is rounded to the distance of the ticks. tickCount: or Vega leaves out every second one.
    label = "replace('' + datum.value, '-', '−')"
    axis = alt.Axis(values=ticks, tickCount=len(ticks), labelExpr=label, labelFlush=False, labelOverlap=False)
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(domain=(ticks[0], ticks[-1]), nice=False),
        axis=axis,
    )
    y = alt.Y(f"{lines[0]}:N", title=None, sort=lines[1], scale=alt.Scale(domain=lines[1]))
    base = alt.Chart(alt.InlineData(values=there))
    zero = base.mark_rule(color=SOFT, strokeDash=[3, 3]).encode(x=alt.datum(0))
    bars = base.mark_rule(color=MARK, strokeWidth=5, opacity=0.35).encode(
        x=alt.X("low:Q", title=None), x2="high:Q", y=y
    )
    points = base.mark_point(color=MARK, fill=MARK, size=45, opacity=1).encode(x=x, y=y)
    return (
        alt.layer(bars, points, zero)
        .properties(width=width, height=alt.Step(24))
        .facet(
            facet=alt.Facet(
                f"{panels[0]}:N",
                sort=panels[1],
                title=None,
                header=alt.Header(labelExpr="split(datum.label, '\\n')", labelLimit=width),
            ),
            columns=len(panels[1]) if panels[0] == "measure" else _IN_A_ROW,
            spacing=34,
        )
    )


def _heat_map(pair: Pair) -> Any:
    import altair as alt  # noqa: PLC0415 (optional)

    most = max(max(row) for row in pair.counts)
    rows = [
        {
            "first": str(first),
            "second": str(second),
            "share": count / most,
            "count": f"{count:,}" if count else "",
            "same": first == second,
        }
        for first, row in zip(CATEGORIES, pair.counts, strict=True)
        for second, count in zip(CATEGORIES, row, strict=True)
    ]
    labels = [str(category) for category in CATEGORIES]
    axis: dict[str, Any] = {"titleLimit": _LONGEST_NAME, "labelAngle": 0, "ticks": False, "domain": False}
    cells = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("first:O", sort=labels, title=pair.first, axis=alt.Axis(**axis)),
        y=alt.Y("second:O", sort=labels[::-1], title=pair.second, axis=alt.Axis(**axis)),
    )
    filled = cells.mark_rect(fill=MARK, stroke=LINE).encode(
        fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0, 0.7]), legend=None)
    )
    diagonal = cells.transform_filter("datum.same").mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.5)
    counts = cells.mark_text(fontSize=12, fill=INK).encode(text="count:N")
    return alt.layer(filled, diagonal, counts).properties(width=CELL * len(labels), height=CELL * len(labels))


def _svg(chart: alt.TopLevelMixin, left: int = 24) -> str:
    """An SVG element in the page's fonts and colours."""
    styled: Any = chart
    styled = (
        # A browser's font may be wider than the one that is measured with: room for it on the left, and no cuts.
        styled.configure(background="transparent", font="system-ui, sans-serif", padding={"left": left, "right": 24})
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT, titleColor=INK, titleFontWeight="normal", domainColor=LINE, tickColor=LINE,
            gridColor=LINE, labelFontSize=12, titleFontSize=12, labelLimit=_LONGEST_LABEL,
        )
        .configure_axisY(grid=False)
        .configure_header(labelColor=INK, labelFontSize=12, labelFontWeight="bold")
    )  # fmt: skip
    text = io.StringIO()
    styled.save(text, format="svg")
    return text.getvalue()
