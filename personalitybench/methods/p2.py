"""``p2``: a persona description before the question (Personality Prompting; Jiang et al., 2023)."""

from __future__ import annotations

from typing import ClassVar

from personalitybench.methods.base import MethodSettings
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.induction import Induction
from personalitybench.methods.none import Unprompted
from personalitybench.questions import Question
from personalitybench.traits import Target


class DescriptionSettings(MethodSettings):
    """Settings of ``p2``.

    Attributes:
        released_code: Fill the description into the template for adjectives, as the paper's released
            ``baseline_prompt.py`` does (it formats ``TEMPLATE_sp`` in both cases and never uses ``TEMPLATE_p2``).
    """

    released_code: bool = False


class DescriptionPrompt(Unprompted):
    """Describe the persona in a paragraph, drawn for each question among the target's descriptions.

    The draw is a hash of seed, target and question id, so it does not depend on order or batching; the released
    code draws with an unseeded ``random.choice``.

    Example of a user turn::

        Imagine that this is you: You are a quiet person who ... You are this person, not a language model. ...
    """

    summary: ClassVar[str] = "P²: a persona description, drawn for each question"
    Settings: ClassVar[type[MethodSettings]] = DescriptionSettings

    def __init__(self, settings: DescriptionSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        self.released_code = settings.released_code

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Draw a description and put it into the template."""
        texts = self.context.source.descriptions[target]
        description = texts[self.context.draw("p2", len(texts), target, question.id)]
        wording = self.context.wording
        template = wording.simple if self.released_code else wording.p2
        return Induction("p2", target, strength, template, description)
