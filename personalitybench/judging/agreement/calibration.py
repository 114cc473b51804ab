"""One judge read on the scale of another: a monotone map, fitted on answers that both rated, with its held-out error.

A map is a way to read ratings, never a replacement: boards show the mapped figure beside the raw one. It cannot make a
judge see what it does not see. Where it is nearly flat, or no better than always saying the reference's mean, the judge
does not know what the reference knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.files import content_hash, read_json, write_json
from personalitybench.judging.agreement.table import ASPECTS, Aspect, Column, RatingTable
from personalitybench.judging.base import Rating
from personalitybench.metrics.statistics import sum_interval
from personalitybench.validation import validate
from personalitybench.versions import package_versions

FOLDS = 5
FEWEST = 30
"""Answers rated by both, below which no map is fitted."""

_DIGITS = 6

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Errors(_Part):
    """Mean absolute differences from the reference, on the rating scale (1-5), with 95 % intervals over questions."""

    n: int
    raw: float = Field(description="of the judge's own ratings")
    raw_interval: Interval | None
    mapped: float = Field(description="of mapped ratings, each by a map that was fitted on other questions")
    mapped_interval: Interval | None
    constant: float = Field(description="of always saying the reference's mean on the other questions")
    gained: float = Field(description="raw - mapped: above 0, the map brings the judge closer")
    gained_interval: Interval | None


class RatingMap(_Part):
    """A monotone map from one judge's ratings to another's.

    Attributes:
        points: Rating and mapped rating, both ascending; straight lines between, constant beyond the ends.
    """

    points: tuple[tuple[float, float], ...] = Field(min_length=1)
    n: int = Field(description="answers that both rated")
    questions: int
    errors: Errors
    by_trait: dict[str, Errors] = {}

    @model_validator(mode="after")
    def _ascending(self) -> RatingMap:
        for (x, y), (next_x, next_y) in pairwise(self.points):
            if next_x <= x or next_y < y:
                raise ValueError("the points of a map ascend: a higher rating never means a lower one")
        if not all(1.0 <= value <= 5.0 for point in self.points for value in point):
            raise ValueError("the points of a map lie between 1 and 5")
        return self

    def read(self, rating: float) -> float:
        """Read a rating (1-5) on the reference's scale."""
        xs, ys = zip(*self.points, strict=True)
        return float(np.interp(rating, xs, ys))


class Calibration(_Part):
    """Maps from a judge to a reference, one for trait ratings and one for fluency.

    Attributes:
        judge: Fingerprint of the judge whose ratings are mapped.
        reference: Identity of whose scale they are mapped to, ``id`` among it.
        source: Where the answers are from.
        maps: By aspect; an aspect that too few answers were rated for has none.
    """

    schema_version: Literal["1.0"] = "1.0"
    judge: dict[str, str]
    reference: dict[str, str]
    source: str
    folds: int
    seed: int
    versions: dict[str, str] = {}
    maps: dict[Aspect, RatingMap] = Field(min_length=1)

    @property
    def sha256(self) -> str:
        """Hash of what decides the mapped figures."""
        return content_hash(self.model_dump(mode="json", exclude={"versions"}))

    def check(self, judge: Mapping[str, str]) -> None:
        """See that this is the judge that the maps are of.

        Raises:
            ConfigurationError: It is another judge, or another state of it.
        """
        for key in sorted({*judge, *self.judge}):
            if judge.get(key) != self.judge.get(key):
                raise ConfigurationError(
                    f"this calibration is of judge {self.judge.get('id')!r} and does not fit {judge.get('id')!r}: "
                    f"{key} differs; calibrate the judge anew (personalitybench judges calibrate)"
                )


@dataclass(frozen=True)
class _Pairs:
    """Ratings of the same answers: all arrays have one entry an answer."""

    own: Array
    reference: Array
    questions: npt.NDArray[np.str_]
    traits: npt.NDArray[np.str_]


def fit_calibration(
    table: RatingTable, judge: str, reference: str, *, folds: int = FOLDS, seed: int = 0
) -> Calibration:
    """Fit monotone maps (isotonic regression) from a judge to a reference.

    The error is that of answers to questions which the map did not see: questions are dealt into folds at random, and
    each fold is read by a map that was fitted on the others.

    Args:
        table: Answers that both rated; of repeats the first counts.
        judge: Name of a column.
        reference: Name of another one.
        folds: Parts that the questions are dealt into.
        seed: Of the deal.

    Raises:
        ConfigurationError: There is no such column.
        DataError: Too few answers were rated by both.
    """
    own, other = _column(table, judge), _column(table, reference)
    pairs = {aspect: _pairs(table, own, other, aspect) for aspect in ASPECTS}
    enough = {
        aspect: found
        for aspect, found in pairs.items()
        if len(found.own) >= FEWEST and len(np.unique(found.questions)) >= folds
    }
    if not enough:
        counts = ", ".join(f"{len(found.own)} for {aspect}" for aspect, found in pairs.items())
        raise DataError(
            f"{judge} and {reference} rated too few of the same answers to calibrate on ({counts}): at least {FEWEST} "
            f"are needed, to {folds} questions or more"
        )
    return Calibration(
        judge=dict(own.identity),
        reference=dict(other.identity),
        source=table.source,
        folds=folds,
        seed=seed,
        versions=package_versions(),
        maps={aspect: _fit(found, folds, seed, aspect) for aspect, found in enough.items()},
    )


def read_calibration(path: Path) -> Calibration:
    """Read what :func:`write_calibration` wrote.

    Raises:
        StorageError: It is missing or not JSON.
        ConfigurationError: It is no calibration; the text names the field.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not a calibration")
    return validate(Calibration, content, f"calibration {path}")


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON."""
    write_json(path, calibration.model_dump(mode="json"))


def _column(table: RatingTable, name: str) -> Column:
    for column in table.columns:
        if column.judge == name:
            return column
    known = ", ".join(column.judge for column in table.columns)
    raise ConfigurationError(f"there are no ratings by {name!r}: these are by {known or 'nobody'}")


def _pairs(table: RatingTable, own: Column, other: Column, aspect: Aspect) -> _Pairs:
    rows: list[tuple[float, float, str, str]] = []
    for answer in table.answers:
        first = own.repeats[0].get((answer.id, aspect)) if own.repeats else None
        second = other.repeats[0].get((answer.id, aspect)) if other.repeats else None
        if isinstance(first, Rating) and isinstance(second, Rating):
            rows.append((first.value, second.value, answer.question_id, answer.trait))
    return _Pairs(
        np.array([row[0] for row in rows], dtype=np.float64),
        np.array([row[1] for row in rows], dtype=np.float64),
        np.array([row[2] for row in rows], dtype=np.str_),
        np.array([row[3] for row in rows], dtype=np.str_),
    )


def _fit(pairs: _Pairs, folds: int, seed: int, aspect: Aspect) -> RatingMap:
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415 (slow to import)

    mapped, constant = np.empty_like(pairs.own), np.empty_like(pairs.own)
    dealt = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for seen, unseen in dealt.split(pairs.own, groups=pairs.questions):
        mapped[unseen] = _isotonic(pairs.own[seen], pairs.reference[seen]).predict(pairs.own[unseen])
        constant[unseen] = pairs.reference[seen].mean()
    whole = _isotonic(pairs.own, pairs.reference)
    points = {  # a mapping, since two ratings may be the same after rounding
        round(x, _DIGITS): round(y, _DIGITS)
        for x, y in zip(whole.X_thresholds_.tolist(), whole.y_thresholds_.tolist(), strict=True)
    }
    misses = {
        name: np.abs(guess - pairs.reference)
        for name, guess in (("raw", pairs.own), ("mapped", mapped), ("constant", constant))
    }
    everything = np.ones(len(pairs.own), dtype=np.bool_)
    return RatingMap(
        points=tuple(points.items()),
        n=len(pairs.own),
        questions=len(np.unique(pairs.questions)),
        errors=_errors(misses, pairs.questions, everything),
        by_trait={
            str(trait): _errors(misses, pairs.questions, pairs.traits == trait) for trait in np.unique(pairs.traits)
        }
        if aspect == "trait"
        else {},
    )


def _isotonic(own: Array, reference: Array) -> Any:
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 (slow to import)

    return IsotonicRegression(y_min=1.0, y_max=5.0, increasing=True, out_of_bounds="clip").fit(own, reference)


def _errors(misses: Mapping[str, Array], questions: npt.NDArray[np.str_], chosen: npt.NDArray[np.bool_]) -> Errors:
    by = {name: values[chosen] for name, values in misses.items()}
    by["gained"] = by["raw"] - by["mapped"]
    groups = questions[chosen]
    return Errors(
        n=int(chosen.sum()),
        raw=_mean(by["raw"]),
        raw_interval=_interval(by["raw"], groups),
        mapped=_mean(by["mapped"]),
        mapped_interval=_interval(by["mapped"], groups),
        constant=_mean(by["constant"]),
        gained=_mean(by["gained"]),
        gained_interval=_interval(by["gained"], groups),
    )


def _mean(values: Array) -> float:
    return round(float(values.mean()), _DIGITS)


def _interval(values: Array, questions: Sequence[str] | npt.NDArray[np.str_]) -> Interval | None:
    grouped: dict[str, list[float]] = {}
    for question, value in zip(questions, values.tolist(), strict=True):
        grouped.setdefault(str(question), []).append(value)
    found = sum_interval([[grouped]])
    return None if found is None else (round(found[0], _DIGITS), round(found[1], _DIGITS))
