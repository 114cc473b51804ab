"""A model that vLLM compiled is steered, also one from its cache, which had a stock model first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.engines import edits_of, run_elsewhere, tokens_of
from tests.vllm.models import LAYERS
from tests.vllm.test_batches import assert_steered, mixed_requests, unsteered


def test_a_compiled_model_is_steered_from_the_cache_too(
    engine: Callable[..., Any], models: Callable[[str], Path], interventions: list[str], tmp_path: Path
) -> None:
    requests = mixed_requests(interventions)
    llama = {"model": str(models("llama")), "enforce_eager": False}
    stock = [
        {"call": "open", "name": "stock", "steerable": False, **llama},
        {"call": "answer", "name": "stock", "requests": unsteered(requests)},
    ]
    steered = [
        {"call": "open", "name": "steered", **llama},
        {"call": "answer", "name": "steered", "requests": requests},
        {"call": "reports", "name": "steered"},
    ]
    cache = tmp_path / "cache"
    _, plain, _, first, reports = run_elsewhere(tmp_path / "cold", stock + steered, VLLM_CACHE_ROOT=str(cache))
    made = set(cache.glob("torch_compile_cache/torch_aot_compile/*"))
    assert len(made) == 2, "with and without the plug-in the same model has another place in the cache"
    _, second, again = run_elsewhere(tmp_path / "warm", steered, VLLM_CACHE_ROOT=str(cache))
    assert set(cache.glob("torch_compile_cache/torch_aot_compile/*")) == made, "the second process compiled nothing"

    expected = tokens_of(engine(), requests)
    assert first == expected
    assert second == expected
    assert plain == tokens_of(engine(steerable=False), unsteered(requests))
    assert_steered(requests, expected, plain)
    edited = edits_of(requests, expected)
    assert [one["applied"] for one in (*reports, *again)] == [[edited] * LAYERS] * 2
