"""Which identification questions are asked, and how: known before a model is loaded, so that a fit can be planned."""

from __future__ import annotations

from dataclasses import dataclass

from personalitybench import prompts
from personalitybench.activations.identification import UNPROMPTED, draw_questions
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.identification_settings import IdentificationSettings
from personalitybench.questions import Question
from personalitybench.traits import Target


@dataclass(frozen=True)
class Asked:
    """An identification question as it is asked.

    Attributes:
        question: The question.
        description: Under which persona, or None.
        turn: The user turn.
    """

    question: Question
    description: str | None
    turn: str


def ask(settings: IdentificationSettings, context: MethodContext, run: str) -> list[Asked]:
    """The questions of a run, in the order in which they are asked.

    Args:
        settings: How many.
        context: What to draw on.
        run: ``openness:high``, or ``openness:unprompted``.
    """
    trait, _, condition = run.partition(":")
    count = None if settings.questions == "all" else settings.questions
    questions = draw_questions(context.source, trait, count, context.seed)
    if condition == UNPROMPTED:
        plain = context.wording.plain
        return [Asked(one, None, prompts.fill(plain, question=one.question)) for one in questions]
    target = Target.parse(run)
    texts = context.source.descriptions[target]
    template = context.wording.identify_as(target)
    asked = []
    for one in questions:
        text = texts[context.draw("identify", len(texts), target, one.id)]
        turn = prompts.fill(template, personality=text, question=one.question)
        asked.append(Asked(one, text, turn))
    return asked
