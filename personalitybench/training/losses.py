"""The loss of answers: prompts are read and carry none, and logits are computed for the answers' positions alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from personalitybench.activations.calls import output_logits, run_forward
from personalitybench.training.examples import Example
from personalitybench.versions import drift_error

IGNORED = -100
"""Label of a position without loss, as torch has it."""
_PADDING = 48
"""Columns of padding in :func:`check_padding`."""
_SAME = 1e-4
"""Relative: masked tokens change nothing, to the bit where it was tried."""
_CLOSE = 0.02
"""Relative: bfloat16 sums in another order differ by a tenth of it."""


@dataclass(frozen=True)
class Batch:
    """Examples as tensors, padded on the left so that all answers end in the last column.

    Attributes:
        ids: Tokens, int64 [rows, columns].
        mask: 1 where there is a token, int64 [rows, columns].
        labels: Tokens of the answers, int64 [rows, the longest answer]; :data:`IGNORED` elsewhere.
        tokens: Tokens of all answers.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    tokens: int


def collate(examples: Sequence[Example], pad: int, device: Any) -> Batch:
    """Lay examples side by side.

    Args:
        examples: At least one.
        pad: Token of the padding; which one does not matter.
        device: Where the tensors go.
    """
    width = max(map(len, examples))
    longest = max(len(example.answer) for example in examples)
    ids = torch.full((len(examples), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        ids[row, width - len(example) :] = torch.tensor(example.prompt + example.answer)
        mask[row, width - len(example) :] = 1
        labels[row, longest - len(example.answer) :] = torch.tensor(example.answer)
    tokens = sum(len(example.answer) for example in examples)
    return Batch(ids.to(device), mask.to(device), labels.to(device), tokens)


def answer_loss(model: Any, batch: Batch) -> Tensor:
    """Sum of the losses of all answer tokens in a batch, in nats; a scalar, float32.

    Args:
        model: A causal language model of transformers, with adapters in it or not.
        batch: The examples.
    """
    places = {}
    if "position_ids" in inspect.signature(model.forward).parameters:  # counted as when an answer is generated
        places["position_ids"] = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
    # The last token of an answer predicts nothing, the last of its prompt predicts the first.
    kept = batch.labels.shape[1] + 1
    output = run_forward(model, batch.ids, batch.mask, logits_to_keep=kept, **places)
    logits = output_logits(output, model)[:, -kept:-1]
    counted = batch.labels != IGNORED
    return functional.cross_entropy(logits[counted].float(), batch.labels[counted], reduction="sum")


def check_padding(model: Any, example: Example, pad: int) -> None:
    """Prove that padding on the left leaves the loss of an example as it is.

    Mask and positions are given to ``forward`` by name; where a release renames them, they are passed over in silence
    and the loss of every padded example would be wrong. Two readings with different tokens under the padding have one
    loss only where the mask is heeded; that it is the loss without padding shows the positions.

    Args:
        model: As for :func:`answer_loss`.
        example: Any example.
        pad: Token of the padding.

    Raises:
        DependencyDriftError: The losses differ.
    """
    other = next((token for token in example.prompt + example.answer if token != pad), pad)
    with torch.no_grad(), mixed_precision(model):
        alone = float(answer_loss(model, collate([example], pad, model.device)))
        padded, again = (float(answer_loss(model, _padded(example, token, model.device))) for token in (pad, other))
    scale = max(abs(alone), 1e-6)
    if not abs(padded - again) <= _SAME * scale or not abs(padded - alone) <= _CLOSE * scale:  # also if one is NaN
        raise drift_error(
            "transformers",
            f"passes over the padding mask of {type(model).__name__}: the loss of an example is {alone:.4f} nats "
            f"alone, {padded:.4f} and {again:.4f} with two kinds of padding",
        )


def _padded(example: Example, token: int, device: Any) -> Batch:
    longer = Example(example.id, example.question, (token,) * _PADDING + example.prompt, example.answer)
    batch = collate([longer], token, device)
    batch.mask[:, :_PADDING] = 0
    return batch


def mean_loss(model: Any, examples: Sequence[Example], size: int, pad: int) -> float:
    """Mean loss of an answer's token over examples, in nats, without gradients.

    Args:
        model: As for :func:`answer_loss`.
        examples: At least one.
        size: Examples at a time.
        pad: Token of the padding.
    """
    total, tokens = 0.0, 0
    with torch.no_grad(), mixed_precision(model):
        for part in chunks(examples, size):
            batch = collate(part, pad, model.device)
            total += float(answer_loss(model, batch))
            tokens += batch.tokens
    return total / tokens


def chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Cut examples into runs of ``size``, those of a length together, the longest first: little padding."""
    ordered = sorted(examples, key=lambda example: (-len(example), example.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def mixed_precision(model: Any) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the model's own weights are bfloat16; its adapters stay in float32."""
    enabled = model.dtype == torch.bfloat16
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)
