"""Statistics of answers as transformers' hooks count them, as an engine counts them, and how far two are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personalitybench.activations.statistics import GateStatistics, StatisticsBuilder, join_neurons
from tests.made_up import SOURCE
from tests.vllm.engines import Request

SHARDS = 4
COUNTING: dict[str, Any] = {"personalitybench": {"statistics": {"shards": SHARDS}}}


def by_transformers(model: Path, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> GateStatistics:
    """Read prompts and answers one by one and count what a decode step would have read: all but the last token.

    What a steered request edits is counted before it is edited.
    """
    from transformers import AutoModelForCausalLM

    from personalitybench.activations.interventions import Intervention
    from personalitybench.activations.layouts import captured, find_gates
    from personalitybench.activations.steering import steered

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    gates = find_gates(loaded)
    builder = StatisticsBuilder(gates.layers, gates.neurons, SHARDS)
    for one, answer in zip(requests, answers, strict=True):
        wanted = one.wanted or {}
        if wanted.get("shard") is None:
            continue
        first, shard = len(one.prompt), int(wanted["shard"])
        row = None
        if wanted.get("intervention"):
            row = (Intervention.load(Path(wanted["intervention"])), wanted["strength"])

        def visit(layer: int, activation: torch.Tensor, first: int = first, shard: int = shard) -> None:
            builder.add(layer, activation[0, first:], shard)

        tokens = torch.tensor([[*one.prompt, *answer[:-1]]])
        # Hooks run in the order of their registration: counted, then edited.
        with torch.inference_mode(), captured(gates, visit), steered(loaded, gates, [row], prompt_columns=first):
            loaded(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return builder.build(SOURCE, [0] * SHARDS)


def clear(llm: Any) -> None:
    """Have all devices of an engine count from zero."""
    llm.collective_rpc("personalitybench_clear_statistics")


def by_engine(llm: Any, folder: Path) -> GateStatistics:
    """What all devices of an engine counted since, joined."""
    arguments = (str(folder), SOURCE.model_dump_json(), [0] * SHARDS)
    return joined(llm.collective_rpc("personalitybench_save_statistics", args=arguments))


def joined(folders: Sequence[str]) -> GateStatistics:
    """The statistics of some devices as one."""
    return join_neurons([GateStatistics.load(Path(folder)) for folder in sorted(folders)])


def assert_same(one: GateStatistics, other: GateStatistics) -> None:
    """Counts are the same but for the rounding of sums, which moves few activations over zero or the edge of a bin."""
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.tokens.sum() > 0
    moved = np.abs(one.active - other.active).sum()
    assert moved <= 1e-5 * one.active.sum() + 1, f"{moved} of {one.active.sum()} activations changed their sign"
    moved = np.abs(one.histogram - other.histogram).sum() / 2
    assert moved <= 1e-3 * one.histogram.sum(), f"{moved} of {one.histogram.sum()} activations are in other bins"
