"""The floors of boards: rated once for a judge on a machine, after the answers, and never a reason to have no board."""

from __future__ import annotations

from collections.abc import Mapping

from personalitybench.errors import (
    ConfigurationError,
    DependencyDriftError,
    JudgeError,
    MissingDependencyError,
    ModelError,
)
from personalitybench.judging import create_judge
from personalitybench.judging.base import fingerprint, is_profile_file
from personalitybench.leaderboard.floors import build_floors, floor_ratings, missing_floors
from personalitybench.leaderboard.schema import Floors
from personalitybench.runs.progress import RunProgress

CANNOT_BE_ASKED = (ConfigurationError, DependencyDriftError, JudgeError, MissingDependencyError, ModelError)
"""No key, no quota, a budget that is spent, no extra, no model: the answers' ratings are worth a board all the same."""


def rate_floors(name: str, progress: RunProgress) -> Floors:
    """Have a judge rate what its floors are made of, where that is not on this machine yet.

    Args:
        name: Of the judge.
        progress: Where that is shown.

    Returns:
        The floors, or why there are none.

    Raises:
        StorageError: The ratings cannot be kept.
    """
    judge = create_judge(name)
    ratings = floor_ratings(judge)
    why = ""
    missing = sum(map(len, ratings.missing().values()))
    with progress.stage(
        "judge", f"floors by {name}", total=ratings.total, done=ratings.total - missing, unit="answers"
    ) as stage:
        try:
            ratings.rate(stage.advance, progress.say)
        except CANNOT_BE_ASKED as error:
            why = str(error)
            progress.say(f"the floors of judge {name} are missing: {why}")
    return build_floors(judge, why)


def floors_by(rated_by: Mapping[str, str], progress: RunProgress) -> Floors:
    """Floors of the judge whose ratings are in files that may come from another machine.

    Args:
        rated_by: Its fingerprint.
        progress: Where rating is shown.

    Returns:
        The floors, or why there are none: the judge is not known here, or is another by the same name.
    """
    name = rated_by["id"]
    if is_profile_file(name):  # of this machine only where the user names it
        return missing_floors(f"the judge {name} is no id of a profile that is here")
    try:
        judge = create_judge(name)
    except CANNOT_BE_ASKED as error:
        return missing_floors(str(error))
    if fingerprint(judge) != rated_by:
        return missing_floors(f"the judge {name} of this machine has another profile or rubric than the one that rated")
    return rate_floors(name, progress)
