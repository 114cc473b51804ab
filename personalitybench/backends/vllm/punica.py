"""LoRA's products on CPUs: each token gets its own adapter's, and a token without an adapter gets none.

vLLM 0.32 marks tokens without an adapter by -1 and then takes that for an index: in a batch with others they get the
adapter in the last place (vllm-project/vllm#48421). On GPUs its kernels pass them by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class PunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's products for CPUs, one pair of matrix products for each adapter of a step instead of one for each token.

    Sums are in float32 and rounded once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows: list[tuple[int, Tensor]] = []
        self._sampled: list[tuple[int, Tensor]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Lay out a step: which rows belong to which adapter."""
        super().update_metadata(*args, **kwargs)
        self._rows = _by_adapter(self.token_lora_indices)
        self._sampled = _by_adapter(self.sampler_indices)

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        """``y = scale * x @ A``, as vLLM's; ``y`` [tokens, rank] is zero where no adapter is."""
        _multiply(self._rows, y.view(-1, y.shape[-1]), x, w_t_all, scale, add=False)

    def _apply_expand(  # noqa: PLR0917 (vLLM's signature)
        self, y: Tensor, x: Tensor, w_t_all: Tensor, y_offset: int, y_slice_size: int, add_inputs: bool = True
    ) -> None:
        """``y[:, slice] += x @ B``, as vLLM's."""
        part = y.view(-1, y.shape[-1])[:, y_offset : y_offset + y_slice_size]
        _multiply(self._rows, part, x, w_t_all, 1.0, add=add_inputs)

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> None:
        """``y += scale * x @ A @ B`` for each part of ``y``, as vLLM's; nothing where a step has no adapter."""
        if self._rows:
            super().add_lora_linear(*args, **kwargs)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """``y += x @ B`` of an embedding, as vLLM's."""
        _multiply(self._rows, y, x, lora_b_stacked, 1.0, add=add_inputs)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **_: Any,
    ) -> None:
        """``y += scale * x @ A @ B`` of the output head, as vLLM's."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if buffer is None:
            buffer = torch.zeros((len(x), lora_b_stacked.shape[-1]), dtype=torch.float32, device=x.device)
        _multiply(self._sampled, buffer, x, lora_a_stacked, scale, add=False)
        _multiply(self._sampled, y, buffer, lora_b_stacked, 1.0, add=True)


def _by_adapter(indices: Tensor) -> list[tuple[int, Tensor]]:
    """Rows of each adapter of a step; those of none (-1) are left out."""
    present = [int(place) for place in torch.unique(indices) if place >= 0]
    return [(place, (indices == place).nonzero().flatten()) for place in present]


def _multiply(
    groups: list[tuple[int, Tensor]], y: Tensor, x: Tensor, stacked: Tensor, scale: float, *, add: bool
) -> None:
    """Multiply the rows of each adapter by its matrix.

    Args:
        groups: Place of each adapter and the rows that are its.
        y: [tokens, at least outputs], changed in place.
        x: [tokens, inputs].
        stacked: [adapters, 1, outputs, inputs] or [adapters, outputs, inputs].
        scale: What the products are multiplied by.
        add: Whether they are added to ``y`` or written.
    """
    width = min(y.shape[1], stacked.shape[-2])
    for place, rows in groups:
        matrix = stacked[place].view(stacked.shape[-2:])[:width]
        found = x[rows].float() @ matrix.float().T
        if scale != 1.0:
            found *= scale
        part = y[:, :width]
        part[rows] = ((part[rows].float() + found) if add else found).to(y.dtype)
