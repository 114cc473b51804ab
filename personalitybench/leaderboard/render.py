"""A board as people read it: a Markdown table and a static page, both with nothing that the JSON does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from personalitybench.errors import DataError
from personalitybench.files import read_json, write_atomically
from personalitybench.leaderboard.schema import Composite, Leaderboard, Row
from personalitybench.resources import bundled
from personalitybench.traits import TARGETS, TRAIT_NAMES
from personalitybench.validation import validate

SCALE = (2.0, 10.0)  # of a composite: two poles of 1-5


def write_board(board: Leaderboard, folder: Path, stem: str = "leaderboard") -> list[Path]:
    """Write ``leaderboard.json``, ``leaderboard.md`` and ``index.html``; returns their paths."""
    page = folder / ("index.html" if stem == "leaderboard" else f"{stem}.html")
    paths = [folder / f"{stem}.json", folder / f"{stem}.md", page]
    write_atomically(paths[0], board.model_dump_json(indent=2) + "\n")
    write_atomically(paths[1], to_markdown(board))
    write_atomically(paths[2], to_html(board))
    return paths


def read_board(path: Path) -> Leaderboard:
    """Read a board file.

    Raises:
        StorageError: It is missing or not JSON.
        ConfigurationError: It does not follow the schema; the text names the field.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a leaderboard")
    return validate(Leaderboard, content, f"leaderboard {path}")


def method_label(row: Row) -> str:
    """A method with what distinguishes it, e.g. ``npti γ=1.4``."""
    method = row.identity.method
    settings = ", ".join(f"{key}={value}" for key, value in method.settings.items())
    parts = [
        method.name,
        f"at {method.strength:g}" if method.strength is not None else "",
        f"({settings})" if settings else "",
    ]
    return " ".join(part for part in parts if part)


def unrated_total(row: Row) -> int:
    """Answers of a row without a rating for the trait."""
    return sum(result.n - result.rated for result in row.targets.values())


def text_mean(row: Row, measure: str) -> float | None:
    """Mean of an objective text measure over a row's answers."""
    found = [(result.text[measure], result.n) for result in row.targets.values() if measure in result.text]
    total = sum(count for _, count in found)
    return sum(value * count for value, count in found) / total if total else None


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(composite: Composite) -> str:
    """``7.41 [6.90, 7.88]``."""
    if composite.interval is None:
        return number(composite.mean)
    low, high = composite.interval
    return f"{number(composite.mean)} [{low:.2f}, {high:.2f}]"


def to_markdown(board: Leaderboard) -> str:
    """Make the Markdown table: a row a method; the composite of each trait (2-10) and the average."""
    head = ["model", "method", "average", *TRAIT_NAMES, "fluency", "repetition", "unfinished", "unrated"]
    lines = [f"# {board.name}", "", _about(board), "", _row(head), _row(["---"] * len(head))]
    for row in board.rows:
        cells = [row.identity.model.name, method_label(row), with_interval(row.average)]
        cells += [with_interval(row.traits[name]) if name in row.traits else "–" for name in TRAIT_NAMES]
        cells += [number(row.fluency_average.mean if row.fluency_average else None)]
        cells += [number(text_mean(row, "repetition")), number(text_mean(row, "unfinished"))]
        cells += [str(unrated_total(row)) if row.targets else "–"]
        lines.append(_row(cells))
    if any(row.targets for row in board.rows):
        lines += ["", "Mean score of each target (1-5, 3 is neutral):", ""]
        lines += [_row(["method", *map(str, TARGETS)]), _row(["---"] * (len(TARGETS) + 1))]
        for row in board.rows:
            results = [row.targets.get(str(target)) for target in TARGETS]
            lines.append(_row([method_label(row), *(number(result.mean if result else None) for result in results)]))
    return "\n".join(lines) + "\n"


def to_html(board: Leaderboard) -> str:
    """Make the static page (``leaderboards/page.html.j2``, everything escaped)."""
    environment = Environment(
        loader=FileSystemLoader(bundled("leaderboards")),
        autoescape=select_autoescape(enabled_extensions=("html", "j2"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, with_interval=with_interval, method_label=method_label)
    environment.filters.update(unrated_total=unrated_total, text_mean=text_mean, position=_position)
    template = environment.get_template("page.html.j2")
    return template.render(board=board, about=_about(board), traits=TRAIT_NAMES, targets=[str(t) for t in TARGETS])


def _about(board: Leaderboard) -> str:
    origin = (
        "Every figure is recomputed from the answers and ratings."
        if board.status == "recomputed"
        else f"Published figures, not recomputed. Source: {board.source}."
    )
    parts = [
        f"Judge: {board.judge.id}.",
        board.caveat,
        "A composite is the sum of the mean scores of both poles of a trait (2-10; 6 is neutral; higher follows the "
        "target better). Brackets hold 95 % bootstrap intervals over questions.",
        origin,
    ]
    return " ".join(part for part in parts if part)


def _position(value: float) -> float:
    """Where a composite stands on its scale, in percent."""
    low, high = SCALE
    return round(100.0 * (value - low) / (high - low), 2)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
