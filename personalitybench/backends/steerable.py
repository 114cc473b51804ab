"""lm-eval's transformers model with interventions: each request of a batch is steered by its own, or not at all.

A request says what it wants in ``gen_kwargs["extra_args"]["personalitybench"]``. Every steered batch proves that it
was steered (the canary): as many tokens were edited as were generated, and the logits moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from personalitybench.activations.interventions import Intervention
from personalitybench.activations.layouts import Gates, find_gates
from personalitybench.activations.steering import Row, Steering, steered
from personalitybench.backends.loading import plan_batches
from personalitybench.backends.needs import CAPABILITIES, STEERABLE
from personalitybench.backends.wishes import Wish
from personalitybench.errors import ConfigurationError, ModelError


@register_model(STEERABLE)
class SteerableModel(HFLM):  # type: ignore[misc]  # lm-eval publishes no types
    """transformers through lm-eval, with edits of gate activations.

    Attributes:
        steered_tokens: Tokens edited so far, over all steered requests; lm-eval writes it into its results.
    """

    capabilities: ClassVar[frozenset[str]] = CAPABILITIES[STEERABLE]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steered_tokens = 0
        self._waiting: list[Wish | None] = []
        self._proven: set[Wish] = set()
        self._interventions: dict[Path, Intervention] = {}

    @cached_property
    def _gates(self) -> Gates:
        return find_gates(self.model)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate; see lm-eval.

        Raises:
            ConfigurationError: A request wants what this model cannot do.
            ModelError: The canary failed.
        """
        wishes = [_wish(request) for request in requests]
        plain = [_without_wish(request) for request in requests]
        # lm-eval sorts requests by length; the wishes wait in the same order.
        order = [index for batch in plan_batches(self, plain, len(plain)) for index in batch]
        self._waiting = [wishes[index] for index in order]
        answers: list[str] = super().generate_until(plain, disable_tqdm=disable_tqdm)
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """Add the number of steered tokens to what lm-eval records of the model."""
        info: dict[str, Any] = super().get_model_info()
        return info | {"steered_tokens": self.steered_tokens}

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        wishes, self._waiting = self._waiting[: len(context)], self._waiting[len(context) :]
        if not any(wishes):
            plain: torch.Tensor = super()._model_generate(context, max_length, stop, **kwargs)
            return plain
        rows = [self._row(wish) for wish in wishes]
        with self._steered(wishes, rows) as steering:
            output: torch.Tensor = super()._model_generate(context, max_length, stop, **kwargs)
        self._check_counts(steering, wishes, output[:, context.shape[1] :])
        self._check_logits(wishes, rows, output, context.shape[1], kwargs["attention_mask"])
        return output

    def _row(self, wish: Wish | None) -> Row:
        if wish is None or wish.intervention is None:
            return None
        if wish.intervention not in self._interventions:
            shape = (self._gates.layers, self._gates.neurons)
            self._interventions[wish.intervention] = Intervention.load(wish.intervention, shape)
        return self._interventions[wish.intervention], wish.strength

    def _steered(
        self, wishes: Sequence[Wish | None], rows: Sequence[Row], prompt_columns: int | None = None
    ) -> AbstractContextManager[Steering]:
        """Steer a batch, each row as its wish says."""
        return steered(
            self.model,
            self._gates,
            rows,
            from_last_prompt_token=[wish is not None and wish.first_token for wish in wishes],
            keep=[1.0 if wish is None else wish.keep for wish in wishes],
            seed=[0 if wish is None else wish.seed for wish in wishes],
            prompt_columns=prompt_columns,
            stop_tokens=self._stop_tokens,
        )

    @cached_property
    def _stop_tokens(self) -> set[int]:
        """The tokens at which ``generate`` stops."""
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    def _check_counts(self, steering: Steering, wishes: Sequence[Wish | None], answers: torch.Tensor) -> None:
        """Every answer token but the last, which is never an input, must have been edited in every steered row."""
        stopped = torch.isin(answers, torch.tensor(sorted(self._stop_tokens), device=answers.device))
        lengths = torch.where(stopped.any(1), stopped.int().argmax(1), answers.shape[1] - 1).tolist()
        for row, wish, edited, later in zip(steering.rows, wishes, steering.edited_tokens, lengths, strict=True):
            expected = later + int(wish is not None and wish.first_token)
            if row is not None and len(row[0]) and edited != expected:
                raise ModelError(f"steering failed: {edited} tokens of an answer were edited, expected {expected}")
        self.steered_tokens += sum(steering.edited_tokens)

    def _check_logits(
        self, wishes: Sequence[Wish | None], rows: Sequence[Row], output: torch.Tensor, start: int, mask: torch.Tensor
    ) -> None:
        """Read prompt and first answer token again, steered and not: the logits must differ. Once for each wish."""
        for index, (wish, row) in enumerate(zip(wishes, rows, strict=True)):
            if wish is None or row is None or wish in self._proven or not len(row[0]):
                continue
            tokens = output[index : index + 1, : start + 1]
            if int(tokens[0, -1]) in self._stop_tokens:
                continue
            seen = torch.cat([mask[index : index + 1], mask.new_ones(1, 1)], dim=1)
            with torch.inference_mode():
                plain = self.model(input_ids=tokens, attention_mask=seen, use_cache=False).logits[0, -1]
                with self._steered([wish], [row], prompt_columns=start):
                    moved = self.model(input_ids=tokens, attention_mask=seen, use_cache=False).logits[0, -1]
            if torch.equal(plain, moved):
                raise ModelError(
                    f"steering changed nothing: {wish.intervention} at strength {wish.strength:g} leaves the logits as "
                    "they are; "
                    "check that the intervention was fitted for this model"
                )
            self._proven.add(wish)


def _wish(request: Instance) -> Wish | None:
    """What a request asks for besides its prompt, if it asks to be steered."""
    wish = Wish.parse(request.args[1].get("extra_args"))
    if wish is not None and (wish.shard is not None or wish.answer_from is not None):
        raise ConfigurationError(f"model type {STEERABLE!r} counts no activations: 'shard' is for vLLM's plug-in")
    return wish if wish is not None and wish.intervention is not None else None


def _without_wish(request: Instance) -> Instance:
    prompt, settings = request.args[:2]
    return replace(request, arguments=(prompt, {k: v for k, v in settings.items() if k != "extra_args"}))
