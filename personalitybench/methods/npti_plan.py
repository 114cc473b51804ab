"""What a fit of ``npti`` would take at most: counted from the questions that it would ask, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from personalitybench.activations.identification import UNPROMPTED
from personalitybench.costs import FitPlan
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.identification_questions import ask, plan_answers
from personalitybench.methods.npti import NptiSettings
from personalitybench.traits import TRAIT_NAMES, Pole

HISTOGRAM_BINS = {"octaves": 242, "released-code": 300}
"""Bins of each kind (``activations/bins.py`` has them, with torch)."""

_COUNT = 4  # bytes of a count in the statistics
_NEURON = 24  # bytes of a row of a neuron set
_EDIT = 13  # bytes of an edit of an intervention


def plan_fit(settings: NptiSettings, context: MethodContext, count: Callable[[str], int]) -> FitPlan:
    """Plan a fit.

    Answers and statistics that other fits left are not looked for: what is shared with them is not done again.

    Args:
        settings: Of the method.
        context: Questions, descriptions, wording and seed.
        count: Gives the tokens of a user turn.
    """
    conditions = [*map(str, Pole), *([UNPROMPTED] if settings.a95_from == "original" else [])]
    runs = [f"{trait}:{condition}" for trait in TRAIT_NAMES for condition in conditions]
    answers = plan_answers(settings, context, runs, count)
    sizes = [len(ask(settings, context, f"{trait}:{Pole.HIGH}")) for trait in TRAIT_NAMES]
    cells = sum(len(conditions) * (min(settings.shards, size) + HISTOGRAM_BINS[settings.bins]) for size in sizes)
    # Every neuron may be in the set of one pole of each trait, and edited toward both.
    per_neuron = cells * _COUNT + len(TRAIT_NAMES) * (_NEURON + 2 * _EDIT)
    read = answers.prompt_tokens + answers.new_tokens if settings.counted_in == "reading" else 0
    return replace(answers, read_tokens=read, bytes_per_neuron=per_neuron)
