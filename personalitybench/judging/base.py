"""The contract of a judge, its profile file, and how a judge is found by name.

A judge answers with a rating from 1 to 5 or says why it has none. A failure is never a number.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.argument_policy import Arguments, refuse_remote_code
from personalitybench.errors import ConfigurationError, PersonalityBenchError, unknown_name
from personalitybench.files import content_hash, is_file, named_folder
from personalitybench.host_policy import OPENAI_KEY, refuse_unnamed_hosts
from personalitybench.interrupts import run_coroutine
from personalitybench.outside_files import load_yaml
from personalitybench.outside_text import single_line
from personalitybench.registry import Registry
from personalitybench.resources import bundled
from personalitybench.validation import validate

FLUENCY = "fluency"
EMPTY_ANSWER = "empty_answer"
"""Reason why an answer without a word is unrated."""

MAY_PASS = frozenset({"unreachable", "not-text"})
"""Reasons of being unrated that say nothing of the answer: it is asked about again the next time."""

FOLDER_VARIABLE = "PERSONALITYBENCH_JUDGES"
"""Environment variable that names a folder of the user's own profiles."""

_WORD = re.compile(r"\w")

WARN_BEFORE = dt.timedelta(days=60)
RatingsReport = Callable[[int], None]
"""Is told how many more ratings there are."""

logger = logging.getLogger(__name__)


def is_readable(answer: str) -> bool:
    """Whether there is anything to judge: at least one word character."""
    return bool(_WORD.search(answer))


@dataclass(frozen=True)
class RatingRequest:
    """One thing to rate.

    Attributes:
        question: What was asked (a rating of fluency sees only the answer).
        answer: What the model wrote.
        aspect: A trait's name, or ``fluency``.
        repeat: Which asking of the same this is; for test and retest the same is asked again as 1, 2, ...
    """

    question: str
    answer: str
    aspect: str
    repeat: int = 0


@dataclass(frozen=True)
class Rating:
    """A verdict, seen from the trait's name.

    Attributes:
        value: From 1 (low pole, not fluent) to 5 (high pole, fluent).
        explanation: The judge's words.
        basis: What the value was made of, where that is more than words: plain JSON data, such as the probabilities of
            the ratings, or the verdicts of a panel's members. No figure of a board depends on it.
        model: The model that answered, as its server names it. Two ratings that differ in it alone are equal.
    """

    value: float
    explanation: str = ""
    basis: Mapping[str, Any] = field(default_factory=dict, hash=False)
    model: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 1.0 <= self.value <= 5.0:
            raise ValueError(f"a rating is from 1 to 5, not {self.value}")

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        more = {"explanation": self.explanation, "basis": dict(self.basis), "model": self.model}
        return {"rating": self.value} | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class Unrated:
    """No verdict, and why: ``reason`` is a short machine-readable word, ``detail`` is for people."""

    reason: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        return {"unrated": self.reason} | ({"detail": self.detail} if self.detail else {})


Verdict = Rating | Unrated


def verdict_from_json(value: Any) -> Verdict:
    """Read what :meth:`Rating.to_json` or :meth:`Unrated.to_json` wrote.

    Raises:
        ValueError: It is neither: no mapping, no reason, or a rating that is no number from 1 to 5.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a verdict is a mapping with 'rating' or 'unrated', not {value!r:.80}")  # noqa: TRY004
    if "unrated" in value:
        reason = value["unrated"]
        if not isinstance(reason, str):
            raise ValueError(f"the reason of an unrated answer is a word, not {reason!r:.80}")
        return Unrated(reason, str(value.get("detail", "")))
    rating, basis = value.get("rating"), value.get("basis", {})
    if isinstance(rating, bool) or not isinstance(rating, int | float):
        raise ValueError(f"a rating is a number from 1 to 5, not {rating!r:.80}")  # noqa: TRY004 (one class for all)
    if not isinstance(basis, Mapping):
        raise ValueError(f"the basis of a rating is a mapping, not {basis!r:.80}")  # noqa: TRY004
    return Rating(float(rating), str(value.get("explanation", "")), dict(basis), str(value.get("model", "")))


def count_models(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return the models that gave ratings, as their servers name them, with the number of their ratings.

    Members of a panel count one by one.
    """
    found: Counter[str] = Counter()
    for verdict in verdicts:
        if isinstance(verdict, Rating):
            members = verdict.basis.get("members")
            parts = members.values() if isinstance(members, Mapping) else ()
            each = [member.get("model") for member in parts if isinstance(member, Mapping)]
            found.update(single_line(str(name)) for name in (verdict.model, *each) if name)
    return dict(sorted(found.items()))


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Sunset(BaseModel):
    """When a judge's model goes, as far as it is known.

    Attributes:
        date: Of the shutdown.
        status: ``announced`` (by who runs it) or ``reported`` (by others, not verified).
        source: Where that was found.
        successors: Profiles that can succeed it; their numbers are of another judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: dt.date
    status: Literal["announced", "reported"]
    source: str = Field(min_length=1)
    successors: tuple[str, ...] = ()


class JudgeProfile(BaseModel):
    """A judge as a file (``judges/*.yaml``).

    Attributes:
        id: Its name; names the filter in lm-eval and the board in a leaderboard, and stands in the names of files.
        provider: Registered class that does the rating.
        summary: One line for lists.
        caveat: What a reader of its numbers must know; printed with every board.
        settings: What the provider needs, and ratings depend on.
        client: How the provider works, on which no rating depends.
        sunset: When its model goes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=f"^{_ID.pattern}$", max_length=100)
    provider: str
    summary: str
    caveat: str = ""
    settings: Arguments = Field(default_factory=dict)
    client: Arguments = Field(default_factory=dict)
    sunset: Sunset | None = None

    @property
    def sha256(self) -> str:
        """Hash of what can change a rating."""
        return content_hash(self.model_dump(include={"id", "provider", "settings"}))

    def warning(self, today: dt.date) -> str | None:
        """Say that the model goes soon, or should have gone."""
        if self.sunset is None or today < self.sunset.date - WARN_BEFORE:
            return None
        told = f"{self.sunset.status} to be shut down on {self.sunset.date.isoformat()} ({self.sunset.source})"
        return f"judge {self.id}: its model is {told}; rate what must be comparable before that"


@runtime_checkable
class Judge(Protocol):
    """Rates answers.

    Attributes:
        profile: The file that it was made from.
        rubric_sha256: Hash of what it judges by: rubric texts, or the weights of a trained head.
        at_a_time: Answers that it is given at a time; a kill loses the ratings of so many, unless it keeps its own.
    """

    profile: JudgeProfile

    @property
    def at_a_time(self) -> int:
        """How many answers it is given at a time."""

    @property
    def rubric_sha256(self) -> str:
        """Hash of the rubric."""

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        """Rate items; one verdict each, in the same order. Every item is reported once, as soon as it is rated.

        Every answer has a word: those that have none are unrated before they come to a judge (:func:`rate_all`).
        It is awaited beside other judges (a panel), so what computes for long does it in a thread.
        """


class JudgeClass(Protocol):
    """What is registered: a class built from a profile."""

    summary: ClassVar[str]

    def __call__(self, profile: JudgeProfile) -> Judge:
        """Build the judge."""


judges: Registry[JudgeClass] = Registry(
    "judge provider",
    "personalitybench.judges",
    {
        "chat": "personalitybench.judging.chat_judge:ChatJudge",
        "local-logits": "personalitybench.judging.local_logits:LocalLogitsJudge",
        "offline": "personalitybench.judging.offline:OfflineJudge",
        "panel": "personalitybench.judging.panel:PanelJudge",
    },
)


def _folders() -> list[Path]:
    own = os.environ.get(FOLDER_VARIABLE)
    if not own:
        return [bundled("judges")]
    folder = named_folder(own, FOLDER_VARIABLE)
    if not folder.is_dir():
        raise ConfigurationError(f"{FOLDER_VARIABLE}={own} is no folder: name one with judge profiles, or unset it")
    return [folder, bundled("judges")]


def judge_names() -> list[str]:
    """Ids of the bundled profiles and of those in the user's folder."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def is_profile_file(name: str) -> bool:
    """Whether a judge's name is the path of a profile, no id."""
    return name.endswith((".yaml", ".yml"))


def load_profile(name: str) -> JudgeProfile:
    """Load a profile by id, or from a YAML file.

    An id is looked for in the folder that ``PERSONALITYBENCH_JUDGES`` names, then among the bundled ones.

    Raises:
        ConfigurationError: No such judge, or the file is wrong.
    """
    places = [Path(name)] if is_profile_file(name) else [folder / f"{name}.yaml" for folder in _folders()]
    known = is_profile_file(name) or _ID.fullmatch(name)  # an id with a slash would be a path
    path = next((place for place in places if known and is_file(place)), None)
    if path is None:
        raise unknown_name("judge", name, judge_names())
    return validate(JudgeProfile, load_yaml(path, "judge profile"), f"judge profile {path}")


def list_profiles() -> Iterator[tuple[str, JudgeProfile | None, str]]:
    """Yield each profile by its name; None and the reason for one that cannot be used."""
    for name in judge_names():
        try:
            profile = load_profile(name)
            if "/" in profile.provider or profile.provider not in judges.names():  # ours are heavy to import
                judges.get(profile.provider)
        except PersonalityBenchError as error:
            yield name, None, str(error)
        else:
            yield name, profile, ""


@cache  # none is ever dropped: a judge's budget and spending are this one object's
def create_judge(name: str) -> Judge:
    """Build a judge by the id of its profile; the same judge (with its loaded model) for the same name.

    Raises:
        ConfigurationError: No such judge, its profile is wrong, or it runs code or sends to hosts that the user did not
            allow.
    """
    profile = load_profile(name)
    if warning := profile.warning(dt.datetime.now(dt.UTC).date()):
        logger.warning(warning)
    settings = profile.settings | profile.client
    where = f"judge profile {name if is_profile_file(name) else repr(profile.id)}"
    refuse_remote_code(settings, where)
    provider = str(settings.get("backend", profile.provider))
    key = str(settings.get("api_key_env", OPENAI_KEY))
    refuse_unnamed_hosts(settings, where, "questions, answers", provider=provider, key=key)
    return judges.get(profile.provider)(profile)


def fingerprint(judge: Judge) -> dict[str, str]:
    """Identity of a judge, as a row records it."""
    return {
        "id": judge.profile.id,
        "profile_sha256": judge.profile.sha256,
        "rubric_sha256": judge.rubric_sha256,
    }


def rate_all(judge: Judge, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
    """Run :meth:`Judge.rate` from code that is not asynchronous, also inside a running loop (a notebook).

    An answer without a word is unrated (:data:`EMPTY_ANSWER`), and the judge is not asked.
    """
    if not items:
        return []
    return run_coroutine(_rate(judge, items, report))


async def _rate(judge: Judge, items: Sequence[RatingRequest], report: RatingsReport | None) -> Sequence[Verdict]:
    verdicts: list[Verdict] = [Unrated(EMPTY_ANSWER, "the answer has no word")] * len(items)
    readable = [place for place, item in enumerate(items) if is_readable(item.answer)]
    if report is not None and len(readable) < len(items):
        report(len(items) - len(readable))
    found = await judge.rate([items[place] for place in readable], report) if readable else []
    if len(found) != len(readable):
        raise ConfigurationError(f"judge {judge.profile.id!r} gave {len(found)} verdicts for {len(readable)} answers")
    for place, verdict in zip(readable, found, strict=True):
        verdicts[place] = verdict
    return verdicts
