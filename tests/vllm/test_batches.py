"""Each request of a mixed batch gets what it gets alone, and what transformers gives it; all model families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.engines import Request, edited_by, edits_of, preemptions, report, tokens_of, transformers_tokens
from tests.vllm.models import BOS, FAMILIES, LAYERS, PAD, VOCABULARY

Engine = Callable[..., Any]


def mixed_requests(interventions: list[str], *, lengths: tuple[int, int] = (3, 40)) -> list[Request]:
    """Twelve requests: unsteered, three interventions, several strengths, parts left out, the first token."""
    draw = np.random.default_rng(1)
    first, second, third = ({"intervention": folder} for folder in interventions)
    wanted = [
        None,
        first | {"strength": 1.0},
        second | {"strength": 0.7},
        third | {"strength": 1.3},
        first | {"strength": 2.0},
        second | {"strength": 1.0, "keep": 0.9},
        third | {"strength": 1.0, "first_token": True},
        first | {"strength": 1.0, "keep": 0.5, "seed": 4},
        None,
        first | {"strength": 1.0, "keep": 0.5, "seed": 5},
        second | {"strength": -1.0},
        third | {"strength": 0.0},
    ]
    sizes = draw.integers(*lengths, len(wanted))
    prompts = [[BOS, *draw.integers(PAD + 1, VOCABULARY, size).tolist()] for size in sizes]
    prompts[9] = prompts[7]  # only the seed differs
    return [Request(prompt, wish) for prompt, wish in zip(prompts, wanted, strict=True)]


def unsteered(requests: list[Request]) -> list[Request]:
    return [Request(one.prompt, new_tokens=one.new_tokens) for one in requests]


def assert_steered(requests: list[Request], answers: list[list[int]], plain: list[list[int]]) -> None:
    """Steering is felt in every steered answer, and in no other."""
    differs = [answer != stock for answer, stock in zip(answers, plain, strict=True)]
    assert differs == [one.wanted is not None for one in requests]
    assert answers[7] != answers[9], "the seed decides which neurons are raised"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_each_alone_and_transformers(
    engine: Engine, models: Callable[[str], Path], interventions: list[str], family: str
) -> None:
    requests = mixed_requests(interventions)
    llm = engine(family)
    together, edited, scheduled, applied = edited_by(llm, requests)
    alone = [tokens_of(llm, [one])[0] for one in requests]
    assert together == alone
    assert together == transformers_tokens(models(family), requests)
    stock = tokens_of(engine(family, steerable=False), unsteered(requests))
    assert tokens_of(llm, unsteered(requests)) == stock
    assert_steered(requests, together, stock)
    assert edited == edits_of(requests, together), "every answer token but the last, which is never an input"
    assert scheduled == edited
    assert applied == [edited] * LAYERS


def test_a_prompt_in_chunks_changes_nothing(engine: Engine, interventions: list[str]) -> None:
    requests = mixed_requests(interventions)
    whole = engine()
    expected = tokens_of(whole, requests)
    for most in (16, 13):  # of 12 sequences: decode steps leave a few tokens, or one, for the prompts
        llm = engine(max_num_batched_tokens=most, max_num_seqs=12)
        answers, edited, scheduled, applied = edited_by(llm, requests)
        assert answers == expected
        assert edited == scheduled == edits_of(requests, answers)
        assert applied == [edited] * LAYERS
    assert_steered(requests, expected, tokens_of(whole, unsteered(requests)))


def test_requests_that_lose_their_memory_are_steered_again_and_counted_once(
    engine: Engine, interventions: list[str]
) -> None:
    requests = [replace(one, new_tokens=60) for one in mixed_requests(interventions)]
    expected = tokens_of(engine(), requests)
    llm = engine(
        max_model_len=128, block_size=32, num_gpu_blocks_override=14, max_num_batched_tokens=64, disable_log_stats=False
    )
    before = preemptions(llm)
    answers, edited, scheduled, applied = edited_by(llm, requests)
    lost = preemptions(llm) - before
    assert lost >= 4
    assert answers == expected
    assert edited == edits_of(requests, answers)
    assert scheduled > edited, "steered answer tokens were computed again"
    assert applied == [scheduled] * LAYERS


def test_several_answers_of_one_request_are_all_steered(engine: Engine, interventions: list[str]) -> None:
    from vllm import SamplingParams, TokensPrompt

    llm, prompt = engine(), mixed_requests(interventions)[1].prompt
    wanted = {"personalitybench": {"intervention": interventions[0], "strength": 1.0}}
    params = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=8, ignore_eos=True, extra_args=wanted)
    before = report(llm)["edited_tokens"]
    outputs = llm.generate([TokensPrompt(prompt_token_ids=prompt)], params, use_tqdm=False)[0].outputs
    assert len({tuple(one.token_ids) for one in outputs}) == 3
    assert report(llm)["edited_tokens"] - before == 3 * 7


def test_two_engines_of_one_process_keep_apart(engine: Engine, interventions: list[str]) -> None:
    """Each has orders and tables of its own, whichever ran last."""
    requests = mixed_requests(interventions)
    first, second = engine("llama"), engine("qwen2")
    expected = tokens_of(first, requests), tokens_of(second, requests)
    assert expected[0] != expected[1]
    for one, other in zip(requests[1:4], requests[4:7], strict=True):
        assert tokens_of(first, [one])[0] == expected[0][requests.index(one)]
        assert tokens_of(second, [other])[0] == expected[1][requests.index(other)]
