"""What LoRA adds to a linear layer where each row of a batch has its own adapter: two products for all rows together.

peft serves a mixed batch adapter by adapter, in every layer: with an adapter for each of ten targets that takes longer
than the model itself. Here the rows of each adapter are a group, and all groups are multiplied at once. A row's numbers
are those of peft's own layer with that adapter alone: ``x + scale * B(A x)``, computed in the precision of the adapter
and rounded to the layer's once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class RowProducts:
    """The products of one layer for the rows of one batch. It has a copy of the matrices of the batch's adapters.

    Args:
        layer: peft's layer, which holds the matrices.
        rows: For each row the name of its adapter, or None. An adapter that the layer does not have adds nothing.
    """

    def __init__(self, layer: Any, rows: Sequence[str | None]) -> None:
        self.names = [name for name in dict.fromkeys(rows) if name is not None and name in layer.lora_A]
        groups = [[row for row, own in enumerate(rows) if own == name] for name in self.names]
        size = max(map(len, groups))
        slots = {row: number * size + place for number, group in enumerate(groups) for place, row in enumerate(group)}
        adapted = sorted(slots)
        # Adapters may have different ranks; what is added to the smaller ones is zero.
        self._down = pad_sequence([layer.lora_A[name].weight.detach() for name in self.names], batch_first=True)
        self._up = pad_sequence([layer.lora_B[name].weight.detach().T for name in self.names], batch_first=True)
        at = self._down.device
        whole = [group + group[:1] * (size - len(group)) for group in groups]  # all of one size; what is more is left
        self._grouped = torch.tensor(whole, device=at).flatten()
        self._slots = torch.tensor([slots[row] for row in adapted], device=at)
        self._adapted = None if len(adapted) == len(rows) else torch.tensor(adapted, device=at)
        scales = [float(layer.scaling[rows[row]]) for row in adapted]
        self._scales = torch.tensor(scales, dtype=self._down.dtype, device=at)

    def added(self, x: Tensor, result: Tensor) -> Tensor:
        """Add them to what the layer gives.

        Args:
            x: What the layer read, [rows, ..., inputs].
            result: What it gave, [rows, ..., outputs].
        """
        groups = x[self._grouped].to(self._down.dtype).view(len(self._down), -1, x.shape[-1])
        products = groups @ self._down.mT @ self._up
        products = products.view(len(self._grouped), *result.shape[1:])[self._slots]
        products.mul_(self._scales.view(-1, *[1] * (x.dim() - 1)))
        if self._adapted is None:
            return (result + products).to(result.dtype)
        return result.index_copy(0, self._adapted, (result[self._adapted] + products).to(result.dtype))
