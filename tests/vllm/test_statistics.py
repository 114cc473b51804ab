"""What an engine counts is what transformers' hooks count, however the requests were run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from personalitybench.activations.bins import Bins
from personalitybench.activations.statistics import GateStatistics
from personalitybench.errors import NeedsNotMetError
from tests.vllm.counting import COUNTING, SHARDS, assert_same, by_engine, by_transformers, clear
from tests.vllm.engines import Request, preemptions, tokens_of
from tests.vllm.models import FAMILIES
from tests.vllm.test_batches import mixed_requests

Engine = Callable[..., Any]


def counted_requests(interventions: list[str]) -> list[Request]:
    """Requests in several shards: steered and counted, counted, steered, neither; short prompts and short answers."""
    requests = mixed_requests(interventions)
    shards = [0, 1, None, 2, None, None, None, None, 3, None, 1, 0]
    found = []
    for one, shard in zip(requests, shards, strict=True):
        wanted = (one.wanted or {}) | ({} if shard is None else {"shard": shard})
        found.append(replace(one, wanted=wanted or None))
    more = [
        Request([5], {"shard": 0}),  # shorter than the batch: the released code would count all of it
        Request([0, 7, 300], {"shard": 2}, more={"ignore_eos": True}),
        Request([0, 8, 9], {"shard": 3}, new_tokens=2),
        Request([0, 8, 10], {"shard": 3}, new_tokens=1),  # the only answer token is never an input
    ]
    return found + more


def inputs_of(requests: list[Request], answers: list[list[int]]) -> list[int]:
    """Answer tokens that are inputs of a step, by shard."""
    tokens = [0] * SHARDS
    for one, answer in zip(requests, answers, strict=True):
        if one.wanted and one.wanted.get("shard") is not None:
            tokens[one.wanted["shard"]] += len(answer) - 1
    return tokens


def teacher_forced(requests: list[Request], answers: list[list[int]]) -> list[Request]:
    """Requests that read prompt and answer in one go; the last answer token is left out, it was never an input."""
    return [
        Request(
            [*one.prompt, *answer[:-1]],
            {name: one.wanted[name] for name in ("intervention", "strength", "shard") if name in one.wanted}
            | {"answer_from": len(one.prompt)},
            new_tokens=1,
        )
        for one, answer in zip(requests, answers, strict=True)
        if one.wanted and one.wanted.get("shard") is not None
    ]


@pytest.fixture(scope="module")
def requests(interventions: list[str]) -> list[Request]:
    return counted_requests(interventions)


@pytest.fixture(scope="module")
def answers(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Of an engine that counts nothing."""
    uncounted = [
        replace(one, wanted={k: v for k, v in one.wanted.items() if k != "shard"} or None) if one.wanted else one
        for one in requests
    ]
    return tokens_of(engine(), uncounted)


@pytest.fixture(scope="module")
def reference(models: Callable[[str], Path], requests: list[Request], answers: list[list[int]]) -> GateStatistics:
    return by_transformers(models("llama"), requests, answers)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"max_num_batched_tokens": 16, "max_num_seqs": 16}, id="chunks"),
        pytest.param({"enable_prefix_caching": True, "block_size": 32}, id="prefix-cache"),
    ],
)
def test_counts_are_those_of_transformers(
    engine: Engine,
    requests: list[Request],
    answers: list[list[int]],
    reference: GateStatistics,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    llm = engine(additional_config=COUNTING, **options)
    expected = inputs_of(requests, answers)
    assert reference.tokens.tolist() == expected
    for turn in ("decoding", "decoding again"):  # the second finds its prompts in the cache, if there is one
        clear(llm)
        assert tokens_of(llm, requests) == answers, "to count changes no answer"
        found = by_engine(llm, tmp_path / turn)
        assert found.tokens.tolist() == expected
        assert_same(found, reference)

    for turn in ("reading", "reading again"):
        clear(llm)
        tokens_of(llm, teacher_forced(requests, answers))
        assert_same(by_engine(llm, tmp_path / turn), reference)


def test_lost_memory_counts_once(engine: Engine, requests: list[Request], tmp_path: Path) -> None:
    longer = [replace(one, new_tokens=60) for one in requests]
    expected = engine(additional_config=COUNTING)
    clear(expected)
    answers = tokens_of(expected, longer)
    llm = engine(
        additional_config=COUNTING,
        max_model_len=128,
        block_size=32,
        num_gpu_blocks_override=14,
        max_num_batched_tokens=64,
        disable_log_stats=False,
    )
    clear(llm)
    before = preemptions(llm)
    assert tokens_of(llm, longer) == answers
    assert preemptions(llm) - before >= 4
    found = by_engine(llm, tmp_path / "few")
    assert found.tokens.tolist() == inputs_of(longer, answers)
    assert_same(found, by_engine(expected, tmp_path / "many"))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
def test_every_family_counts_as_transformers_does(
    engine: Engine, models: Callable[[str], Path], requests: list[Request], family: str, tmp_path: Path
) -> None:
    llm = engine(family, additional_config=COUNTING)
    clear(llm)
    answers = tokens_of(llm, requests)
    found = by_engine(llm, tmp_path)
    assert found.tokens.tolist() == inputs_of(requests, answers)
    assert_same(found, by_transformers(models(family), requests, answers))


def test_bins_of_the_released_code(
    engine: Engine, requests: list[Request], answers: list[list[int]], tmp_path: Path
) -> None:
    bins = {"spacing": "linear", "resolution": 100, "start": 0.0, "stop": 2.99, "reading": "left-edge"}
    llm = engine(additional_config={"personalitybench": {"statistics": {"shards": SHARDS, "bins": bins}}})
    clear(llm)
    assert tokens_of(llm, requests) == answers
    found = by_engine(llm, tmp_path)
    assert found.manifest.bins == Bins.paper_code()
    assert np.array_equal(found.histogram.sum(axis=-1), found.active.sum(axis=0))
    assert found.histogram.sum() > 0


def test_to_clear_is_to_begin_again(engine: Engine, requests: list[Request], tmp_path: Path) -> None:
    llm = engine(additional_config=COUNTING)
    clear(llm)
    found = by_engine(llm, tmp_path / "none")
    assert not found.tokens.any()
    assert not found.active.any()
    assert not found.histogram.any()
    tokens_of(llm, requests)
    once = by_engine(llm, tmp_path / "once")
    tokens_of(llm, requests)
    twice = by_engine(llm, tmp_path / "twice")
    assert np.array_equal(twice.active, 2 * once.active)
    assert np.array_equal(twice.tokens, 2 * once.tokens)


def test_an_engine_without_room_says_so(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NeedsNotMetError, match=r"this engine counts nothing.*statistics"):
        clear(engine())
    with pytest.raises(NeedsNotMetError, match="cannot be steered: load it with load_format=personalitybench"):
        clear(engine(steerable=False))
