"""The contract of a judge, its profile file, and how a judge is found by name.

A judge answers with a rating from 1 to 5 or says why it has none. A failure is never a number.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import yaml
from pydantic import BaseModel, ConfigDict, Field

from personalitybench.errors import ConfigurationError, unknown_name
from personalitybench.files import content_hash
from personalitybench.judging.prices import PRICES
from personalitybench.registry import Registry
from personalitybench.resources import bundled
from personalitybench.validation import validate

FLUENCY = "fluency"


@dataclass(frozen=True)
class RatingRequest:
    """One thing to rate.

    Attributes:
        question: What was asked (a rating of fluency sees only the answer).
        answer: What the model wrote.
        aspect: A trait's name, or ``fluency``.
    """

    question: str
    answer: str
    aspect: str


@dataclass(frozen=True)
class Rating:
    """A verdict: ``value`` from 1 (low pole, not fluent) to 5 (high pole, fluent), seen from the trait's name."""

    value: float
    explanation: str = ""

    def __post_init__(self) -> None:
        if not 1.0 <= self.value <= 5.0:
            raise ValueError(f"a rating is from 1 to 5, not {self.value}")

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        return {"rating": self.value} | ({"explanation": self.explanation} if self.explanation else {})


@dataclass(frozen=True)
class Unrated:
    """No verdict, and why: ``reason`` is a short machine-readable word, ``detail`` is for people."""

    reason: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        return {"unrated": self.reason} | ({"detail": self.detail} if self.detail else {})


Verdict = Rating | Unrated


def verdict_from_json(value: Mapping[str, Any]) -> Verdict:
    """Read what :meth:`Rating.to_json` or :meth:`Unrated.to_json` wrote."""
    if "unrated" in value:
        return Unrated(str(value["unrated"]), str(value.get("detail", "")))
    return Rating(float(value["rating"]), str(value.get("explanation", "")))


class JudgeProfile(BaseModel):
    """A judge as a file (``judges/*.yaml``).

    Attributes:
        id: Its name; names the filter in lm-eval and the board in a leaderboard.
        provider: Registered class that does the rating.
        summary: One line for lists.
        caveat: What a reader of its numbers must know; printed with every board.
        settings: What the provider needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    provider: str
    summary: str
    caveat: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of what can change a rating (not of the texts for people)."""
        return content_hash(self.model_dump(exclude={"summary", "caveat"}))


@runtime_checkable
class Judge(Protocol):
    """Rates answers.

    Attributes:
        profile: The file that it was made from.
        rubric_sha256: Hash of what it judges by: rubric texts, or the weights of a trained head.
    """

    profile: JudgeProfile

    @property
    def rubric_sha256(self) -> str:
        """Hash of the rubric."""

    async def rate(self, items: Sequence[RatingRequest]) -> Sequence[Verdict]:
        """Rate items; one verdict each, in the same order."""


class JudgeClass(Protocol):
    """What is registered: a class built from a profile."""

    summary: ClassVar[str]

    def __call__(self, profile: JudgeProfile) -> Judge:
        """Build the judge."""


judges: Registry[JudgeClass] = Registry(
    "judge provider",
    "personalitybench.judges",
    {"offline": "personalitybench.judging.offline:OfflineJudge"},
)


def judge_names() -> list[str]:
    """Ids of the bundled profiles."""
    return sorted(path.stem for path in bundled("judges").glob("*.yaml") if path.name != PRICES)


def load_profile(name: str) -> JudgeProfile:
    """Load a profile by id, or from a YAML file.

    Raises:
        ConfigurationError: No such judge, or the file is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else bundled("judges") / f"{name}.yaml"
    if not path.is_file() or path == bundled("judges", PRICES):
        raise unknown_name("judge", name, judge_names())
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"judge profile {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"judge profile {path} is not a mapping")
    return validate(JudgeProfile, content, f"judge profile {path}")


@lru_cache(maxsize=8)
def create_judge(name: str) -> Judge:
    """Build a judge by the id of its profile; the same judge (with its loaded model) for the same name.

    Raises:
        ConfigurationError: No such judge, or its profile is wrong.
    """
    profile = load_profile(name)
    return judges.get(profile.provider)(profile)


def rate_all(judge: Judge, items: Sequence[RatingRequest]) -> Sequence[Verdict]:
    """Run :meth:`Judge.rate` from code that is not asynchronous, also inside a running loop (a notebook)."""
    if not items:
        return []
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_rate(judge, items))
    found: list[Sequence[Verdict]] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(_rate(judge, items))))
    thread.start()
    thread.join()
    if not found:
        raise ConfigurationError(f"judge {judge.profile.id!r} failed: see the error above")
    return found[0]


async def _rate(judge: Judge, items: Sequence[RatingRequest]) -> Sequence[Verdict]:
    verdicts = await judge.rate(items)
    if len(verdicts) != len(items):
        raise ConfigurationError(f"judge {judge.profile.id!r} gave {len(verdicts)} verdicts for {len(items)} answers")
    return verdicts
