"""``personalitybench judge``: the answers of a run, rated by a judge, without any model of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.judging import create_judge
from personalitybench.judging.chat_judge import ChatJudge
from personalitybench.leaderboard.render import write_board
from personalitybench.leaderboard.summary import board_table
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.stages import Run
from personalitybench.runs.suite import load_suite


def judge_run(folder: Path, judges: Sequence[str], console: Console, *, budget: float | None, dry_run: bool) -> None:
    """Rate the answers of a run that a judge has not rated yet, and make its board.

    Args:
        folder: Of the run.
        judges: Ids of profiles, or profile files; the suite's judges if empty.
        console: Where progress and tables go.
        budget: US dollars that the call may cost in all; None for no limit.
        dry_run: Only tell what it would take.

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
    with RunProgress(console) as progress:
        run = Run(suite, folder, progress)
        with run.lock():
            if dry_run:
                console.print(estimate_table(run, wanted))
                return
            try:
                run.judge(wanted)
            finally:
                report_spending(wanted, progress)
            boards = run.score(wanted)
            paths = [
                path
                for judge, (board, examples) in boards.items()
                for path in write_board(board, folder, board_stem(judge, suite.judges), examples)
            ]
    for board, _ in boards.values():
        console.print(board_table(board))
    for path in paths:
        console.print(str(path.resolve()), highlight=False, soft_wrap=True)


def board_stem(judge: str, judges: Sequence[str]) -> str:
    """The board of a suite's first judge is ``leaderboard``; those of others carry their names."""
    return "leaderboard" if judge == judges[0] else f"leaderboard-{Path(judge).stem}"


def set_budget(judges: Sequence[str], budget: float | None) -> None:
    """Let judges that cost something spend so much, each of them.

    Raises:
        ConfigurationError: A judge's price is not known.
    """
    for name in judges:
        judge = create_judge(name)
        if isinstance(judge, ChatJudge):
            if budget is not None and judge.spending.price is None:
                raise ConfigurationError(
                    f"judge {name}: no price of its model is known, so no budget can be kept: leave --budget out, or "
                    "look at --dry-run for the number of tokens"
                )
            judge.spending.budget = budget


def report_spending(judges: Sequence[str], progress: RunProgress) -> None:
    """Say what was asked of the judges that are asked, and what it cost."""
    for name in judges:
        judge = create_judge(name)
        if not isinstance(judge, ChatJudge) or not judge.spending.calls + judge.spending.kept:
            continue
        spent = judge.spending
        dollars = "no price known" if spent.dollars is None else f"${spent.dollars:.4f} ({judge.prices.about})"
        progress.say(
            f"judge {name}: {spent.calls:,} replies asked for, {spent.kept:,} were there; "
            f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, {dollars}"
        )


def estimate_table(run: Run, judges: Sequence[str]) -> Table:
    """What the judges would be asked, and what that would cost, guessed before anything is sent."""
    table = Table(
        "judge", "ratings", "there", "calls", "tokens sent (estimate)", "written (at most)", "cost (estimate)"
    )
    for name in judges:
        judge = create_judge(name)
        if not isinstance(judge, ChatJudge):
            table.add_row(name, f"{sum(1 for _ in run.to_rate(name)):,}", "", "", "", "", "free")
            continue
        found = judge.estimate(run.to_rate(name))
        dollars = "no price known" if found.dollars is None else f"${found.dollars:.2f} ({judge.prices.about})"
        numbers = (found.ratings, found.kept, found.calls, found.prompt_tokens, found.completion_tokens)
        table.add_row(name, *(f"{number:,}" for number in numbers), dollars)
    return table
