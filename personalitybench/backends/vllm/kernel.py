"""The gate op on CUDA: one fused Triton kernel in place of vLLM's own, and one that counts where counts are wanted.

What they do is decided by device memory alone, so a captured graph replays with the orders of each step. Written for
float32, bfloat16 and float16; the arithmetic is that of ``GateState.apply``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from personalitybench.backends.vllm.router import FIELDS, KEEP, POSITION, SEED, SHARD, SLOT, STRENGTH
from personalitybench.backends.vllm.state import KINDS, GateState
from personalitybench.errors import NeedsNotMetError

EDIT_BLOCK = 1024
COUNT_BLOCK = 64
COUNT_ROWS = 512
"""Tokens that one program of the counting kernel goes through."""

_WIDTH = tl.constexpr(len(FIELDS))
_SLOT, _STRENGTH, _POSITION = tl.constexpr(SLOT), tl.constexpr(STRENGTH), tl.constexpr(POSITION)
_SEED, _KEEP, _SHARD = tl.constexpr(SEED), tl.constexpr(KEEP), tl.constexpr(SHARD)


@triton.jit
def _activation(gate, kind: tl.constexpr):
    """σ of a float32 value: SiLU, or GELU with the tanh approximation."""
    if kind == 0:
        return gate / (1.0 + tl.exp(-gate))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return 0.5 * gate * (1.0 + (2.0 * tl.sigmoid(2.0 * inner) - 1.0))


@triton.jit
def _mix(word):
    """The finaliser of MurmurHash3 on uint32."""
    word = (word ^ (word >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
    word = (word ^ (word >> 13)) * tl.full((), 0xC2B2AE35, tl.uint32)
    return word ^ (word >> 16)


@triton.jit
def _edit(
    inputs,
    output,
    orders,
    layer_number,
    clamp,
    add,
    applied,
    neurons,
    slots,
    first_neuron,
    kind: tl.constexpr,
    block: tl.constexpr,
):
    """One token, one block of neurons."""
    token = tl.program_id(0).to(tl.int64)
    neuron = tl.program_id(1) * block + tl.arange(0, block)
    inside = neuron < neurons
    row = inputs + token * 2 * neurons
    gate = tl.load(row + neuron, mask=inside, other=0.0)
    up = tl.load(row + neurons + neuron, mask=inside, other=0.0).to(tl.float32)
    active = _activation(gate.to(tl.float32), kind).to(gate.dtype).to(tl.float32)
    order = orders + token * _WIDTH
    slot = tl.load(order + _SLOT)
    if slot > 0:
        layer = tl.load(layer_number)
        place = (layer.to(tl.int64) * slots + slot) * neurons + neuron
        ceiling = tl.load(clamp + place, mask=inside, other=0.0)
        raised = tl.load(add + place, mask=inside, other=0.0)
        raised = raised * tl.load(order + _STRENGTH).to(tl.float32, bitcast=True)
        threshold = tl.load(order + _KEEP).to(tl.uint32, bitcast=True)
        word = _mix(tl.load(order + _SEED).to(tl.uint32, bitcast=True))
        word = _mix(word + tl.load(order + _POSITION).to(tl.uint32, bitcast=True))
        word = _mix(word + layer.to(tl.uint32, bitcast=True))
        word = _mix(word + (first_neuron + neuron).to(tl.uint32, bitcast=True))
        everything = threshold == tl.full((), 0xFFFFFFFF, tl.uint32)
        raised = tl.where((word < threshold) | everything, raised, 0.0)
        active = (tl.minimum(active, ceiling) + raised).to(gate.dtype).to(tl.float32)
        if tl.program_id(1) == 0:
            tl.atomic_add(applied + layer, 1)
    tl.store(output + token * neurons + neuron, (active * up).to(gate.dtype), mask=inside)


@triton.jit
def _count(
    inputs,
    orders,
    layer_number,
    active_counts,
    histogram,
    seen,
    unusable,
    tokens,
    neurons,
    layers,
    bins,
    lowest,
    shift: tl.constexpr,
    kind: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    """One block of neurons, some tokens one after the other; bins by the bits of the float, as ``Bins.index``."""
    neuron = tl.program_id(0) * block + tl.arange(0, block)
    inside = neuron < neurons
    layer = tl.load(layer_number)
    counted = 0
    first = tl.program_id(1).to(tl.int64) * rows
    for offset in range(rows):
        token = first + offset
        shard = tl.load(orders + token * _WIDTH + _SHARD, mask=token < tokens, other=-1)
        if shard >= 0:
            counted += 1
            gate = tl.load(inputs + token * 2 * neurons + neuron, mask=inside, other=0.0)
            value = _activation(gate.to(tl.float32), kind).to(gate.dtype).to(tl.float32)
            above = inside & (value > 0)
            place = (shard.to(tl.int64) * layers + layer) * neurons + neuron
            tl.atomic_add(active_counts + place, 1, mask=above)
            bits = tl.maximum(value.to(tl.int32, bitcast=True), lowest)
            bin_number = tl.minimum(((bits - (lowest + 1)) >> shift) + 1, bins - 1)
            place = (layer.to(tl.int64) * neurons + neuron) * bins + bin_number
            tl.atomic_add(histogram + place, 1, mask=above)
            tl.atomic_add(unusable + neuron * 0, 1, mask=inside & ~(value < float("inf")))
    if tl.program_id(0) == 0:
        tl.atomic_add(seen + layer, counted)


def launch(state: GateState, inputs: Tensor, layer: Tensor, kind: int) -> Tensor:
    """Compute the gate op; the same values as :meth:`GateState.apply`.

    Args:
        state: Whose orders and tables apply.
        inputs: [tokens, 2 x neurons], contiguous.
        layer: int32, number of the layer.
        kind: Index into :data:`~personalitybench.backends.vllm.state.KINDS`.
    """
    if KINDS[kind] not in {"silu", "gelu_tanh"}:
        raise NeedsNotMetError(f"the CUDA kernel has no activation {KINDS[kind]!r}")
    inputs = inputs.contiguous()
    tokens, neurons = inputs.shape[0], state.neurons
    output = inputs.new_empty(tokens, neurons)
    if not tokens:
        return output
    if state.statistics is not None:
        _launch_count(state, inputs, layer, kind)
    width = min(EDIT_BLOCK, triton.next_power_of_2(neurons))
    _edit[(tokens, triton.cdiv(neurons, width))](
        inputs,
        output,
        state.orders,
        layer,
        state.clamp,
        state.add,
        state.applied,
        neurons,
        state.clamp.shape[1],
        state.first_neuron,
        kind=kind,
        block=width,
        **_exact(),
    )
    return output


def _launch_count(state: GateState, inputs: Tensor, layer: Tensor, kind: int) -> None:
    assert state.statistics is not None  # noqa: S101 (for the type checker; the caller looked)
    bins = state.statistics.bins
    if bins.spacing != "octaves":
        raise NeedsNotMetError("on CUDA only the default bins are counted: use transformers for the released code's")
    active, histogram = state.statistics.counts
    _count[(triton.cdiv(state.neurons, COUNT_BLOCK), triton.cdiv(inputs.shape[0], COUNT_ROWS))](
        inputs,
        state.orders,
        layer,
        active,
        histogram,
        state.seen,
        state.unusable,
        inputs.shape[0],
        state.neurons,
        state.layers,
        bins.count,
        bins.lowest_bits,
        shift=bins.shift,
        kind=kind,
        block=COUNT_BLOCK,
        rows=COUNT_ROWS,
        **_exact(),
    )


def _exact() -> dict[str, Any]:
    """No fused multiply-add: a product is rounded before it is added, as in the reference."""
    return {"enable_fp_fusion": False} if torch.cuda.is_available() else {}
