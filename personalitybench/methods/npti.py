"""``npti``: neuron-based personality trait induction (Deng et al., ICLR 2025), the method the benchmark was made for.

Its fit answers identification questions under descriptions of both poles, counts how often each neuron is active,
and keeps the neurons whose activation probabilities differ (§3.2). Steering toward a pole holds the opposite pole's
neurons at or below zero and raises its own by strength x a95 x f(delta) (§3.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from personalitybench.activations.neurons import SelectionSettings
from personalitybench.errors import ConfigurationError, MissingDependencyError
from personalitybench.methods.base import Artifact, FitContext, Induction, MethodContext, MethodSettings, Need
from personalitybench.questions import Question
from personalitybench.traits import TARGETS, Target

SELECTIONS = {
    "own_pole": SelectionSettings(a95_from="own_pole"),
    "released_code": SelectionSettings.released_code(),
}


class NptiSettings(MethodSettings):
    """Settings of ``npti``.

    Attributes:
        questions: Identification questions for each target, drawn balanced over facets; ``all`` takes every one.
        max_tokens: New tokens of an identification answer.
        repetition_penalty: Of the identification answers.
        batch_size: Answers at a time.
        shards: Parts of the questions that the jackknife error of each delta is made from.
        selection: ``own_pole`` is the paper's rule (delta > 0.1) with a95 from the run under the pole's own
            descriptions; ``released_code`` is what the released ``process_neuron.py`` does.
    """

    questions: int | Literal["all"] = 2000
    max_tokens: int = Field(default=500, ge=2)
    repetition_penalty: float = Field(default=1.1, gt=0)
    batch_size: int = Field(default=32, ge=1)
    shards: int = Field(default=20, ge=2)
    selection: Literal["own_pole", "released_code"] = "own_pole"


class NeuronSteering:
    """Edit the gate activations of personality neurons while the plain question is answered (Table 11)."""

    summary: ClassVar[str] = "NPTI: edit the neurons that tell the poles of a trait apart"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({"intervention"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = NptiSettings

    def __init__(self, settings: NptiSettings, context: MethodContext) -> None:
        self.settings: NptiSettings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:
        """Identify the neurons of all ten targets; goes on where an interrupted fit stopped.

        Raises:
            MissingDependencyError: torch or transformers is not installed.
            NeedsNotMetError: The model has no gated MLP.
        """
        try:
            from personalitybench.methods import npti_fit  # noqa: PLC0415 (needs torch)
        except ImportError as error:
            raise MissingDependencyError(f"npti needs torch ({error}): pip install 'personalitybench[hf]'") from error
        npti_fit.fit(self.settings, context)
        return Artifact.open(context.folder)

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:  # noqa: ARG002
        """Ask plainly, and steer toward the target at the strength.

        Raises:
            ConfigurationError: There is no strength, the neurons were never identified, or the artifact has none for
                this target.
        """
        if strength is None:
            raise ConfigurationError(
                "method 'npti' needs a strength: add 'strengths: [1.0]' (the paper's range: 0.6-1.5)"
            )
        if self.context.artifact is None:
            raise ConfigurationError("method 'npti' has no neurons for this model: run the stage 'fit' first")
        folder = intervention_folder(self.context.artifact.folder, target)
        if not folder.is_dir():
            raise _no_target(self.context.artifact.folder, target)
        return Induction("npti", target, strength, self.context.wording.plain, intervention=str(folder))


def _no_target(artifact: Path, target: Target) -> ConfigurationError:
    there = [str(one) for one in TARGETS if intervention_folder(artifact, one).is_dir()]
    return ConfigurationError(
        f"artifact {artifact} has no intervention toward {target} (it has {', '.join(there) or 'none at all'}): "
        "fit the method, or import the neuron files of both poles of the trait"
    )


def intervention_folder(artifact: Path, target: Target) -> Path:
    """Where an artifact keeps the intervention of a target."""
    return artifact / f"{target.trait}-{target.pole}"
