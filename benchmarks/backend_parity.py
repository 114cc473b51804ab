"""How often vLLM gives transformers' greedy tokens, unsteered and steered, and why not always.

Run: ``python benchmarks/backend_parity.py --artifact FOLDER`` (what ``personalitybench fit npti --model demo`` leaves).
Asks sample questions on the demo model in float32. Where two answers part, prints how far apart the two tokens'
logits are in transformers: rounding can only turn tokens that are nearly as likely.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB for each engine
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt

from personalitybench.activations.interventions import Intervention
from personalitybench.activations.layouts import find_gates
from personalitybench.activations.steering import steered
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.models import resolve_model
from personalitybench.questions import open_source
from personalitybench.traits import TARGETS

PENALTY = 1.15


def penalised(logits: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """The repetition penalty, as both libraries apply it."""
    changed = logits.clone()
    places = torch.tensor(sorted(set(seen)))
    chosen = changed[places]
    changed[places] = torch.where(chosen < 0, chosen * PENALTY, chosen / PENALTY)
    return changed


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=2, help="for each of the ten targets")
    arguments = parser.parse_args()
    location = resolve_model("demo", None).location
    llm = LLM(location, **engine_arguments({"dtype": "float32", "max_model_len": 1024, "gpu_memory_utilization": 0.15}))
    model: Any = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32).eval()
    gates, tokenizer, source = find_gates(model), llm.get_tokenizer(), open_source("sample")
    asked = []
    for target in TARGETS:
        folder = arguments.artifact / f"{target.trait}-{target.pole}"
        for question in list(source.questions("evaluate", target.trait, "all"))[: arguments.questions]:
            messages = [{"role": "user", "content": question["question"]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer.encode(text, add_special_tokens=False)
            asked += [(ids, None), (ids, folder)]
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=arguments.tokens,
            repetition_penalty=PENALTY,
            extra_args=folder and {"personalitybench": {"intervention": str(folder), "strength": arguments.strength}},
        )
        for _, folder in asked
    ]
    outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids, _ in asked], params, use_tqdm=False)
    tally = {False: [0, 0], True: [0, 0]}
    for (ids, folder), output in zip(asked, outputs, strict=True):
        row = None if folder is None else (Intervention.load(folder), arguments.strength)
        prompt = torch.tensor([ids])
        with torch.inference_mode(), steered(model, gates, [row]):
            made = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=arguments.tokens,
                do_sample=False,
                repetition_penalty=PENALTY,
                pad_token_id=tokenizer.pad_token_id,
            )
        own, other = made[0, len(ids) :].tolist(), list(output.outputs[0].token_ids)
        same = own == other
        tally[folder is not None][0] += same
        tally[folder is not None][1] += 1
        if not same:
            place = next(n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
            whole = torch.tensor([ids + own[:place]])
            with torch.inference_mode(), steered(model, gates, [row], prompt_columns=len(ids)):
                logits = penalised(model(input_ids=whole, use_cache=False).logits[0, -1], ids + own[:place])
            gap = float(logits[own[place]] - logits[other[place]])
            print(f"{folder.name if folder else 'unsteered'}: apart from token {place} of {len(own)}, by {gap:.2e}")
    for is_steered, (same, count) in tally.items():
        print(f"{'steered' if is_steered else 'unsteered'}: {same} of {count} answers are equal, token for token")


if __name__ == "__main__":
    main()
