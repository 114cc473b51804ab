"""The canary of a steered vLLM run: every layer edited what it was told to, and the logits moved.

Works on any engine that was loaded with the plug-in, lm-eval's stock ``vllm`` model among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personalitybench.backends.wishes import KEY, Wish
from personalitybench.errors import ModelError

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


def check_logits(llm: Any, tokens: Sequence[int], wanted: Mapping[str, Any], prompt_tokens: int) -> float:
    """Read a prompt and its first answer token, steered and not: the logits must differ.

    Args:
        llm: ``vllm.LLM``, loaded with the plug-in.
        tokens: Prompt and at least one answer token.
        wanted: ``extra_args["personalitybench"]`` of a steered request.
        prompt_tokens: Length of the prompt.

    Returns:
        The largest change of a log-probability among the likeliest tokens of both readings.

    Raises:
        ModelError: They do not differ by more than two unsteered readings do.
    """
    from vllm import SamplingParams, TokensPrompt  # noqa: PLC0415 (optional)

    def params(extra: Mapping[str, Any] | None) -> Any:
        return SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=_LOGPROBS,
            detokenize=False,
            skip_reading_prefix_cache=True,
            extra_args={KEY: {**extra, "answer_from": prompt_tokens}} if extra else None,
        )

    readings = [None, None, wanted]
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=list(tokens)) for _ in readings],
        [params(extra) for extra in readings],
        use_tqdm=False,
    )
    found = [{token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()} for output in outputs]
    noise, change = _distance(found[0], found[1]), _distance(found[0], found[2])
    if change <= noise:
        raise ModelError(
            f"steering changed nothing: {wanted.get('intervention')} at strength {wanted.get('strength')} leaves the "
            "logits as they are; check that the intervention was fitted for this model"
        )
    return change


def prove_steering(llm: Any, model: Any, request: Any) -> dict[str, float]:
    """See that an engine edited what it was told to, and that a request of lm-eval's moves its logits.

    Args:
        llm: ``vllm.LLM``, loaded with the plug-in.
        model: lm-eval's model around it.
        request: A steered request of lm-eval's that was answered.

    Returns:
        ``edited_tokens`` of the engine so far, and ``logit_change``, the largest change of a log-probability.

    Raises:
        ModelError: The canary failed.
    """
    edited = edit_counts(llm).edited_tokens
    if not edited:
        raise ModelError("steering failed: the engine edited no token")
    prompt = model.tok_encode(request.args[0])
    answer = model.tok_encode(request.resps[0] or " ")[:1]
    change = check_logits(llm, [*prompt, *answer], request.args[1]["extra_args"][KEY], len(prompt))
    return {"edited_tokens": edited, "logit_change": round(change, 6)}


def _distance(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Largest difference of log-probabilities; a token that only one list has counts as far as the list goes."""
    floors = min(one.values()), min(other.values())
    return max(abs(one.get(token, floors[0]) - other.get(token, floors[1])) for token in one.keys() | other.keys())
