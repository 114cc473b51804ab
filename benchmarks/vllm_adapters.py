"""What adapters cost on vLLM: room for them, and several of them mixed in one batch.

Run: ``python benchmarks/vllm_adapters.py``. On the demo model with made-up adapters on all projections. Prints tokens
in a second of a batch of plain requests without room for adapters, of the same with room that nobody uses, of the same
requests with several adapters mixed, and with ``--stock-products``, on a machine without a GPU, of the last with vLLM's
own products for CPUs (slow: they copy an adapter's matrices for each token). All in the same process, in turns; medians
of the pairs.
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
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.platforms import current_platform

from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.models import resolve_model
from tests.vllm.models import save_adapter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=60, help="its tokens")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stock-products", action="store_true")
    arguments = parser.parse_args()
    location = resolve_model("demo", None).location
    base = {"dtype": arguments.dtype, "max_model_len": 1024, "enable_prefix_caching": False}
    base |= {"enforce_eager": True, "gpu_memory_utilization": 0.15}
    room = {"enable_lora": True, "max_lora_rank": arguments.rank, "max_loras": arguments.adapters}
    without, roomy = LLM(location, **engine_arguments(base)), LLM(location, **engine_arguments(base | room))
    rng = np.random.default_rng(0)
    drawn = rng.integers(100, 40000, (arguments.requests, arguments.prompt)).tolist()
    prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in drawn]

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERSONALITYBENCH_CACHE"] = f"{folder}/cache"  # made-up adapters are not for the user's
        adapters = [
            save_adapter(Path(folder) / str(seed), Path(location), seed, rank=arguments.rank, scale=0.01)
            for seed in range(arguments.adapters)
        ]

        def params(adapter: str | None) -> SamplingParams:
            return SamplingParams(
                temperature=0,
                max_tokens=arguments.tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={"personalitybench": {"adapter": adapter}} if adapter else None,
            )

        mixed = [params(adapters[number % len(adapters)]) for number in range(arguments.requests)]
        mixed_name = f"{arguments.adapters} adapters mixed"
        ways: dict[str, Callable[[], Any]] = {
            "no room": lambda: without.generate(prompts, params(None), use_tqdm=False),
            "room at rest": lambda: roomy.generate(prompts, params(None), use_tqdm=False),
            mixed_name: lambda: roomy.generate(prompts, mixed, use_tqdm=False),
        }
        if arguments.stock_products and current_platform.is_cpu():
            own = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
            type(current_platform).get_punica_wrapper = classmethod(lambda _: own)
            stock = LLM(location, **engine_arguments(base | room))
            ways["the same, vLLM's own products"] = lambda: stock.generate(prompts, mixed, use_tqdm=False)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        each = statistics.median(found)
        ratio = statistics.median(first / one for first, one in zip(seconds["no room"], found, strict=True))
        tokens = arguments.requests * arguments.tokens
        print(f"{name}: {each:.2f} s, {tokens / each:.0f} tokens/s, {ratio:.2f} of no room")


if __name__ == "__main__":
    main()
