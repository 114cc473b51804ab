"""The fit of ``npti``: answers and statistics (shared with other fits), then neurons, then interventions.

::

    work/<target>/neurons/       the selected neurons
    artifact/<target>/           the intervention toward the target
    artifact/provenance.json     seconds and versions; not part of the artifact's hash
    artifact/npti.json           what was found, and from what
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np

from personalitybench.activations.identification import UNPROMPTED
from personalitybench.activations.interventions import Intervention
from personalitybench.activations.neurons import NeuronSet, select_neurons
from personalitybench.activations.statistics import GateStatistics
from personalitybench.activations.statistics_files import StatisticsSource
from personalitybench.backends.loading import quiet_libraries
from personalitybench.costs import FitCost
from personalitybench.errors import DataError
from personalitybench.files import write_json
from personalitybench.methods.fitting import PROVENANCE, FitContext
from personalitybench.methods.identification import Identification, Reading
from personalitybench.methods.npti import (
    NptiManifest,
    NptiSettings,
    RunRecord,
    TargetRecord,
    intervention_folder,
)
from personalitybench.traits import TRAIT_NAMES, Pole, Target
from personalitybench.versions import package_versions


def fit(settings: NptiSettings, context: FitContext) -> None:
    """Identify the neurons of all ten targets and write their interventions.

    Raises:
        PersonalityBenchError: The model cannot be loaded or has no gated MLP, or a file cannot be written.
    """
    reading = Reading(settings.token_rule, settings.bins, settings.shards, settings.counted_in)
    identification = Identification(settings, context, reading)
    with identification.lock(), quiet_libraries():
        for trait in TRAIT_NAMES:
            for run in _runs(settings, trait):
                identification.measure(run)
        identification.close()  # its memory may be needed for the statistics
        shutil.rmtree(context.folder, ignore_errors=True)  # of an interrupted fit, or an altered one
        selection = _Selection(settings, context, identification)
        for trait in TRAIT_NAMES:
            selection.select(trait)
        selection.finish()


def _runs(settings: NptiSettings, trait: str) -> list[str]:
    """What is asked for a trait."""
    original = [f"{trait}:{UNPROMPTED}"] if settings.a95_from == "original" else []
    return [*(f"{trait}:{pole}" for pole in Pole), *original]


class _Selection:
    """Neurons and interventions of all traits, and what is put on record of them."""

    def __init__(self, settings: NptiSettings, context: FitContext, identification: Identification) -> None:
        self.settings = settings
        self.context = context
        self.identification = identification
        self.shape = (0, 0)
        self.about: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, RunRecord] = {}
        self.targets: dict[str, TargetRecord] = {}
        self.started = time.monotonic()

    def select(self, trait: str) -> None:
        """Neurons and interventions of both poles of a trait; holds the statistics of two runs at a time."""
        original = None
        if self.settings.a95_from == "original":
            original = self._load(f"{trait}:{UNPROMPTED}").quantile()
        high, low = (self._load(f"{trait}:{pole}") for pole in Pole)
        chosen: dict[Pole, NeuronSet] = select_neurons(
            high.probability(),
            low.probability(),
            high.quantile(),
            low.quantile(),
            self.settings,
            a95_original=original,
        )
        self.shape = chosen[Pole.HIGH].shape
        try:
            errors = high.jackknife_error_of_difference(low)
        except DataError:
            errors = None  # too few questions: neurons can be selected, but nobody can say how sure they are
        for pole, opposite in ((Pole.HIGH, Pole.LOW), (Pole.LOW, Pole.HIGH)):
            self._write(Target(trait, pole), chosen[pole], chosen[opposite], errors)

    def _load(self, run: str) -> GateStatistics:
        found = self.identification.statistics(run)
        self.about[run] = _about(self.settings, found)
        self.runs[run] = RunRecord(questions=sum(found.manifest.questions), tokens=int(found.tokens.sum()))
        return found

    def _write(self, target: Target, own: NeuronSet, opposite: NeuronSet, errors: Any) -> None:
        name = f"{target.trait}-{target.pole}"
        about = {
            "target": str(target),
            "model": self.context.model_name,
            "revision": self.context.model_revision,
        }
        known = own if errors is None else own.with_error(errors)
        known.save(self.context.work / name / "neurons", about=self.about[str(target)])
        only = self.settings.clamp == "layers-of-own"
        intervention = Intervention.from_neurons(own, opposite, only_layers_of_own=only)
        intervention.save(intervention_folder(self.context.folder, target), about=about)
        median = float(np.median(errors[own.layer, own.index])) if len(own) and errors is not None else None
        self.targets[str(target)] = TargetRecord(
            neurons=len(own),
            clamped=len(intervention) - len(own),
            median_error_of_delta=median,
        )

    def finish(self) -> None:
        """Write what is on record; the manifest last, since its existence means that the artifact is complete."""
        seconds = {run: self.identification.seconds(run) for run in self.runs}
        counting = sum(sum(steps.values()) for steps in seconds.values())
        cost = FitCost(
            seconds=round(counting + time.monotonic() - self.started, 2),
            generated_tokens=sum(run.tokens for run in self.runs.values()),
            neurons=sum(target.neurons + target.clamped for target in self.targets.values()),
        )
        provenance = {"seconds": seconds, "versions": package_versions(), "cost": cost.model_dump(mode="json")}
        write_json(self.context.folder / PROVENANCE, provenance)
        manifest = NptiManifest(
            **self.context.identity,
            settings=self.settings.for_fit(),
            layers=self.shape[0],
            neurons=self.shape[1],
            runs=self.runs,
            targets=self.targets,
        )
        write_json(manifest.path(self.context.folder), manifest.model_dump(mode="json"))


def _about(settings: NptiSettings, statistics: GateStatistics) -> dict[str, Any]:
    """Where a neuron set comes from: model, data, how much was read, and how the fit was set."""
    manifest = statistics.manifest
    return {
        **manifest.model_dump(mode="json", include=set(StatisticsSource.model_fields)),
        "questions": sum(manifest.questions),
        "tokens": sum(manifest.tokens),
        "settings": settings.for_fit(),
    }
