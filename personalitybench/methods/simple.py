"""``simple``: one adjective, such as "an extraverted", put before "person" (the paper's simple prompt)."""

from __future__ import annotations

from typing import ClassVar

from personalitybench.methods.base import MethodSettings
from personalitybench.methods.induction import Induction
from personalitybench.methods.none import Unprompted
from personalitybench.questions import Question
from personalitybench.traits import Target


class SimplePrompt(Unprompted):
    """Name the persona by the paper's adjective (Tables 6 and 9; ``TEMPLATE_sp`` of ``baseline_prompt.py``).

    Example of a user turn::

        Imagine you are an introverted person, not a language model. ...
    """

    summary: ClassVar[str] = "the paper's simple prompt: one adjective for each pole"
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:  # noqa: ARG002
        """Put the target's adjective into the template."""
        wording = self.context.wording
        return Induction("simple", target, strength, wording.simple, wording.adjectives[target])
