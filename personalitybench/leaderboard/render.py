"""A board as people read it: a Markdown table and a static page.

Every figure in them is in the JSON; the page may show a few answers beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from personalitybench.costs import describe_cost
from personalitybench.errors import DataError
from personalitybench.files import read_json, write_atomically
from personalitybench.leaderboard.consistency import find_problem
from personalitybench.leaderboard.examples import Example
from personalitybench.leaderboard.fit_costs import FITS_LEGEND, fit_costs, fit_table
from personalitybench.leaderboard.plots import sweep_figure
from personalitybench.leaderboard.schema import Composite, Floor, Leaderboard, MethodId, Row, Sweep
from personalitybench.outside_text import escape_markdown
from personalitybench.pages import HOW_TO_GET_PLOTS, can_plot, markdown_head, markdown_row, page_template
from personalitybench.strengths import show_strength
from personalitybench.traits import TARGETS, TRAIT_NAMES
from personalitybench.validation import validate

SCALE = (2.0, 10.0)  # of a composite: two poles of 1-5
CHOICE_LEGEND = (
    "Mean trait score at each strength (fluency; repetition); * chosen, (*) chosen although no strength met the floor"
)
FLOORS_LEGEND = (
    "A floor is what the judge gives to answers that do not show the target, the same for every board of this judge. "
    "A score that is not clearly above the floors is no evidence that a method works."
)


def write_board(
    board: Leaderboard,
    folder: Path,
    stem: str = "leaderboard",
    examples: Sequence[Example] = (),
    *,
    recomputed: bool = False,
) -> list[Path]:
    """Write ``leaderboard.json``, ``leaderboard.md`` and ``index.html``.

    Args:
        board: The board.
        folder: Where.
        stem: Name of the files; the page of ``leaderboard`` is ``index.html``.
        examples: Answers to show on the page.
        recomputed: Whether this process computed the figures from answers and ratings.

    Returns:
        The paths of the files.
    """
    page = folder / ("index.html" if stem == "leaderboard" else f"{stem}.html")
    paths = [folder / f"{stem}.json", folder / f"{stem}.md", page]
    write_atomically(paths[0], board.model_dump_json(indent=2) + "\n")
    write_atomically(paths[1], to_markdown(board, recomputed=recomputed))
    write_atomically(paths[2], to_html(board, examples, recomputed=recomputed))
    return paths


def read_board(path: Path) -> Leaderboard:
    """Read a board file.

    Raises:
        StorageError: It is missing or not JSON.
        ConfigurationError: It does not follow the schema; the text names the field.
        DataError: Its figures contradict each other; the text names the field.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a leaderboard")
    board = validate(Leaderboard, content, f"leaderboard {path}")
    if (problem := find_problem(board)) is not None:
        field, text = problem
        raise DataError(f"leaderboard {path}: {field}: {text}: the file was altered, make the board again")
    return board


def row_labels(board: Leaderboard) -> dict[str, str]:
    """What to call each row, by its id; see :func:`method_labels`."""
    return method_labels({row.id: (row.identity.model.name, row.identity.method) for row in board.rows})


def method_labels(methods: Mapping[str, tuple[str, MethodId]]) -> dict[str, str]:
    """What to call each method: its name with the strength, and with settings where a model has it twice.

    Args:
        methods: Name of the model and the method, by any key.

    Returns:
        Label by key, e.g. ``p2``, ``npti at 1.4``, ``npti at 0.6–1.4`` (targets have their own),
        ``few_shot (examples=4)``; a combination is called by its parts, ``p2 + npti at 1.4``.
    """
    plain = {key: _plain_label(method) for key, (_, method) in methods.items()}
    known = Counter((model, plain[key]) for key, (model, _) in methods.items())
    labels = {}
    for key, (model, method) in methods.items():
        settings = ", ".join(f"{name}={value}" for name, value in method.settings.items())
        ambiguous = known[model, plain[key]] > 1
        labels[key] = f"{plain[key]} ({settings})" if ambiguous and settings else plain[key]
    return labels


def _plain_label(method: MethodId) -> str:
    return method.title if method.strength is None else f"{method.title} at {show_strength(method.strength)}"


def strength_note(row: Row, board: Leaderboard) -> str:
    """How a row's strength was come by: ``held-out``, ``paper``, ``given``, or a dash where it has none."""
    protocol = row.identity.method.strength_protocol
    if protocol is None:
        return "–"
    failed = floor_not_met(row, board)
    return f"{protocol}; floor not met: {len(failed)} of {len(row.targets)}" if failed else protocol


def floor_not_met(row: Row, board: Leaderboard) -> list[str]:
    """Targets for which no strength met the floor of fluency."""
    made = [sweep for sweep in board.sweeps if sweep.made(row)]
    return [target for target, found in made[0].targets.items() if not found.floor_met] if made else []


def choice_rows(sweep: Sweep) -> list[list[str]]:
    """A sweep as a table: a line for each target, a column for each strength.

    Returns:
        First a head, then for each target its floor, and for each strength the mean trait score, and in brackets
        fluency and repetition; the chosen one is marked with ``*``, or ``(*)`` where no strength met the floor.
    """
    strengths = sorted({point.strength for found in sweep.targets.values() for point in found.points})
    rows = [["target", "floor", *(f"at {strength:g}" for strength in strengths)]]
    for target, found in sweep.targets.items():
        cells = [target, number(found.floor, 1 if round(found.floor, 1) == found.floor else 2)]
        for point in found.points:
            mark = ("*" if found.floor_met else "(*)") if point.strength == found.chosen else ""
            result = point.result
            beside = f"{number(result.fluency)}; {number(result.text.get('repetition'))}"
            cells.append(f"{number(result.mean)}{mark} ({beside})")
        rows.append(cells)
    return rows


def floor_rows(board: Leaderboard) -> list[Floor]:
    """The floors of a board; none where they are missing."""
    return board.floors.rows if board.floors else []


def floors_missing(board: Leaderboard) -> str:
    """Why a board has no floors; empty where it has some, or was never to have them."""
    return f"Its floors are missing: {board.floors.missing}." if board.floors and board.floors.missing else ""


def about_floors(board: Leaderboard) -> str:
    """What the floors are, and of how many answers."""
    if board.floors is None or board.floors.missing:
        return floors_missing(board)
    kinds = "; ".join(f"{floor.kind}: {floor.about}" for floor in board.floors.rows)
    return f"{FLOORS_LEGEND} {board.floors.questions} questions of the sample for each target. {kinds}."


def unrated_total(row: Row | Floor, board: Leaderboard) -> str:
    """Answers of a row without a rating for the trait; a publication does not say."""
    if not row.targets or board.status == "published":
        return "–"
    return str(sum(result.n - result.rated for result in row.targets.values()))


def text_mean(row: Row | Floor, measure: str) -> float | None:
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


def mapped_note(board: Leaderboard) -> str:
    """What mapped figures are, and how far the map is off; empty where there are none."""
    about = board.mapped_to
    if about is None:
        return ""
    return (
        f"mapped: the average with each rating read on the scale of {about.reference['id']}, by a map that was fitted "
        f"on {about.n:,} answers that both rated ({about.source}). A rating is off by {about.error_mapped:.2f} on "
        f"questions that the map did not see, unmapped by {about.error_raw:.2f}, and by {about.error_constant:.2f} if "
        "one always said the mean."
    )


def to_markdown(board: Leaderboard, *, recomputed: bool = False) -> str:
    """Make the Markdown table: a row a method; the composite of each trait (2-10) and the average.

    Args:
        board: The board.
        recomputed: As for :func:`write_board`.
    """
    mapped = ["mapped"] if board.mapped_to else []
    measures = ["fluency", "repetition", "unfinished", "unrated"]
    head = ["model", "method", "strength", "average", *mapped, *TRAIT_NAMES, *measures]
    labels = row_labels(board)
    lines = [
        f"# {escape_markdown(board.name)}",
        "",
        escape_markdown(_about(board, recomputed=recomputed)),
        "",
        *markdown_head(head),
    ]
    for row in board.rows:
        cells = [row.identity.model.name, labels[row.id], strength_note(row, board), with_interval(row.average)]
        cells += [with_interval(row.mapped.average) if row.mapped else "–" for _ in mapped]
        cells += [with_interval(row.traits[name]) if name in row.traits else "–" for name in TRAIT_NAMES]
        cells += [number(row.fluency_average.mean if row.fluency_average else None)]
        cells += [number(text_mean(row, "repetition")), number(text_mean(row, "unfinished"))]
        cells += [unrated_total(row, board)]
        lines.append(markdown_row(cells))
    for floor in floor_rows(board):
        cells = ["–", f"*floor: {floor.kind}*", "–", with_interval(floor.average), *("–" for _ in mapped)]
        cells += [with_interval(floor.traits[name]) for name in TRAIT_NAMES]
        cells += [number(floor.fluency_average.mean), number(text_mean(floor, "repetition"))]
        cells += [number(text_mean(floor, "unfinished")), unrated_total(floor, board)]
        lines.append(markdown_row(cells))
    if board.floors:
        lines += ["", escape_markdown(about_floors(board))]
    if board.mapped_to:
        lines += ["", escape_markdown(mapped_note(board))]
    if any(row.targets for row in board.rows):
        lines += ["", "Mean score of each target (1-5, 3 is neutral):", ""]
        lines += [markdown_row(["method", *map(str, TARGETS)]), markdown_row(["---"] * (len(TARGETS) + 1))]
        for row in board.rows:
            results = [row.targets.get(str(target)) for target in TARGETS]
            lines.append(
                markdown_row([labels[row.id], *(number(result.mean if result else None) for result in results)])
            )
        for floor in floor_rows(board):
            means = [number(floor.targets[str(target)].mean) for target in TARGETS]
            lines.append(markdown_row([f"*floor: {floor.kind}*", *means]))
    costs = fit_costs(board)
    if costs:
        head, *rows = fit_table(costs)
        lines += ["", f"What the fits took. {FITS_LEGEND}", "", *markdown_head(head), *map(markdown_row, rows)]
    for sweep in board.sweeps:
        head, *rows = choice_rows(sweep)
        lines += [
            "",
            escape_markdown(f"{_about_sweep(sweep)} {CHOICE_LEGEND}."),
            "",
            markdown_row(head),
            markdown_row(["---"] * len(head)),
            *map(markdown_row, rows),
        ]
    return "\n".join(lines) + "\n"


def to_html(board: Leaderboard, examples: Sequence[Example] = (), *, recomputed: bool = False) -> str:
    """Make the static page (``leaderboards/page.html.j2``, everything escaped); it fetches nothing.

    Args:
        board: The board.
        examples: Answers to show beside it.
        recomputed: As for :func:`write_board`.
    """
    template = page_template(
        "page.html.j2",
        number=number,
        with_interval=with_interval,
        unrated_total=unrated_total,
        text_mean=text_mean,
        position=_position,
        strength_note=strength_note,
        choice_rows=choice_rows,
        about_sweep=_about_sweep,
        verdict=_verdict,
        highest_floor=_highest_floor,
        cost=describe_cost,
    )
    costs = fit_costs(board)
    return template.render(
        board=board,
        labels=row_labels(board),
        about=_about(board, recomputed=recomputed),
        traits=TRAIT_NAMES,
        targets=[str(target) for target in TARGETS],
        # Markup: our own drawing, in which Altair escapes what it is given.
        figures=[Markup(sweep_figure(sweep)) for sweep in board.sweeps] if can_plot() else [],  # noqa: S704
        floors=floor_rows(board),
        about_floors=about_floors(board),
        fits=fit_table(costs) if costs else [],
        fits_legend=FITS_LEGEND,
        how_to_get_plots=HOW_TO_GET_PLOTS,
        mapped_note=mapped_note(board),
        choice_legend=CHOICE_LEGEND,
        examples=examples,
        models={row.id: row.identity.model.name for row in board.rows},
        several_models=len({row.identity.model.name for row in board.rows}) > 1,
    )


def origin_note(board: Leaderboard, *, recomputed: bool = False) -> str:
    """Where the figures come from.

    Args:
        board: The board.
        recomputed: As for :func:`write_board`.
    """
    if board.status == "published":
        return f"Published figures, not recomputed. Source: {board.source}."
    if recomputed:
        return "Every figure is recomputed from the answers and ratings."
    return "Figures as the file says, not verified here ('personalitybench leaderboard verify' recomputes them)."


def _about(board: Leaderboard, *, recomputed: bool) -> str:
    parts = [
        f"Judge: {board.judge.id}.",
        board.caveat,
        "A composite is the sum of the mean scores of both poles of a trait (2-10; 6 is neutral; higher follows the "
        "target better). Brackets hold 95 % bootstrap intervals over questions.",
        origin_note(board, recomputed=recomputed),
    ]
    return " ".join(part for part in parts if part)


def _about_sweep(sweep: Sweep) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in sweep.method.settings.items())
    method = f"{sweep.method.name} ({settings})" if settings else sweep.method.name
    slack = f", less {sweep.slack:g}" if sweep.slack else ""
    failed = [target for target, found in sweep.targets.items() if not found.floor_met]
    none = f" No strength met the floor: {', '.join(failed)} (the most fluent was taken)." if failed else ""
    return (
        f"Strengths of {method} on {sweep.model.name}, chosen for each target on the dev half of the questions "
        f"({sweep.data.questions} questions) by the ratings of judge {sweep.judge.id}: the best mean trait score "
        f"among those whose mean fluency is not below the floor, which is that of {sweep.baseline.name} rounded to "
        f"one decimal{slack}.{none}"
    )


def _highest_floor(row: Row, board: Leaderboard) -> float | None:
    """The highest average composite of a floor, over the traits that a row has."""
    found = [[floor.traits[name].mean for name in row.traits] for floor in floor_rows(board)]
    averages = [sum(means) / len(means) for means in found if means and None not in means]  # type: ignore[arg-type]
    return max(averages, default=None)


def _verdict(value: float | str) -> str:
    """A rating, or why there is none."""
    return value.replace("_", " ") if isinstance(value, str) else f"{value:.1f}"


def _position(value: float) -> float:
    """Where a composite stands on its scale, in percent."""
    low, high = SCALE
    return round(100.0 * (value - low) / (high - low), 2)
