"""The fit of ``npti``: answers, statistics, neurons, interventions, each kept so that a killed fit goes on.

::

    work/<target>/answers.jsonl    token ids of the identification answers
    work/<target>/statistics/      counts of every neuron
    work/<target>/neurons/         the selected neurons
    artifact/<target>/             the intervention toward the target
    artifact/npti.json             how many neurons, from how many tokens
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from personalitybench import prompts
from personalitybench.activations.identification import Decoding, draw_questions, generate_answers, read_answers
from personalitybench.activations.interventions import Intervention
from personalitybench.activations.neurons import NeuronSet, select_neurons
from personalitybench.activations.statistics import GateStatistics, StatisticsSource
from personalitybench.backends.loading import has_chat_template, load_model, quiet_libraries
from personalitybench.errors import ModelError
from personalitybench.files import JsonLines, write_json
from personalitybench.methods.base import FitContext, MethodContext
from personalitybench.methods.npti import SELECTIONS, NptiSettings, intervention_folder
from personalitybench.traits import TARGETS, TRAIT_NAMES, Pole, Target


def fit(settings: NptiSettings, context: FitContext) -> None:
    """Identify the neurons of all ten targets and write their interventions.

    Raises:
        PersonalityBenchError: The model cannot be loaded or has no gated MLP, or a file cannot be written.
    """
    work = context.folder.parent / "work"
    model: Any = None
    for target in TARGETS:
        folder = work / f"{target.trait}-{target.pole}"
        if (folder / "statistics" / "manifest.json").is_file():
            continue
        if model is None:
            with quiet_libraries():
                model = load_model("hf", {"pretrained": context.model, **context.model_args}, settings.batch_size, None)
            if not has_chat_template(model):
                raise ModelError(f"{context.model} has no chat template: npti identifies with the turns of a chat")
        _measure(settings, context, model, target, folder)
    for trait in TRAIT_NAMES:
        _select(settings, context, work, trait)


def _measure(settings: NptiSettings, context: FitContext, model: Any, target: Target, folder: Path) -> None:
    """Answers and statistics of one target."""
    count = None if settings.questions == "all" else settings.questions
    questions = draw_questions(context.source, target.trait, count, context.seed)
    descriptions = context.source.descriptions[target]
    draw = MethodContext(context.wording, context.source, context.seed).draw
    asked = []
    for question in questions:
        description = descriptions[draw("identify", len(descriptions), target, question.id)]
        turn = prompts.fill(context.wording.identify, personality=description, question=question.question)
        asked.append((question.id, model.apply_chat_template([{"role": "user", "content": turn}])))
    lines = JsonLines(folder / "answers.jsonl")

    def report(what: str, done: int, total: int) -> None:
        context.report(f"{target} {what}", done, total)

    decoding = Decoding(settings.max_tokens, settings.repetition_penalty, settings.batch_size)
    with quiet_libraries():
        generate_answers(model.model, model.tokenizer, asked, decoding=decoding, lines=lines, report=report)
        source = StatisticsSource(
            model=context.model_name,
            revision=context.model_revision,
            target=str(target),
            wording_sha256=context.wording.sha256,
            data_revision=context.source.revision,
            seeds={"questions": context.seed, "descriptions": context.seed},
            token_rule="answer",  # noqa: S106 (a rule about tokens of text)
        )
        shards = min(settings.shards, len(asked))
        statistics = read_answers(
            model.model, lines, source, shards=shards, batch_size=settings.batch_size, report=report
        )
    statistics.save(folder / "statistics")


def _select(settings: NptiSettings, context: FitContext, work: Path, trait: str) -> None:
    """Neurons and interventions of both poles of a trait."""
    statistics = {pole: GateStatistics.load(work / f"{trait}-{pole}" / "statistics") for pole in Pole}
    high, low = statistics[Pole.HIGH], statistics[Pole.LOW]
    chosen: dict[Pole, NeuronSet] = select_neurons(
        high.probability(), low.probability(), high.quantile(), low.quantile(), SELECTIONS[settings.selection]
    )
    errors = high.jackknife_error_of_difference(low)
    for pole, opposite in ((Pole.HIGH, Pole.LOW), (Pole.LOW, Pole.HIGH)):
        own = chosen[pole]
        own.with_error(errors).save(work / f"{trait}-{pole}" / "neurons", about=_about(settings, statistics[pole]))
        folder = intervention_folder(context.folder, Target(trait, pole))
        Intervention.from_neurons(own, chosen[opposite]).save(folder, about={"target": f"{trait}:{pole}"})
    write_json(
        context.folder / f"{trait}.json",
        {
            "neurons": {str(pole): len(neurons) for pole, neurons in chosen.items()},
            "tokens": {str(pole): int(found.tokens.sum()) for pole, found in statistics.items()},
            "median_error_of_delta": float(np.median(errors)),
        },
    )


def _about(settings: NptiSettings, statistics: GateStatistics) -> dict[str, Any]:
    """Where a neuron set comes from: model, data, how much was read, and how the fit was set."""
    manifest = statistics.manifest
    return {
        **manifest.model_dump(mode="json", include=set(StatisticsSource.model_fields)),
        "questions": sum(manifest.questions),
        "tokens": sum(manifest.tokens),
        "settings": settings.model_dump(mode="json"),
        "selection": SELECTIONS[settings.selection].model_dump(mode="json"),
    }
