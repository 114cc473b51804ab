"""The Triton kernels, and vLLM's second model runner: what a GPU runs, here in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytest.importorskip("triton", reason="Triton is not installed; its interpreter runs the kernels")

from tests.vllm.counting import COUNTING, SHARDS, SOURCE, assert_same, by_engine, clear, joined
from tests.vllm.engines import Request, edits_of, run_elsewhere, tokens_of
from tests.vllm.models import LAYERS
from tests.vllm.test_statistics import counted_requests, inputs_of

Engine = Callable[..., Any]
# Neurons below, at and beyond a block of either kernel, and no multiple of it; tokens beyond what one program counts.
CASES = [("silu", 128, 40), ("gelu_tanh", 128, 40), ("silu", 100, 37), ("silu", 1031, 13), ("silu", 24, 560)]
CLOSE = 5e-6
"""Of two ways to compute an activation in float32; relative where it is above 1."""


def short(requests: list[Request]) -> list[Request]:
    return [replace(one, new_tokens=min(one.new_tokens, 7)) for one in requests]


@pytest.fixture(scope="module")
def requests(interventions: list[str]) -> list[Request]:
    """Few tokens, and some prompts that end just before a block of the key-value cache is full."""
    found = counted_requests(interventions)[1:]
    return short(found + [replace(one, prompt=one.prompt[:1] * 28) for one in found[:6]])


@pytest.fixture(scope="module")
def results(
    models: Callable[[str], Path], requests: list[Request], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Everything in one process, because to start one takes most of the time."""
    folder = tmp_path_factory.mktemp("interpreter")
    own = {"name": "engine"}
    few = {"block_size": 32, "max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 16}
    lost = {"num_gpu_blocks_override": 7, "disable_log_stats": False}
    save = {"call": "rpc", **own, "method": "personalitybench_save_statistics"}
    calls: dict[str, dict[str, Any]] = {
        **{
            f"case {number}": {"call": "compare", "kind": kind, "neurons": neurons, "tokens": tokens}
            for number, (kind, neurons, tokens) in enumerate(CASES)
        },
        "unusable": {"call": "unusable"},
        "bins": {"call": "bins"},
        "": {"call": "open", **own, "model": str(models("llama")), "additional_config": COUNTING, **few, **lost},
        "runner": {"call": "runner", **own},
    }
    for op in ("torch", "triton"):
        if op == "triton":
            calls["use kernels"] = {"call": "use_kernels"}
        calls |= {
            f"clear for {op}": {"call": "rpc", **own, "method": "personalitybench_clear_statistics", "arguments": []},
            f"answers of {op}": {"call": "answer", **own, "requests": requests},
            f"reports of {op}": {"call": "reports", **own},
            f"counts of {op}": save | {"arguments": [str(folder / op), SOURCE.model_dump_json(), [0] * SHARDS]},
            f"preemptions of {op}": {"call": "preemptions", **own},
        }
    return dict(zip(calls, run_elsewhere(folder, list(calls.values()), program="interpreter"), strict=True))


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda number: "-".join(map(str, CASES[number])))
def test_kernels_do_what_the_torch_op_does(results: dict[str, Any], case: int) -> None:
    found = results[f"case {case}"]
    layers = len(found["seen"])
    assert layers > 1
    assert found["activation"] < CLOSE
    assert found["output"] < CLOSE
    assert found["arithmetic"], "exactly min(activation, clamp) + strength * add, times up, each step rounded"
    assert found["edits"] > 0
    assert 0 < found["touched"] <= layers * found["edits"], "tokens that nobody edits keep their bits"
    assert found["applied"] == [[found["edits"]] * layers] * 2
    assert found["counted"] > 0
    assert found["seen"] == [found["counted"]] * layers
    for name in ("active", "histogram"):
        same, total, used = found[name]
        assert same
        assert total > 0
        assert used > 20, "many neurons, and bins for small and large activations"
    assert found["unusable"] == 0


def test_activations_that_are_no_numbers_are_noticed(results: dict[str, Any]) -> None:
    assert results["unusable"] == 1, "one infinite activation beside a NaN in every counted token"


def test_the_kernel_counts_in_octaves_only(results: dict[str, Any]) -> None:
    assert results["bins"].startswith("NeedsNotMetError: on CUDA only the default bins are counted")


@pytest.mark.parametrize("op", ["torch", "triton"])
def test_the_second_runner_steers_and_counts(
    engine: Engine, requests: list[Request], results: dict[str, Any], op: str, tmp_path: Path
) -> None:
    assert "vllm.v1.worker.gpu.model_runner" in results["runner"]
    answers = results[f"answers of {op}"]
    llm = engine(additional_config=COUNTING)
    clear(llm)
    assert answers == tokens_of(llm, requests)
    edited, scheduled, applied = (
        np.array(results[f"reports of {op}"][0][name]) for name in ("edited_tokens", "scheduled", "applied")
    )
    lost = results[f"preemptions of {op}"]
    if op == "triton":  # the second on the same engine
        before = results["reports of torch"][0]
        edited, scheduled = edited - before["edited_tokens"], scheduled - before["scheduled"]
        applied, lost = applied - np.array(before["applied"]), lost - results["preemptions of torch"]
    assert lost > 0
    assert edited == edits_of(requests, answers)
    assert scheduled >= edited
    assert applied.tolist() == [scheduled] * LAYERS
    found = joined(results[f"counts of {op}"])
    assert found.tokens.tolist() == inputs_of(requests, answers)
    assert_same(found, by_engine(llm, tmp_path))
