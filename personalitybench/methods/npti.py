"""``npti``: neuron-based personality trait induction (Deng et al., ICLR 2025), the method the benchmark was made for.

Its fit answers identification questions under descriptions of both poles, counts how often each neuron is active,
and keeps the neurons whose activation probabilities differ (§3.2). Steering toward a pole holds the opposite pole's
neurons at or below zero and raises its own by strength x a95 x f(delta) (§3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.activations.neurons import SelectionSettings
from personalitybench.costs import FitPlan
from personalitybench.errors import ConfigurationError
from personalitybench.methods.base import MethodSettings
from personalitybench.methods.fitting import Artifact, FitContext, MethodContext
from personalitybench.methods.identification_settings import IdentificationSettings
from personalitybench.methods.induction import Induction, Need
from personalitybench.methods.manifests import FitManifest
from personalitybench.questions import Question
from personalitybench.traits import Target
from personalitybench.versions import import_failure

STEP_TITLES = {"generate": "answer s", "generate and count": "answer, count s", "read": "read s"}
"""How a table calls the seconds of each step."""

# What a preset sets where the user sets nothing; the fields' own defaults are those of `paper`.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "own-pole": {"a95_from": "own-pole"},
    "released-code": {
        **SelectionSettings.released_code().model_dump(exclude_unset=True),
        "token_rule": "released-code",
        "counted_in": "decoding",
        "bins": "released-code",
        "clamp": "layers-of-own",
        "keep": 0.9,
    },
}


class NptiSettings(IdentificationSettings, SelectionSettings):
    """Settings of ``npti``, besides those of identification and selection.

    Attributes:
        selection: The preset, which sets all of the others (and those of :class:`SelectionSettings`) that are not set
            by name. ``paper``: what the text says. ``released-code``: what the released scripts do. ``own-pole``: the
            text, but with a95 from the answers under the pole's own descriptions, which saves the unprompted ones.
        shards: Parts of the questions that the jackknife error of each delta is made from.
        token_rule: Which tokens count.
        counted_in: ``reading``: answers are generated, and then read and counted, which can be repeated. ``decoding``:
            tokens are counted as they are generated (as the released script does), which is faster where there is no
            GPU; answers that are there already are read.
        bins: How a95 is read: 16 bins to a doubling, interpolated (``octaves``), or the left edge of a bin of 0.01
            below 2.99 (``released-code``).
        clamp: Where the opposite pole's neurons are held at or below zero: in ``all-layers``, or in the
            ``layers-of-own`` neurons (the released script edits no other layer).
        keep: Share of the additions that stay at each step (released script: a random 0.9).
        first_token: Steer the last prompt token too, and with it the first token of the answer, which the paper's
            code leaves unsteered.
    """

    used_after_fit: ClassVar[frozenset[str]] = frozenset({"keep", "first_token"})

    selection: Literal["paper", "released-code", "own-pole"] = "paper"
    shards: int = Field(default=20, ge=2)
    token_rule: Literal["answer", "released-code"] = "answer"  # noqa: S105 (a rule about tokens of text)
    counted_in: Literal["reading", "decoding"] = "reading"
    bins: Literal["octaves", "released-code"] = "octaves"
    clamp: Literal["all-layers", "layers-of-own"] = "all-layers"
    keep: float = Field(default=1.0, gt=0, le=1)
    first_token: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {**PRESETS.get(str(value.get("selection")), {}), **value}

    @classmethod
    def paper(cls) -> Self:
        """As the paper's text says."""
        return cls(selection="paper")

    @classmethod
    def released_code(cls) -> Self:
        """As the released scripts do."""
        return cls(selection="released-code")


class RunRecord(BaseModel):
    """How much of a run was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: int
    tokens: int


class TargetRecord(BaseModel):
    """What was found for a target.

    Attributes:
        neurons: Neurons of the target; each is raised.
        clamped: Neurons of the opposite pole that are held at or below zero.
        median_error_of_delta: Median jackknife error of delta over the target's neurons; None where there is none, or
            too few questions for an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    neurons: int
    clamped: int
    median_error_of_delta: float | None


class NptiManifest(FitManifest):
    """``npti.json``: from what an artifact was made, and what was found.

    Attributes:
        format: Name and version of the format.
        layers: Layers of the model.
        neurons: Neurons of each.
        runs: What was read, by target (and ``openness:unprompted`` and so on).
        targets: What was found.
        imported: Files that the neurons were read from where nothing was fitted: hash by name. Then ``settings`` are
            those of the released code, as far as it is known how such files were made.
    """

    method: ClassVar[str] = "npti"

    format: Literal["personalitybench-npti/1"] = "personalitybench-npti/1"
    layers: int
    neurons: int
    runs: dict[str, RunRecord]
    targets: dict[str, TargetRecord]
    imported: dict[str, str] = Field(default={})


class NeuronSteering:
    """Edit the gate activations of personality neurons while the plain question is answered (Table 11)."""

    summary: ClassVar[str] = "NPTI: edit the neurons that tell the poles of a trait apart"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({"intervention"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = NptiSettings
    check_settings: ClassVar[Mapping[str, Any]] = {
        "questions": 2,
        "max_tokens": 8,
        "batch_size": 2,
        "shards": 2,
        "at_least": 16,  # so few answers may differ in no neuron by the threshold
    }

    def __init__(self, settings: NptiSettings, context: MethodContext) -> None:
        self.context = context
        self._fitted = None if context.artifact is None else NptiManifest.read(context.artifact.folder)
        self.settings: NptiSettings = settings if self._fitted is None else self._fitted.settings_in_use(settings)

    def fit(self, context: FitContext) -> Artifact | None:
        """Identify the neurons of all ten targets; goes on where an interrupted fit stopped.

        Raises:
            MissingDependencyError: torch or transformers (or vLLM) is not installed.
            NeedsNotMetError: The model has no gated MLP, or the backend gives no access to it.
        """
        try:
            from personalitybench.methods import npti_fit  # noqa: PLC0415 (needs torch)
        except ImportError as error:
            raise import_failure(error, "npti", "hf") from error
        npti_fit.fit(self.settings, context)
        return Artifact.open(context.folder)

    def plan_fit(self, count: Callable[[str], int]) -> FitPlan:
        """What the fit would take at most; see :func:`personalitybench.methods.npti_plan.plan_fit`."""
        from personalitybench.methods import npti_plan  # noqa: PLC0415 (which imports this module)

        return npti_plan.plan_fit(self.settings, self.context, count)

    def describe_fit(self, artifact: Artifact) -> list[dict[str, Any]]:
        """One row for each target: what the fit found, from how much, in what time."""
        manifest = NptiManifest.read(artifact.folder)
        seconds = artifact.provenance["seconds"]
        steps = {step: None for run in manifest.targets for step in seconds[run]}  # in order, each once
        rows = []
        for target, found in manifest.targets.items():
            error = found.median_error_of_delta
            rows.append(
                {
                    "target": target,
                    "neurons": f"{found.neurons:,}",
                    "asked": f"{manifest.runs[target].questions:,}",
                    "tokens": f"{manifest.runs[target].tokens:,}",
                    "δ error": "–" if error is None else f"{error:.4f}",
                    **{STEP_TITLES[step]: f"{seconds[target].get(step, 0.0):.1f}" for step in steps},
                }
            )
        return rows

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:  # noqa: ARG002
        """Ask plainly, and steer toward the target at the strength.

        Raises:
            ConfigurationError: There is no strength, no neuron was identified, or the artifact has none for this
                target.
        """
        if strength is None:
            raise ConfigurationError(
                "method 'npti' needs a strength: add 'strengths: [1.0]' (the paper's range: 0.6-1.5)"
            )
        if self.context.artifact is None or self._fitted is None:
            raise ConfigurationError(
                "method 'npti' has no neurons for this model: run 'personalitybench fit npti --model ...', or the "
                "stage 'fit' of its suite"
            )
        found = self._fitted.targets.get(str(target))
        if found is None:
            raise _no_target(self.context.artifact.folder, target, self._fitted)
        if not found.neurons and not found.clamped:
            raise ConfigurationError(
                f"the fit in {self.context.artifact.folder} found no neuron for {target}, so nothing can be steered: "
                "ask more questions, or lower the setting 'threshold'"
            )
        return Induction(
            "npti",
            target,
            strength,
            self.context.wording.plain,
            intervention=str(intervention_folder(self.context.artifact.folder, target)),
            keep=self.settings.keep,
            seed=self.context.seed,
            first_token=self.settings.first_token,
        )


def _no_target(artifact: Path, target: Target, fitted: NptiManifest) -> ConfigurationError:
    there = ", ".join(fitted.targets) or "none at all"
    return ConfigurationError(
        f"artifact {artifact} has no intervention toward {target} (it has {there}): fit the method, or import the "
        "neuron files of both poles of the trait"
    )


def imported_manifest(
    model: Mapping[str, Any], shape: tuple[int, int], targets: dict[str, TargetRecord], files: dict[str, str]
) -> NptiManifest:
    """What stands beside interventions that were not fitted but made of neuron files.

    Args:
        model: Name and revision of the weights, where they are known.
        shape: Layers of the model and neurons of each.
        targets: What can be steered to.
        files: Hash of each file by its name.
    """
    settings = NptiSettings(selection="released-code", questions="all", clamp="all-layers", keep=1.0)
    return NptiManifest(
        model=dict(model), data={}, wording={}, seed=0, settings=settings.for_fit(), layers=shape[0], neurons=shape[1],
        runs={}, targets=targets, imported=files,
    )  # fmt: skip


def intervention_folder(artifact: Path, target: Target) -> Path:
    """Where an artifact keeps the intervention of a target."""
    return artifact / f"{target.trait}-{target.pole}"
