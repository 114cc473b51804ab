"""Engines with processes of their own (vLLM's default), and models whose neurons are on two devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.counting import COUNTING, SHARDS, SOURCE, assert_same, by_engine, clear, joined
from tests.vllm.engines import PLUGIN, Request, edits_of, run_elsewhere, tokens_of
from tests.vllm.models import LAYERS, NEURONS, save_intervention
from tests.vllm.test_refusals import bad_request
from tests.vllm.test_statistics import counted_requests, inputs_of

Engine = Callable[..., Any]


@pytest.fixture(scope="module")
def requests(interventions: list[str]) -> list[Request]:
    return counted_requests(interventions)


def test_processes_of_their_own(
    engine: Engine, models: Callable[[str], Path], requests: list[Request], tmp_path: Path
) -> None:
    """The default of vLLM: the engine and its worker in other processes than the caller."""
    bad = [
        Request([0, 5, 7], bad_request("missing", tmp_path / "missing")),
        Request([0, 5, 7], bad_request("shape", tmp_path / "shape")),
        Request([0, 5, 7], {"shard": SHARDS}),
    ]
    many = [save_intervention(tmp_path / str(seed), seed) for seed in range(4)]
    crowd = [Request([0, 5, 7], {"intervention": folder, "strength": 1.0}) for folder in many]
    own = {"name": "engine"}
    options = {"additional_config": {PLUGIN: COUNTING[PLUGIN] | {"slots": 3}}}
    calls: list[dict[str, Any]] = [
        {"call": "open", **own, "model": str(models("llama")), **options},
        {"call": "answer", **own, "requests": requests},
        {"call": "reports", **own},
        {"call": "rpc", **own, "method": "personalitybench_save_statistics", "arguments": _save(tmp_path / "counts")},
        *({"call": "refused", **own, "requests": [requests[0], one, requests[0]]} for one in bad),
        {"call": "refused", **own, "requests": crowd},
        {"call": "answer", **own, "requests": requests},
    ]
    _, answers, reports, folders, *refused, again = run_elsewhere(
        tmp_path / "exchange", calls, VLLM_ENABLE_V1_MULTIPROCESSING="1"
    )
    llm = engine(additional_config=COUNTING)
    clear(llm)
    assert answers == tokens_of(llm, requests)
    edited = edits_of(requests, answers)
    assert [(one["edited_tokens"], one["scheduled"], one["applied"]) for one in reports] == [
        (edited, edited, [edited] * LAYERS)
    ]
    found = joined(folders)
    assert found.tokens.tolist() == inputs_of(requests, answers)
    assert_same(found, by_engine(llm, tmp_path / "own"))

    said = [
        "StorageError: intervention artifact .* is missing",
        "ModelError: .*3 layers x 256 neurons, but this model has 3 layers x 128 neurons",
        "ConfigurationError: shard 4: the engine counts shards 0 to 3",
        "NeedsNotMetError: more than 3 interventions at once",
    ]
    for text, expected in zip(refused, said, strict=True):
        assert_matches(text, expected)
    assert again == answers, "the engine goes on after a refusal"


def test_neurons_on_two_devices(
    engine: Engine, models: Callable[[str], Path], requests: list[Request], tmp_path: Path
) -> None:
    own = {"name": "engine"}
    options = {"tensor_parallel_size": 2, "additional_config": COUNTING}
    calls: list[dict[str, Any]] = [
        {"call": "open", **own, "model": str(models("llama")), **options},
        {"call": "answer", **own, "requests": requests},
        {"call": "reports", **own},
        {"call": "rpc", **own, "method": "personalitybench_save_statistics", "arguments": _save(tmp_path / "counts")},
    ]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    _, answers, reports, folders = run_elsewhere(tmp_path / "exchange", calls, **environment)
    llm = engine(additional_config=COUNTING)
    clear(llm)
    assert answers == tokens_of(llm, requests)
    edited = edits_of(requests, answers)
    assert [one["applied"] for one in reports] == [[edited] * LAYERS] * 2
    assert [(one["neurons"], one["edited_tokens"]) for one in reports] == [(NEURONS, edited)] * 2
    assert len(set(folders)) == 2
    found = joined(folders)
    assert found.tokens.tolist() == inputs_of(requests, answers)
    assert_same(found, by_engine(llm, tmp_path / "whole"))


def assert_matches(text: str, pattern: str) -> None:
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


def _save(folder: Path) -> list[Any]:
    return [str(folder), SOURCE.model_dump_json(), [0] * SHARDS]
