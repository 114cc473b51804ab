"""``personalitybench judges``: which judges there are, and how far each can be believed."""

from __future__ import annotations

import typer

judges_app = typer.Typer(
    invoke_without_command=True,
    help="List the judges; find out how far they can be believed.",
    rich_markup_mode="markdown",
)


@judges_app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_judges()


@judges_app.command("list")
def list_judges() -> None:
    """List the judges (also what `personalitybench judges` does by itself)."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from personalitybench.judging.base import judge_names, load_profile  # noqa: PLC0415

    table = Table("judge", "provider", "what it is")
    for name in judge_names():
        profile = load_profile(name)
        table.add_row(profile.id, profile.provider, profile.summary)
    Console().print(table)
