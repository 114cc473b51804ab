"""The released way to identify and to steer: static batches, and work on every neuron at every decode step.

Own code after facts about ``search_neuron.py`` and ``answer_question_change_neuron.py`` (which have no licence and were
not copied). Used by the benchmarks and by tests of parity. At every forward call of at most 32 rows (a decode step)
and every layer the script counts ``activation > 0`` and adds ones into a float32 histogram [layers, neurons, 301].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BATCH_SIZE = 32
STEPS = 300
"""Bins (-inf, 0], (0, 0.01], ... (2.99, inf)."""


class ReleasedCounter:
    """Counts as the script does.

    Attributes:
        over_zero: int32 [layers, neurons].
        histogram: float32 [layers, neurons, 301].
    """

    def __init__(self, layers: int, neurons: int) -> None:
        self.over_zero = torch.zeros(layers, neurons, dtype=torch.int32)
        self.histogram = torch.zeros(layers, neurons, STEPS + 1)
        self.edges = torch.arange(STEPS) / 100
        self._layers = layers
        self._rows = 0

    @property
    def tokens(self) -> int:
        """Tokens counted, once for all layers."""
        return self._rows // self._layers

    def observe(self, layer: int, activation: Tensor) -> None:
        """Count one layer's activation [rows, neurons] of one step."""
        if activation.shape[0] > BATCH_SIZE:
            return
        self.over_zero[layer] += (activation > 0).sum(0, dtype=torch.int32)
        bins = torch.bucketize(activation.float(), self.edges).t()
        self.histogram[layer].scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32))
        self._rows += activation.shape[0]


class ReleasedGlu(nn.Module):
    """The patched activation of one layer in vLLM: every decode step is observed, or edited by one global setting.

    Args:
        layer: Number of the layer.
        counter: Counts, or None.
        edit: Changes the activation of a decode step, or None.
    """

    def __init__(
        self, layer: int, counter: ReleasedCounter | None = None, edit: Callable[[int, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.layer, self.counter, self.edit = layer, counter, edit

    def forward(self, inputs: Tensor) -> Tensor:
        gate, up = inputs.chunk(2, dim=-1)
        active = nn.functional.silu(gate)
        if self.counter is not None:
            self.counter.observe(self.layer, active)
        if self.edit is not None and inputs.shape[0] <= BATCH_SIZE:
            active = self.edit(self.layer, active)
        return active * up


class ReleasedSteering:
    """One setting for every sequence of every step: opposite neurons to at most zero, own ones raised.

    Args:
        clamp: Places of the opposite neurons by layer.
        raised: Places of the own neurons by layer.
        added: What each own neuron gains, strength included.
    """

    def __init__(self, clamp: dict[int, Tensor], raised: dict[int, Tensor], added: dict[int, Tensor]) -> None:
        self.clamp, self.raised, self.added = clamp, raised, added

    def __call__(self, layer: int, active: Tensor) -> Tensor:
        """Edit [rows, neurons] of one step."""
        if layer in self.clamp:
            places = self.clamp[layer]
            active[:, places] = torch.clamp(active[:, places], max=0)
        if layer in self.raised:
            kept = torch.rand(len(self.raised[layer])) <= 0.9  # drawn again at every call, unseeded
            active[:, self.raised[layer][kept]] += self.added[layer][kept].to(active.dtype)
        return active


def patch_vllm(llm: Any, make: Callable[[int], nn.Module]) -> None:
    """Put an own module in the place of every layer's activation, in an engine in this process."""

    def patch(model: Any) -> None:
        for number, layer in enumerate(model.model.layers):
            layer.mlp.act_fn = make(number)

    llm.apply_model(patch)


def static_batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    """32 at a time, in the order given; a batch waits for its slowest answer."""
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
