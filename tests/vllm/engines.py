"""Engines on tiny models, what they answer, and what transformers answers to the same requests.

Also a program: ``python -m tests.vllm.engines SPEC RESULT`` runs what a JSON file says in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NEW_TOKENS = 24
PENALTY = 1.3  # without it, tiny models repeat one token and every answer is the same
PLUGIN = "personalitybench"
CONTEXT = 512
STOCK: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": CONTEXT,
    "num_gpu_blocks_override": 64,
    "enable_prefix_caching": False,
}

Wanted = dict[str, Any] | None


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of it."""

    prompt: list[int]
    wanted: Wanted = None
    new_tokens: int = NEW_TOKENS
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Tokens of an answer, and how likely the first of them was."""

    tokens: list[int]
    first_logprob: float
    cached_tokens: int


def open_engine(model: Path | str, *, steerable: bool = True, **options: Any) -> Any:
    """Start vLLM on a model; small, eager, float32 unless told otherwise."""
    from vllm import LLM

    settings = {**STOCK, **({"load_format": PLUGIN} if steerable else {}), **options}
    return LLM(str(model), **settings)


def prompt_of(request: Request) -> Any:
    """As vLLM takes it."""
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=request.prompt)


def params_of(request: Request) -> Any:
    """Greedy sampling parameters with what the request wants."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0,
        max_tokens=request.new_tokens,
        repetition_penalty=PENALTY,
        logprobs=1,
        extra_args={PLUGIN: request.wanted} if request.wanted else None,
        **request.more,
    )


def answer(llm: Any, requests: Sequence[Request]) -> list[Answer]:
    """Answer requests in one batch, greedily."""
    outputs = llm.generate([prompt_of(one) for one in requests], [params_of(one) for one in requests], use_tqdm=False)
    assert len(outputs) == len(requests)
    found = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        first = output.outputs[0].logprobs[0][tokens[0]].logprob
        found.append(Answer(tokens, first, int(output.num_cached_tokens or 0)))
    return found


def tokens_of(llm: Any, requests: Sequence[Request]) -> list[list[int]]:
    """Answer requests in one batch; the tokens alone."""
    return [one.tokens for one in answer(llm, requests)]


def report(llm: Any, device: int = 0) -> dict[str, Any]:
    """What the plug-in edited so far."""
    found: dict[str, Any] = llm.collective_rpc("personalitybench_report")[device]
    return found


def edited_by(llm: Any, requests: Sequence[Request]) -> tuple[list[list[int]], int, int, list[int]]:
    """Answer requests and look at what was edited meanwhile.

    Returns:
        The answers; positions edited, each once; edits ordered; edits that each layer carried out.
    """
    before = report(llm)
    answers = tokens_of(llm, requests)
    after = report(llm)
    edited, scheduled = (after[name] - before[name] for name in ("edited_tokens", "scheduled"))
    return (
        answers,
        edited,
        scheduled,
        [now - then for now, then in zip(after["applied"], before["applied"], strict=True)],
    )


def edits_of(requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> int:
    """How many positions are edited: the inputs of the steps after the prompt, and the prompt's last if wished."""
    return sum(
        len(tokens) - 1 + int(one.wanted.get("first_token", False))
        for one, tokens in zip(requests, answers, strict=True)
        if one.wanted and one.wanted.get("intervention")
    )


def transformers_tokens(model: Path, requests: Sequence[Request]) -> list[list[int]]:
    """What transformers, with peft's adapters and this project's hooks, answers to each request alone."""
    import torch

    from personalitybench.activations.interventions import Intervention
    from personalitybench.activations.layouts import find_gates
    from personalitybench.activations.steering import steered

    found = []
    loaded: dict[Any, Any] = {}
    for one in requests:
        wanted = one.wanted or {}
        key = (wanted.get("adapter"), wanted.get("adapter_strength", 1.0))
        if key not in loaded:
            loaded[key] = _transformers_model(model, *key)
        adapted = loaded[key]
        row = None
        if wanted.get("intervention"):
            row = (Intervention.load(Path(wanted["intervention"])), wanted["strength"])
        tokens = torch.tensor([one.prompt])
        last = bool(wanted.get("first_token", False))
        how: dict[str, Any] = {"keep": wanted.get("keep", 1.0), "seed": wanted.get("seed", 0)}
        gates = find_gates(adapted)
        with torch.inference_mode(), steered(adapted, gates, [row], **how, from_last_prompt_token=last):
            output = adapted.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=one.new_tokens,
                do_sample=False,
                repetition_penalty=PENALTY,
            )
        found.append(output[0, len(one.prompt) :].tolist())
    return found


def _transformers_model(model: Path, adapter: str | None, strength: float) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Only eager attention caps its logits as Gemma-2 was trained with.
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter and strength:
        from peft import PeftModel

        PeftModel.from_pretrained(loaded, adapter).eval()  # puts it into the model itself
        for module in loaded.modules():
            if isinstance(scaling := getattr(module, "scaling", None), dict):
                scaling["default"] *= strength
    return loaded


def run_elsewhere(
    folder: Path,
    calls: Sequence[Mapping[str, Any]],
    *,
    program: str = "engines",
    timeout: float = 540,
    **environment: str,
) -> Any:
    """Run calls of :data:`CALLS` one after the other in another process.

    Args:
        folder: Where the files of this exchange go.
        calls: ``call``, a name in :data:`CALLS`, and its arguments.
        program: ``interpreter`` for the calls of that module.
        timeout: Seconds.
        environment: Variables that differ from this process.

    Returns:
        What each call returned, as JSON gives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec, result = folder / "spec.json", folder / "result.json"
    spec.write_text(json.dumps(list(calls), default=lambda one: asdict(one) if isinstance(one, Request) else str(one)))
    result.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.vllm.{program}", str(spec), str(result)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode or not result.is_file():
        raise AssertionError(f"exit status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(result.read_text())


opened: dict[str, Any] = {}


def _call_open(name: str, model: str, **options: Any) -> None:
    opened[name] = open_engine(model, **options)


def _call_open_refused(name: str, model: str, tested: str = "", **options: Any) -> str:
    """The text of the error that a start ends with; ``tested``: versions of vLLM that the plug-in is for."""
    from unittest.mock import patch

    from packaging.specifiers import SpecifierSet

    from personalitybench.backends.vllm import versions

    try:
        with patch.object(versions, "TESTED", SpecifierSet(tested) if tested else versions.TESTED):
            _call_open(name, model, **options)
    except Exception as error:  # noqa: BLE001 (the test looks at it)
        return f"{type(error).__name__}: {error}"
    return "started"


def _call_answer(name: str, requests: list[dict[str, Any]]) -> list[list[int]]:
    return tokens_of(opened[name], [Request(**one) for one in requests])


def _call_refused(name: str, requests: list[dict[str, Any]]) -> str:
    """The text of the error that requests end with."""
    try:
        found = tokens_of(opened[name], [Request(**one) for one in requests])
    except Exception as error:  # noqa: BLE001 (the test looks at it)
        return f"{type(error).__name__}: {error}"
    return f"answered: {found}"


def _call_answer_async(model: str, requests: list[dict[str, Any]], **options: Any) -> list[Any]:
    """What an ``AsyncLLM`` answers to requests that come at once; the text of the error of one that is refused."""
    import asyncio

    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def answer_all() -> list[Any]:
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **{**STOCK, "load_format": PLUGIN, **options}))

        async def one(name: str, request: Request) -> Any:
            try:
                outputs = [each async for each in llm.generate(prompt_of(request), params_of(request), name)]
            except Exception as error:  # noqa: BLE001 (the test looks at it)
                cause = error.__cause__ or error  # vLLM wraps what its caller did not expect
                return f"{type(cause).__name__}: {cause}"
            return list(outputs[-1].outputs[0].token_ids)

        try:
            return list(await asyncio.gather(*(one(str(n), Request(**each)) for n, each in enumerate(requests))))
        finally:
            llm.shutdown()

    return asyncio.run(answer_all())


def _call_modules_of(name: str, model: str, **options: Any) -> list[str]:
    """Modules of this project that are there once an engine has started."""
    _call_open(name, model, **options)
    return sorted(name for name in sys.modules if name.startswith("personalitybench"))


def _call_reports(name: str) -> list[dict[str, Any]]:
    return list(opened[name].collective_rpc("personalitybench_report"))


def _call_rpc(name: str, method: str, arguments: list[Any]) -> list[Any]:
    return list(opened[name].collective_rpc(method, args=tuple(arguments)))


def _call_preemptions(name: str) -> int:
    return preemptions(opened[name])


def preemptions(llm: Any) -> int:
    """How often the scheduler took a request's memory away; needs an engine with ``disable_log_stats=False``."""
    return int(sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"))


CALLS: Mapping[str, Callable[..., Any]] = {
    "open": _call_open,
    "open_refused": _call_open_refused,
    "modules_of": _call_modules_of,
    "answer": _call_answer,
    "answer_async": _call_answer_async,
    "refused": _call_refused,
    "reports": _call_reports,
    "rpc": _call_rpc,
    "preemptions": _call_preemptions,
}


def main(spec: Path, result: Path, calls: Mapping[str, Callable[..., Any]] = CALLS) -> None:
    """Run the calls of a file and write what they returned."""
    found = []
    for one in json.loads(spec.read_text()):
        arguments = dict(one)
        found.append(calls[arguments.pop("call")](**arguments))
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
