"""``personalitybench judges compare``: how far judges, and people, agree on the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from personalitybench.judging.agreement.human import export_answers, read_ratings
from personalitybench.judging.agreement.table import RatingTable
from personalitybench.judging.agreement.table_files import write_table
from personalitybench.judging.base import judge_names
from personalitybench.runs.answer_sources import AnswerSource, open_source, sample_answers
from personalitybench.runs.comparison import Comparison
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_table, report_spending, set_budget
from personalitybench.tasks import judge_fingerprint

TABLE = "ratings.jsonl"


@dataclass(frozen=True)
class CompareOptions:
    """What the command line asks for.

    Attributes:
        judges: Whose ratings are compared; the first is the one that others are compared with.
        answers: Folder of a run or of lm-eval's results, a file of frozen ratings, or ``gold``.
        human: Tables that people filled in.
        repeats: How often judges are asked the same.
        sample: As many answers of each method and target; None for all.
        output: Folder for the report and the frozen ratings.
        export: Where a table for people to fill in is written.
        budget: US dollars that each judge may cost.
        dry_run: Only tell what it would take.
    """

    judges: Sequence[str]
    answers: str
    human: Sequence[Path] = ()
    repeats: int = 1
    sample: int | None = None
    output: Path | None = None
    export: Path | None = None
    budget: float | None = None
    dry_run: bool = False


def compare_judges(options: CompareOptions, console: Console) -> None:
    """Have the same answers rated by several judges, and report how far they agree.

    Raises:
        PersonalityBenchError: Something is wrong; ratings that were made are kept.
    """
    table = rate_table(options, console)
    if table is None:
        return
    paths = []
    if options.output is not None:
        write_table(table, options.output / TABLE)
        paths.append(options.output / TABLE)
    # Loaded here: the figures need libraries that take a while to load.
    from personalitybench.judging.agreement.render import write_report  # noqa: PLC0415
    from personalitybench.judging.agreement.report import make_report  # noqa: PLC0415
    from personalitybench.judging.agreement.tables import report_tables  # noqa: PLC0415

    report = make_report(table)
    console.print(report_tables(report))
    if options.output is not None:
        paths += write_report(report, options.output)
    for path in paths:
        console.print(str(path.resolve()), soft_wrap=True)


def rate_table(options: CompareOptions, console: Console) -> RatingTable | None:
    """Have answers rated by all who are named.

    Returns:
        The ratings; None where only a table for people was wanted, or only to know what it would take.

    Raises:
        PersonalityBenchError: Something is wrong; ratings that were made are kept.
    """
    with RunProgress(console) as progress:
        source = open_source(options.answers, progress, options.judges)
        if options.export is not None:
            _export(source, options, progress)
            if not options.judges and not options.human:
                return None
        people = read_ratings(options.human, source.answers) if options.human else []
        comparison = Comparison(
            source, options.judges, people, progress, repeats=options.repeats, sample=options.sample
        )
        _warn_of_other_versions(comparison, progress)
        set_budget(comparison.asked, options.budget)
        if options.dry_run:
            console.print(estimate_table(comparison, comparison.asked))
            return None
        try:
            return comparison.rate()
        finally:
            report_spending(comparison.asked, progress)


def _export(source: AnswerSource, options: CompareOptions, progress: RunProgress) -> None:
    answers = list(source.answers) if options.sample is None else sample_answers(source.answers, options.sample)
    if options.export is None or not answers:
        return
    export_answers(answers, options.export)
    progress.say(f"{options.export}: {len(answers)} answers to rate; read it again with --human")


def _warn_of_other_versions(comparison: Comparison, progress: RunProgress) -> None:
    """Say where a judge's frozen ratings were made by other than what its name means now."""
    if comparison.source.frozen is None:
        return
    bundled = judge_names()
    for column in comparison.source.frozen.columns:
        if column.judge not in comparison.judges:
            progress.say(f"{column.judge}: its ratings are frozen there, too, and not compared: it is not named")
        elif column.judge in bundled and judge_fingerprint(column.judge) != dict(column.identity):
            progress.say(f"{column.judge}: the frozen ratings are compared; another version of its profile made them")
