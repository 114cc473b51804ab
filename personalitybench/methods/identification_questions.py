"""Which identification questions are asked, and how: known before a model is loaded, so that a fit can be planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from personalitybench import prompts
from personalitybench.activations.identification import UNPROMPTED, draw_questions
from personalitybench.costs import FitPlan
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.identification_settings import IdentificationSettings
from personalitybench.questions import Question
from personalitybench.traits import Target

COUNTED = 1_000
"""Turns of a run whose tokens are counted for a plan; of more, evenly spread ones stand for all."""

T = TypeVar("T")


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


def plan_answers(
    settings: IdentificationSettings, context: MethodContext, runs: Iterable[str], count: Callable[[str], int]
) -> FitPlan:
    """What the answers of runs would take at most.

    Args:
        settings: How questions are answered.
        context: What to draw on.
        runs: As for :func:`ask`.
        count: Gives the tokens of a user turn.

    Returns:
        Requests and tokens; of runs of more than :data:`COUNTED` questions the prompts' are scaled up.
    """
    requests = prompt_tokens = 0
    for run in runs:
        asked = ask(settings, context, run)
        counted = spread(asked)
        requests += len(asked)
        prompt_tokens += round(sum(count(one.turn) for one in counted) * len(asked) / len(counted))
    return FitPlan(requests=requests, prompt_tokens=prompt_tokens, new_tokens=requests * settings.max_tokens)


def spread(items: Sequence[T]) -> Sequence[T]:
    """Not more than :data:`COUNTED` of them, evenly spread."""
    if len(items) <= COUNTED:
        return items
    return [items[place * len(items) // COUNTED] for place in range(COUNTED)]
