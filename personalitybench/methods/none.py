"""``none``: the model as it is, asked without any persona. Every other method is compared with this row."""

from __future__ import annotations

from typing import ClassVar

from personalitybench.methods.base import MethodSettings
from personalitybench.methods.fitting import Artifact, FitContext, MethodContext
from personalitybench.methods.induction import Induction, Need
from personalitybench.questions import Question
from personalitybench.traits import Target


class Unprompted:
    """Ask the question with the protocol's plain template (Table 11 of the paper).

    Example of a user turn::

        Imagine you are a real person, not a language model. What would you say if someone asked you this?

        You have a free Saturday ... What do you do?
    """

    summary: ClassVar[str] = "no induction: the model as it is"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset()
    has_strength: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:  # noqa: ARG002 (nothing is fitted)
        """Nothing to fit."""
        return None

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:  # noqa: ARG002
        """Ask plainly; the same request for both poles."""
        return Induction("none", target, strength, self.context.wording.plain)
