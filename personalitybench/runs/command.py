"""``personalitybench run``: a suite, a folder, some stages, and at the end a table and the paths of the boards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.errors import unknown_name
from personalitybench.files import refuse_non_folder, write_atomically
from personalitybench.leaderboard.examples import Example
from personalitybench.leaderboard.schema import Leaderboard
from personalitybench.outside_files import dump_yaml
from personalitybench.runs.batches import before_rating, check_batches
from personalitybench.runs.boards import publish
from personalitybench.runs.plan import make_plan
from personalitybench.runs.plan_tables import show_plan
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import report_spending, set_budget
from personalitybench.runs.stages import STAGES, Run
from personalitybench.runs.suite import load_suite


def plan_suite(
    name: str,
    output: Path | None,
    stages: Sequence[str],
    console: Console,
    *,
    data_dir: Path | None = None,
    budget: float | None = None,
    batch: bool = False,
    throughput: str | None = None,
    as_json: bool = False,
) -> None:
    """Say what a run would take; nothing is run.

    Args:
        name: As for :func:`run_suite`, and so are those that follow.
        output: Folder of the run.
        stages: Which stages.
        console: Where the plan goes.
        data_dir: Local copy of the official data.
        budget: US dollars that each judge may cost.
        batch: Whether judges are asked in batches.
        throughput: Tokens per second as ``prompt=...,new=...,trained=...``, before what the suite states.
        as_json: Print JSON instead of tables.

    Raises:
        PersonalityBenchError: What the run would refuse.
    """
    _check_stages(stages)
    suite = load_suite(name).with_data(data_dir)
    folder = output or Path("runs") / suite.name
    refuse_non_folder(folder, "--output")
    plan = make_plan(
        suite,
        folder,
        stages=stages,
        throughput=throughput,
        budget=budget,
        batch=batch,
    )
    if as_json:
        console.out(plan.model_dump_json(indent=2), highlight=False)
    else:
        show_plan(plan, console)


def run_suite(
    name: str,
    output: Path | None,
    stages: Sequence[str],
    console: Console,
    *,
    data_dir: Path | None = None,
    budget: float | None = None,
    batch: bool = False,
) -> None:
    """Run a suite.

    Args:
        name: Suite file or name of a bundled suite.
        output: Folder of the run; ``runs/<suite name>`` if None.
        stages: Which stages, all if empty.
        console: Where progress and the table go.
        data_dir: Local copy of the official data, instead of what the suite names.
        budget: US dollars that each judge may cost; None for no limit.
        batch: Have judges asked in batches, which cost less and may take a day.

    Raises:
        PersonalityBenchError: Something is wrong; what was finished is kept.
    """
    _check_stages(stages)
    suite = load_suite(name).with_data(data_dir)
    folder = output or Path("runs") / suite.name
    refuse_non_folder(folder, "--output")
    boards: dict[str, tuple[Leaderboard, list[Example]]] = {}
    with RunProgress(console) as progress:
        run = Run(suite, folder, progress)
        run.check()
        set_budget(suite.judges, budget)
        if batch:
            check_batches(suite.judges)
        with run.lock():
            resolved = dump_yaml(suite.model_dump(mode="json"))
            write_atomically(folder / "suite.yaml", resolved)
            for stage in [stage for stage in STAGES if not stages or stage in stages]:
                if stage == "score":
                    boards = run.score()
                    continue
                if stage == "tune":
                    run.tune(batch=batch)
                    continue
                if stage == "judge":
                    before_rating(suite.judges, run.to_rate, progress.say, batch=batch)
                {"fit": run.fit, "generate": run.generate, "judge": run.judge}[stage]()
            report_spending(suite.judges, progress)
    publish(boards, folder, suite.judges, console)
    spent = [f"{stage} {seconds:.0f} s" for stage, seconds in progress.seconds.items() if seconds >= 0.5]
    if spent:
        console.print(f"time: {', '.join(spent)}")


def _check_stages(stages: Sequence[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
