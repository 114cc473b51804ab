"""LoRA's products on CPUs: each token gets its own adapter's, and a token without an adapter gets none.

vLLM 0.32 marks tokens without an adapter by -1 and then takes that for an index: in a batch with others they get the
adapter in the last place (vllm-project/vllm#48421). On GPUs its kernels pass them by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from personalitybench.backends.adapter_groups import Groups

Slice = tuple[Tensor, Tensor, int]
"""Matrices A and B of all adapters, stacked, and the width of the outputs."""


class PunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's products for CPUs, one batched product for all adapters of a step instead of one for each token.

    Sums are in float32 and rounded once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: Groups | None = None
        self._sampled: Groups | None = None

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Lay out a step: which tokens have which adapter."""
        super().update_metadata(*args, **kwargs)
        self._tokens = Groups.of(self.token_lora_indices)
        self._sampled = Groups.of(self.sampler_indices)

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        """``y = scale * x @ A``, as vLLM's; ``y`` [tokens, rank] is zero where no adapter is."""
        _multiply(self._tokens, y.view(-1, y.shape[-1]), x, w_t_all, scale, add=False)

    def _apply_expand(  # noqa: PLR0917 (vLLM's signature)
        self, y: Tensor, x: Tensor, w_t_all: Tensor, y_offset: int, y_slice_size: int, add_inputs: bool = True
    ) -> None:
        """``y[:, slice] += x @ B``, as vLLM's."""
        part = y.view(-1, y.shape[-1])[:, y_offset : y_offset + y_slice_size]
        _multiply(self._tokens, part, x, w_t_all, 1.0, add=add_inputs)

    def add_lora_linear(  # noqa: PLR0917 (as above)
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """``y += scale * x @ A @ B`` for each slice of ``y``, as vLLM's; nothing where a step has no adapter."""
        if self._tokens is not None:
            read, written = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])[:, : sum(output_slices)]
            slices = zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True)
            _add(self._tokens, written, read, slices, scale)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """``y += x @ B`` of an embedding, as vLLM's."""
        _multiply(self._tokens, y, x, lora_b_stacked, 1.0, add=add_inputs)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """``y += scale * x @ A @ B`` of the output head, as vLLM's."""
        if self._sampled is not None:
            read, written = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
            width = min(written.shape[-1], lora_b_stacked.shape[-2])  # both may be padded
            _add(self._sampled, written[:, :width], read, [(lora_a_stacked, lora_b_stacked, width)], scale)


def _add(groups: Groups, y: Tensor, x: Tensor, slices: Iterable[Slice], scale: float) -> None:
    """``y += scale * x @ A @ B``, the slices of ``y`` side by side."""
    own = [(_matrices(groups, down), _matrices(groups, up), width) for down, up, width in slices]
    for part in groups.parts(x):
        read, found = part.read.float(), []
        for down, up, width in own:
            inner = read @ down[part.groups].float()
            found.append((inner.mul_(scale) if scale != 1.0 else inner) @ up[part.groups].float()[..., :width])
        part.put(torch.cat(found, dim=-1), y)


def _multiply(groups: Groups | None, y: Tensor, x: Tensor, stacked: Tensor, scale: float, *, add: bool) -> None:
    """Multiply the rows of each adapter by its matrix.

    Args:
        groups: Rows by adapter; None where there is none, and nothing is done.
        y: [tokens, at least outputs], changed in place.
        x: [tokens, inputs].
        stacked: As for :func:`_matrices`.
        scale: What the products are multiplied by.
        add: Whether they are added to ``y`` or written.
    """
    if groups is None:
        return
    width = min(y.shape[1], stacked.shape[-2])
    matrices = _matrices(groups, stacked)
    for part in groups.parts(x):
        found = part.read.float() @ matrices[part.groups].float()[..., :width]
        part.put(found.mul_(scale) if scale != 1.0 else found, y[:, :width], add=add)


def _matrices(groups: Groups, stacked: Tensor) -> Tensor:
    """The matrices of the adapters of a step.

    Args:
        groups: Rows by place of their adapter.
        stacked: All of them, [adapters, 1, outputs, inputs] or [adapters, outputs, inputs].

    Returns:
        [adapters of the step, inputs, outputs]
    """
    return stacked.view(-1, *stacked.shape[-2:])[groups.first : groups.first + groups.count].mT
