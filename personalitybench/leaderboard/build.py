"""Cells become rows: the same code for a run of this project and for lm-eval's own result files."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from personalitybench.errors import DataError
from personalitybench.files import content_hash
from personalitybench.judging import Rating, Verdict
from personalitybench.judging.base import count_models
from personalitybench.leaderboard.schema import (
    Composite,
    Floors,
    JudgeId,
    Leaderboard,
    Provenance,
    Row,
    RowIdentity,
    Sweep,
    TargetResult,
)
from personalitybench.metrics.fluency import measure_text
from personalitybench.metrics.statistics import sum_interval, summarise
from personalitybench.outside_text import escape_controls
from personalitybench.traits import TARGETS, TRAIT_NAMES, Pole, Target
from personalitybench.version_log import other_devices, other_versions

_DIGITS = 6  # figures are rounded so that a board is the same text on every machine

Scores = dict[str, list[float]]


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer with its verdicts; the question's text is only for showing."""

    question_id: str
    answer: str
    trait: Verdict
    fluency: Verdict
    question: str = ""


@dataclass(frozen=True)
class Cell:
    """The judged answers of one target under one setting and seed.

    Attributes:
        model: ``name`` and ``revision``.
        settings: What :meth:`personalitybench.tasks.PersonalityTask.identity` gave (method, data, protocol, seed).
        judge: Fingerprint of the judge.
        target: The target.
        answers: The judged answers.
        provenance: How they came to be.
    """

    model: Mapping[str, str]
    settings: Mapping[str, Any]
    judge: Mapping[str, str]
    target: Target
    answers: Sequence[JudgedAnswer]
    provenance: Provenance


def build_board(
    name: str,
    cells: Iterable[Cell],
    *,
    caveat: str = "",
    source: str = "",
    sweeps: Sequence[Sweep] = (),
    floors: Floors | None = None,
) -> Leaderboard:
    """Aggregate cells into a board.

    Cells that agree in everything but target and seed form a row. Rows are sorted by their average composite.

    Raises:
        DataError: There is no cell, or the cells come from different judges.
    """
    grouped = group_cells(cells)
    if not grouped:
        raise DataError(f"board {name!r}: there are no judged answers to build it from")
    judges = {content_hash(dict(group[0].judge)): group[0].judge for group in grouped}
    if len(judges) > 1:
        ids = ", ".join(sorted(judge["id"] for judge in judges.values()))
        raise DataError(f"board {name!r}: its rows come from different judges ({ids}): make one board for each")
    rows = sorted((_build_row(group) for group in grouped), key=lambda row: (-_rank(row), row.id))
    judge = JudgeId.model_validate(next(iter(judges.values())))
    return Leaderboard(
        name=name,
        status="recomputed",
        judge=judge,
        caveat=caveat,
        source=source,
        rows=rows,
        sweeps=list(sweeps),
        floors=floors,
    )


def group_cells(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Put the cells of each row together."""
    grouped: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        settings = {key: value for key, value in cell.settings.items() if key != "seed"}
        grouped[content_hash([dict(cell.model), settings, dict(cell.judge)])].append(cell)
    return list(grouped.values())


def _rank(row: Row) -> float:
    return row.average.mean if row.average.mean is not None else -math.inf


@dataclass
class Collected:
    """The answers and scores of a row, by target; scores by question id."""

    answers: dict[Target, list[JudgedAnswer]] = field(default_factory=lambda: defaultdict(list))
    scores: dict[Target, Scores] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    fluency: dict[Target, Scores] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def results(self) -> dict[str, TargetResult]:
        """Figures of every target, in the order of the cells."""
        return {
            str(target): _target_result(answers, self.scores[target], self.fluency[target])
            for target, answers in self.answers.items()
        }


def collect(cells: Sequence[Cell]) -> Collected:
    """Collect the answers and scores of a row, of all seeds, in the usual order of targets.

    Raises:
        DataError: A result, or an answer of one, is there twice.
    """
    cells = sorted(cells, key=_order)
    for earlier, later in pairwise(cells):
        if (earlier.target, earlier.settings["seed"]) == (later.target, later.settings["seed"]):
            raise DataError(
                f"two results for {later.target} under the same settings of method "
                f"{later.settings['method']['name']!r}, seed {later.settings['seed']}: give each result once"
            )
    found = Collected()
    for cell in cells:
        times = Counter(answer.question_id for answer in cell.answers)
        if repeated := next((identity for identity, number in times.items() if number > 1), None):
            raise DataError(
                f"two answers to question {repeated} for {cell.target} of method {cell.settings['method']['name']!r}, "
                f"seed {cell.settings['seed']}: give each answer once"
            )
        for answer in sorted(cell.answers, key=lambda answer: answer.question_id):
            found.answers[cell.target].append(answer)
            trait_scores = found.scores[cell.target][answer.question_id]
            fluency_scores = found.fluency[cell.target][answer.question_id]
            if isinstance(answer.trait, Rating):
                trait_scores.append(cell.target.score(answer.trait.value))
            if isinstance(answer.fluency, Rating):
                fluency_scores.append(answer.fluency.value)
    return found


def _build_row(cells: Sequence[Cell]) -> Row:
    found = collect(cells)
    identity = row_identity(cells)
    traits, average = composites(found.scores)
    fluency_traits, fluency_average = composites(found.fluency)
    return Row(
        id=Row.make_id(identity),
        identity=identity,
        provenance=_provenance(cells),
        targets=found.results(),
        traits=traits,
        average=average,
        fluency_traits=fluency_traits,
        fluency_average=fluency_average,
    )


def _provenance(cells: Sequence[Cell]) -> Provenance:
    """Provenance of the first cell, with the versions, devices and judge's models of all."""
    ordered = [cell.provenance for cell in sorted(cells, key=_order)]
    first = ordered[0]
    versions = [each for made in ordered for each in (made.versions, *made.other_versions)]
    untried = dict.fromkeys(line for made in ordered for line in made.untried_versions)
    return first.model_copy(
        update={
            "other_versions": other_versions(first.versions, versions),
            "untried_versions": list(untried),
            "other_devices": other_devices(
                first.device, (device for made in ordered for device in (made.device, *made.other_devices))
            ),
            "judge_models": _judge_models(cells),
        }
    )


def _judge_models(cells: Sequence[Cell]) -> dict[str, int]:
    answers = [answer for cell in cells for answer in cell.answers]
    return count_models(verdict for answer in answers for verdict in (answer.trait, answer.fluency))


def row_identity(cells: Sequence[Cell]) -> RowIdentity:
    """Identity of the row that cells form."""
    first = min(cells, key=_order)
    questions = sorted({answer.question_id for cell in cells for answer in cell.answers})
    return RowIdentity.model_validate(
        {
            "model": dict(first.model),
            "method": first.settings["method"],
            "judge": dict(first.judge),
            "data": {
                **first.settings["data"],
                "questions": len(questions),
                "questions_sha256": content_hash(questions),
            },
            "protocol": first.settings["protocol"],
            "seeds": sorted({cell.settings["seed"] for cell in cells}),
        }
    )


def _order(cell: Cell) -> tuple[int, int]:
    return TARGETS.index(cell.target), cell.settings["seed"]


def _target_result(answers: Sequence[JudgedAnswer], scores: Scores, fluency: Scores) -> TargetResult:
    summary = summarise(scores)
    fluent = summarise(fluency)
    rated = sum(map(len, scores.values()))
    unrated: dict[str, int] = defaultdict(int)
    measured: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if not isinstance(answer.trait, Rating):
            unrated[escape_controls(answer.trait.reason)] += 1
        for measure, value in measure_text(answer.answer).items():
            measured[measure].append(value)
    return TargetResult(
        n=len(answers),
        rated=rated,
        coverage=_round(rated / len(answers)) or 0.0,
        mean=_round(summary.mean),
        sd=_round(summary.sd),
        interval=_round_interval(summary.interval),
        fluency=_round(fluent.mean),
        fluency_rated=sum(map(len, fluency.values())),
        fluency_interval=_round_interval(fluent.interval),
        unrated=dict(sorted(unrated.items())),
        text={m: _round(math.fsum(v) / len(v)) or 0.0 for m, v in sorted(measured.items())},
    )


def composites(scores: Mapping[Target, Scores]) -> tuple[dict[str, Composite], Composite]:
    """Composite of every trait whose two poles are there, and their average.

    The mean is the sum of both poles' means, the variance the sum of both sample variances (the paper does not
    say which variance). The average of fewer than five traits is of those that are there.
    """
    poles = {
        name: [scores[target] for pole in Pole if (target := Target(name, pole)) in scores] for name in TRAIT_NAMES
    }
    complete = {name: parts for name, parts in poles.items() if len(parts) == len(Pole)}
    traits = {name: _composite(parts) for name, parts in complete.items()}
    means = [composite.mean for composite in traits.values() if composite.mean is not None]
    variances = [composite.variance for composite in traits.values() if composite.variance is not None]
    whole = bool(traits) and len(means) == len(traits)
    average = Composite(
        mean=_round(math.fsum(means) / len(means)) if whole else None,
        variance=_round(math.fsum(variances) / len(variances)) if len(variances) == len(traits) != 0 else None,
        interval=_round_interval(sum_interval(list(complete.values()), len(complete))) if whole else None,
    )
    return traits, average


def _composite(parts: Sequence[Scores]) -> Composite:
    summaries = [summarise(part) for part in parts]
    means = [summary.mean for summary in summaries if summary.mean is not None]
    variances = [summary.sd**2 for summary in summaries if summary.sd is not None]
    return Composite(
        mean=_round(math.fsum(means)) if len(means) == len(parts) else None,
        variance=_round(math.fsum(variances)) if len(variances) == len(parts) else None,
        interval=_round_interval(sum_interval([parts])),
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _round_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (round(interval[0], _DIGITS), round(interval[1], _DIGITS))
