"""``personalitybench judges``: which judges there are, and how far each can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personalitybench.interrupts import resumable
from personalitybench.options import AllowHost, Answers, Budget, DryRun, People, Sample, TrustRemoteCode

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
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.judging.base import list_profiles  # noqa: PLC0415

    table = Table("judge", "provider", "what it is")
    for name, profile, reason in list_profiles():
        if profile is None:
            table.add_row(name, Text("no", style="red"), reason)
        else:
            table.add_row(profile.id, profile.provider, profile.summary)
    PlainConsole().print(table)


@judges_app.command(
    epilog="Examples: `personalitybench judges compare offline mine.yaml --answers runs/demo --output agreement` · "
    "`personalitybench judges compare offline --answers gold --repeats 2` · "
    "`personalitybench judges compare --answers runs/demo --sample 4 --export to-rate.csv`, then "
    "`personalitybench judges compare offline --answers runs/demo --sample 4 --human anna.csv --human ben.csv` · "
    "`personalitybench judges compare gpt-4o-2024-08-06 new.yaml --answers agreement/ratings.jsonl`"
)
def compare(
    judges: Annotated[
        list[str] | None,
        typer.Argument(help="Judges' ids or profile files, or names in frozen ratings. The first is compared with."),
    ] = None,
    *,
    answers: Answers,
    human: People = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often judges are asked the same.")] = 1,
    sample: Sample = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the report and the ratings.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the answers as a CSV table for people to rate.")] = None,
    budget: Budget = None,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Find out how far judges agree on the same answers; with people, and each with itself.

    Ratings that are there already are used. Interrupt it when you like: the same command goes on from there.
    """
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.runs.compare_command import CompareOptions, compare_judges  # noqa: PLC0415

    options = CompareOptions(
        judges=judges or [],
        answers=answers,
        human=human or [],
        repeats=repeats,
        sample=sample,
        output=output,
        export=export,
        budget=budget,
        dry_run=dry_run,
    )
    with resumable():
        compare_judges(options, PlainConsole())


@judges_app.command(
    "attack",
    epilog="Examples: `personalitybench judges attack offline` · "
    "`personalitybench judges attack offline my-server.yaml --output attacks` · "
    "`personalitybench judges attack gpt-4o-2024-08-06 --questions 8 --dry-run`",
)
def attack(
    judges: Annotated[list[str], typer.Argument(help="Judges: ids or profile files; `judges list` lists them.")],
    *,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each trait; 4 are those of the floors.")] = 4,
    output: Annotated[
        Path | None, typer.Option(help="Write attacks.json, attacks.md and the page attacks.html here, too.")
    ] = None,
    budget: Budget = None,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Show how each judge fares on answers that try to take it in.

    Bland, keyword-stuffed, persona-echoing and injecting answers to questions of the sample, and hand-written texts
    of both poles to compare with. Interrupt it when you like: what is rated is kept, and counts for the floors of
    boards, too.
    """
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.runs.attack_command import attack_judges  # noqa: PLC0415

    with resumable():
        attack_judges(judges, questions, output, PlainConsole(), budget=budget, dry_run=dry_run)


@judges_app.command(
    epilog="Examples: `personalitybench judges calibrate offline gpt-4o-2024-08-06 --answers runs/demo` · "
    "`personalitybench judges calibrate new.yaml gpt-4o-2024-08-06 --answers agreement/ratings.jsonl` · "
    "`personalitybench judges calibrate offline --answers runs/demo --human anna.csv --human ben.csv`, then "
    "`personalitybench judge runs/demo --judge offline --calibration offline-to-humans.json`"
)
def calibrate(
    judge: Annotated[str, typer.Argument(help="Whose ratings are to be read on another scale.")],
    reference: Annotated[
        str | None, typer.Argument(help="The judge whose scale that is; people, if left out, with --human.")
    ] = None,
    *,
    answers: Answers,
    human: People = None,
    sample: Sample = None,
    output: Annotated[
        Path | None, typer.Option(help="File of the calibration; default JUDGE-to-REFERENCE.json.")
    ] = None,
    budget: Budget = None,
    dry_run: DryRun = False,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Fit a monotone map from a judge's ratings to a reference's, and report its error on questions it did not see.

    A board shows mapped figures beside its own with `judge ... --calibration FILE`, never instead.
    """
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.runs.calibrate_command import calibrate_judge  # noqa: PLC0415
    from personalitybench.runs.compare_command import CompareOptions  # noqa: PLC0415

    options = CompareOptions(
        judges=[judge] if reference is None else [judge, reference],
        answers=answers,
        human=human or [],
        sample=sample,
        budget=budget,
        dry_run=dry_run,
    )
    with resumable():
        calibrate_judge(options, output, PlainConsole())
