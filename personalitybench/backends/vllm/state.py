"""What the custom op works on: tables of interventions, one row of orders for each token, counts. Fixed addresses.

Everything lies at the same place from before the first compilation or graph capture until the engine is gone, and
the op's behaviour depends on nothing but what is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personalitybench.activations.interventions import Intervention
from personalitybench.activations.masks import WORD, hash_words
from personalitybench.activations.statistics import GateStatistics, StatisticsBuilder
from personalitybench.activations.statistics_files import StatisticsSource
from personalitybench.backends.vllm.router import FIELDS, KEEP, POSITION, SEED, SHARD, SLOT, STRENGTH, Step
from personalitybench.errors import ModelError, NeedsNotMetError

PINNED = 4
"""Staging buffers in turn, so that the host may write one while a copy from another is still under way."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda gate: torch.nn.functional.gelu(gate, approximate="tanh"),
}
KINDS = tuple(ACTIVATIONS)


class GateState:
    """Tables, orders and counts of one model on one device.

    Args:
        layers: Decoder layers of the model.
        neurons: Neurons of a layer that this device holds (all of them without tensor parallelism).
        first_neuron: The model's number of the first of them.
        all_neurons: Neurons of a layer in the whole model.
        slots: How many interventions can be in use at once. Memory: 8 bytes for each slot, layer and neuron, 3.7 MB
            a slot for Llama-3-8B.
        max_tokens: The most tokens of a forward pass.
        statistics: Where activations are counted, if they are.
        stock: vLLM's own activation module for each kind, for tokens that nobody edits.
        device: Where all of it lies.
    """

    def __init__(
        self,
        *,
        layers: int,
        neurons: int,
        first_neuron: int,
        all_neurons: int,
        slots: int,
        max_tokens: int,
        statistics: StatisticsBuilder | None,
        stock: Mapping[int, Callable[[Tensor], Tensor]],
        device: torch.device,
    ) -> None:
        self.layers, self.neurons, self.first_neuron, self.all_neurons = layers, neurons, first_neuron, all_neurons
        self.device = device
        self.stock = dict(stock)
        self.statistics = statistics
        self.clamp = torch.full((layers, slots + 1, neurons), torch.inf, dtype=torch.float32, device=device)
        self.add = torch.zeros((layers, slots + 1, neurons), dtype=torch.float32, device=device)
        self.orders = torch.zeros((max_tokens, len(FIELDS)), dtype=torch.int32, device=device)
        self.orders[:, SHARD] = -1
        self.applied = torch.zeros(layers, dtype=torch.int64, device=device)
        self.seen = torch.zeros(layers, dtype=torch.int32, device=device)  # tokens that the counting kernel saw
        self.unusable = torch.zeros(1, dtype=torch.int32, device=device)  # activations that were NaN or infinite
        self.scheduled = 0  # tokens that the steps so far ordered to be edited
        self._dirty = 0  # rows of ``orders`` that are not idle
        self._slot_of: dict[str, int] = {}  # by content hash, least recently used first
        self._staging = _staging(max_tokens, device)
        self._rows: tuple[Tensor, Tensor] | None = None  # edited and counted rows of the step, on a CPU

    def slot(self, intervention: Intervention, in_use: set[int]) -> int:
        """Give an intervention a slot, in place of one that nobody uses if all are taken.

        Raises:
            ModelError: It was made for a model of another shape (names both).
            NeedsNotMetError: More interventions at once than there are slots.
        """
        intervention.check_model(self.layers, self.all_neurons)
        if not len(intervention):
            return 0
        if intervention.sha256 in self._slot_of:
            slot = self._slot_of.pop(intervention.sha256)
            self._slot_of[intervention.sha256] = slot
            return slot
        slots = self.clamp.shape[1] - 1
        taken = set(self._slot_of.values())
        slot = next((number for number in range(1, slots + 1) if number not in taken), 0)
        if not slot:
            idle = next((key for key, number in self._slot_of.items() if number not in in_use), None)
            if idle is None:
                raise NeedsNotMetError(
                    f"more than {slots} interventions at once: raise additional_config="
                    '{"personalitybench": {"slots": N}} of the model, or ask fewer at a time'
                )
            slot = self._slot_of.pop(idle)
        own = slice(self.first_neuron, self.first_neuron + self.neurons)
        for table, values in zip((self.clamp, self.add), intervention.tables(), strict=True):
            table[:, slot].copy_(torch.from_numpy(np.ascontiguousarray(values[:, own])))
        self._slot_of[intervention.sha256] = slot
        return slot

    def order(self, step: Step) -> None:
        """Write a step's orders to the device; rows that an earlier step left behind become idle."""
        written = 0 if step.idle else step.tokens
        self.scheduled += step.edited
        if self.device.type == "cpu":
            self.orders[:written].copy_(torch.from_numpy(step.packed[:written]))
            packed = self.orders[:written]
            self._rows = (packed[:, SLOT].nonzero()[:, 0], (packed[:, SHARD] >= 0).nonzero()[:, 0]) if written else None
        elif written:
            staging, event = self._staging[0]
            self._staging.append(self._staging.pop(0))
            event.synchronize()
            staging[:written].copy_(torch.from_numpy(step.packed[:written]))
            self.orders[:written].copy_(staging[:written], non_blocking=True)
            event.record()
        if self._dirty > written:
            self.orders[written : self._dirty, SLOT] = 0
            self.orders[written : self._dirty, SHARD] = -1
        self._dirty = written
        if self.statistics is not None and step.counted.any() and self.device.type != "cpu":
            self.statistics.note_tokens(step.counted)

    def apply(self, inputs: Tensor, layer: int, kind: int) -> Tensor:
        """Compute ``min(act(gate), clamp) + strength * add`` times up, on a CPU.

        Args:
            inputs: [tokens, 2 x neurons], gate then up; rows behind the step's tokens are padding.
            layer: Layer, from 0.
            kind: Index into :data:`KINDS`.

        Returns:
            [tokens, neurons]. Tokens that nobody edits get what vLLM's own module gives.
        """
        if self._rows is None:
            return self.stock[kind](inputs)
        edited, counted = self._rows
        whole = len(edited) == len(inputs)
        output = inputs.new_empty(len(inputs), self.neurons) if whole else self.stock[kind](inputs)
        activation = ACTIVATIONS[KINDS[kind]]
        if len(counted):
            seen = activation(inputs[counted, : self.neurons])
            self._counting().add(layer, seen, self.orders[counted, SHARD].long())
        if len(edited):
            given = inputs if whole else inputs[edited]
            gate, up = given.chunk(2, dim=-1)
            output[edited] = self._edited(activation(gate), layer, self.orders[edited]) * up
            self.applied[layer] += len(edited)
        return output

    def _edited(self, gate: Tensor, layer: int, orders: Tensor) -> Tensor:
        """In float32 and rounded once, as the transformers reference does."""
        slot = orders[:, SLOT]
        raised = self.add[layer].index_select(0, slot) * orders[:, STRENGTH].view(torch.float32).unsqueeze(1)
        if bool((orders[:, KEEP] != -1).any()):
            neurons = torch.arange(self.first_neuron, self.first_neuron + self.neurons, device=gate.device)
            words = hash_words(orders[:, SEED].long(), orders[:, POSITION].long(), layer, neurons)
            threshold = (orders[:, KEEP].long() & WORD).unsqueeze(1)
            raised *= (words < threshold) | (threshold == WORD)
        return (torch.minimum(gate.float(), self.clamp[layer].index_select(0, slot)) + raised).to(gate.dtype)

    def clear_statistics(self) -> None:
        """Begin to count at zero.

        Raises:
            NeedsNotMetError: There is no room for counts.
        """
        self._counting().clear()
        self.seen.zero_()
        self.unusable.zero_()

    def statistics_of(self, source: StatisticsSource, questions: Sequence[int]) -> GateStatistics:
        """What was counted since the last clearing.

        Raises:
            NeedsNotMetError: There is no room for counts.
            ModelError: A layer's kernel saw other tokens than were sent, or activations that are no numbers.
        """
        found = self._counting().build(source, questions, copy=True)
        if self.device.type != "cpu":
            if int(self.unusable):
                raise ModelError(
                    f"{int(self.unusable)} activations were NaN or infinite: load the model in another precision "
                    "(bfloat16 or float32) and check its weights"
                )
            if not bool((self.seen == int(found.tokens.sum())).all()):
                raise ModelError(
                    f"{int(found.tokens.sum())} tokens were sent to be counted, the layers saw {self.seen.tolist()}"
                )
        return found

    def _counting(self) -> StatisticsBuilder:
        if self.statistics is None:
            raise NeedsNotMetError(
                'this engine counts nothing: load it with additional_config={"personalitybench": {"statistics": {}}}'
            )
        return self.statistics


def _staging(max_tokens: int, device: torch.device) -> list[tuple[Tensor, Any]]:
    if device.type == "cpu":
        return []
    return [
        (torch.zeros((max_tokens, len(FIELDS)), dtype=torch.int32, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]  # torch
        for _ in range(PINNED)
    ]
