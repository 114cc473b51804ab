"""``personalitybench judge``: the answers of a run, rated by a judge, without any model of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.errors import StorageError
from personalitybench.runs.batches import check_batches
from personalitybench.runs.boards import publish
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_table, report_spending, set_budget
from personalitybench.runs.stages import Run
from personalitybench.runs.suite import load_suite


def judge_run(
    folder: Path, judges: Sequence[str], console: Console, *, budget: float | None, dry_run: bool, batch: bool = False
) -> None:
    """Rate the answers of a run that a judge has not rated yet, and make its board.

    Args:
        folder: Of the run.
        judges: Ids of profiles, or profile files; the suite's judges if empty.
        console: Where progress and tables go.
        budget: US dollars that the call may cost in all; None for no limit.
        dry_run: Only tell what it would take.
        batch: Ask in batches, which cost less and may take a day.

    Raises:
        PersonalityBenchError: Something is wrong; what was finished is kept.
    """
    suite_file = folder / "suite.yaml"
    if not suite_file.is_file():
        raise StorageError(
            f"{folder} holds no run (suite.yaml is missing): name the folder of a run, such as runs/demo"
        )
    suite = load_suite(str(suite_file))
    wanted = list(judges) or list(suite.judges)
    set_budget(wanted, budget)
    if batch:
        check_batches(wanted)
    with RunProgress(console) as progress:
        run = Run(suite, folder, progress, batch=batch)
        with run.lock():
            if dry_run:
                console.print(estimate_table(run, wanted, batch=batch))
                return
            try:
                run.judge(wanted)
            finally:
                report_spending(wanted, progress)
            boards = run.score(wanted)
    publish(boards, folder, suite.judges, console)
