"""Two induction methods in a package of their own: the answer is written as a page of a diary.

After ``pip install``, they are found by their entry points under the names ``personalitybench-example/diary`` and
``personalitybench-example/insistent``.
"""

from __future__ import annotations

from typing import ClassVar

from personalitybench.methods import Artifact, FitContext, Induction, MethodContext, MethodSettings, Need
from personalitybench.questions import Question
from personalitybench.traits import Target

_TEMPLATE = """This is the diary of {personality} person. Today's page answers a question that someone asked.

The question: {question}

Write the page in at most 300 words.{mood}"""


class DiarySettings(MethodSettings):
    """Settings of ``diary``.

    Attributes:
        honest: Whether the writer is told that nobody will read the page.
    """

    honest: bool = True


class DiaryPrompt:
    """Ask for a page of a diary instead of an answer."""

    summary: ClassVar[str] = "the answer as a page of a diary"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset()
    has_strength: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = DiarySettings

    def __init__(self, settings: DiarySettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context
        mood = " Nobody else will ever read it." if settings.honest else ""
        self._template = _TEMPLATE.replace("{mood}", mood)

    def fit(self, context: FitContext) -> Artifact | None:
        """Nothing is fitted."""
        return None

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Name the persona by its adjective."""
        adjective = self.context.wording.adjectives[target]
        return Induction("personalitybench-example/diary", target, strength, self._template, adjective)


class InsistentDiary(DiaryPrompt):
    """Remind the writer of the persona, as many times as the strength says."""

    summary: ClassVar[str] = "a page of a diary, with a repeated reminder"
    has_strength: ClassVar[bool] = True

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Repeat the reminder."""
        times = 1 if strength is None else round(strength)
        template = self._template + " Remember: you are {personality} person." * times
        adjective = self.context.wording.adjectives[target]
        return Induction("personalitybench-example/insistent", target, strength, template, adjective)
