"""What lies in the cache of fits, on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from personalitybench.artifacts.kept import REMOVED, About, Kept, KeptAnswers, KeptFit, KeptStore
from personalitybench.artifacts.report import CURVE_HEAD, ArtifactReport, curve_cells, facts
from personalitybench.artifacts.sizes import measure
from personalitybench.artifacts.usage import fit_table
from personalitybench.console import plain_text
from personalitybench.costs import describe_bytes, describe_cost
from personalitybench.outside_text import escape_controls

_STYLES = {"complete": "", "interrupted": "yellow", "damaged": "red"}


def store_tables(store: KeptStore, fits: Sequence[KeptFit], answers: Sequence[KeptAnswers]) -> Group:
    """Make the list.

    Args:
        store: All there is.
        fits: Those to show.
        answers: Those to show.
    """
    parts: list[Table | Text] = []
    if fits:
        parts += [_table("Fits", "state", [_fit_row(fit) for fit in fits]), Text()]
    if answers:
        parts += [_table("Identification answers, which fits share", "runs", [*map(_answers_row, answers)]), Text()]
    if not parts:
        parts.append(Text("no fit that is so" if store.fits or store.answers else "no fit was made yet"))
    parts += [plain_text(line) for line in _totals(store)]
    return Group(*parts)


def removal_table(items: Sequence[Kept]) -> Table:
    """What is to be removed."""
    table = _bare("To be removed")
    table.add_column("name", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", justify="right", no_wrap=True)
    for item in items:
        model = "" if item.about is None else item.about.model.name.rpartition("/")[2]
        if isinstance(item, KeptFit):
            what = f"{item.state} fit"
        else:
            what = "answers" if isinstance(item, KeptAnswers) else "copy of an adapter"
        about = f"{what} of {model}" if model else what
        table.add_row(item.name, about, describe_bytes(item.bytes), _ago(item.used))
    return table


def report_tables(report: ArtifactReport) -> Group:
    """Make all that is said about one fit."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts(report):
        grid.add_row(name, value)
    heading = plain_text(f"{report.name}: {report.state}, {describe_bytes(report.bytes)}", style="bold")
    parts: list[Table | Text] = [heading, *(plain_text(note, style="yellow") for note in report.notes), grid]
    if report.rows:
        parts += [Text(), fit_table(report.rows)]
    if report.curves:
        parts += [Text(), _curves(report)]
    return Group(*parts, Text(), _files(report))


def answers_table(answers: KeptAnswers) -> Group:
    """Make what is said about shared answers."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if answers.identity is not None:
        settings = ", ".join(f"{name}={value}" for name, value in answers.identity.settings.items())
        for name, value in (
            ("model", f"{answers.identity.model.name} @ {answers.identity.model.revision}"),
            ("questions", f"{answers.identity.data.source} ({answers.identity.data.revision})"),
            ("seed", str(answers.identity.seed)),
            ("set", settings),
        ):
            grid.add_row(name, value)
    grid.add_row("fits", ", ".join(answers.fits) or "none is made of them")
    grid.add_row("folder", str(answers.folder))
    title = plain_text(f"{answers.name}: answers of {answers.runs} runs, {describe_bytes(answers.bytes)}", style="bold")
    table = _bare("Runs")
    table.add_column("run", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for run in sorted(path for path in answers.folder.iterdir() if path.is_dir()):
        table.add_row(run.name, describe_bytes(measure(run)[0]))
    problem = [plain_text(f"! {answers.problem}", style="yellow")] if answers.problem else []
    return Group(title, *problem, grid, Text(), table)


def _table(title: str, third: str, rows: Sequence[tuple[Text, str | Text, str, str]]) -> Table:
    table = _bare(title)
    table.add_column("name", overflow="fold", ratio=1)
    table.add_column(third, justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _bare(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip


def _fit_row(fit: KeptFit) -> tuple[Text, Text, str, str]:
    lines = []
    if fit.identity is not None:
        chosen = ", ".join(f"{name}={value}" for name, value in fit.changed.items()) or "settings as by default"
        lines = [_model(fit.identity), _drawn(fit.identity), chosen]
    lines += [describe_cost(fit.cost) if fit.cost else "", fit.problem, fit.note]
    state = Text(f"{fit.state}\nin use" if fit.in_use else fit.state, style=_STYLES[fit.state])
    return _named(fit.name, lines), state, describe_bytes(fit.bytes), _ago(fit.used)


def _answers_row(one: KeptAnswers) -> tuple[Text, str, str, str]:
    lines = [one.problem]
    if one.identity is not None:
        chosen = ", ".join(f"{name}={value}" for name, value in one.identity.settings.items())
        lines = [_model(one.identity), _drawn(one.identity), chosen]
    lines.append(f"for {', '.join(one.fits)}" if one.fits else "for no fit that is here")
    runs = f"{one.runs}\nin use" if one.in_use else str(one.runs)
    return _named(one.name, lines), runs, describe_bytes(one.bytes), _ago(one.used)


def _named(name: str, lines: Sequence[str]) -> Text:
    return Text.assemble((escape_controls(name), "bold"), *(f"\n{escape_controls(line)}" for line in lines if line))


def _model(about: About) -> str:
    name, revision = about.model.name.rpartition("/")[2], about.model.revision.rpartition(":")[2][:8]
    return f"{name} @ {revision}"


def _drawn(about: About) -> str:
    loaded = ", ".join([about.model.engine, *(f"{name}={value}" for name, value in about.model.args.items())])
    return f"{loaded}; {about.data.source} questions, seed {about.seed}"


def _totals(store: KeptStore) -> list[str]:
    groups: list[tuple[str, str, Sequence[Kept]]] = [
        ("fit", "fits", store.fits),
        ("folder of answers", "folders of answers", store.answers),
        ("copy of an adapter at another strength", "copies of adapters at other strengths", store.adapters),
    ]
    parts = [
        f"{len(items):,} {one if len(items) == 1 else several}, {describe_bytes(_size(items))}"
        for one, several, items in groups
        if items
    ]
    lines = [f"{'; '.join(parts)}; together {describe_bytes(store.bytes)} in {store.folder}"] if parts else []
    if store.leftovers:
        lines.append(leftovers_line(store))
    return lines


def leftovers_line(store: KeptStore) -> str:
    """Say what killed processes left in the cache."""
    size = describe_bytes(measure(*store.leftovers)[0])
    if all(path.name.startswith(REMOVED) for path in store.leftovers):
        return f"{size} were left by a prune that was killed: the next one deletes them"
    return (
        f"{size} were left by processes that were killed ({len(store.leftovers)} temporary files and folders): "
        "'personalitybench artifacts prune --leftovers' deletes them, and so does every other prune"
    )


def _size(items: Sequence[Kept]) -> int:
    return measure(*(item.folder for item in items))[0]


def _curves(report: ArtifactReport) -> Table:
    table = _bare("Loss on held-out answers")
    for number, name in enumerate(CURVE_HEAD):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for curve in report.curves:
        table.add_row(*curve_cells(curve))
    return table


def _files(report: ArtifactReport) -> Table:
    """Files; what a method keeps for itself is one line."""
    table = _bare("Files")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    work = [file for file in report.files if file.path.startswith("work/")]
    for file in report.files:
        if file not in work:
            table.add_row(file.path, describe_bytes(file.bytes))
    if work:
        table.add_row(f"work/ ({_count(len(work), 'file')})", describe_bytes(sum(file.bytes for file in work)))
    return table


def _count(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _ago(moment: datetime) -> str:
    """How long ago, in the largest whole unit."""
    hours = max(0, int((datetime.now(UTC) - moment).total_seconds() // 3600))
    if hours < 48:
        return f"{hours} h ago" if hours else "now"
    return f"{hours // 24} d ago"
