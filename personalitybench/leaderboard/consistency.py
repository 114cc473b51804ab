"""Checks that the figures of a board agree with each other: counts, ranges, sums, order, identities.

Readers of board files call it. Only the answers and ratings tell whether consistent figures are the right ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from personalitybench.leaderboard.schema import (
    Composite,
    Floors,
    Interval,
    Leaderboard,
    Row,
    Sweep,
    TargetResult,
    TargetSweep,
)
from personalitybench.leaderboard.sweeps import choose, floor_of
from personalitybench.traits import TARGETS, TRAIT_NAMES, Pole, Target

Problem = tuple[str, str]
"""Field, and what is wrong with it."""

_COMPUTED = 1e-5  # figures are rounded to six digits
_PRINTED = 0.03  # figures of publications have two digits, or are read off a drawing


def find_problem(board: Leaderboard) -> Problem | None:
    """Return the first field of a board that contradicts another; None if there is none."""
    return next(_problems(board), None)


def _problems(board: Leaderboard) -> Iterator[Problem]:
    is_computed = board.status == "recomputed"
    yield from _check_rows(board)
    for number, row in enumerate(board.rows):
        place = f"rows.{number}"
        yield from _check_figures(place, row.targets, row.traits, row.average, is_computed=is_computed)
        yield from _check_fluency(place, row, is_computed=is_computed)
        if is_computed:
            yield from _check_counts(place, row)
        if (row.mapped is None) != (board.mapped_to is None):
            yield f"{place}.mapped", "a board has mapped figures in every row and 'mapped_to', or in neither"
        if row.mapped is not None:
            if row.mapped.traits.keys() != row.traits.keys():
                yield f"{place}.mapped.traits", "its traits are not those of the row"
            yield from _check_composites(f"{place}.mapped", "traits", row.mapped.traits, _COMPUTED)
            yield from _check_average(f"{place}.mapped.average", row.mapped.traits, row.mapped.average, _COMPUTED)
    if board.mapped_to is not None and "id" not in board.mapped_to.reference:
        yield "mapped_to.reference", "it has no 'id'"
    if board.floors is not None:
        yield from _check_null_baselines(board.floors)
    for number, sweep in enumerate(board.sweeps):
        yield from _check_sweep(f"sweeps.{number}", sweep)


def _check_rows(board: Leaderboard) -> Iterator[Problem]:
    places: dict[str, int] = {}
    for number, row in enumerate(board.rows):
        if row.id != (expected := Row.make_id(row.identity)):
            yield f"rows.{number}.id", f"{row.id} is not the hash of the row's identity, {expected}"
        if (first := places.setdefault(row.id, number)) != number:
            yield f"rows.{number}.id", f"{row.id} is the id of rows.{first}, too"
        if row.identity.judge != board.judge:
            yield (
                f"rows.{number}.identity.judge",
                f"{row.identity.judge.id} is not the judge of the board as it states it",
            )
    ranks = [-math.inf if row.average.mean is None else row.average.mean for row in board.rows]
    for number, (above, below) in enumerate(pairwise(ranks), 1):
        if below > above:
            yield f"rows.{number}", f"its average {below:g} is above that of the row before it, {above:g}"


def _check_counts(place: str, row: Row) -> Iterator[Problem]:
    """Check what holds for computed rows and need not for published ones."""
    if not row.targets:
        yield f"{place}.targets", "a row that was computed from answers has results of targets"
    if len(set(row.identity.seeds)) != len(row.identity.seeds) or not row.identity.seeds:
        yield f"{place}.identity.seeds", f"{row.identity.seeds} are no different seeds"
    most = row.identity.data.questions * len(row.identity.seeds)
    for target, result in row.targets.items():
        if result.n > most:
            yield (
                f"{place}.targets.{target}.n",
                f"{result.n} answers are more than questions times seeds of the row's identity, {most}",
            )
    expected = [name for name in TRAIT_NAMES if all(str(Target(name, pole)) in row.targets for pole in Pole)]
    for field, traits in (("traits", row.traits), ("fluency_traits", row.fluency_traits)):
        if sorted(traits) != sorted(expected):
            yield f"{place}.{field}", f"it has {_names(traits)}, and both poles of {_names(expected)} are in 'targets'"


def _check_figures(
    place: str,
    targets: Mapping[str, TargetResult],
    traits: Mapping[str, Composite],
    average: Composite,
    *,
    is_computed: bool,
) -> Iterator[Problem]:
    tolerance = _COMPUTED if is_computed else _PRINTED
    for target, result in targets.items():
        yield from _check_result(f"{place}.targets.{target}", result, is_computed=is_computed)
    yield from _check_composites(place, "traits", traits, tolerance)
    for name, composite in traits.items():
        poles = [targets[str(Target(name, pole))] for pole in Pole if str(Target(name, pole)) in targets]
        if len(poles) == len(Pole):
            where = f"{place}.traits.{name}"
            yield from _check_sum(f"{where}.mean", composite.mean, [pole.mean for pole in poles], tolerance)
            spreads = [None if pole.sd is None else pole.sd**2 for pole in poles]
            if is_computed:
                yield from _check_sum(f"{where}.variance", composite.variance, spreads, 4 * tolerance)
    yield from _check_average(f"{place}.average", traits, average, tolerance)


def _check_fluency(place: str, row: Row, *, is_computed: bool) -> Iterator[Problem]:
    tolerance = _COMPUTED if is_computed else _PRINTED
    yield from _check_composites(place, "fluency_traits", row.fluency_traits, tolerance)
    for name, composite in row.fluency_traits.items():
        poles = [row.targets[str(Target(name, pole))] for pole in Pole if str(Target(name, pole)) in row.targets]
        if len(poles) == len(Pole):
            where = f"{place}.fluency_traits.{name}.mean"
            yield from _check_sum(where, composite.mean, [pole.fluency for pole in poles], tolerance)
    if row.fluency_average is not None:
        yield from _check_average(f"{place}.fluency_average", row.fluency_traits, row.fluency_average, tolerance)


def _check_result(place: str, result: TargetResult, *, is_computed: bool) -> Iterator[Problem]:
    if result.n == 0:
        yield f"{place}.n", "it is 0: a target without answers has no result"
        return
    for field, count in (("rated", result.rated), ("fluency_rated", result.fluency_rated)):
        if count > result.n:
            yield f"{place}.{field}", f"{count} is more than n, {result.n}"
    if abs(result.coverage - result.rated / result.n) > _COMPUTED:
        yield f"{place}.coverage", f"{result.coverage:g} is not rated / n, {result.rated} / {result.n}"
    unrated = sum(result.unrated.values())
    if (is_computed or result.unrated) and unrated != result.n - result.rated:
        yield f"{place}.unrated", f"its counts add up to {unrated}, and n - rated is {result.n - result.rated}"
    tolerance = _COMPUTED if is_computed else _PRINTED
    figures = (
        ("mean", result.mean, result.rated, "interval", result.interval),
        ("fluency", result.fluency, result.fluency_rated, "fluency_interval", result.fluency_interval),
    )
    for name, mean, count, ends, interval in figures:
        if is_computed and (mean is None) != (count == 0):
            yield f"{place}.{name}", f"it is {_show(mean)}, and {count} answers have such a rating"
        yield from _check_interval(f"{place}.{ends}", mean, interval, tolerance)
    if result.sd is not None and result.rated < 2:
        yield f"{place}.sd", f"{result.sd:g} is the spread of {result.rated} ratings"
    for name, value in result.text.items():
        if name != "words" and value > 1:
            yield f"{place}.text.{name}", f"{value:g} is a share above 1"


def _check_composites(place: str, field: str, traits: Mapping[str, Composite], tolerance: float) -> Iterator[Problem]:
    for name, composite in traits.items():
        yield from _check_interval(f"{place}.{field}.{name}.interval", composite.mean, composite.interval, tolerance)


def _check_average(
    place: str, traits: Mapping[str, Composite], average: Composite, tolerance: float
) -> Iterator[Problem]:
    yield from _check_interval(f"{place}.interval", average.mean, average.interval, tolerance)
    means = [composite.mean for composite in traits.values()]
    yield from _check_sum(f"{place}.mean", average.mean, means, tolerance, divisor=len(means))
    variances = [composite.variance for composite in traits.values()]
    if average.variance is not None:  # publications may leave it out
        yield from _check_sum(f"{place}.variance", average.variance, variances, tolerance, divisor=len(variances))


def _check_sum(
    place: str, total: float | None, parts: Sequence[float | None], tolerance: float, divisor: int = 1
) -> Iterator[Problem]:
    known = [part for part in parts if part is not None]
    expected = math.fsum(known) / divisor if known and len(known) == len(parts) else None
    if (total is None) != (expected is None) or abs((total or 0.0) - (expected or 0.0)) > tolerance:
        what = "sum" if divisor == 1 else "mean"
        yield place, f"{_show(total)} is not the {what} of its parts, {_show(expected)}"


def _check_interval(place: str, mean: float | None, interval: Interval | None, tolerance: float) -> Iterator[Problem]:
    if interval is None:
        return
    low, high = interval
    if low > high:
        yield place, f"[{low:g}, {high:g}] is reversed"
    elif mean is None:
        yield place, "there is an interval and no mean"
    elif not low - tolerance <= mean <= high + tolerance:
        yield place, f"the mean {mean:g} lies outside of [{low:g}, {high:g}]"


def _check_null_baselines(floors: Floors) -> Iterator[Problem]:
    kinds = [floor.kind for floor in floors.rows]
    if len(set(kinds)) != len(kinds):
        yield "floors.rows", "a kind is there twice"
    if floors.rows and floors.missing:
        yield "floors.missing", "there are rows, and a reason why there are none"
    for number, floor in enumerate(floors.rows):
        place = f"floors.rows.{number}"
        if sorted(floor.targets) != sorted(map(str, TARGETS)):
            yield f"{place}.targets", f"it has {_names(floor.targets)} instead of all targets"
        if sorted(floor.traits) != sorted(TRAIT_NAMES):
            yield f"{place}.traits", f"it has {_names(floor.traits)} instead of all traits"
        yield from _check_figures(place, floor.targets, floor.traits, floor.average, is_computed=True)
        interval = floor.fluency_average.interval
        yield from _check_interval(f"{place}.fluency_average.interval", floor.fluency_average.mean, interval, _COMPUTED)


def _check_sweep(place: str, sweep: Sweep) -> Iterator[Problem]:
    if not sweep.targets:
        yield f"{place}.targets", "it is empty: a strength was chosen for no target"
    for target, found in sweep.targets.items():
        yield from _check_choice(f"{place}.targets.{target}", found, sweep.slack)
    chosen = {target: found.chosen for target, found in sweep.targets.items()}
    if sweep.method.strength != chosen:
        yield f"{place}.method.strength", "it is not what was chosen for the targets"


def _check_choice(place: str, found: TargetSweep, slack: float) -> Iterator[Problem]:
    yield from _check_result(f"{place}.baseline", found.baseline, is_computed=True)
    for number, point in enumerate(found.points):
        yield from _check_result(f"{place}.points.{number}.result", point.result, is_computed=True)
    strengths = [point.strength for point in found.points]
    if not strengths or any(lower >= higher for lower, higher in pairwise(strengths)):
        yield f"{place}.points", f"their strengths {strengths} do not ascend" if strengths else "there is none"
        return
    if found.baseline.fluency is None:
        yield f"{place}.baseline.fluency", "there is none to choose by"
        return
    if abs(found.floor - floor_of(found.baseline.fluency, slack)) > _COMPUTED:
        yield f"{place}.floor", f"{found.floor:g} does not follow from the baseline's fluency and the slack"
    results = {point.strength: point.result for point in found.points}
    if all(result.fluency is None for result in results.values()):
        yield f"{place}.points", "none has a fluency to choose by"
    elif (found.chosen, found.floor_met) != choose(results, found.floor):
        yield f"{place}.chosen", f"{found.chosen:g} does not follow from the points"
    for number, point in enumerate(found.points):
        if point.floor_met != (point.result.fluency is not None and point.result.fluency >= found.floor):
            yield f"{place}.points.{number}.floor_met", f"{point.floor_met} does not follow from its fluency"


def _names(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
