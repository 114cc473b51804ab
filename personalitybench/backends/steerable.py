"""lm-eval's transformers model with interventions and adapters: each request of a batch has its own, both, or none.

A request says what it wants in ``gen_kwargs["extra_args"]["personalitybench"]``. Every steered batch proves that it
was steered (the canary): as many tokens were edited as were generated, and the logits moved. So does every adapter.
A row of each batch is compared with the same row alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from personalitybench.activations.calls import generated_sequences, output_logits, run_forward
from personalitybench.activations.interventions import Intervention
from personalitybench.activations.layouts import Gates, find_gates
from personalitybench.activations.steering import Row, Steering, end_tokens, steered
from personalitybench.backends.canary import AnsweredRow, Canary, Order
from personalitybench.backends.logits import LogitsError, RecordedLogits, recorded
from personalitybench.backends.needs import CAPABILITIES, STEERABLE
from personalitybench.backends.wishes import Wish
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.versions import drift_error, import_failure

if TYPE_CHECKING:
    from personalitybench.backends.adapters import AdapterPool


class _Prompt(str):
    """A prompt that carries its wish through lm-eval's sorting and batching."""

    wish: Wish | None

    def __new__(cls, text: str, wish: Wish | None) -> _Prompt:
        prompt = super().__new__(cls, text)
        prompt.wish = wish
        return prompt


@register_model(STEERABLE)
class SteerableModel(HFLM):  # type: ignore[misc]  # lm-eval publishes no types
    """transformers through lm-eval, with edits of gate activations and with LoRA adapters.

    Attributes:
        steered_tokens: Tokens edited so far, over all steered requests; lm-eval writes it into its results.
        adapted_answers: Answers written with an adapter so far; written there too.
    """

    capabilities: ClassVar[frozenset[str]] = CAPABILITIES[STEERABLE]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steered_tokens = 0
        self.adapted_answers = 0
        self._unserved = 0  # wishes of the requests that are being answered
        self._encoded: list[Any] = []  # the prompts of the batch that was encoded last
        self._canary = Canary(self._read)
        self._interventions: dict[Path, Intervention] = {}

    @cached_property
    def _gates(self) -> Gates:
        return find_gates(self.model)

    @cached_property
    def _adapters(self) -> AdapterPool:
        """Made when the first adapter is wanted: until then the model is as lm-eval loads it."""
        try:
            from personalitybench.backends.adapters import AdapterPool  # noqa: PLC0415 (peft takes seconds)
        except ImportError as error:
            raise import_failure(error, "an adapter", "hf") from error
        return AdapterPool(self.model)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate; see lm-eval.

        Raises:
            ConfigurationError: A request wants what this model cannot do.
            NeedsNotMetError: An adapter is of another kind than plain LoRA.
            StorageError: An adapter or an intervention is missing or damaged.
            ModelError: The canary failed, or an adapter or an intervention is for another model.
            DependencyDriftError: lm-eval batches requests in another way, or passes by this class.
        """
        marked = [_marked(request) for request in requests]
        self._unserved = sum(request.args[0].wish is not None for request in marked)
        answers: list[str] = super().generate_until(marked, disable_tqdm=disable_tqdm)
        if self._unserved:
            raise drift_error("lm_eval", f"answered {self._unserved} requests without calling _model_generate")
        return answers

    def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode prompts; see lm-eval. Those of a batch come right before it is answered."""
        self._encoded = list(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)

    def get_model_info(self) -> dict[str, Any]:
        """Add what was steered and adapted to what lm-eval records of the model."""
        info: dict[str, Any] = super().get_model_info()
        if "_adapters" in vars(self):  # the model's own parameters are what lm-eval means
            info["model_num_parameters"] -= self._adapters.parameters
        return info | {"steered_tokens": self.steered_tokens, "adapted_answers": self.adapted_answers}

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate the answers of a batch; see lm-eval, whose arguments are handed on as they come."""
        answer: Callable[..., Any] = super()._model_generate
        if not self._unserved:
            return answer(*args, **kwargs)
        context, mask = _context_and_mask([*args, *kwargs.values()])
        prompts = self._encoded
        wishes = self._take_wishes(len(context))
        if not any(wishes):
            return answer(*args, **kwargs)
        orders = self._orders(wishes)
        start = context.shape[1]
        try:
            with recorded(self.model, start) as logits, self._altered(orders, prompt_columns=start) as steering:
                output = generated_sequences(answer(*args, **kwargs), context)
        except LogitsError as error:
            raise self._blame(error, orders, context, mask) from error
        if steering is not None:
            self._check_counts(steering, wishes, output[:, start:])
        self.adapted_answers += sum(order.adapter is not None for order in orders)
        self._canary.check(self._rows(prompts, output, mask, logits))
        self._unserved -= sum(wish is not None for wish in wishes)
        return output

    def _orders(self, wishes: Sequence[Wish | None]) -> list[Order]:
        adapters = self._load_adapters(wishes)
        return [Order(wish, self._row(wish), adapter) for wish, adapter in zip(wishes, adapters, strict=True)]

    def _take_wishes(self, rows: int) -> list[Wish | None]:
        """Take the wishes of a batch from its prompts.

        Raises:
            DependencyDriftError: lm-eval encoded something else than its prompts right before.
        """
        prompts, self._encoded = self._encoded, []
        if len(prompts) != rows or not all(isinstance(prompt, _Prompt) for prompt in prompts):
            raise drift_error("lm_eval", f"does not encode the {rows} prompts of a batch right before it is answered")
        return [prompt.wish for prompt in prompts]

    def _load_adapters(self, wishes: Sequence[Wish | None]) -> list[str | None]:
        """Have the adapters of a batch loaded; None for a row that has none."""
        wanted = [(wish.adapter, wish.adapter_strength) if wish and wish.adapter else None for wish in wishes]
        if not any(row is not None and row[1] for row in wanted):
            return [None] * len(wishes)
        return self._adapters.names(wanted)

    def _row(self, wish: Wish | None) -> Row:
        if wish is None or wish.intervention is None:
            return None
        if wish.intervention not in self._interventions:
            shape = (self._gates.layers, self._gates.neurons)
            self._interventions[wish.intervention] = Intervention.load(wish.intervention, shape)
        return self._interventions[wish.intervention], wish.strength

    @contextmanager
    def _altered(self, orders: Sequence[Order], prompt_columns: int | None = None) -> Iterator[Steering | None]:
        """Give each row of a batch its adapter and its intervention; yields what counts the latter, if any has one."""
        wishes = [order.wish for order in orders]
        with ExitStack() as stack:
            if any(order.adapter is not None for order in orders):
                stack.enter_context(self._adapters.chosen([order.adapter for order in orders]))
            if not any(order.intervention is not None for order in orders):
                yield None
                return
            steering = steered(
                self.model,
                self._gates,
                [order.intervention for order in orders],
                from_last_prompt_token=[wish is not None and wish.first_token for wish in wishes],
                keep=[1.0 if wish is None else wish.keep for wish in wishes],
                seed=[0 if wish is None else wish.seed for wish in wishes],
                prompt_columns=prompt_columns,
                stop_tokens=self._stop_tokens,
            )
            yield stack.enter_context(steering)

    @cached_property
    def _stop_tokens(self) -> set[int]:
        """The tokens at which ``generate`` stops."""
        return end_tokens(self.model)

    def _check_counts(self, steering: Steering, wishes: Sequence[Wish | None], answers: torch.Tensor) -> None:
        """Every answer token but the last, which is never an input, must have been edited in every steered row."""
        stopped = torch.isin(answers, torch.tensor(sorted(self._stop_tokens), device=answers.device))
        lengths = torch.where(stopped.any(1), stopped.int().argmax(1), answers.shape[1] - 1).tolist()
        for row, wish, edited, later in zip(steering.rows, wishes, steering.edited_tokens, lengths, strict=True):
            expected = later + int(wish is not None and wish.first_token)
            if row is not None and len(row[0]) and edited != expected:
                raise ModelError(f"steering failed: {edited} tokens of an answer were edited, expected {expected}")
        self.steered_tokens += sum(steering.edited_tokens)

    def _rows(
        self, prompts: Sequence[Any], output: torch.Tensor, mask: torch.Tensor, logits: RecordedLogits
    ) -> list[AnsweredRow]:
        """Lay out a batch for the canary: edits and tokens of each row come from its prompt, not from its place.

        Raises:
            DependencyDriftError: A row holds the tokens of another prompt, or no logits were recorded.
        """
        start = mask.shape[1]
        if start not in logits.columns:
            raise drift_error("transformers", "does not read a prompt's last token in a forward call of its own batch")
        rows = []
        for index, (prompt, order) in enumerate(
            zip(prompts, self._orders([prompt.wish for prompt in prompts]), strict=True)
        ):
            alone = super().tok_batch_encode([str(prompt)])[0][0].to(output.device)
            tokens = output[index, :start][mask[index].bool()]
            if not torch.equal(alone[-len(tokens) :], tokens):
                raise drift_error("lm_eval", "answers the prompts of a batch in another order than it encodes them")
            answer = output[index, start:]
            ends = torch.isin(answer, torch.tensor(sorted(self._stop_tokens), device=answer.device))
            answer = answer[: int(ends.int().argmax()) if bool(ends.any()) else len(answer)]
            steps = [start, start + 1] if len(answer) and start + 1 in logits.columns else [start]
            recorded_logits = torch.stack([logits.columns[step][index] for step in steps])
            rows.append(AnsweredRow(order, tokens, answer, recorded_logits))
        return rows

    def _blame(
        self, error: LogitsError, orders: Sequence[Order], context: torch.Tensor, mask: torch.Tensor
    ) -> ModelError:
        """Name the edits of a row whose logits are of no use, unless they are of none without edits, too."""
        row = error.rows[0]
        order = orders[row] if row < len(orders) else Order()
        if order == Order():
            return error
        try:
            self._read([Order()], context[row : row + 1], mask[row : row + 1], context.shape[1])
        except LogitsError:
            return error
        return ModelError(
            f"{order.describe()}: the logits are not finite, or all the same, so there is no answer: lower the "
            "strength, or the adapter's lora_alpha"
        )

    def _read(self, orders: Sequence[Order], tokens: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
        """Read rows in one forward pass, each under its edits; logits [rows, columns, vocabulary].

        Args:
            orders: Edits of each row.
            tokens: Prompts and answer tokens, padded on the left, int64 [rows, columns].
            mask: 1 where there is a token.
            first: Column of the first answer token.
        """
        options = {}
        if "position_ids" in inspect.signature(self.model.forward).parameters:  # counted as in generate()
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        precision = getattr(self, "mixed_precision_dtype", None)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=precision, enabled=precision is not None),
            self._altered(orders, prompt_columns=first),
        ):
            return output_logits(run_forward(self.model, tokens, mask, **options), self.model)


def _wish(request: Instance) -> Wish | None:
    """What a request asks for besides its prompt, if that changes its answer."""
    wish = Wish.parse(request.args[1].get("extra_args"))
    if wish is not None and (wish.shard is not None or wish.answer_from is not None):
        raise ConfigurationError(f"model type {STEERABLE!r} counts no activations: 'shard' is for vLLM's plug-in")
    return wish if wish is not None and (wish.has_adapter or wish.intervention is not None) else None


def _marked(request: Instance) -> Instance:
    """Return a request whose prompt carries its wish, and whose settings do not."""
    prompt, settings = request.args[:2]
    plain = {key: value for key, value in settings.items() if key != "extra_args"}
    return replace(request, arguments=(_Prompt(prompt, _wish(request)), plain))


def _context_and_mask(values: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a batch and their padding mask, int64 [rows, columns] each, among lm-eval's arguments."""
    tables = [value for value in values if isinstance(value, torch.Tensor) and value.dim() == 2]
    masks = [value for value in tables if bool(((value == 0) | (value == 1)).all()) and value.shape == tables[0].shape]
    contexts = [value for value in tables if not any(value is mask for mask in masks)]
    if len(contexts) != 1 or len(masks) != 1:
        raise drift_error("lm_eval", f"generates from {len(tables)} tables instead of prompts and their padding mask")
    return contexts[0], masks[0]
