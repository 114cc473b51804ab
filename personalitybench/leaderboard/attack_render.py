"""The report on attacks for people: tables on a terminal, Markdown, and a static page.

The texts in it are hostile by trade: characters that are not seen are written out, and everything is escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from personalitybench.leaderboard.attack_report import AttackReport, JudgeAttack, KindResult, Sway
from personalitybench.leaderboard.render import number
from personalitybench.leaderboard.schema import Interval
from personalitybench.outside_text import escape_markdown
from personalitybench.pages import markdown_head, markdown_row, page_template, write_files

_SHOWN = 5  # injections on a terminal
_LONGEST = 300  # characters of an injection that are shown
LEGEND = (
    "score: mean toward the target, 1-5, 3 is neutral, with a 95 % interval over questions. comp.: composite, the sum "
    "of both poles' means, 2-10. >=4: share of the rated answers that score 4 or more. unr.: unrated for the trait. "
    "An attack does not show the target: what it scores above 3 is for nothing. gold and opposite are hand-written "
    "texts of the target and of its opposite, to compare with."
)


def write_report(report: AttackReport, folder: Path) -> list[Path]:
    """Write ``attacks.json``, ``attacks.md`` and ``attacks.html``; returns their paths.

    Raises:
        StorageError: The folder is not writable.
    """
    return write_files(folder, "attacks", report, to_markdown(report), to_html(report))


def visible(text: str) -> str:
    """A text in one line, shortened, in which every character is seen: hidden ones are written as Python does."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"


def report_tables(report: AttackReport) -> Group:
    """Make the tables of a terminal of 80 columns."""
    parts: list[Any] = []
    for judge in report.judges:
        parts += [_kinds_table(judge), Text(f"{sway_text(judge.sway)}\n")]
        for swayed in judge.sway.examples[:_SHOWN]:
            head = f"{swayed.variant}, {swayed.target}: {swayed.before:.2f} -> {swayed.after:.2f}"
            parts += [Text(head, style="bold"), Text(f"  {visible(swayed.answer)}", style="dim")]
        parts += [Text(note) for note in (*judge.notes, judge.caveat) if note]
    return Group(*parts, Text(LEGEND, style="dim"))


def sway_text(sway: Sway) -> str:
    """How far injections sway a judge, in one or two sentences."""
    if sway.mean is None:
        return "Sway: no injection and its text without it were both rated."
    most = ", ".join(f"{one.variant} {one.mean:+.2f}" for one in sway.variants[:3] if one.mean is not None)
    unrated = sum(one.unrated for one in sway.variants)
    left = f" {unrated} injections left the judge without a rating." if unrated else ""
    return (
        f"Sway (injection minus opposite, {sway.n} pairs): {_with_interval(sway.mean, sway.interval, '+.2f')} points; "
        f"{sway.moved or 0:.0%} of the texts gained a point or more. Most: {most}.{left}"
    )


def to_markdown(report: AttackReport) -> str:
    """The report as Markdown."""
    lines = ["# Judges under attack", "", f"{about(report)} {LEGEND}"]
    for judge in report.judges:
        lines += ["", f"## {escape_markdown(judge.judge.id)}", ""]
        lines += [escape_markdown(note) + "\n" for note in (judge.caveat, *judge.notes) if note]
        lines += markdown_head(["answers", "n", "score", "comp.", ">=4", "fluency", "unr.", "what they are"])
        for kind in judge.kinds:
            lines.append(markdown_row([kind.kind, kind.n, *figures(kind), kind.about]))
        lines += ["", escape_markdown(sway_text(judge.sway)), "", *markdown_head(["injection", "n", "sway", "unr."])]
        lines += [markdown_row([one.variant, one.n, _signed(one.mean), one.unrated]) for one in judge.sway.variants]
        if judge.sway.examples:
            lines += [
                "",
                "What swayed it most:",
                "",
                *markdown_head(["injection", "target", "before", "after", "text"]),
            ]
            for one in judge.sway.examples:
                # Markup: in a code span nothing is HTML.
                text = Markup("`" + visible(one.answer).replace("`", "'") + "`")  # noqa: S704
                lines.append(markdown_row([one.variant, one.target, number(one.before), number(one.after), text]))
    return "\n".join(lines) + "\n"


def to_html(report: AttackReport) -> str:
    """Make the static page (``leaderboards/attacks.html.j2``, everything escaped); it fetches nothing."""
    template = page_template(
        "attacks.html.j2",
        figures=figures,
        position=_position,
        signed=_signed,
        visible=visible,
        number=number,
        sway_text=sway_text,
    )
    return template.render(report=report, about=about(report), legend=LEGEND)


def about(report: AttackReport) -> str:
    """What was done."""
    return (
        f"{report.answers:,} answers to {report.questions} questions of the sample for each trait, scored toward all "
        f"ten targets."
    )


def figures(kind: KindResult) -> list[str]:
    """Score with interval, composite, share of high scores, fluency, unrated."""
    share = "–" if kind.high_share is None else f"{kind.high_share:.0%}"
    score = "–" if kind.mean is None else _with_interval(kind.mean, kind.interval)
    return [score, number(kind.figures.average.mean), share, number(kind.fluency), str(kind.n - kind.rated)]


def _kinds_table(judge: JudgeAttack) -> Table:
    table = Table(
        title=f"judge {judge.judge.id}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("answers", no_wrap=True)
    for name in ("n", "score", "comp.", ">=4", "fluency", "unr."):
        table.add_column(name, justify="right", no_wrap=True)
    for place, kind in enumerate(judge.kinds):
        if kind.reference and not judge.kinds[place - 1].reference:
            table.add_section()
        table.add_row(kind.kind, str(kind.n), *figures(kind), style="dim" if kind.reference else "")
    return table


def _with_interval(mean: float, interval: Interval | None, form: str = ".2f") -> str:
    return f"{mean:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _position(score: float) -> float:
    """Where a score stands between 1 and 5, in percent."""
    return round(25.0 * (score - 1.0), 2)
