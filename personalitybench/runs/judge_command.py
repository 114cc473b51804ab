"""``personalitybench judge``: saved answers of a run or of lm-eval, rated without the model that wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.leaderboard.lm_eval_results import holds_results
from personalitybench.runs.batches import before_rating, check_batches
from personalitybench.runs.boards import publish
from personalitybench.runs.lm_eval_folder import LmEvalFolder
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_table, report_spending, set_budget
from personalitybench.runs.stages import Run
from personalitybench.runs.suite import load_suite


def judge_run(
    folder: Path, judges: Sequence[str], console: Console, *, budget: float | None, dry_run: bool, batch: bool = False
) -> None:
    """Rate the answers that a judge has not rated yet, and make its board.

    Args:
        folder: Of a run, or one that lm_eval was given as ``--output_path``.
        judges: Ids of profiles, or profile files; the suite's judges if empty.
        console: Where progress and tables go.
        budget: US dollars that the call may cost in all; None for no limit.
        dry_run: Only tell what it would take.
        batch: Ask in batches, which cost less and may take a day.

    Raises:
        PersonalityBenchError: Something is wrong; what was finished is kept.
    """
    with RunProgress(console) as progress:
        run, own = open_answers(folder, progress)
        wanted = list(judges) or own
        if not wanted:
            raise ConfigurationError(
                f"{folder} holds answers of lm_eval: say who rates them with --judge, e.g. offline"
            )
        set_budget(wanted, budget)
        if batch:
            check_batches(wanted)
        with run.lock():
            if dry_run:
                console.print(estimate_table(run, wanted, batch=batch))
                return
            try:
                before_rating(wanted, run.to_rate, progress.say, batch=batch)
                run.judge(wanted)
            finally:
                report_spending(wanted, progress)
            boards = run.score(wanted)
    publish(boards, run.folder, own, console)


def open_answers(folder: Path, progress: RunProgress) -> tuple[Run | LmEvalFolder, list[str]]:
    """Open a folder of answers.

    Args:
        folder: Of a run, or one that lm_eval was given as ``--output_path``.
        progress: Where progress is shown.

    Returns:
        The answers, and the judges that their suite names; lm-eval's have none.

    Raises:
        StorageError: It holds neither.
    """
    suite_file = folder / "suite.yaml"
    if suite_file.is_file():
        suite = load_suite(str(suite_file))
        return Run(suite, folder, progress), list(suite.judges)
    if holds_results(folder):
        return LmEvalFolder(folder, progress), []
    raise StorageError(
        f"{folder} holds no run (suite.yaml is missing) and no results of lm_eval (results_*.json): name the folder of "
        "a run, such as runs/demo, or one that lm_eval was given as --output_path"
    )
