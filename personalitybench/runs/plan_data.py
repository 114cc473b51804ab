"""Questions and wording to plan with: those of the run where they are on this machine, else their known number.

The official data are downloaded on use, and a dry run downloads nothing. How many there are is known; stand-ins of the
usual length take their places, so that the paper's table can be planned on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import datasets

from personalitybench.errors import NotHereError
from personalitybench.prompts import Wording, load_wording
from personalitybench.questions import Half, OfficialSource, Question, QuestionSource, Split, as_table, shared_source
from personalitybench.runs.suite import Suite
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target, trait

# Numbers of the pinned release (RUCAIBox/NPTI, 630d2a2): questions of each trait and the mean size of a text in bytes.
# The paper (section 3.1) has 36,000 identification questions "per trait on average"; their size is the mean of the 25
# that an earlier commit of the release shows.
EVALUATE: Mapping[str, int] = {
    "openness": 90,
    "conscientiousness": 89,
    "extraversion": 90,
    "agreeableness": 90,
    "neuroticism": 100,
}
IDENTIFY = 36_000
DESCRIPTIONS = 80
BYTES: Mapping[str, int] = {"evaluate": 197, "identify": 273, "description": 404}

_CALLED: Mapping[Split, str] = {"evaluate": "evaluation questions", "identify": "identification questions"}

HOW_TO_GET = (
    "a run downloads them; to plan with the real lengths name a local copy with --data-dir or PERSONALITYBENCH_DATA"
)


class PlanningSource(QuestionSource):
    """The source of a run, with stand-ins for the official files that are not on this machine.

    Attributes:
        missing: What stand-ins took the place of so far.
    """

    def __init__(self, real: QuestionSource) -> None:
        self.name = real.name
        self._real = real
        self.missing: set[str] = set()

    @property
    def revision(self) -> str:
        """As the run will have it."""
        return self._real.revision

    def path(self, relative: str) -> Path:
        """See :meth:`QuestionSource.path`."""
        return self._real.path(relative)

    def questions(self, split: Split, trait_name: str | None = None, half: Half = "all") -> datasets.Dataset:
        """See :meth:`QuestionSource.questions`."""
        try:
            return self._real.questions(split, trait_name, half)
        except NotHereError:
            if self.name != OfficialSource.name:
                raise
            self.missing.add(_CALLED[split])
        names = TRAIT_NAMES if trait_name is None else (trait(trait_name).name,)
        return as_table(
            [one for name in names for one in _stand_ins(split, name) if half in ("all", one.half)],
        )

    @property
    def descriptions(self) -> dict[Target, list[str]]:
        """See :attr:`QuestionSource.descriptions`."""
        try:
            return self._real.descriptions
        except NotHereError:
            if self.name != OfficialSource.name:
                raise
            self.missing.add("descriptions")
        return {target: [text_of(BYTES["description"])] * DESCRIPTIONS for target in TARGETS}


def planning_source(suite: Suite) -> PlanningSource:
    """The questions to plan a suite with.

    Raises:
        DataError: The folder that the suite names does not exist, or a file in it is wrong.
    """
    return PlanningSource(shared_source(suite.questions.source, suite.questions.data_dir))


def planning_wording(suite: Suite) -> tuple[Wording, bool]:
    """The wording to plan a suite with, and whether it is the run's own: else the project's takes its place."""
    try:
        return load_wording(suite.protocol.prompts), True
    except NotHereError:
        return load_wording("project"), False


def text_of(size: int) -> str:
    """A text of so many bytes that says nothing."""
    return ("word " * (size // 5 + 1))[:size]


@lru_cache(maxsize=2 * len(EVALUATE))
def _stand_ins(split: Split, name: str) -> tuple[Question, ...]:
    """So many questions as the official file has; halves as large as there."""
    count = EVALUATE[name] if split == "evaluate" else IDENTIFY
    text = text_of(BYTES[split])
    facets = trait(name).facets if split == "identify" else ("",)
    return tuple(
        Question(
            id=f"{name}-{split[0]}-{hashlib.sha256(str(number).encode()).hexdigest()[:12]}",
            split=split,
            trait=name,
            facet=facets[number % len(facets)],
            item="",
            topic="",
            keying="",
            half=("test", "dev")[number % 2],
            question=text,
        )
        for number in range(count)
    )
