"""``lora``: supervised fine-tuning with low-rank adapters, which the paper calls the upper limit of what it compares.

Its fit trains one adapter a target, on answers that the model itself wrote under descriptions of the target or on
answers of one's own. The prompts of the training are the plain ones that are asked at evaluation (Table 11): what the
persona text brought about, the adapter brings about without it. The strength is a factor of the adapter's scale.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)

from personalitybench import prompts
from personalitybench.costs import FitPlan
from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.methods.base import MethodSettings
from personalitybench.methods.fitting import Artifact, FitContext, MethodContext
from personalitybench.methods.identification_questions import ask, plan_answers, spread
from personalitybench.methods.identification_settings import IdentificationSettings
from personalitybench.methods.induction import Induction, Need
from personalitybench.methods.lora_data import PREFIX, hash_of_file, read_answers
from personalitybench.methods.manifests import FitManifest
from personalitybench.questions import Question
from personalitybench.traits import TARGETS, Target
from personalitybench.versions import import_failure

ALL_LINEAR = "all-linear"
_FLOAT = 4  # bytes of a parameter


class LoraSettings(IdentificationSettings):
    """Settings of ``lora``, besides those of identification. Rank, learning rate, its decay and batch are the paper's.

    Attributes:
        rank: Rank of an adapter's matrices (paper: 8).
        alpha: An adapter's output is scaled by alpha / rank. The paper does not say; twice the rank is usual.
        dropout: Share of an adapter's inputs that is dropped while it trains. The paper does not say; 0, since the
            held-out loss tells when an adapter learns by heart, and runs of few steps rarely do.
        target_modules: ``all-linear`` for all linear modules of attention and MLP (never the one that makes logits),
            or their names. The paper does not say; adapting all is what comes nearest to training the whole model,
            and an upper limit is what the method stands for.
        learning_rate: Its peak (paper: 1e-4); a half cosine takes it to 0 at the last step.
        warmup_steps: Steps in which the rate first rises. The paper does not say; none.
        weight_decay: AdamW's. The paper does not say; none, as is usual for adapters.
        epochs: How often an example is trained on. The paper does not say; after about three the held-out loss of
            such answers falls little more.
        train_batch_size: Examples of a step (paper: 8).
        micro_batch_size: Examples at a time, where memory does not hold a whole batch; their gradients are summed, so
            a step is the same but for rounding. None: all of them.
        examples: Answers of each target, drawn by hash, held-out ones among them; ``all`` takes every one. The paper
            does not say; as many as questions are asked.
        held_out: Share of the questions whose answers are not trained on but measure the training; at least one.
        max_length: Tokens of prompt and answer together; longer examples are left out and counted. Holds an answer
            of 500 tokens with any question of the benchmark.
        require_improvement: Fail, naming the target, where training did not lower the held-out loss.
        data: File of JSON lines with ``target``, ``question``, ``answer`` to train on. None: the model's own answers
            under descriptions of the target. Shown by its hash, on which the fit depends in place of the path.
    """

    used_after_fit: ClassVar[frozenset[str]] = frozenset({"require_improvement"})

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=3, ge=1)
    train_batch_size: int = Field(default=8, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    examples: Annotated[int, Field(ge=2)] | Literal["all"] = 2000
    held_out: float = Field(default=0.1, gt=0, lt=1)
    max_length: int = Field(default=1024, ge=8)
    require_improvement: bool = True
    data: str | None = None

    _content: str | None = PrivateAttr(default=None)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """One name is a list of one; a list is kept sorted, each name once."""
        if isinstance(value, str) and value != ALL_LINEAR:
            value = [value]
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            return tuple(sorted(set(value)))
        return value

    @model_validator(mode="after")
    def _hash_data(self) -> Self:
        if self.data is not None:
            self._content = self.data if self.data.startswith(PREFIX) else hash_of_file(self._path(self.data))
        return self

    @field_serializer("data")
    def _show_data(self, value: str | None) -> str | None:
        return value if value is None else self._content

    @staticmethod
    def _path(text: str) -> Path:
        return Path(text).expanduser()

    def own_answers(self) -> dict[Target, list[tuple[str, str]]]:
        """Questions and answers of :attr:`data`.

        Raises:
            ConfigurationError: Only its hash is known.
            DataError: The file was changed, or a line is wrong.
        """
        if self.data is None or self._content is None:
            raise ConfigurationError("setting 'data' of method 'lora' names no file")
        if self.data.startswith(PREFIX):
            raise ConfigurationError(
                f"setting 'data' of method 'lora' is the hash {self.data}: to fit, name the file that has it"
            )
        return read_answers(self._path(self.data), self._content)

    def for_fit(self) -> dict[str, Any]:
        """The settings that a fit depends on; with answers of one's own nothing is identified."""
        chosen = super().for_fit()
        if self.data is not None:
            for name in IdentificationSettings.model_fields:
                chosen.pop(name)
        return chosen


class TargetRecord(BaseModel):
    """What became of a target.

    Attributes:
        examples: Answers that were trained on.
        held_out_examples: Answers that were held out.
        empty: Answers that were left out because they say nothing.
        too_long: Answers that were left out because they are longer than ``max_length`` with their prompts.
        tokens: Tokens of the prompts and answers that were trained on, each once.
        parameters: Parameters of the adapter.
        loss_before: Mean held-out loss of an answer's token before training, in nats.
        loss_after: The same after it.
        sha256: Content hash of the adapter's folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int
    held_out_examples: int
    empty: int
    too_long: int
    tokens: int
    parameters: int
    loss_before: float
    loss_after: float
    sha256: str


class LoraManifest(FitManifest):
    """``lora.json``: from what an artifact was made, and what came of it.

    Attributes:
        format: Name and version of the format.
        target_modules: Modules that have an adapter, by the last parts of their names.
        targets: What became of each.
    """

    method: ClassVar[str] = "lora"

    format: Literal["personalitybench-lora/1"] = "personalitybench-lora/1"
    target_modules: tuple[str, ...]
    targets: dict[str, TargetRecord]


class LowRankAdapters:
    """Ask the plain question (Table 11) of a model with the target's adapter."""

    summary: ClassVar[str] = "LoRA: adapters trained on answers written under descriptions of the target"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({"adapter"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = LoraSettings
    check_settings: ClassVar[Mapping[str, Any]] = {
        "questions": 4,
        "max_tokens": 4,
        "batch_size": 4,
        "rank": 2,
        "epochs": 1,
        "learning_rate": 0.01,
        "require_improvement": False,
    }

    def __init__(self, settings: LoraSettings, context: MethodContext) -> None:
        self.context = context
        self._fitted = None if context.artifact is None else LoraManifest.read(context.artifact.folder)
        self.settings: LoraSettings = settings if self._fitted is None else self._fitted.settings_in_use(settings)
        self._whole: set[Target] = set()

    def fit(self, context: FitContext) -> Artifact | None:
        """Train an adapter for each target; goes on where an interrupted fit stopped.

        Raises:
            MissingDependencyError: torch, transformers or peft (or vLLM) is not installed.
            ModelError: The model has no chat template, or training did not lower a target's held-out loss.
            ConfigurationError: The model has none of the modules that are to get an adapter.
            DataError: There is too little to train on, or the file of one's own answers is wrong.
        """
        try:
            from personalitybench.methods import lora_fit  # noqa: PLC0415 (needs torch and peft)
        except ImportError as error:
            raise import_failure(error, "lora", "hf") from error
        lora_fit.fit(self.settings, context)
        return Artifact.open(context.folder)

    def tidy_fit(self, work: Path) -> None:
        """Take away the checkpoints of a fit that is complete: they weigh as much as the adapters."""
        shutil.rmtree(work, ignore_errors=True)

    def plan_fit(self, count: Callable[[str], int]) -> FitPlan:
        """What a fit would take at most: every answer as long as it may be."""
        settings, plain = self.settings, self.context.wording.plain

        def turn(question: str) -> int:
            return count(prompts.fill(plain, question=question))

        if settings.data is not None:
            own = settings.own_answers().values()
            each = (self._trained([turn(question) + count(answer) for question, answer in some]) for some in own)
            return self._plan(FitPlan(), len(own), sum(each))
        answers = plan_answers(settings, self.context, map(str, TARGETS), count)
        trained = 0
        for target in TARGETS:
            asked = ask(settings, self.context, str(target))
            lengths = [turn(one.question.question) + settings.max_tokens for one in spread(asked)]
            trained += self._trained(lengths, len(asked))
        return self._plan(answers, len(TARGETS), trained)

    def _plan(self, answers: FitPlan, adapters: int, trained: int) -> FitPlan:
        """Complete a plan by what is trained: so many adapters, on so many tokens an epoch."""
        settings, names = self.settings, self.settings.target_modules
        return replace(
            answers,
            trained_tokens=settings.epochs * trained,
            bytes_per_width=_FLOAT * settings.rank * adapters,
            projections=() if isinstance(names, str) else names,
        )

    def _trained(self, lengths: list[int], answers: int | None = None) -> int:
        """Tokens of an epoch, if the longest answers are drawn and the shortest are held out.

        Args:
            lengths: Tokens of examples.
            answers: How many there are, where these stand for more.
        """
        there = len(lengths) if answers is None else answers
        drawn = there if self.settings.examples == "all" else min(self.settings.examples, there)
        trained = drawn - int(self.settings.held_out * drawn)
        longest = sorted(lengths, reverse=True)[: max(1, round(trained * len(lengths) / there))]
        return round(sum(longest) * trained / len(longest))

    def describe_fit(self, artifact: Artifact) -> list[dict[str, Any]]:
        """One row for each target: what was trained on, and the held-out loss before and after."""
        manifest = LoraManifest.read(artifact.folder)
        seconds = artifact.provenance.get("seconds", {})
        return [
            {
                "target": target,
                "examples": f"{found.examples:,}",
                "held out": f"{found.held_out_examples:,}",
                "tokens": f"{found.tokens:,}",
                "loss before": f"{found.loss_before:.3f}",
                "after": f"{found.loss_after:.3f}",
                "train s": f"{seconds.get(target, {}).get('train', 0.0):.1f}",
            }
            for target, found in manifest.targets.items()
        ]

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:  # noqa: ARG002
        """Ask plainly, with the target's adapter at the strength; None is as it was trained.

        Raises:
            ConfigurationError: There is no adapter for this model or this target, or training it did not help.
            StorageError: The adapter was altered.
        """
        if self.context.artifact is None or self._fitted is None:
            raise ConfigurationError(
                "method 'lora' has no adapters for this model: run 'personalitybench fit lora --model ...', or the "
                "stage 'fit' of its suite"
            )
        artifact = self.context.artifact.folder
        found = self._fitted.targets.get(str(target))
        if found is None:
            there = ", ".join(self._fitted.targets) or "none at all"
            raise ConfigurationError(
                f"artifact {artifact} has no adapter for {target} (it has {there}): fit with data that has it, or "
                "name other targets"
            )
        if self.settings.require_improvement and found.loss_after >= found.loss_before:
            raise ConfigurationError(not_improved(str(target), found.loss_before, found.loss_after))
        folder = adapter_folder(artifact, target)
        if target not in self._whole:
            if not folder.is_dir() or Artifact.open(folder).sha256 != found.sha256:
                raise StorageError(f"the adapter in {folder} is missing, truncated or altered: fit again")
            self._whole.add(target)
        return Induction("lora", target, strength, self.context.wording.plain, adapter=str(folder))


def not_improved(target: str, before: float, after: float) -> str:
    """What is said where training did not lower a held-out loss."""
    return (
        f"training did not lower the held-out loss of {target} ({before:.4f} before, {after:.4f} after): set fewer "
        "epochs, a lower learning_rate or more examples, or 'require_improvement: false' to use it all the same"
    )


def adapter_folder(artifact: Path, target: Target) -> Path:
    """Where an artifact keeps the adapter of a target."""
    return artifact / f"{target.trait}-{target.pole}"
