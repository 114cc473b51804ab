"""How long identification takes: ours, counting in either way, and the released way, in the same run.

Run: ``python benchmarks/identification.py [--engine vllm] [--questions 64] [--max-tokens 100]``. Two poles, questions
of the bundled sample, on the demo model in its own precision, on vLLM or transformers, each way in a process of its
own, one after the other, round by round. Ways: ``reading`` (answers, then a teacher-forced reading that counts),
``decoding`` (answers, counted as they are generated), ``plain`` (answers that nobody counts, which tells what counting
costs), and ``released``, the reimplementation under ``tests/parity``: static batches of 32, eager, and at every decode
step bucketize and scatter-add into a [layers, neurons, 301] histogram, without the prefix cache, which the vLLM of that
time (0.6.3) left off; ``--released-prefix-cache`` lets it have one. Starting the engine is not counted for any.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WAYS = ("reading", "decoding", "plain", "released")


def prompts_of(questions: int, chat_prompt: Any) -> dict[str, list[tuple[str, str]]]:
    """Id and text of each prompt, for both poles."""
    from personalitybench import prompts
    from personalitybench.activations.identification import draw_questions
    from personalitybench.methods import MethodContext
    from personalitybench.prompts import load_wording
    from personalitybench.questions import open_source
    from personalitybench.traits import TRAIT_NAMES, Pole, Target

    source, wording = open_source("sample"), load_wording("project")
    draw = MethodContext(wording, source, 0).draw
    found = {}
    for pole in Pole:
        asked = []
        for trait in TRAIT_NAMES:  # the sample has few questions of each
            target = Target(trait, pole)
            texts, template = source.descriptions[target], wording.identify_as(target)
            for question in draw_questions(source, trait, None, 0):
                text = texts[draw("identify", len(texts), target, question.id)]
                turn = prompts.fill(template, personality=text, question=question.question)
                asked.append((question.id, chat_prompt(turn)))
        found[str(Target(TRAIT_NAMES[0], pole))] = asked[:questions]
    return found


def ours(way: str, engine_name: str, questions: int, max_tokens: int, dtype: str) -> dict[str, float]:
    """Generate and count with the project's engines."""
    from personalitybench.activations.identification import Counting, Decoding
    from personalitybench.activations.statistics import StatisticsSource
    from personalitybench.backends.engines import open_engine
    from personalitybench.files import JsonLines
    from personalitybench.models import resolve_model

    arguments = {"dtype": dtype, **({"max_model_len": 2048} if engine_name == "vllm" else {})}
    location = resolve_model("demo", None).location
    engine = open_engine(engine_name, location, arguments, 32, counting=Counting(while_decoding=way == "decoding"))
    seconds = {"generate": 0.0, "read": 0.0}
    tokens = 0
    asked = prompts_of(questions, engine.chat_prompt)
    decoding = Decoding(max_tokens, 1.1, 32)
    quiet = lambda *_: None  # noqa: E731 (shorter than a function)
    with tempfile.TemporaryDirectory() as folder:
        for target, prompts in asked.items():
            lines = JsonLines(Path(folder) / f"{target}.jsonl")
            source = StatisticsSource(
                model="demo",
                revision="-",
                target=target,
                wording_sha256="0" * 64,
                data_revision="-",
                seeds={},
                token_rule="answer",  # noqa: S106 (a rule about tokens of text)
            )
            started = time.perf_counter()
            if way == "decoding":
                engine.generate_counting(
                    prompts, decoding=decoding, lines=lines, source=source, shards=20, report=quiet
                )
            else:
                engine.generate(prompts, decoding=decoding, lines=lines, report=quiet)
            seconds["generate"] += time.perf_counter() - started
            started = time.perf_counter()
            if way == "reading":
                engine.read(lines, source, shards=20, report=quiet)
            seconds["read"] += time.perf_counter() - started
            tokens += sum(len(row["answer_tokens"]) for row in lines.read())
    return {**seconds, "all": sum(seconds.values()), "tokens": tokens}


def released_vllm(questions: int, max_tokens: int, dtype: str, *, prefix_cache: bool) -> dict[str, float]:
    """The released way on vLLM."""
    from vllm import LLM, SamplingParams, TokensPrompt

    from personalitybench.models import resolve_model
    from tests.parity.released_identification import ReleasedCounter, ReleasedGlu, patch_vllm, static_batches

    llm = LLM(
        resolve_model("demo", None).location,
        dtype=dtype,
        max_model_len=2048,
        enforce_eager=True,
        enable_prefix_caching=prefix_cache,
        gpu_memory_utilization=0.25,
    )
    tokenizer, config = llm.get_tokenizer(), llm.llm_engine.model_config.hf_config

    def chat(turn: str) -> str:
        messages = [{"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    asked = prompts_of(questions, chat)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, repetition_penalty=1.1)
    tokens, started = 0, time.perf_counter()
    for prompts in asked.values():
        counter = ReleasedCounter(config.num_hidden_layers, config.intermediate_size)
        patch_vllm(llm, lambda layer, counter=counter: ReleasedGlu(layer, counter))
        encoded = [tokenizer.encode(text, add_special_tokens=False) for _, text in prompts]
        for batch in static_batches(encoded):
            batch_prompts = [TokensPrompt(prompt_token_ids=ids) for ids in batch]
            outputs = llm.generate(batch_prompts, params, use_tqdm=False)
            tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        counter.histogram.argmax()  # what follows reads all of it
    return {"all": time.perf_counter() - started, "tokens": tokens}


def released_hf(questions: int, max_tokens: int, dtype: str) -> dict[str, float]:
    """The released way on transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from personalitybench.activations.layouts import captured, find_gates
    from personalitybench.models import resolve_model
    from tests.parity.released_identification import ReleasedCounter, static_batches

    location = resolve_model("demo", None).location
    model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype).eval()
    tokenizer, gates = AutoTokenizer.from_pretrained(location), find_gates(model)

    def chat(turn: str) -> str:
        messages = [{"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    asked = prompts_of(questions, chat)
    tokens, started = 0, time.perf_counter()
    for prompts in asked.values():
        counter = ReleasedCounter(gates.layers, gates.neurons)

        def visit(layer: int, activation: Any, counter: ReleasedCounter = counter) -> None:
            counter.observe(layer, activation.flatten(0, 1))

        for batch in static_batches([text for _, text in prompts]):
            encoded = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
            with torch.inference_mode(), captured(gates, visit):
                output = model.generate(
                    **encoded,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    repetition_penalty=1.1,
                    pad_token_id=tokenizer.pad_token_id,
                )
            tokens += int((output[:, encoded["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())
        counter.histogram.argmax()
    return {"all": time.perf_counter() - started, "tokens": tokens}


def measure(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--engine", arguments.engine, "--dtype", arguments.dtype]
    command += ["--questions", str(arguments.questions), "--max-tokens", str(arguments.max_tokens)]
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }
    command += ["--released-prefix-cache"] if arguments.released_prefix_cache else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure, or be one of the ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--questions", type=int, default=64, help="for each pole")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--released-prefix-cache", action="store_true", help="give the released way vLLM's cache of today"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = (arguments.questions, arguments.max_tokens, arguments.dtype)
    if arguments.way == "released":
        cached = arguments.released_prefix_cache
        on_vllm = arguments.engine == "vllm"
        print(json.dumps(released_vllm(*settings, prefix_cache=cached) if on_vllm else released_hf(*settings)))
        return
    if arguments.way:
        print(json.dumps(ours(arguments.way, arguments.engine, *settings)))
        return
    asked, rounds = 2 * arguments.questions, []
    for number in range(arguments.rounds):
        found = {way: measure(way, arguments) for way in WAYS}
        rounds.append({way: one["all"] for way, one in found.items()})
        print(f"round {number + 1}:")
        for way, one in found.items():
            parts = f", answers {one['generate']:.1f} s, reading {one['read']:.1f} s" if way == "reading" else ""
            rate = f"{asked / one['all']:.2f} questions/s"
            print(f"  {way:9} {rate} ({one['all']:.1f} s{parts}, {one['tokens']:.0f} tokens)", flush=True)
    for over, under in [("released", "decoding"), ("released", "reading"), ("decoding", "plain"), ("reading", "plain")]:
        ratio = statistics.median(one[over] / one[under] for one in rounds)
        print(f"{over} ÷ {under}: {ratio:.2f}  (seconds, {arguments.engine}, median of {len(rounds)})")


if __name__ == "__main__":
    main()
