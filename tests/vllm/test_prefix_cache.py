"""What a steered request leaves in the prefix cache is never read by one that is steered otherwise, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from personalitybench.backends.wishes import Wish
from tests.vllm.counting import COUNTING
from tests.vllm.engines import Request, answer, tokens_of
from tests.vllm.models import BOS, PAD, VOCABULARY, save_intervention
from tests.vllm.test_batches import assert_steered, mixed_requests, unsteered

Engine = Callable[..., Any]
BLOCK = 32
CLOSE = 1e-3
"""Of log-probabilities in float32, from other sums in attention."""


def some_prompt(seed: int, length: int = 45) -> list[int]:
    return [BOS, *np.random.default_rng(seed).integers(PAD + 1, VOCABULARY, length).tolist()]


@pytest.fixture(scope="module")
def caching(engine: Engine) -> Any:
    return engine(enable_prefix_caching=True, block_size=BLOCK, num_gpu_blocks_override=256, additional_config=COUNTING)


@pytest.fixture(scope="module")
def fresh(engine: Engine) -> Any:
    """Without a prefix cache, every request is read from the beginning."""
    return engine()


def continuation(caching: Any, steered: Request, wanted: dict[str, Any] | None) -> Request:
    """A request whose prompt is that of a steered one and its answer."""
    tokens = tokens_of(caching, [steered])[0]
    assert len(tokens) == steered.new_tokens
    return Request([*steered.prompt, *tokens], wanted, new_tokens=4)


def test_an_unsteered_request_that_continues_a_steered_answer_reads_nothing_of_it(
    caching: Any, fresh: Any, interventions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"intervention": interventions[0], "strength": 2.0}
    steered = Request(some_prompt(100), wanted, new_tokens=60, more={"ignore_eos": True})
    later = continuation(caching, steered, None)
    found, expected = answer(caching, [later])[0], answer(fresh, [later])[0]
    assert found.cached_tokens == 0
    assert found.tokens == expected.tokens
    assert found.first_logprob == pytest.approx(expected.first_logprob, abs=CLOSE)

    # Without the salt it would have read the steered keys and values, and been another answer.
    monkeypatch.setattr(Wish, "salt", lambda *_: "")
    steered = Request(some_prompt(101), wanted, new_tokens=60, more={"ignore_eos": True})
    later = continuation(caching, steered, None)
    found, expected = answer(caching, [later])[0], answer(fresh, [later])[0]
    assert found.cached_tokens >= 2 * BLOCK
    assert abs(found.first_logprob - expected.first_logprob) > 10 * CLOSE


def test_a_second_turn_with_the_same_steering_reads_its_history_unsteered(
    caching: Any, fresh: Any, interventions: list[str]
) -> None:
    wanted = {"intervention": interventions[0], "strength": 2.0}
    steered = Request(some_prompt(102), wanted, new_tokens=60, more={"ignore_eos": True})
    later = continuation(caching, steered, wanted)
    found, expected = answer(caching, [later])[0], answer(fresh, [later])[0]
    assert found.tokens == expected.tokens
    assert found.first_logprob == pytest.approx(expected.first_logprob, abs=CLOSE)


def test_an_artifact_that_was_written_anew_is_another_one(caching: Any, fresh: Any, tmp_path: Path) -> None:
    def request() -> Request:
        # All of the prompt is steered: its keys and values depend on the artifact.
        wanted = {"intervention": str(tmp_path / "own"), "strength": 2.0, "answer_from": 1}
        return Request(some_prompt(103, 90), wanted, new_tokens=4)

    answers = []
    for seed in (10, 11):
        save_intervention(tmp_path / "own", seed)
        found, expected = answer(caching, [request()])[0], answer(fresh, [request()])[0]
        assert found.tokens == expected.tokens
        assert found.first_logprob == pytest.approx(expected.first_logprob, abs=CLOSE)
        answers.append(found.tokens)
    assert answers[0] != answers[1]


def test_the_cache_serves_requests_that_want_the_same(caching: Any, fresh: Any, interventions: list[str]) -> None:
    requests = mixed_requests(interventions, lengths=(70, 100))
    first, second = answer(caching, requests), answer(caching, requests)
    assert [one.cached_tokens for one in first] == [0] * len(requests)
    assert min(one.cached_tokens for one in second) >= 2 * BLOCK
    expected = tokens_of(fresh, requests)
    assert [one.tokens for one in first] == expected
    assert [one.tokens for one in second] == expected
    assert_steered(requests, expected, tokens_of(fresh, unsteered(requests)))


def test_a_counted_answer_shares_its_prompt_but_is_computed_itself(caching: Any) -> None:
    """Read after it was answered, uncounted, in the same engine; read again; answered again and counted."""
    plain = Request(some_prompt(104, 90), None, new_tokens=70, more={"ignore_eos": True})
    tokens = tokens_of(caching, [plain])[0]
    first = len(plain.prompt)
    reading = Request([*plain.prompt, *tokens[:-1]], {"shard": 0, "answer_from": first}, new_tokens=1)
    for _ in range(2):
        assert answer(caching, [reading])[0].cached_tokens == first // BLOCK * BLOCK
    uncounted = Request(reading.prompt, None, new_tokens=1)
    assert answer(caching, [uncounted])[0].cached_tokens == (len(reading.prompt) - 1) // BLOCK * BLOCK
    again = Request(plain.prompt, {"shard": 0}, new_tokens=70, more={"ignore_eos": True})
    found = answer(caching, [again])[0]
    assert found.tokens == tokens
    assert found.cached_tokens == first // BLOCK * BLOCK
