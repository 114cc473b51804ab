"""What a fit of ``npti`` would take at most: counted from the questions that it would ask, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from personalitybench import prompts
from personalitybench.activations.identification import draw_questions
from personalitybench.costs import FitPlan
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.npti import NptiSettings
from personalitybench.questions import Question
from personalitybench.traits import TRAIT_NAMES, Pole, Target

HISTOGRAM_BINS = {"octaves": 242, "released-code": 300}
"""Bins of each kind (``activations/bins.py`` has them, with torch)."""

_COUNTED = 1_000  # turns of a run whose tokens are counted; of more, evenly spread ones stand for all
_COUNT = 4  # bytes of a count in the statistics
_NEURON = 24  # bytes of a row of a neuron set
_EDIT = 13  # bytes of an edit of an intervention


def plan_fit(settings: NptiSettings, context: MethodContext, count: Callable[[str], int]) -> FitPlan:
    """Plan a fit.

    Answers and statistics that other fits left are not looked for: what is shared with them is not done again. Of runs
    of more than a thousand questions the prompt tokens are those of a thousand, scaled up.

    Args:
        settings: Of the method.
        context: Questions, descriptions, wording and seed.
        count: Gives the tokens of a user turn.
    """
    requests = prompt_tokens = cells = 0
    for trait in TRAIT_NAMES:
        wanted = None if settings.questions == "all" else settings.questions
        questions = draw_questions(context.source, trait, wanted, context.seed)
        counted = _spread(questions)
        runs = [Target(trait, pole) for pole in Pole] + ([None] if settings.a95_from == "original" else [])
        for target in runs:
            tokens = sum(count(_turn(context, question, target)) for question in counted)
            prompt_tokens += round(tokens * len(questions) / len(counted))
        requests += len(runs) * len(questions)
        cells += len(runs) * (min(settings.shards, len(questions)) + HISTOGRAM_BINS[settings.bins])
    new_tokens = requests * settings.max_tokens
    # Every neuron may be in the set of one pole of each trait, and edited toward both.
    per_neuron = cells * _COUNT + len(TRAIT_NAMES) * (_NEURON + 2 * _EDIT)
    return FitPlan(
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        read_tokens=prompt_tokens + new_tokens if settings.counted_in == "reading" else 0,
        bytes_per_neuron=per_neuron,
    )


def _spread(questions: Sequence[Question]) -> Sequence[Question]:
    """Not more than so many of them, evenly spread."""
    if len(questions) <= _COUNTED:
        return questions
    return [questions[place * len(questions) // _COUNTED] for place in range(_COUNTED)]


def _turn(context: MethodContext, question: Question, target: Target | None) -> str:
    """The user turn as identification writes it: under a drawn description, or plain."""
    if target is None:
        return prompts.fill(context.wording.plain, question=question.question)
    texts = context.source.descriptions[target]
    text = texts[context.draw("identify", len(texts), target, question.id)]
    return prompts.fill(context.wording.identify_as(target), personality=text, question=question.question)
