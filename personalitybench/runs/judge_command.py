"""``personalitybench judge``: saved answers of a run or of lm-eval, rated without the model that wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.judging.base import is_profile_file
from personalitybench.leaderboard.lm_eval_results import holds_results
from personalitybench.leaderboard.mapped import calibrations_of
from personalitybench.runs.batches import before_rating, check_batches
from personalitybench.runs.boards import publish
from personalitybench.runs.lm_eval_folder import LmEvalFolder
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_table, report_spending, set_budget
from personalitybench.runs.stages import Run
from personalitybench.runs.suite import load_suite
from personalitybench.tasks import judge_fingerprint


def judge_run(
    folder: Path,
    judges: Sequence[str],
    console: Console,
    *,
    budget: float | None,
    dry_run: bool,
    batch: bool = False,
    floors: bool | None = None,
    calibrations: Sequence[Path] = (),
) -> None:
    """Rate the answers that a judge has not rated yet, and make its board.

    Args:
        folder: Of a run, or one that lm_eval was given as ``--output_path``.
        judges: Ids of profiles, or profile files; the suite's judges if empty.
        console: Where progress and tables go.
        budget: US dollars that each judge may cost; None for no limit.
        dry_run: Only tell what it would take.
        batch: Ask in batches, which cost less and may take a day.
        floors: Whether boards have floors; None: as the suite says, and for lm-eval's answers yes.
        calibrations: Files of ``judges calibrate``; the boards of their judges show mapped figures, too.

    Raises:
        PersonalityBenchError: Something is wrong; what was finished is kept.
    """
    with RunProgress(console) as progress:
        run, own = open_answers(folder, progress, floors, named=judges)
        if not judges:
            _refuse_foreign_profiles(own, folder / "suite.yaml", ())
        wanted = list(judges) or own
        if not wanted:
            raise ConfigurationError(
                f"{folder} holds answers of lm_eval: say who rates them with --judge, e.g. offline"
            )
        mapped = calibrations_of(calibrations, [judge_fingerprint(judge) for judge in wanted])
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
            boards = run.score(wanted, mapped)
    publish(boards, run.folder, own, console)


def open_answers(
    folder: Path, progress: RunProgress, floors: bool | None = None, named: Sequence[str] = ()
) -> tuple[Run | LmEvalFolder, list[str]]:
    """Open a folder of answers.

    Args:
        folder: Of a run, or one that lm_eval was given as ``--output_path``.
        progress: Where progress is shown.
        floors: As for :func:`judge_run`.
        named: Judges that the user named.

    Returns:
        The answers, and the judges that their suite names; lm-eval's have none.

    Raises:
        StorageError: It holds neither.
        ConfigurationError: Its suite names a profile file that the user did not name and that is needed.
    """
    suite_file = folder / "suite.yaml"
    if suite_file.is_file():
        suite = load_suite(str(suite_file)).without_missing_data()
        if any(method.choose_on for method in suite.methods):  # ratings of the first judge chose the strengths
            _refuse_foreign_profiles(suite.judges[:1], suite_file, named)
        if floors is not None:
            suite = suite.model_copy(update={"floors": floors})
        return Run(suite, folder, progress), list(suite.judges)
    if holds_results(folder):
        return LmEvalFolder(folder, progress, floors=floors is not False), []
    raise StorageError(
        f"{folder} holds no run (suite.yaml is missing) and no results of lm_eval (results_*.json): name the folder of "
        "a run, such as runs/demo, or one that lm_eval was given as --output_path"
    )


def _refuse_foreign_profiles(judges: Sequence[str], file: Path, named: Sequence[str]) -> None:
    """Refuse profile files that only a folder's suite names: they decide what is loaded and where answers go."""
    yours = {Path(name).resolve() for name in named if is_profile_file(name)}
    for judge in judges:
        if is_profile_file(judge) and Path(judge).resolve() not in yours:
            raise ConfigurationError(
                f"{file} names the judge profile {judge}, a file that you did not name: if you trust it, name it "
                f"yourself ('personalitybench judge {file.parent} --judge {judge}')"
            )
