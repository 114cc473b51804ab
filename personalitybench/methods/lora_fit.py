"""The fit of ``lora``: answers (shared with other fits, or of one's own), then an adapter for each target.

::

    work/<target>/                       checkpoints of the training, and what it came to, until the fit is complete
    artifact/<target>/                   the adapter, a standard folder of peft's, with its curve.json
    artifact/provenance.json             cost, seconds and versions; not part of the artifact's hash
    artifact/lora.json                   what was trained, on what, and the held-out losses; written last
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from personalitybench import prompts
from personalitybench.activations.identification_transformers import stop_tokens
from personalitybench.backends.loading import load_model, quiet_libraries
from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.files import Sheet, write_json
from personalitybench.methods.fitting import PROVENANCE, Artifact, FitContext
from personalitybench.methods.identification import Identification
from personalitybench.methods.lora import (
    LoraManifest,
    LoraSettings,
    TargetRecord,
    adapter_folder,
    not_improved,
)
from personalitybench.training.adapters import Recipe, TrainedAdapter, resolve_modules, train_adapter
from personalitybench.training.examples import Answered, ChatTokens, ExampleSet, make_examples, with_ids
from personalitybench.traits import TARGETS, Target
from personalitybench.versions import package_versions

# What says where weights and tokenizer are found and how prompts are written, which lm-eval's classes for
# transformers and for vLLM name alike. The rest says how a backend runs them, which is not how they are trained.
_FOUND_BY = frozenset(
    {
        "revision", "subfolder", "trust_remote_code", "tokenizer", "use_fast_tokenizer", "gguf_file", "add_bos_token",
        "prefix_token_id", "enable_thinking", "think_end_token", "chat_template_args",
    }
)  # fmt: skip
# Arguments that put another adapter into the model, which the one that is trained here would lie on top of.
_ADAPTERS = ("peft", "delta", "lora_local_path")


def fit(settings: LoraSettings, context: FitContext) -> None:
    """Train the adapters of all targets that there are answers for, and write them.

    Raises:
        PersonalityBenchError: As for :meth:`personalitybench.methods.lora.LowRankAdapters.fit`.
    """
    for name in _ADAPTERS:
        if context.model_args.get(name):
            raise ConfigurationError(
                f"the model has an adapter already ({name}={context.model_args[name]}): merge it into the weights, "
                "then fit 'lora' to them"
            )
    with quiet_libraries():
        answers = _ModelAnswers(settings, context) if settings.data is None else _OwnAnswers(settings)
        _Fit(settings, context, answers).run()


class _ModelAnswers:
    """The model's own answers under descriptions of each target."""

    def __init__(self, settings: LoraSettings, context: FitContext) -> None:
        identification = Identification(settings, context)
        self._sheets: dict[Target, Sheet] = {}
        self._seconds: dict[Target, dict[str, float]] = {}
        with identification.lock():  # which closes the engine at its end: training needs the memory
            for target in TARGETS:
                self._sheets[target] = identification.answers(str(target))
                self._seconds[target] = identification.seconds(str(target))
        del identification
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.generated_tokens = 0
        self.where = f"answers of {context.model_name}"

    @property
    def targets(self) -> list[Target]:
        return list(self._sheets)

    def seconds(self, target: Target) -> dict[str, float]:
        return self._seconds[target]

    def read(self, target: Target) -> list[Answered]:
        found = [
            Answered(row["id"], row["question"], row["answer"], tuple(row["answer_tokens"]))
            for row in self._sheets[target].lines.read()
        ]
        self.generated_tokens += sum(len(one.tokens or ()) for one in found)
        return found


class _OwnAnswers:
    """Answers of a file."""

    def __init__(self, settings: LoraSettings) -> None:
        self._answers = settings.own_answers()
        self.generated_tokens = 0
        self.where = str(settings.data)

    @property
    def targets(self) -> list[Target]:
        return list(self._answers)

    def seconds(self, _target: Target) -> dict[str, float]:
        return {}

    def read(self, target: Target) -> list[Answered]:
        return with_ids(self._answers[target])


class _Fit:
    """The training of all targets on one loaded model, and what is put on record of it."""

    def __init__(self, settings: LoraSettings, context: FitContext, answers: _ModelAnswers | _OwnAnswers) -> None:
        self.settings = settings
        self.context = context
        self.answers = answers
        self.lm = _load(context, settings)
        self.tokens = ChatTokens(self.lm, stop_tokens(self.lm.model, self.lm.tokenizer))
        self.recipe = Recipe(
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            target_modules=resolve_modules(self.lm.model, settings.target_modules),
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            epochs=settings.epochs,
            batch_size=settings.train_batch_size,
            micro_batch_size=settings.micro_batch_size or settings.train_batch_size,
            seed=context.seed,
        )
        self.targets: dict[str, TargetRecord] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.trained_tokens = 0

    def run(self) -> None:
        shutil.rmtree(self.context.folder, ignore_errors=True)  # of an interrupted fit, or an altered one
        for target in self.answers.targets:
            self._train(target)
        self._finish()

    def _train(self, target: Target) -> None:
        """Train a target, unless that was done, and write its adapter."""
        settings, context = self.settings, self.context
        examples = make_examples(
            self.answers.read(target),
            self.tokens,
            lambda question: prompts.fill(context.wording.plain, question=question),
            where=f"{self.answers.where}, {target}",
            seed=context.seed,
            most=None if settings.examples == "all" else settings.examples,
            held_out=settings.held_out,
            max_length=settings.max_length,
        )
        trained = train_adapter(
            self.lm.model,
            examples,
            self.recipe,
            target=str(target),
            pad=self.lm.tokenizer.pad_token_id,
            folder=adapter_folder(context.work, target),
            report=lambda step, steps: context.report(f"{target} training", step, steps),
        )
        if settings.require_improvement and not trained.curve.improved:
            raise ModelError(not_improved(str(target), trained.curve.loss_before, trained.curve.loss_after))
        folder = adapter_folder(context.folder, target)
        trained.save(folder, self.recipe, context.model_name)
        self.targets[str(target)] = _record(examples, trained, Artifact.open(folder).sha256)
        self.seconds[str(target)] = {**self.answers.seconds(target), "train": round(trained.seconds, 2)}
        self.trained_tokens += trained.curve.trained_tokens

    def _finish(self) -> None:
        """Write what is on record; the manifest last, since its existence means that the artifact is complete."""
        cost = FitCost(
            seconds=round(sum(sum(steps.values()) for steps in self.seconds.values()), 2),
            generated_tokens=self.answers.generated_tokens,
            trained_tokens=self.trained_tokens,
            parameters=sum(target.parameters for target in self.targets.values()),
        )
        provenance = {
            "seconds": self.seconds,
            "versions": package_versions() | {"peft": version("peft")},
            "device": str(self.lm.model.device),
            "dtype": str(self.lm.model.dtype).removeprefix("torch."),
            "cost": cost.model_dump(mode="json"),
        }
        write_json(self.context.folder / PROVENANCE, provenance)
        manifest = LoraManifest(
            **self.context.identity,
            settings=self.settings.for_fit(),
            target_modules=self.recipe.target_modules,
            targets=self.targets,
        )
        write_json(manifest.path(self.context.folder), manifest.model_dump(mode="json"))


def _load(context: FitContext, settings: LoraSettings) -> Any:
    """lm-eval's transformers model, in bfloat16 on a GPU and float32 elsewhere."""
    device = context.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    kept: Mapping[str, Any] = {name: value for name, value in context.model_args.items() if name in _FOUND_BY}
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    arguments = {"pretrained": context.model, **kept, "dtype": dtype}
    return load_model("hf", arguments, settings.train_batch_size, device)


def _record(examples: ExampleSet, trained: TrainedAdapter, sha256: str) -> TargetRecord:
    return TargetRecord(
        examples=len(examples.train),
        held_out_examples=len(examples.held_out),
        empty=examples.empty,
        too_long=examples.too_long,
        tokens=sum(map(len, examples.train)),
        parameters=trained.curve.parameters,
        loss_before=trained.curve.loss_before,
        loss_after=trained.curve.loss_after,
        sha256=sha256,
    )
