"""What one batch with several LoRA adapters gains over a batch for each.

Run: ``python benchmarks/adapters.py``. On the demo model, with random adapters on all linear layers. Answers the same
prompts (three for each of ten adapters, as many as there are targets) in one batch of 30, each row with its own
adapter, and in ten batches of three, one adapter at a time; and in one batch without adapters. All in the same process,
in turns. Checks that the answers are the same and prints

- one batch ÷ a batch an adapter: answers in a second;
- adapters ÷ none: answers in a second, both in one batch.

Medians of the pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from lm_eval.api.instance import Instance
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from personalitybench.backends.loading import load_model
from personalitybench.models import resolve_model


def make_adapter(base: str, folder: Path, rank: int, seed: int) -> Path:
    """A random adapter, saved as peft saves one."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.02 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10)
    parser.add_argument("--rows", type=int, default=3, help="of each adapter")
    parser.add_argument("--sentences", type=int, default=1, help="of 20 tokens, in each prompt")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    location = resolve_model("demo", None).location
    rows, sentences = arguments.adapters * arguments.rows, arguments.sentences
    model: Any = load_model("personalitybench-hf", {"pretrained": location, "dtype": arguments.dtype}, rows, None)

    with tempfile.TemporaryDirectory() as home:
        numbers = range(arguments.adapters)
        folders = [make_adapter(location, Path(home) / str(one), arguments.rank, one) for one in numbers]

        def request(row: int, *, adapted: bool = True) -> Instance:
            # No stop token, so that all ways generate as much; prompts of one length, so that none is padded.
            settings: dict[str, Any] = {"until": [], "max_gen_toks": arguments.tokens, "do_sample": False}
            settings |= {"temperature": 0.0, "min_new_tokens": arguments.tokens}
            if adapted:
                settings["extra_args"] = {"personalitybench": {"adapter": str(folders[row % arguments.adapters])}}
            sentence = f"Question {row + 10}: what do you do on a free evening, and whom do you ask?"
            prompt = " ".join([sentence] * sentences)
            return Instance("generate_until", {}, (prompt, settings), idx=row, task_name="", doc_id=row)

        def answer(requests: list[Instance]) -> list[str]:
            found: list[str] = model.generate_until(requests, disable_tqdm=True)
            return found

        def one_at_a_time() -> list[str]:
            found = [""] * rows
            for first in numbers:
                own = range(first, rows, arguments.adapters)
                for row, text in zip(own, answer([request(row) for row in own]), strict=True):
                    found[row] = text
            return found

        ways: dict[str, Callable[[], list[str]]] = {
            "one batch": lambda: answer([request(row) for row in range(rows)]),
            "a batch an adapter": one_at_a_time,
            "no adapters": lambda: answer([request(row, adapted=False) for row in range(rows)]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        texts: dict[str, list[str]] = {}
        for number in range(arguments.rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                texts[name] = way()
                if number:  # the first round warms up, and has the canary
                    seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        each = statistics.median(found)
        print(f"{name}: {each:.2f} s, {rows * arguments.tokens / each:.0f} tokens/s, {rows / each:.2f} answers/s")

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    same = sum(a == b for a, b in zip(texts["one batch"], texts["a batch an adapter"], strict=True))
    unlike = sum(a != b for a, b in zip(texts["one batch"], texts["no adapters"], strict=True))
    print(f"answers that are the same in one batch and in a batch an adapter: {same} of {rows}")
    print(f"answers that are others than without adapters: {unlike} of {rows}")
    print(f"one batch ÷ a batch an adapter, answers in a second: {ratio('a batch an adapter', 'one batch'):.2f}")
    print(f"adapters ÷ none, answers in a second: {ratio('no adapters', 'one batch'):.2f}")


if __name__ == "__main__":
    main()
