"""``personalitybench artifacts``: what fits left in the cache, listed, shown and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.outside_text import echo

artifacts_app = typer.Typer(
    no_args_is_help=True,
    help="Look at what fits left in the cache, and remove it.",
    rich_markup_mode="markdown",
)

Method = Annotated[str | None, typer.Option(help="Only fits of this method.")]
Model = Annotated[str | None, typer.Option(help="Only of this model; its name, or the last part of it.")]


@artifacts_app.command(
    "list",
    epilog="Examples: `personalitybench artifacts list` · `personalitybench artifacts list --method npti --verify` · "
    "`personalitybench artifacts list --json`",
)
def list_artifacts(
    *,
    method: Method = None,
    model: Model = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every artifact and say which were altered.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """List fits, the identification answers that they share, and how much room they take."""
    from personalitybench.artifacts.kept import KeptAnswers, KeptFit, read_store  # noqa: PLC0415
    from personalitybench.artifacts.removal import Choice, choose  # noqa: PLC0415
    from personalitybench.artifacts.tables import store_tables  # noqa: PLC0415
    from personalitybench.console import PlainConsole  # noqa: PLC0415

    store = read_store(verify=verify)
    shown = store.items
    if method is not None or model is not None:
        shown = choose(store, Choice(method=method, model=model))
    fits = [item for item in shown if isinstance(item, KeptFit)]
    answers = [item for item in shown if isinstance(item, KeptAnswers)]
    if as_json:
        echo(store.model_copy(update={"fits": fits, "answers": answers}).model_dump_json(indent=2))
    else:
        PlainConsole().print(store_tables(store, fits, answers))
    altered = [fit.name for fit in fits if fit.state == "damaged"]
    if verify and altered:
        raise StorageError(
            f"not what was fitted: {', '.join(altered)}: remove them with 'personalitybench artifacts prune', then fit "
            "again"
        )


@artifacts_app.command(
    "show",
    epilog="Examples: `personalitybench artifacts show npti-1b7b42723d5d` · "
    "`personalitybench artifacts show lora --output report`",
)
def show_artifact(
    name: Annotated[str, typer.Argument(help="A name of `artifacts list`, or a beginning that only one has.")],
    output: Annotated[
        Path | None, typer.Option(help="Write artifact.json, artifact.md and the page artifact.html here, too.")
    ] = None,
) -> None:
    """Show what a fit depends on, what it took and found, its training curves, and how it is used."""
    from personalitybench.artifacts.kept import KeptAnswers, KeptFit, read_store  # noqa: PLC0415
    from personalitybench.artifacts.render import write_report  # noqa: PLC0415
    from personalitybench.artifacts.report import make_report  # noqa: PLC0415
    from personalitybench.artifacts.tables import answers_table, report_tables  # noqa: PLC0415
    from personalitybench.artifacts.usage import use_lines  # noqa: PLC0415
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.pages import NO_PLOTS, can_plot  # noqa: PLC0415

    console = PlainConsole()
    found = read_store().find(name)
    if not isinstance(found, KeptFit):
        if output is not None:
            raise ConfigurationError(f"{found.name} is not a fit: only of a fit a page is made, leave out --output")
        console.print(answers_table(found) if isinstance(found, KeptAnswers) else f"{found.name}: {found.folder}")
        return
    report = make_report(found)
    console.print(report_tables(report))
    lines = [f"folder: {found.folder}"]
    if report.metadata:
        lines = use_lines({**report.metadata, "artifact": str(found.folder / "artifact")})
    if output is not None:
        if report.curves and not can_plot():
            typer.echo(f"personalitybench: {NO_PLOTS}", err=True)
        lines += map(str, write_report(report, output))
    for line in lines:
        console.print(line, soft_wrap=True)


@artifacts_app.command(
    "prune",
    epilog="Examples: `personalitybench artifacts prune --interrupted` · "
    "`personalitybench artifacts prune --older-than 30d --method npti --dry-run` · "
    "`personalitybench artifacts prune npti-1b7b42723d5d --yes`",
)
def prune_artifacts(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names of `artifacts list`, or beginnings of them.")
    ] = None,
    *,
    interrupted: Annotated[bool, typer.Option("--interrupted", help="Fits that were not finished.")] = False,
    older_than: Annotated[str | None, typer.Option(help="Not used for so long: 12h, 30d, 8w.")] = None,
    method: Method = None,
    model: Model = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="Answers that no fit here is made of, and copies of adapters.")
    ] = False,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Only temporary files and folders of processes that were killed.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove what fits left: all that every given condition holds for.

    Answers and boards of runs stay as they are. What is removed is made again where new answers need it.
    """
    from personalitybench.artifacts.kept import read_store  # noqa: PLC0415
    from personalitybench.artifacts.removal import Choice, choose, clear, parse_age, remove  # noqa: PLC0415
    from personalitybench.artifacts.sizes import freed_by, measure  # noqa: PLC0415
    from personalitybench.artifacts.tables import leftovers_line, removal_table  # noqa: PLC0415
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.costs import describe_bytes  # noqa: PLC0415

    age = None if older_than is None else parse_age(older_than)
    choice = Choice(names or (), interrupted, age, method, model, unused, everything, leftovers)
    store = read_store()
    chosen = choose(store, choice)
    if chosen:
        PlainConsole().print(removal_table(chosen))
        folders = [item.folder for item in chosen]
        size = freed_by(*folders)
        shared = "" if size == measure(*folders)[0] else " (what other fits share stays)"
        typer.echo(
            f"{describe_bytes(size)}{shared}. Answers and boards of runs stay: they note an artifact's hash. For new "
            "answers it is made again."
        )
    elif not (leftovers and store.leftovers):
        typer.echo("there is nothing to remove")
    if store.leftovers:
        echo(leftovers_line(store))
    if dry_run or not (chosen or store.leftovers):
        return
    if chosen and not yes and not _confirmed():
        typer.echo("nothing was removed")
        return
    freed = clear(store.leftovers)
    for item in chosen:
        try:
            freed += remove(item)
        except StorageError as error:
            echo(f"left: {item.name}: {error}")
            continue
        echo(f"removed: {item.name}")
    typer.echo(f"freed: {describe_bytes(freed)}")


def _confirmed() -> bool:
    try:
        return typer.confirm("Remove?")
    except typer.Abort as error:
        raise ConfigurationError(
            "nothing was removed: the question was not answered; --yes answers it beforehand"
        ) from error
