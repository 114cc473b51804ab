"""Trains one LoRA adapter with peft: the loop.

A loop of our own, since the one of transformers keeps an optimiser's state as a pickle, and resumes neither in the
middle of an epoch's order nor of dropout's draws to the bit. Here a step depends on the checkpoint and on its number
alone: the order of an epoch and the draws of a step come from hashes of the seed. So a training that was killed ends
with the weights of one that was not (bitwise on a processor, with as many threads).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.files import content_hash, write_atomically, write_json
from personalitybench.training.checkpoints import Checkpoints, Progress
from personalitybench.training.curves import CURVE, Curve, HeldOutLoss, StepLoss
from personalitybench.training.examples import Example, ExampleSet, derived_seed, epoch_order
from personalitybench.training.losses import answer_loss, check_padding, chunks, collate, mean_loss, mixed_precision
from personalitybench.versions import drift_error

CHECKPOINT_SECONDS = 30.0
"""Time between two checkpoints; one is also written at the end of every epoch."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        rank: Rank of its matrices.
        alpha: Scale times rank.
        dropout: Share of an adapter's inputs that is dropped while it trains.
        target_modules: Last part of the names of the linear modules that get one.
        learning_rate: Its peak; a half cosine takes it to 0.
        warmup_steps: Steps in which it first rises.
        weight_decay: AdamW's.
        epochs: How often each example is trained on.
        batch_size: Examples of a step.
        micro_batch_size: Examples at a time; the gradients of a step are summed.
        seed: Of all draws.
    """

    rank: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step.

        Args:
            step: Its number, from 0.
            steps: How many there are.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class TrainedAdapter:
    """What a training came to.

    Attributes:
        tensors: Weights by peft's names.
        curve: How it went.
        seconds: How long it took, over all sessions up to their last checkpoints.
    """

    tensors: dict[str, Tensor]
    curve: Curve
    seconds: float

    def save(self, folder: Path, recipe: Recipe, model_name: str) -> None:
        """Write a standard folder of peft's, and the curve. Equal trainings write equal bytes.

        Args:
            folder: Where to.
            recipe: How it was trained.
            model_name: What peft is told of the model.
        """
        config = {
            **_lora_config(recipe).to_dict(),  # type: ignore[no-untyped-call]  # peft's own
            "base_model_name_or_path": model_name,
            "inference_mode": True,
            "target_modules": list(recipe.target_modules),
        }
        # Which peft wrote it is provenance, and what is not set differs between versions: equal adapters are to have
        # equal hashes.
        said = {key: config[key] for key in sorted(config) if config[key] is not None and key != "peft_version"}
        write_atomically(folder / "adapter_model.safetensors", save(self.tensors, {"format": "pt"}))
        write_json(folder / CURVE, self.curve.model_dump(mode="json"))
        write_json(folder / "adapter_config.json", said)


def resolve_modules(model: Any, wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Last parts of the names of the modules that get an adapter, sorted.

    Args:
        model: A causal language model of transformers.
        wanted: ``all-linear`` for every linear module but the one that makes logits, or names.

    Raises:
        ConfigurationError: The model has no such module; the text names those that it has.
    """
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module is not head
    }
    chosen = linear if wanted == "all-linear" else set(wanted)
    missing = sorted(chosen - linear)
    if missing or not chosen:
        raise ConfigurationError(
            f"setting 'target_modules' of method 'lora' names {', '.join(missing) or 'nothing'}, which this model has "
            f"no linear module for: it has {', '.join(sorted(linear)) or 'none'}"
        )
    return tuple(sorted(chosen))


def train_adapter(
    base: Any,
    examples: ExampleSet,
    recipe: Recipe,
    *,
    target: str,
    pad: int,
    folder: Path,
    report: Callable[[int, int], None],
) -> TrainedAdapter:
    """Train the adapter of a target, or go on where that stopped, or find that it was done.

    Args:
        base: A causal language model of transformers, as it was loaded; it is left as it was.
        examples: What to train on, and what to measure on.
        recipe: How.
        target: Whose adapter it is.
        pad: Token of the padding.
        folder: Where checkpoints are kept.
        report: Told (steps made, steps).

    Raises:
        ModelError: The loss is no number any more.
        StorageError: A checkpoint cannot be written, or was altered.
    """
    checkpoints = Checkpoints(folder, _identity(examples, recipe, target))
    done = checkpoints.finished()
    if done is None:
        with _random_state_kept(base.device), _adapted(base, recipe, target) as model:
            training = _Training(
                model, examples, recipe, target=target, pad=pad, checkpoints=checkpoints, report=report
            )
            training.run()
        done = checkpoints.finished()
        if done is None:
            raise ModelError(f"what the training of {target} left in {folder} is gone: run the fit again")
    progress, tensors = done
    curve = Curve(
        target=target,
        examples=len(examples.train),
        held_out_examples=len(examples.held_out),
        parameters=progress.parameters,
        trained_tokens=progress.trained_tokens,
        steps=tuple(progress.steps),
        held_out=tuple(progress.held_out),
    )
    return TrainedAdapter(tensors, curve, progress.seconds)


class _Training:
    """The training of one adapter, from its last checkpoint to the end."""

    def __init__(
        self,
        model: Any,
        examples: ExampleSet,
        recipe: Recipe,
        *,
        target: str,
        pad: int,
        checkpoints: Checkpoints,
        report: Callable[[int, int], None],
    ) -> None:
        self.adapted = model
        self.model = model.get_base_model()  # the adapter is inside it
        self.examples = examples
        self.recipe = recipe
        self.target = target
        self.pad = pad
        self.checkpoints = checkpoints
        self.report = report
        self.steps_of_epoch = math.ceil(len(examples.train) / recipe.batch_size)
        self.steps = recipe.epochs * self.steps_of_epoch
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self._check_parameters()
        self.progress = Progress(
            identity=checkpoints.identity, parameters=sum(one.numel() for one in self.parameters.values())
        )
        found = checkpoints.unfinished()
        if found is not None:
            self._restore(*found)
        self._clock = self._kept = time.monotonic()

    def _check_parameters(self) -> None:
        """See that the matrices of the adapter, and nothing else, are trained, in float32, and can be saved.

        Raises:
            DependencyDriftError: peft trains, holds or names something else.
        """
        strange = [name for name, one in self.parameters.items() if "lora_" not in name or one.dtype != torch.float32]
        layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        if strange or not layers or len(self.parameters) != 2 * len(layers):
            raise drift_error(
                "peft",
                f"trains {len(self.parameters)} tensors in {len(layers)} adapted layers where two matrices in float32 "
                f"each were expected{f': {strange[0]} is none' if strange else ''}",
            )
        saved = _adapter_tensors(self.adapted)
        if len(saved) != len(self.parameters) or not all("lora_" in name for name in saved):
            raise drift_error("peft", f"saves {len(saved)} of {len(self.parameters)} matrices of an adapter")

    def run(self) -> None:
        """Train, with a checkpoint every :data:`CHECKPOINT_SECONDS` and after every epoch."""
        check_padding(self.model, self.examples.held_out[0], self.pad)
        progress = self.progress
        while True:
            step = len(progress.steps)
            if step == len(progress.held_out) * self.steps_of_epoch:
                loss = mean_loss(self.model, self.examples.held_out, self.recipe.micro_batch_size, self.pad)
                progress.held_out.append(HeldOutLoss(step=step, loss=self._checked(loss)))
                self._keep()
            self.report(step, self.steps)
            if step == self.steps:
                break
            self._step(step)
            if time.monotonic() - self._kept >= CHECKPOINT_SECONDS:
                self._keep()
        self._count_time()
        self.checkpoints.finish(progress, _adapter_tensors(self.adapted))

    def _step(self, step: int) -> None:
        """One step of the optimiser on one batch."""
        recipe, model = self.recipe, self.model
        epoch, place = divmod(step, self.steps_of_epoch)
        order = epoch_order(self.examples.train, recipe.seed, self.target, epoch)
        batch = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        tokens = sum(len(example.answer) for example in batch)
        rate = recipe.rate(step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derived_seed(recipe.seed, "dropout", self.target, step))
        total = 0.0
        with _dropping_out(model):
            for part in chunks(batch, recipe.micro_batch_size):
                with mixed_precision(model):
                    loss = answer_loss(model, collate(part, self.pad, model.device))
                (loss / tokens).backward()  # type: ignore[no-untyped-call]  # torch's own
                total += float(loss.detach())
        self.progress.steps.append(
            StepLoss(step=step + 1, loss=self._checked(total / tokens), learning_rate=rate)
        )  # checked before the weights take the step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.trained_tokens += sum(map(len, batch))

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise ModelError(
                f"training the adapter of {self.target}: the loss at step {len(self.progress.steps)} is {loss}: lower "
                f"learning_rate (now {self.recipe.learning_rate:g})"
            )
        return loss

    def _keep(self) -> None:
        self._count_time()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors[f"weight.{name}"] = parameter
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(parameter))
        self.checkpoints.keep(self.progress, tensors)
        self._kept = time.monotonic()

    def _restore(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        self.progress = progress
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            moments = {kind: tensors[f"{kind}.{name}"].to(parameter.device) for kind in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(len(progress.steps))), **moments}

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress.seconds = round(self.progress.seconds + now - self._clock, 3)
        self._clock = now


def _adapter_tensors(adapted: Any) -> dict[str, Tensor]:
    """Weights of an adapter by the names that peft saves them under.

    Raises:
        DependencyDriftError: peft gives them in another way.
    """
    try:
        found: Any = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (TypeError, AttributeError, KeyError) as error:
        raise drift_error("peft", f"gives the weights of an adapter in another way ({error})") from error
    if not isinstance(found, dict):
        raise drift_error("peft", f"gives the weights of an adapter as a {type(found).__name__}")
    return found


@contextmanager
def _adapted(base: Any, recipe: Recipe, target: str) -> Iterator[Any]:
    """Put a new adapter into a model, its weights float32, and take it out again."""
    torch.manual_seed(derived_seed(recipe.seed, "adapter", target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # how peft asks transformers is for them to settle
        adapted: Any = get_peft_model(base, _lora_config(recipe))
    # What the model's own configuration drops out is no setting of this training.
    adapted.eval()
    try:
        yield adapted
    finally:
        adapted.unload()


@contextmanager
def _dropping_out(model: Any) -> Iterator[None]:
    """Let the adapters drop inputs, and nothing else in the model."""
    layers = [module.lora_dropout for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave torch's random numbers to the rest of the process as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _lora_config(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type=TaskType.CAUSAL_LM,
        bias="none",
    )


def _identity(examples: ExampleSet, recipe: Recipe, target: str) -> str:
    """Hash of all that a training depends on besides the model, whose fits have folders of their own."""

    def lines(some: Sequence[Example]) -> list[Any]:
        return sorted([example.id, example.question, example.prompt, example.answer] for example in some)

    return content_hash(
        {
            "target": target,
            "recipe": asdict(recipe),
            "train": lines(examples.train),
            "held_out": lines(examples.held_out),
        }
    )
