"""A judge that is made of several: each rates every answer, their mean or median is the rating, and all is kept."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.errors import ConfigurationError
from personalitybench.files import content_hash
from personalitybench.judging.base import (
    Judge,
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
    create_judge,
)
from personalitybench.validation import validate

_DIGITS = 4
_MAX_MEMBERS = 50
_MAX_DEPTH = 2  # of panels in panels; the number of judges grows exponentially with it

_being_made: ContextVar[tuple[JudgeProfile, ...]] = ContextVar("panels that are being made", default=())


class PanelSettings(BaseModel):
    """``settings`` of a profile.

    Attributes:
        judges: Ids or files of the members' profiles.
        combine: ``mean`` or ``median`` of their ratings.
        at_least: How many must have rated; all of them if left out, so that every rating is of the same judges.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    judges: tuple[str, ...] = Field(min_length=2, max_length=_MAX_MEMBERS)
    combine: Literal["mean", "median"] = "mean"
    at_least: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _enough_judges(self) -> Self:
        if self.at_least is not None and self.at_least > len(self.judges):
            raise ValueError(f"'at_least' is {self.at_least}, but there are {len(self.judges)} judges")
        return self


class PanelJudge:
    """Rates answers by what its members make of them; see :class:`personalitybench.judging.base.Judge`.

    Args:
        profile: Its profile.

    Attributes:
        members: The judges that it is made of.

    Raises:
        ConfigurationError: The profile or a member's is wrong, a member stands twice, or the panel holds itself.
    """

    summary: ClassVar[str] = "several judges: the mean or median of their ratings, with each one's verdict"

    def __init__(self, profile: JudgeProfile) -> None:
        self.profile = profile
        self._settings = validate(PanelSettings, profile.settings, f"judge profile {profile.id!r}: settings")
        with _made_once(profile):
            self.members: Sequence[Judge] = [create_judge(name) for name in self._settings.judges]
        self._names = [member.profile.id for member in self.members]
        if twice := sorted({name for name in self._names if self._names.count(name) > 1}):
            raise ConfigurationError(f"judge profile {profile.id!r}: {', '.join(twice)} is on the panel twice")

    @property
    def at_a_time(self) -> int:
        """As few answers as the member wants that is given the fewest: it may keep nothing before it is done."""
        return min(member.at_a_time for member in self.members)

    @property
    def rubric_sha256(self) -> str:
        """Hash of all that the members' ratings depend on."""
        return content_hash(
            [[member.profile.id, member.profile.sha256, member.rubric_sha256] for member in self.members]
        )

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        """Rate items; the members work at the same time, and an item counts once the last of them is done.

        Raises:
            PersonalityBenchError: What the first member raised that cannot go on; the others are stopped, and what
                they paid is kept.
        """
        counts = _Counts(len(self.members), report)
        asked = [
            asyncio.create_task(member.rate(items, counts.of(number))) for number, member in enumerate(self.members)
        ]
        try:
            found = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        for name, verdicts in zip(self._names, found, strict=True):
            if len(verdicts) != len(items):
                raise ConfigurationError(f"judge {name!r} gave {len(verdicts)} verdicts for {len(items)} answers")
        return [self._combine(verdicts) for verdicts in zip(*found, strict=True)]

    def _combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        values = [verdict.value for verdict in verdicts if isinstance(verdict, Rating)]
        needed = self._settings.at_least or len(self.members)
        if len(values) < needed:
            told = "; ".join(f"{name}: {_told(verdict)}" for name, verdict in zip(self._names, verdicts, strict=True))
            return Unrated("too-few-ratings", f"{len(values)} of {len(verdicts)} rated, {needed} must ({told})")
        combine = statistics.median if self._settings.combine == "median" else statistics.fmean
        basis = {
            "spread": round(max(values) - min(values), _DIGITS),
            "sd": round(statistics.pstdev(values), _DIGITS),
            "members": {name: verdict.to_json() for name, verdict in zip(self._names, verdicts, strict=True)},
        }
        return Rating(round(combine(values), _DIGITS), basis=basis)


class _Counts:
    """Adds up what the members report: what all of them rated is done."""

    def __init__(self, members: int, report: RatingsReport | None) -> None:
        self._done = [0] * members
        self._report = report

    def of(self, member: int) -> RatingsReport:
        """What a member is to report to."""

        def count(more: int) -> None:
            before = min(self._done)
            self._done[member] += more
            if self._report is not None and (new := min(self._done) - before):
                self._report(new)

        return count


@contextmanager
def _made_once(profile: JudgeProfile) -> Iterator[None]:
    """Refuse a panel that is a member of itself, or stands too deep in others."""
    outer = _being_made.get()
    if profile in outer:
        names = " > ".join(each.id for each in (*outer[outer.index(profile) :], profile))
        raise ConfigurationError(f"judge profile {profile.id!r}: the panel is a member of itself ({names})")
    if len(outer) >= _MAX_DEPTH:
        names = " > ".join(each.id for each in (*outer, profile))
        raise ConfigurationError(
            f"judge profile {profile.id!r}: panels stand in one another more than {_MAX_DEPTH} deep ({names}): name "
            "their members in one panel"
        )
    token = _being_made.set((*outer, profile))
    try:
        yield
    finally:
        _being_made.reset(token)


def _told(verdict: Verdict) -> str:
    return f"{verdict.value:g}" if isinstance(verdict, Rating) else verdict.reason
