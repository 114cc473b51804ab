"""The canary of the transformers backend: proof that each row of a batch was answered under its own edits.

:mod:`~personalitybench.backends.steerable` calls it with each batch. It compares logits of a row that is read again:
without and with each part of the edits, and alone and in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from personalitybench.activations.steering import Row
from personalitybench.backends.wishes import Wish, warn_of_strength_zero
from personalitybench.errors import ModelError

ANSWER_TOKENS = 16
"""Answer tokens, at most, after which logits are compared."""
LEAST_MOVE = 2e-5
"""Least change of the logits that proves an edit, as a share of their standard deviation; see :func:`tolerance`."""

_ABOVE_NOISE = 1.25
_MIXED_UP = 2.0  # times the noise, from which a row is compared with the edits of the others
_PADDING = 9  # columns


@dataclass(frozen=True)
class Order:
    """Edits under which one row of a batch is answered; none by default."""

    wish: Wish | None = None
    intervention: Row = None
    adapter: str | None = None  # as the pool of adapters names it, strength included

    def parts(self) -> list[tuple[str, Order, Order]]:
        """Return what has to move the logits: its name, the edits without it, and the edits with it.

        An adapter is compared with the model alone, additions with the clamps and the adapter, clamps with the adapter
        where nothing is added, or only zeros. At strength 0 an intervention has nothing to prove: it adds nothing, and
        clamps may leave an answer as it is.
        """
        adapted = Order(None, None, self.adapter)
        found = [] if self.adapter is None else [("adapter", Order(), adapted)]
        if self.wish is None or self.intervention is None or not len(self.intervention[0]):
            return found
        intervention, strength = self.intervention
        if not intervention.adds:
            return [*found, ("clamps", adapted, self)]
        if strength == 0:
            return found
        return [*found, ("additions", self.without_additions(), self)]

    def without_additions(self) -> Order:
        """Return the same edits with the intervention at strength 0: adapter and clamps stay."""
        if self.wish is None or self.intervention is None:
            return self
        return Order(replace(self.wish, strength=0.0), (self.intervention[0], 0.0), self.adapter)

    def describe(self) -> str:
        """Name adapter and intervention with their strengths, for errors."""
        if self.wish is None:
            return "no edits"
        named = []
        if self.adapter is not None:
            named.append(f"adapter {self.wish.adapter} at strength {self.wish.adapter_strength:g}")
        if self.intervention is not None:
            named.append(f"intervention {self.wish.intervention} at strength {self.wish.strength:g}")
        return " and ".join(named) or "no edits"


@dataclass(frozen=True)
class AnsweredRow:
    """A row of a batch that was answered.

    Attributes:
        order: Its own edits, found by its prompt.
        prompt: Tokens of the prompt without padding, int64 [tokens].
        answer: Answer tokens before the end token, int64 [tokens].
        logits: Logits of the first two answer tokens as recorded in the batch, or of the first, [1 or 2, vocabulary].
    """

    order: Order
    prompt: Tensor
    answer: Tensor
    logits: Tensor


Read = Callable[[Sequence[Order], Tensor, Tensor, int], Tensor]
"""Reads rows under their edits: orders, tokens and padding mask [rows, columns], first edited column; gives logits
[rows, columns, vocabulary]."""


class Canary:
    """Proves edits, each once, and compares rows of batches with the same rows alone.

    Args:
        read: Reads rows in one forward pass.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._proven: set[Order] = set()
        self._noise: float | None = None
        self._batches = 0
        self._readings: dict[Order, Tensor] = {}  # of the row that is being checked

    def check(self, rows: Sequence[AnsweredRow]) -> None:
        """Check a batch: every edit that is not proven yet, and at least one row against itself alone.

        Raises:
            ModelError: An edit moves the logits by less than rounding does, or a row was answered under the edits of
                another.
        """
        compared = False
        for row in rows:
            self._readings.clear()
            for name, before, after in row.order.parts():
                if after in self._proven or (name != "adapter" and not len(row.answer)):
                    continue
                self._compare(row, rows)
                self._prove(name, before, after, row)
                self._proven.add(after)
                compared = True
            if row.order.wish is not None and row.order.intervention is not None and row.order.intervention[1] == 0:
                warn_of_strength_zero(str(row.order.wish.intervention))
        if not compared and rows:
            self._readings.clear()
            self._compare(rows[self._batches % len(rows)], rows)
        self._batches += 1

    def _prove(self, name: str, before: Order, after: Order, row: AnsweredRow) -> None:
        """Compare a row without and with a part of its edits, at all positions that are read."""
        plain = self._alone(before, row)
        move = distance(plain, self._alone(after, row))
        noise = max(self._noise_of_batches(row), self._own_distance(row))
        least = max(tolerance(plain), _ABOVE_NOISE * noise)
        if not move >= least:
            folder, strength = _source(name, after, row.order)
            raise ModelError(
                f"{'adapter' if name == 'adapter' else 'steering'} changed nothing: the {name} of {folder} at strength "
                f"{strength:g} {'moves' if name == 'adapter' else 'move'} the logits by {move:.2g}, which is no more "
                f"than rounding ({least:.2g}); {_REMEDIES[name]}"
            )

    def _compare(self, row: AnsweredRow, rows: Sequence[AnsweredRow]) -> None:
        """Compare a row's recorded logits with those of the same row alone, under its own edits."""
        own = self._own_distance(row)
        if own <= tolerance(row.logits) or own <= _MIXED_UP * self._noise_of_batches(row):
            return
        for other in {Order(), *(each.order for each in rows)} - {row.order}:
            if distance(row.logits, self._alone(other, row)[: len(row.logits)]) < own / 2:
                raise ModelError(
                    f"steering failed: a row of a batch of {len(rows)} was answered with {other.describe()} instead of "
                    f"{row.order.describe()}; alone its logits differ by {own:.2g}. Please report this, and use "
                    "batch_size 1"
                )

    def _own_distance(self, row: AnsweredRow) -> float:
        return distance(row.logits, self._alone(row.order, row)[: len(row.logits)])

    def _alone(self, order: Order, row: AnsweredRow) -> Tensor:
        """Read a row alone under some edits; logits [positions, vocabulary] from the first answer token on."""
        if order not in self._readings:
            tokens = torch.cat([row.prompt, row.answer[:ANSWER_TOKENS]]).unsqueeze(0)
            logits = self._read([order], tokens, torch.ones_like(tokens), len(row.prompt))
            self._readings[order] = logits[0, len(row.prompt) - 1 :].clone()
        return self._readings[order]

    def _noise_of_batches(self, row: AnsweredRow) -> float:
        """Largest change of a row's logits by other batches: beside a longer row, and as the longest of three.

        Measured once, on the first row that is checked, without edits.
        """
        if self._noise is not None:
            return self._noise
        alone = self._alone(Order(), row)
        tokens = torch.cat([row.prompt, row.answer[:ANSWER_TOKENS]])
        longer = torch.cat([tokens[:1].expand(_PADDING), tokens])
        found = []
        for batch, place in (([tokens, longer], 0), ([longer, tokens, tokens], 1)):
            mask = torch.ones(len(batch), len(longer), dtype=torch.int64, device=tokens.device)
            ids = longer.repeat(len(batch), 1)
            for index, each in enumerate(batch):
                ids[index, len(longer) - len(each) :] = each
                mask[index, : len(longer) - len(each)] = 0
            first = len(longer) - len(tokens) + len(row.prompt)
            logits = self._read([Order()] * len(batch), ids, mask, first)[place, first - 1 :]
            found.append(distance(alone, logits))
        self._noise = max(found)
        return self._noise


_REMEDIES = {
    "adapter": (
        "check that its training changed it (its matrices B are zero before), raise the strength, or fit the method "
        "again"
    ),
    "additions": "raise the strength, and check that the intervention was fitted for this model",
    "clamps": "check that the intervention was fitted for this model",
}


def _source(name: str, part: Order, whole: Order) -> tuple[object, float]:
    wish = whole.wish or part.wish or Wish()
    return (wish.adapter, wish.adapter_strength) if name == "adapter" else (wish.intervention, wish.strength)


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference of logits, over positions and vocabulary; masked tokens are left out."""
    difference = one.float() - other.to(one.device).float()
    known = torch.isfinite(difference)
    return float((difference[known].square().mean().sqrt()) if bool(known.any()) else torch.nan)


def tolerance(logits: Tensor) -> float:
    """Change of logits that is no more than rounding, whatever the batch.

    :data:`LEAST_MOVE` times their standard deviation, or one rounding of their type (bfloat16: 2^-7) where that is
    more.
    """
    values = logits.float()
    finite = values[torch.isfinite(values)]
    share = max(LEAST_MOVE, float(np.float64(torch.finfo(logits.dtype).eps)))
    return share * float(finite.std())
