"""Logits of transformers models: refused where no answer can come of them, recorded at an answer's first two tokens.

:func:`~personalitybench.backends.loading.load_model` and the tasks install the check; the canary records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from personalitybench.activations.calls import ModelCall, followed, output_logits
from personalitybench.errors import ModelError

_CHECKED = "_personalitybench_logits_checked"


class LogitsError(ModelError):
    """Logits are NaN or infinite, or all the same.

    Attributes:
        rows: Rows of the batch, from 0.
    """

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


def require_usable_logits(model: Any) -> None:
    """Have every forward pass without gradients raise :class:`LogitsError` for logits that choose no token.

    A model of NaN weights, an overflow in float16 and an edit that is too strong would otherwise write answers.
    Checked are the logits of the last column, at the cost of one reduction. Trainings check their own loss.

    Args:
        model: A model of transformers or peft; nothing happens where it is checked already.
    """
    if getattr(model, _CHECKED, False):
        return
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)

    def check(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        logits = getattr(output, "logits", None)
        if torch.is_grad_enabled() or not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.numel():
            return
        least, most = torch.aminmax(logits[:, -1], dim=-1)  # both are NaN where one logit is
        usable = torch.isfinite(most) & (most > least)  # a part of the vocabulary may be masked by -inf
        if not bool(usable.all()):
            raise LogitsError(
                f"model {name} gives logits that are not finite, or all the same, so it chooses no token: restore its "
                "weights, or load it in another precision (dtype=bfloat16 or dtype=float32)",
                tuple(torch.nonzero(~usable).flatten().tolist()),
            )

    for module in inner_models(model):
        module.register_forward_hook(check)
    setattr(model, _CHECKED, True)


def inner_models(model: Any) -> list[Any]:
    """Return a model, and the one within if it is a peft adapter around it, whose ``generate`` calls that one."""
    base = getattr(model, "get_base_model", None)
    return [model] if base is None else [model, base()]


class RecordedLogits:
    """Logits of the first two answer tokens of a batch.

    Attributes:
        columns: Logits [rows, vocabulary] by the number of columns that were read.
    """

    def __init__(self, prompt_columns: int) -> None:
        self._wanted = {prompt_columns, prompt_columns + 1}
        self._call: ModelCall | None = None
        self._end = 0
        self.columns: dict[int, Tensor] = {}

    def begin(self, call: ModelCall) -> None:
        """Take note of a forward call."""
        self._call = call

    def record(self, model: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the model."""
        call = self._call
        if call is None or call.tokens is None:
            return
        before = self._end if call.cached_columns is None else call.cached_columns
        self._end = before + call.tokens.shape[1]
        if self._end in self._wanted:
            self.columns[self._end] = output_logits(output, model)[:, -1].detach().clone()


@contextmanager
def recorded(model: Any, prompt_columns: int) -> Iterator[RecordedLogits]:
    """Record logits while one ``generate()`` runs.

    Args:
        model: A causal language model of transformers.
        prompt_columns: Columns of the padded prompts.
    """
    record = RecordedLogits(prompt_columns)
    inner = inner_models(model)[-1]
    handle = inner.register_forward_hook(record.record)
    try:
        with followed(inner, record.begin):
            yield record
    finally:
        handle.remove()
