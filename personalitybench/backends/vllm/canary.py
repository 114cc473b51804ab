"""The canary of a vLLM run: requests had their adapters, every layer edited what it was told to, the logits moved.

Works on any engine where the plug-in is installed, lm-eval's stock ``vllm`` model among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personalitybench.activations.interventions import Intervention
from personalitybench.backends.wishes import KEY, Wish, warn_of_strength_zero
from personalitybench.errors import ModelError

LEAST_CHANGE = 1e-3
"""Least change of a log-probability that proves an edit, in nats, whatever the noise."""

_LOGPROBS = 20  # the most that vLLM gives by default


@dataclass(frozen=True)
class EditCounts:
    """What an engine edited so far.

    Attributes:
        edited_tokens: Positions of requests, each once.
        applied: Edits that each layer carried out, those computed again included.
    """

    edited_tokens: int
    applied: tuple[int, ...]


def edit_counts(llm: Any) -> EditCounts:
    """Ask the workers what they edited.

    Args:
        llm: ``vllm.LLM``, loaded with the plug-in.

    Raises:
        ModelError: A layer edited other tokens than it was told to, on any device.
    """
    reports = llm.collective_rpc("personalitybench_report")
    for number, report in enumerate(reports):
        wrong = [layer for layer, count in enumerate(report["applied"]) if count != report["scheduled"]]
        if wrong:
            raise ModelError(
                f"steering failed: {report['scheduled']} tokens were to be edited, layer {wrong[0]} of device {number} "
                f"edited {report['applied'][wrong[0]]} ({len(wrong)} layers differ)"
            )
    return EditCounts(int(reports[0]["edited_tokens"]), tuple(reports[0]["applied"]))


def check_tokens(before: EditCounts, after: EditCounts, outputs: Sequence[Any], wishes: Sequence[Wish | None]) -> int:
    """Compare what was edited with what was generated.

    Every answer token but the last, which is never an input, must have been edited once in every steered request.
    A request that ends at a stop string may have been a few steps further when the string was seen.

    Returns:
        Tokens that were edited.

    Raises:
        ModelError: They differ.
    """
    expected, more = 0, 0
    for output, wish in zip(outputs, wishes, strict=True):
        if wish is None or wish.intervention is None:
            continue
        answer = output.outputs[0]
        expected += max(len(answer.token_ids) - 1, 0) + int(wish.first_token)
        more += 0 if answer.finish_reason == "length" else 1
        if isinstance(answer.stop_reason, str):
            more += len(answer.token_ids)
    edited = after.edited_tokens - before.edited_tokens
    if not expected <= edited <= expected + more:
        raise ModelError(f"steering failed: {edited} answer tokens were edited, {expected} were generated")
    return edited


def check_adapters(outputs: Sequence[Any], wishes: Sequence[Wish | None]) -> None:
    """See that each request that wished an adapter was answered with it.

    Raises:
        ModelError: One was not.
    """
    for output, wish in zip(outputs, wishes, strict=True):
        if wish is None or wish.adapter is None or wish.adapter_strength == 0:
            continue
        if output.lora_request is None or not output.lora_request.lora_name.endswith(f"-{wish.adapter_strength!r}"):
            raise ModelError(
                f"a request wished the adapter {wish.adapter} at strength {wish.adapter_strength:g} and was answered "
                f"with {output.lora_request or 'none'}: see that VLLM_PLUGINS does not leave out personalitybench"
            )


def to_prove(wish: Wish | None, answer_tokens: int) -> bool:
    """Whether an answer can show that its wish was felt: its first token is not steered, but has the adapter."""
    if wish is None:
        return False
    return answer_tokens >= (1 if wish.intervention is None else 2) and len(_parts(wish)) > 0


def check_logits(llm: Any, tokens: Sequence[int], wanted: Mapping[str, Any], prompt_tokens: int) -> float:
    """Read a prompt and its first answer token with and without each part of a wish: the logits must differ.

    The adapter is compared with the model alone, additions with clamps and adapter, clamps without any additions with
    the adapter. The noise is that of the unedited prompt, read alone and twice in a batch.

    Args:
        llm: ``vllm.LLM``, loaded with the plug-in.
        tokens: Prompt and at least one answer token.
        wanted: ``extra_args["personalitybench"]`` of a request.
        prompt_tokens: Length of the prompt.

    Returns:
        The largest change of a log-probability among the likeliest tokens of both readings; of two parts that which
        changed less.

    Raises:
        ModelError: A change is not above the noise and :data:`LEAST_CHANGE`, or a log-probability is not a number.
    """
    wish = Wish.parse({KEY: wanted})
    parts = _parts(wish) if wish is not None else []
    if wish is None or not parts:
        raise ModelError(f"nothing can be proven of a request that wants neither adapter nor intervention: {wanted}")
    adapter = {key: value for key, value in wanted.items() if key in {"adapter", "adapter_strength"}}
    adapted = adapter if "adapter" in parts else None
    # Each part's edits are laid over those of the parts before it.
    laid = {"adapter": adapter, "clamps": wanted, "additions": wanted}
    before = {"adapter": None, "clamps": adapted, "additions": {**wanted, "strength": 0.0}}
    (alone,) = _read(llm, tokens, [None], prompt_tokens)
    edits = [edit for part in parts for edit in (before[part], laid[part])]
    plain, again, *found = _read(llm, tokens, [None, None, *edits], prompt_tokens)
    _require_numbers(plain, "the model")
    noise = max(_distance(alone, plain), _distance(plain, again))
    changes = {}
    for place, part in enumerate(parts):
        folder, strength = _named(wish, part)
        _require_numbers(found[2 * place + 1], f"{folder} at strength {strength:g}")
        changes[part] = _distance(found[2 * place], found[2 * place + 1])
        if not changes[part] > max(noise, LEAST_CHANGE):
            raise ModelError(
                f"{part} changed nothing: {folder} at strength {strength:g} leaves the logits as they are (change "
                f"{changes[part]:.2g}, noise {noise:.2g}); check the strength, that it was fitted for this model, and "
                "that VLLM_PLUGINS does not leave out personalitybench"
            )
    return min(changes.values())


def _read(
    llm: Any, tokens: Sequence[int], edits: Sequence[Mapping[str, Any] | None], prompt_tokens: int
) -> list[dict[int, float]]:
    """Read one prompt under several edits in one batch; gives the log-probabilities of the likeliest next tokens."""
    from vllm import SamplingParams, TokensPrompt  # noqa: PLC0415 (optional)

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=_LOGPROBS,
            detokenize=False,
            skip_reading_prefix_cache=True,
            extra_args={KEY: {**extra, "answer_from": prompt_tokens}} if extra else None,
        )
        for extra in edits
    ]
    prompts = [TokensPrompt(prompt_token_ids=list(tokens)) for _ in edits]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    found = [output.outputs[0].logprobs[0].items() for output in outputs]
    return [{token: entry.logprob for token, entry in items if entry.logprob != -math.inf} for items in found]


def _require_numbers(reading: Mapping[int, float], source: str) -> None:
    if not reading or not all(map(math.isfinite, reading.values())):
        raise ModelError(
            f"{source}: the logits are not finite, so there is no answer: lower the strength, restore the weights, or "
            "load the model in another precision"
        )


def prove_steering(llm: Any, model: Any, request: Any) -> dict[str, float]:
    """See that an engine edited what it was told to, and that a request of lm-eval's moves its logits.

    Args:
        llm: ``vllm.LLM``, loaded with the plug-in or with room for adapters.
        model: lm-eval's model around it.
        request: A request of lm-eval's with a wish, that was answered.

    Returns:
        ``logit_change``, the largest change of a log-probability, and for a steered request ``edited_tokens`` of the
        engine so far; nothing where there is nothing to prove (an adapter at strength 0).

    Raises:
        ModelError: The canary failed.
    """
    wanted = request.args[1]["extra_args"][KEY]
    wish = Wish.parse({KEY: wanted})
    if wish is None:
        return {}
    found: dict[str, float] = {}
    if wish.intervention is not None:
        found["edited_tokens"] = edit_counts(llm).edited_tokens
        if not found["edited_tokens"]:
            raise ModelError("steering failed: the engine edited no token")
        if wish.strength == 0:
            warn_of_strength_zero(str(wish.intervention))
    if not _parts(wish):
        return found
    prompt = model.tok_encode(request.args[0])
    answer = model.tok_encode(request.resps[0] or " ")[:1]
    return found | {"logit_change": round(check_logits(llm, [*prompt, *answer], wanted, len(prompt)), 6)}


def _parts(wish: Wish) -> list[str]:
    """What of a wish must be felt, in the order in which it is laid over the model.

    An intervention at strength 0 has nothing to prove: it adds nothing, and clamps may leave an answer as it is.
    """
    parts = ["adapter"] if wish.has_adapter else []
    if wish.intervention is None:
        return parts
    intervention = Intervention.load(wish.intervention)
    if not intervention.adds:
        return [*parts, "clamps"] if len(intervention) else parts
    return parts if wish.strength == 0 else [*parts, "additions"]


def _named(wish: Wish, part: str) -> tuple[Any, float]:
    return (wish.adapter, wish.adapter_strength) if part == "adapter" else (wish.intervention, wish.strength)


def _distance(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Largest difference of log-probabilities; a token that only one list has counts as far as the list goes."""
    floors = min(one.values()), min(other.values())
    return max(abs(one.get(token, floors[0]) - other.get(token, floors[1])) for token in one.keys() | other.keys())
