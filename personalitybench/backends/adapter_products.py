"""What LoRA adds to a linear layer of transformers where each row of a batch has an adapter of its own.

peft's own mixed batches go from adapter to adapter in every layer, and round twice. Here a row has the numbers of
peft's layer with that adapter alone: ``x + scale * B(A x)``, in the precision of the adapter, rounded to the layer's
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from personalitybench.backends.adapter_groups import Groups


class RowProducts:
    """The products of one layer for the rows of one batch. It has a copy of the matrices of the batch's adapters.

    Args:
        layer: peft's layer, which holds the matrices; it has the adapter of one row at least.
        rows: For each row the name of its adapter, or None. An adapter that the layer does not have adds nothing.
    """

    def __init__(self, layer: Any, rows: Sequence[str | None]) -> None:
        self.names = [name for name in dict.fromkeys(rows) if name is not None and name in layer.lora_A]
        # Adapters may have different ranks; what is added to the smaller ones is zero.
        self._down = pad_sequence([layer.lora_A[name].weight.detach() for name in self.names], batch_first=True)
        self._up = pad_sequence([layer.lora_B[name].weight.detach().T for name in self.names], batch_first=True)
        scales = [float(layer.scaling[name]) for name in self.names]
        self._scales = torch.tensor(scales, dtype=self._down.dtype, device=self._down.device)[:, None, None]
        own = [self.names.index(row) if row in self.names else -1 for row in rows]
        groups = Groups.of(torch.tensor(own, device=self._down.device))
        if groups is None:
            raise ValueError(f"the layer has none of the adapters {rows}")
        self._groups = groups

    def add(self, x: Tensor, result: Tensor) -> None:
        """Add them to what the layer gives.

        Args:
            x: What the layer read, [rows, ..., inputs].
            result: What it gave, [rows, ..., outputs]; changed in place.
        """
        for part in self._groups.parts(x):
            products = part.read.to(self._down.dtype) @ self._down[part.groups].mT @ self._up[part.groups]
            part.put(products.mul_(self._scales[part.groups]), result)
