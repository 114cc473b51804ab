"""Identification and whole runs on vLLM: the same answers and counts as on transformers, and the canary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from personalitybench.activations.identification import Decoding
from personalitybench.activations.identification_transformers import TransformersEngine
from personalitybench.backends.vllm.identification import VllmEngine
from personalitybench.files import JsonLines, read_json
from tests.made_up import SOURCE

TURNS = ["Why?", "A friend calls late in the evening. What do you tell her?", "Go on.", "The bus is late again."]
DECODING = Decoding(max_tokens=20, repetition_penalty=1.3, batch_size=2)


def quiet(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def ours(models: Callable[[str], Path]) -> VllmEngine:
    return VllmEngine(str(models("llama")), {"dtype": "float32", "max_model_len": 512}, 4)


@pytest.fixture(scope="module")
def reference(models: Callable[[str], Path]) -> TransformersEngine:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models("llama")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return TransformersEngine(model, AutoTokenizer.from_pretrained(folder), batch_size=2)


def answered(engine: Any, path: Path) -> dict[str, dict[str, Any]]:
    prompts = [(str(number), engine.chat_prompt(turn)) for number, turn in enumerate(TURNS)]
    engine.generate(prompts, decoding=DECODING, lines=JsonLines(path), report=quiet)
    return {row["id"]: row for row in JsonLines(path).read()}


def test_answers_and_counts_are_those_of_transformers(
    ours: VllmEngine, reference: TransformersEngine, tmp_path: Path
) -> None:
    own, other = (answered(engine, tmp_path / name) for engine, name in ((ours, "vllm"), (reference, "hf")))
    assert own.keys() == other.keys()
    for name, row in own.items():
        assert row["prompt_tokens"] == other[name]["prompt_tokens"]
        assert row["answer_tokens"] == other[name]["answer_tokens"]
    found, expected = (
        engine.read(JsonLines(tmp_path / name), SOURCE, shards=3, report=quiet)
        for engine, name in ((ours, "vllm"), (reference, "hf"))
    )
    assert found.manifest == expected.manifest
    assert sum(found.manifest.tokens) == sum(len(row["answer_tokens"]) - 1 for row in own.values())
    assert np.array_equal(found.active, expected.active)
    moved = np.abs(found.histogram - expected.histogram).sum() / 2
    assert moved <= 0.001 * expected.histogram.sum(), "but for values at the edge of a bin"


def test_what_was_counted_before_is_not_counted_again(ours: VllmEngine, tmp_path: Path) -> None:
    answered(ours, tmp_path / "answers")
    first, second = (ours.read(JsonLines(tmp_path / "answers"), SOURCE, shards=3, report=quiet) for _ in range(2))
    assert first.manifest == second.manifest
    assert np.array_equal(first.active, second.active)
    assert np.array_equal(first.histogram, second.histogram)


def test_a_resumed_run_has_the_answers_of_a_whole_one(ours: VllmEngine, tmp_path: Path) -> None:
    whole = answered(ours, tmp_path / "whole")
    kept = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "cut").write_text("".join(kept[:2]) + kept[2][:30])  # killed while the third line was written
    assert answered(ours, tmp_path / "cut") == whole


def test_counted_while_it_answers_or_read_afterwards(
    ours: VllmEngine, models: Callable[[str], Path], tmp_path: Path
) -> None:
    """Some answers end early; of a run that was cut, the rest is generated and counted and what was there is read."""
    whole = answered(ours, tmp_path / "read")
    expected = ours.read(JsonLines(tmp_path / "read"), SOURCE, shards=3, report=quiet)
    engine = VllmEngine(str(models("llama")), {"dtype": "float32", "max_model_len": 512}, 4)
    prompts = [(str(number), engine.chat_prompt(turn)) for number, turn in enumerate(TURNS)]
    lines = (tmp_path / "read").read_text().splitlines(keepends=True)
    for kept in (0, 2, 4):
        path = tmp_path / f"counted {kept}"
        path.write_text("".join(lines[:kept]))
        found = engine.generate_counting(
            prompts, decoding=DECODING, lines=JsonLines(path), source=SOURCE, shards=3, report=quiet
        )
        assert {row["id"]: row for row in JsonLines(path).read()} == whole
        assert found.manifest == expected.manifest
        assert np.array_equal(found.active, expected.active)
        assert np.abs(found.histogram - expected.histogram).sum() <= 0.002 * expected.histogram.sum()


SUITE = """
name: neurons
models:
  - name: {model}
    backend: personalitybench-vllm
    args: {{dtype: float32, max_model_len: 2048, gpu_memory_utilization: 0.15}}
methods:
  - {{name: npti, settings: {settings}, strengths: [1.0]}}
targets: ["neuroticism:high"]
questions: {{limit: 2}}
protocol: {{max_tokens: 12}}
"""
SETTINGS = "{questions: 4, max_tokens: 8, shards: 2, threshold: 0.01, selection: own-pole}"


def test_a_suite_and_stock_lm_eval_steer_with_one_fit(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fit and generate as a suite does; then lm-eval's own vllm model with the artifact that the fit left."""
    model = models("llama")
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE.format(model=model, settings=SETTINGS))
    environment = os.environ | {"PERSONALITYBENCH_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "personalitybench.cli", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run("run", str(suite), "--stage", "fit", "--stage", "generate")
    answers = next((tmp_path / "runs").rglob("answers.jsonl"))
    assert len(list(JsonLines(answers).read())) == 2
    (fitted,) = (tmp_path / "cache" / "fits").glob("npti-*")
    metadata = {"method": "npti", "strength": 1.0, "artifact": str(fitted / "artifact"), "max_tokens": 12}
    arguments = (
        f"pretrained={model},load_format=personalitybench,dtype=float32,max_model_len=2048,"
        "gpu_memory_utilization=0.15,enforce_eager=True"
    )
    run(
        *("lm-eval", "--model", "vllm", "--model_args", arguments, "--tasks", "personalitybench_neuroticism_high"),
        *("--apply_chat_template", "--limit", "2", "--batch_size", "auto", "--metadata", json.dumps(metadata)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    )
    (results,) = (tmp_path / "out").rglob("results_*.json")
    record = read_json(results)["configs"]["personalitybench_neuroticism_high"]["metadata"]["personalitybench"]
    assert record["canary"]["edited_tokens"] > 0
    assert record["canary"]["logit_change"] > 0
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    same = {row["doc"]["id"]: row["resps"][0][0] for row in map(json.loads, samples.read_text().splitlines())}
    assert same == {row["id"]: row["answer"] for row in JsonLines(answers).read()}, "either way, the same answers"
