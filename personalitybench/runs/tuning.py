"""The choice of a method's strengths in a run: made from the answers and ratings of the dev half, kept as a file.

The file is a record for people and the mark that the choice was made. Whoever needs the choice makes it again from
the answers and ratings, and refuses a file that does not follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from personalitybench.errors import StorageError
from personalitybench.files import read_json, write_json
from personalitybench.leaderboard.build import Cell
from personalitybench.leaderboard.schema import Sweep
from personalitybench.leaderboard.sweeps import RULE, build_sweep
from personalitybench.runs.calls import Call, Tuning

__all__ = ["RULE", "build", "chosen", "describe", "read", "write"]


def build(tuning: Tuning, cells: Callable[[Sequence[Call]], Sequence[Cell]], slack: float) -> Sweep:
    """Choose.

    Args:
        tuning: What is to be chosen.
        cells: Gives the judged answers of calls.
        slack: How far the floor lies below the baseline's rounded fluency.

    Raises:
        PersonalityBenchError: Answers or ratings are missing, or too little was rated.
    """
    by_strength = {strength: cells(tuning.strength_calls(strength)) for strength in tuning.strengths}
    return build_sweep(cells(tuning.baseline_calls()), by_strength, slack)


def write(path: Path, sweep: Sweep) -> None:
    """Write a choice."""
    write_json(path, sweep.model_dump(mode="json"))


def read(path: Path, again: Callable[[], Sweep]) -> Sweep:
    """Read a choice.

    Args:
        path: Its file.
        again: Makes it again from the answers and ratings.

    Raises:
        StorageError: It was not made yet, or does not follow from the answers and ratings.
    """
    if not path.is_file():
        raise StorageError(f"{path} does not exist: run the stage 'tune' first (it resumes)")
    sweep = again()
    if read_json(path) != sweep.model_dump(mode="json"):
        raise StorageError(
            f"{path} does not follow from the answers and ratings of the dev half: restore it, or delete it and run "
            "the stage 'tune' again"
        )
    return sweep


def chosen(sweep: Sweep) -> dict[str, float]:
    """The chosen strengths by target."""
    return {target: found.chosen for target, found in sweep.targets.items()}


def describe(sweep: Sweep) -> str:
    """One line for the log."""
    strengths = ", ".join(
        f"{target} {found.chosen:g}{'' if found.floor_met else '*'}" for target, found in sweep.targets.items()
    )
    failed = any(not found.floor_met for found in sweep.targets.values())
    note = f" (*: no strength met the floor, {sweep.baseline.name}'s fluency)" if failed else ""
    return f"tune {sweep.method.name}: chosen {strengths}{note}"
