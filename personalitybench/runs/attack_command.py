"""``personalitybench judges attack``: how judges fare on answers that try to take them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from personalitybench.errors import StorageError
from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.attack_ratings import AttackRatings, RatedAttack
from personalitybench.leaderboard.attack_render import report_tables, write_report
from personalitybench.leaderboard.attack_report import make_report
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_table, report_spending, set_budget


class _Attack:
    """What the judges are asked; see :class:`personalitybench.runs.spending.ToRate`."""

    def __init__(self, questions: int) -> None:
        self._questions = questions

    def ratings(self, judge: str) -> AttackRatings:
        return AttackRatings(create_judge(judge), self._questions)

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        return self.ratings(judge).requests()


def attack_judges(
    judges: Sequence[str],
    questions: int,
    output: Path | None,
    console: Console,
    *,
    budget: float | None,
    dry_run: bool,
) -> None:
    """Have judges rate the attacks, then print and write the report.

    Args:
        judges: Ids of profiles, or profile files.
        questions: Questions of each trait.
        output: Folder for ``attacks.json``, ``.md`` and ``.html``; None writes nothing.
        console: Where progress and tables go.
        budget: US dollars that each judge may cost; None for no limit.
        dry_run: Only tell what it would take.

    Raises:
        PersonalityBenchError: Something is wrong; what was rated is kept.
    """
    judges = list(dict.fromkeys(judges))
    attack = _Attack(questions)
    set_budget(judges, budget)
    if dry_run:
        console.print(estimate_table(attack, judges))
        return
    with RunProgress(console) as progress:
        for name in judges:
            ratings = attack.ratings(name)
            done = ratings.total - sum(map(len, ratings.missing().values()))
            try:
                with progress.stage("attack", name, total=ratings.total, done=done, unit="answers") as stage:
                    ratings.rate(stage.advance, progress.say)
            finally:
                report_spending([name], progress)
    report = make_report([(create_judge(name), _read(attack.ratings(name), name)) for name in judges], questions)
    console.print(report_tables(report))
    for path in write_report(report, output) if output is not None else []:
        console.print(str(path.resolve()), soft_wrap=True)


def _read(ratings: AttackRatings, name: str) -> list[RatedAttack]:
    found = ratings.read()
    if found is None:
        raise StorageError(f"ratings of judge {name} went missing while they were read: run this again")
    return found
