"""What is asked of the Triton kernels in the interpreter; see ``tests.vllm.interpreter``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personalitybench.activations.bins import Bins
from personalitybench.activations.masks import WORD, hash_words
from personalitybench.activations.statistics import StatisticsBuilder
from personalitybench.backends.vllm import kernel
from personalitybench.backends.vllm.router import KEEP, POSITION, SEED, SHARD, SLOT, STRENGTH, Router, Step
from personalitybench.backends.vllm.state import ACTIVATIONS, KINDS, GateState
from personalitybench.backends.wishes import Wish
from tests.vllm import engines

LAYERS, FIRST, SLOTS, SHARDS = 2, 200, 3, 4


def _state(kind: str, neurons: int, tokens: int) -> GateState:
    """A state with random tables; the same for the same sizes."""

    def stock(inputs: torch.Tensor) -> torch.Tensor:
        gate, up = inputs.chunk(2, dim=-1)
        return ACTIVATIONS[kind](gate) * up

    state = GateState(
        layers=LAYERS,
        neurons=neurons,
        first_neuron=FIRST,
        all_neurons=FIRST + neurons,
        slots=SLOTS,
        max_tokens=tokens + 7,
        statistics=StatisticsBuilder(LAYERS, neurons, SHARDS),
        stock={KINDS.index(kind): stock},
        device=torch.device("cpu"),
    )
    draw = torch.Generator().manual_seed(1)
    shape = LAYERS, SLOTS, neurons
    state.clamp[:, 1:] = torch.where(torch.rand(shape, generator=draw) < 0.3, 0.0, torch.inf)
    state.add[:, 1:] = torch.rand(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.5)
    return state


def _step(tokens: int) -> Step:
    """Every kind of wish: a part of the tokens of five requests, and one request that wants nothing."""
    router = Router(tokens + 7, SHARDS)
    router.add("prompt", Wish(intervention=Path("a"), strength=1.3, keep=0.6, seed=7), 1, 3)
    router.add("large seed", Wish(intervention=Path("b"), strength=-0.5, keep=0.9, seed=2**32 - 3), 2, 0)
    router.add("counted", Wish(shard=2, answer_from=1), 0, 12)
    router.add("both", Wish(intervention=Path("c"), strength=2.0, first_token=True, shard=3), 3, 2)
    router.add("nothing kept", Wish(intervention=Path("a"), strength=9.0, keep=0.0, shard=0), 1, 0)
    names = ["prompt", "nobody", "large seed", "counted", "both", "nothing kept"]
    ends = np.linspace(0, tokens, len(names) + 1).astype(int)
    return router.step(names, ends, np.array([0, 5, 100_000, 0, 0, 2**20]))


def _call_compare(kind: str, neurons: int, tokens: int) -> dict[str, Any]:
    """Compare the kernels with the torch op and with plain arithmetic on the kernels' own activations."""
    draw = torch.Generator().manual_seed(2)
    spread = 10.0 ** (5 * torch.rand(tokens + 2, 1, generator=draw) - 3.5)  # bins from the first to the last
    inputs = torch.randn(tokens + 2, 2 * neurons, generator=draw) * spread  # two rows of padding
    inputs[0, :3] = torch.tensor([0.0, -0.0, 2.0**-10])
    number = KINDS.index(kind)
    one, other = _state(kind, neurons, tokens), _state(kind, neurons, tokens)
    # With nothing ordered and an up projection of ones, the output is the activation.
    idle = kernel.launch(
        other, torch.cat([inputs[:, :neurons], torch.ones_like(inputs[:, neurons:])], 1), _number(0), number
    )
    step = _step(tokens)
    one.order(step)
    other.order(_step(tokens))
    found: dict[str, Any] = {"activation": _off(idle, ACTIVATIONS[kind](inputs[:, :neurons])), "edits": step.edited}
    found |= {"output": 0.0, "arithmetic": True, "counted": int(step.counted.sum()), "touched": 0}
    counts = StatisticsBuilder(LAYERS, neurons, SHARDS)
    for layer in range(LAYERS):
        output, expected = kernel.launch(other, inputs, _number(layer), number), one.apply(inputs, layer, number)
        found["output"] = max(found["output"], _off(output, expected))
        plain = _plainly(one, idle, layer) * inputs[:, neurons:]
        found["arithmetic"] &= torch.equal(output, plain)
        found["touched"] += int((output != idle * inputs[:, neurons:]).any(1).sum())
        rows = (one.orders[: tokens + 2, SHARD] >= 0).nonzero()[:, 0]
        counts.add(layer, idle[rows], one.orders[rows, SHARD].long())
    found["applied"] = [one.applied.tolist(), other.applied.tolist()]
    found["seen"] = other.seen.tolist()
    assert other.statistics is not None
    found["active"], found["histogram"] = (
        [torch.equal(mine, theirs), int(mine.sum()), int((mine.reshape(-1, mine.shape[-1]).sum(0) > 0).sum())]
        for mine, theirs in zip(other.statistics.counts, counts.counts, strict=True)
    )
    found["unusable"] = int(other.unusable)
    return found


def _call_unusable() -> int:
    """How many activations a kernel found that are no numbers; tokens that are not counted are not looked at."""
    state = _state("silu", 64, 12)
    state.order(_step(12))
    inputs = torch.ones(12, 128)
    counted = (state.orders[:12, SHARD] >= 0).nonzero()[:, 0]
    inputs[:, 5] = torch.nan
    inputs[int(counted[0]), 9] = torch.inf
    kernel.launch(state, inputs, _number(0), 0)
    return int(state.unusable) - len(counted)


def _call_bins_of_the_released_code() -> str:
    state = _state("silu", 64, 12)
    state.statistics = StatisticsBuilder(LAYERS, 64, SHARDS, Bins.paper_code())
    try:
        kernel.launch(state, torch.ones(12, 128), _number(0), 0)
    except Exception as error:  # noqa: BLE001 (the test looks at it)
        return f"{type(error).__name__}: {error}"
    return "launched"


def _number(layer: int) -> torch.Tensor:
    return torch.tensor(layer, dtype=torch.int32)


def _off(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative where the values are above 1."""
    return float(((one - other).abs() / other.abs().clamp(min=1.0)).max())


def _plainly(state: GateState, active: torch.Tensor, layer: int) -> torch.Tensor:
    """Token by token, in float32, rounded at each step: what an edit is defined as."""
    result = active.clone()
    neurons = torch.arange(FIRST, FIRST + state.neurons)
    for token, order in enumerate(state.orders[: len(active)]):
        slot = int(order[SLOT])
        if not slot:
            continue
        strength = order[STRENGTH : STRENGTH + 1].view(torch.float32)
        threshold = int(order[KEEP]) & WORD
        words = hash_words(order[SEED].long(), order[POSITION].long(), layer, neurons)
        stays = (words < threshold) | (threshold == WORD)
        raised = torch.where(stays, state.add[layer, slot] * strength, 0.0)
        result[token] = torch.minimum(active[token], state.clamp[layer, slot]) + raised
    return result


def _call_use_kernels() -> None:
    """From now on engines on this CPU call the kernels, as those on a GPU do, and count tokens as those do."""
    order = GateState.order

    def ordered(self: GateState, step: Step) -> None:
        order(self, step)
        if self.statistics is not None and step.counted.any():
            self.statistics.note_tokens(step.counted)

    GateState.order = ordered  # type: ignore[method-assign]
    GateState.apply = lambda self, inputs, layer, kind: kernel.launch(self, inputs, _number(layer), kind)  # type: ignore[method-assign]


def _call_runner(name: str) -> list[str]:
    """Modules of the classes of an engine's model runner."""
    worker = engines.opened[name].llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return [kind.__module__ for kind in type(worker.model_runner).__mro__]


CALLS: Mapping[str, Any] = {
    "compare": _call_compare,
    "unusable": _call_unusable,
    "bins": _call_bins_of_the_released_code,
    "use_kernels": _call_use_kernels,
    "runner": _call_runner,
}
