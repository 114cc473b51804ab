"""What steering costs on vLLM, and what mixing targets in one batch gains.

Run: ``python benchmarks/steering.py``. On the demo model with made-up interventions of 2,000 neurons a target. Prints

- steered ÷ unsteered: tokens in a second when ten targets at ten strengths are mixed in one batch, and when nobody is
  steered, both on the engine with the plug-in; and the plug-in at rest ÷ vLLM as it is;
- one batch ÷ ten runs: questions in a second with ten targets in one batch, and in ten runs one after the other that
  each steer everything alike, as the released code does (its arithmetic, reimplemented under ``tests/parity``).

Both in the same process, in turns; medians of the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB for each engine
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from vllm import LLM, SamplingParams, TokensPrompt

from personalitybench.activations.interventions import Intervention, Operation
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.models import resolve_model
from tests.parity.released_identification import ReleasedGlu, ReleasedSteering, patch_vllm

TARGETS = 10
NEURONS = 2000


def make_intervention(seed: int, layers: int, neurons: int) -> Intervention:
    """1,000 neurons held at zero, 1,000 raised."""
    rng = np.random.default_rng(seed)
    places = rng.choice(layers * neurons, NEURONS, replace=False)
    operation = np.repeat(np.array([Operation.CLAMP_MAX, Operation.ADD], np.uint8), NEURONS // 2)
    value = np.where(operation == Operation.ADD, rng.uniform(0.01, 0.1, NEURONS), 0).astype(np.float32)
    layer, index = (places // neurons).astype(np.int32), (places % neurons).astype(np.int32)
    return Intervention((layers, neurons), layer, index, operation, value)


def released_edit(intervention: Intervention, strength: float) -> ReleasedSteering:
    """The same edits as one global setting."""
    raised = intervention.operation == Operation.ADD

    def places(chosen: Any, layer: int) -> Any:
        return torch.from_numpy(intervention.index[chosen & (intervention.layer == layer)].astype(np.int64))

    layers = range(intervention.shape[0])
    added = {
        layer: strength * torch.from_numpy(intervention.value[raised & (intervention.layer == layer)].copy())
        for layer in layers
    }
    return ReleasedSteering(
        {layer: places(~raised, layer) for layer in layers}, {layer: places(raised, layer) for layer in layers}, added
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40, help="of which a tenth goes to each target")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    location = resolve_model("demo", None).location
    base = {"dtype": arguments.dtype, "max_model_len": 1024, "enable_prefix_caching": False}
    base |= {"enforce_eager": True, "gpu_memory_utilization": 0.15}
    ours, stock = LLM(location, **engine_arguments(base)), LLM(location, **base)
    globally = LLM(location, **base)
    config = ours.llm_engine.model_config.hf_config
    rng = np.random.default_rng(0)
    prompts = [TokensPrompt(prompt_token_ids=rng.integers(100, 40000, 60).tolist()) for _ in range(arguments.requests)]

    with tempfile.TemporaryDirectory() as folder:
        made = [make_intervention(seed, config.num_hidden_layers, config.intermediate_size) for seed in range(TARGETS)]
        folders = [Path(folder) / str(number) for number in range(TARGETS)]
        for intervention, place in zip(made, folders, strict=True):
            intervention.save(place)

        def params(target: int | None) -> SamplingParams:
            wish = {"intervention": str(folders[target]), "strength": 0.6 + 0.1 * target} if target is not None else {}
            return SamplingParams(
                temperature=0,
                max_tokens=arguments.tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={"personalitybench": wish} if wish else None,
            )

        mixed = [params(number % TARGETS) for number in range(arguments.requests)]
        plain = params(None)

        def run_globally() -> None:
            for target, intervention in enumerate(made):
                edit = released_edit(intervention, 0.6 + 0.1 * target)
                patch_vllm(globally, lambda layer, edit=edit: ReleasedGlu(layer, edit=edit))
                own = [prompt for number, prompt in enumerate(prompts) if number % TARGETS == target]
                globally.generate(own, plain, use_tqdm=False)

        ways: dict[str, Callable[[], Any]] = {
            "stock vLLM": lambda: stock.generate(prompts, plain, use_tqdm=False),
            "plug-in at rest": lambda: ours.generate(prompts, plain, use_tqdm=False),
            "ten targets mixed": lambda: ours.generate(prompts, mixed, use_tqdm=False),
            "ten global runs": run_globally,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        each = statistics.median(found)
        tokens = arguments.requests * arguments.tokens
        print(f"{name}: {each:.2f} s, {tokens / each:.0f} tokens/s, {arguments.requests / each:.2f} questions/s")

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    print(f"plug-in at rest ÷ stock vLLM, throughput: {ratio('stock vLLM', 'plug-in at rest'):.2f}")
    print(f"steered ÷ unsteered, throughput: {ratio('plug-in at rest', 'ten targets mixed'):.2f}")
    print(f"one batch ÷ ten runs, questions: {ratio('ten global runs', 'ten targets mixed'):.2f}")


if __name__ == "__main__":
    main()
