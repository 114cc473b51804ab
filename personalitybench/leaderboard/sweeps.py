"""The choice of a strength: judged answers of the dev half at several strengths become a sweep with a chosen one.

The rule is the paper's (section 4.1, Figures 3b and 5): the best trait score whose fluency does not fall below that of
the prompt baseline, rounded to one decimal. The lines that the figures draw lie 0.1 below what Table 14 gives for that,
hence a slack. The paper chooses on the questions that it reports; here these are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from personalitybench.errors import DataError
from personalitybench.leaderboard.build import Cell, collect, row_identity
from personalitybench.leaderboard.schema import MethodId, Sweep, SweepPoint, TargetResult, TargetSweep

RULE = (
    "of the strengths whose mean fluency is not below the baseline's, rounded half up to one decimal, less the slack: "
    "the one with the highest mean trait score (of equals the smaller); if there is none: the one with the highest "
    "mean fluency (of equals the smaller)"
)


def floor_of(fluency: float, slack: float) -> float:
    """Give the lowest fluency that is still chosen.

    Args:
        fluency: Mean fluency of the baseline, 1-5.
        slack: How far below it the floor lies.

    Returns:
        ``fluency`` rounded to one decimal as people do it, 4.85 to 4.9 (Python's ``round`` would look at the binary
        fraction and give 4.8), less the slack.
    """
    rounded = Decimal(str(fluency)).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return float(rounded - Decimal(str(slack)))


def choose(results: Mapping[float, TargetResult], floor: float) -> tuple[float, bool]:
    """Choose the strength of one target by :data:`RULE`.

    Args:
        results: Figures of the target by strength.
        floor: Lowest fluency.

    Returns:
        The strength, and whether it meets the floor.

    Raises:
        DataError: No strength has a rated answer to go by.
    """
    fluency = {strength: result.fluency for strength, result in results.items() if result.fluency is not None}
    traits = {strength: results[strength].mean for strength in fluency if fluency[strength] >= floor}
    scores = {strength: mean for strength, mean in traits.items() if mean is not None}
    if not fluency:
        raise DataError(f"none of the strengths {sorted(results)} has an answer that was rated for fluency")
    best = scores or fluency
    return max(best, key=lambda strength: (best[strength], -abs(strength), strength)), bool(scores)


def build_sweep(baseline: Sequence[Cell], by_strength: Mapping[float, Sequence[Cell]], slack: float) -> Sweep:
    """Choose the strength of every target.

    Args:
        baseline: Cells of the prompt baseline, of all seeds.
        by_strength: Cells of the method at each strength: same questions, targets and seeds.
        slack: How far the floor lies below the baseline's rounded fluency.

    Raises:
        DataError: Too little was rated to choose by.
    """
    reference = collect(baseline).results()
    results = {strength: collect(by_strength[strength]).results() for strength in sorted(by_strength)}
    targets = {
        target: _target_sweep(target, reference[target], {s: found[target] for s, found in results.items()}, slack)
        for target in reference
    }
    identity = row_identity(by_strength[min(by_strength)])
    artifacts = {cell.settings["method"].get("artifact") for cells in by_strength.values() for cell in cells}
    about: dict[str, Any] = {
        "strength": {target: found.chosen for target, found in targets.items()},
        "strength_protocol": "held-out",
        "artifact": artifacts.pop() if len(artifacts) == 1 else None,  # a seed has its own
    }
    return Sweep(
        model=identity.model,
        method=MethodId.model_validate(identity.method.model_dump() | about),
        baseline=row_identity(baseline).method,
        judge=identity.judge,
        data=identity.data,
        protocol=identity.protocol,
        seeds=identity.seeds,
        rule=RULE,
        slack=slack,
        targets=targets,
    )


def _target_sweep(
    target: str, baseline: TargetResult, results: Mapping[float, TargetResult], slack: float
) -> TargetSweep:
    if baseline.fluency is None:
        raise DataError(
            f"no answer of the baseline was rated for fluency ({target}, {baseline.n} answers): there is no floor to "
            "choose a strength by; name another baseline or look at the judge's reasons in the ratings"
        )
    floor = floor_of(baseline.fluency, slack)
    chosen, met = choose(results, floor)
    points = [
        SweepPoint(strength=s, floor_met=result.fluency is not None and result.fluency >= floor, result=result)
        for s, result in results.items()
    ]
    return TargetSweep(baseline=baseline, floor=floor, chosen=chosen, floor_met=met, points=points)
