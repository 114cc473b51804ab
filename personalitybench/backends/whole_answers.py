"""Whole prompts and whole answers: no prompt is cut in silence, no failure and no thought is an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.api_models import TemplateAPI

from personalitybench.backends.served import use_whole_replies
from personalitybench.chat_templates import bound_chat_template
from personalitybench.completions import UNFINISHED_THOUGHTS, NoAnswer
from personalitybench.errors import ConfigurationError

_UNFINISHED = "\ue000unfinished-thoughts\ue000"  # private use: no model writes it


def require_whole_answers(model: Any, think_end_token: str | None = None) -> str | None:
    """Make a loaded model of lm-eval mark or refuse what is no answer.

    Marked are failures of a server and thoughts that never end. A model of transformers fails where its logits choose
    no token (:func:`~personalitybench.backends.logits.require_usable_logits`), and ends answers at the chat's end
    tokens (:mod:`personalitybench.backends.end_tokens`). Chat templates are bounded
    (:mod:`personalitybench.chat_templates`).

    Args:
        model: The model; nothing happens where it is prepared already.
        think_end_token: Argument of that name, for classes of lm-eval that do not know it.

    Returns:
        The end of its thoughts, which is cut off with all before it; None where nothing is cut.

    Raises:
        ModelError: A served model has no address, or no key.
    """
    use_whole_replies(model, think_end_token)
    _require_whole_thoughts(model)
    if isinstance(model, TemplateLM) and not isinstance(model, TemplateAPI):
        bound_chat_template(getattr(model, "tokenizer", None))
    if runs_on_transformers(model):
        from personalitybench.backends.end_tokens import add_end_tokens  # noqa: PLC0415 (torch)
        from personalitybench.backends.logits import require_usable_logits  # noqa: PLC0415 (torch)

        require_usable_logits(model.model)
        add_end_tokens(model)
    end = getattr(model, "end_of_thoughts", getattr(model, "think_end_token", None))
    return None if end in {None, ""} else str(end)


def require_whole_prompts(model: Any, requests: Sequence[Instance]) -> None:
    """Refuse requests whose prompt and new tokens exceed the model's context: lm-eval cuts such prompts.

    Raises:
        ConfigurationError: Names the longest prompt.
    """
    if not isinstance(model, TemplateLM) or isinstance(model, TemplateAPI):
        return  # a served model refuses such requests itself
    context = getattr(model, "max_length", None)
    if not isinstance(context, int):
        return
    too_long: list[tuple[int, int, Instance]] = []
    for request in requests:
        prompt, settings = request.args[:2]
        tokens, new = len(model.tok_encode(prompt)), int(settings.get("max_gen_toks", 0))
        if tokens + (0 if getattr(model, "backend", "") == "seq2seq" else new) > context:
            too_long.append((tokens, new, request))
    if too_long:
        tokens, new, request = max(too_long, key=lambda each: each[0])
        longest = f"question {request.doc['id']!r}"
        raise ConfigurationError(f"{longest}: {context_error(len(too_long), tokens, new, context)}")


def require_system_text(system_instruction: str | None, requests: Sequence[Instance]) -> None:
    """Refuse prompts without the system text: lm-eval leaves it out where the chat template has no place for it.

    Raises:
        ConfigurationError: A prompt lacks it.
    """
    text = (system_instruction or "").strip()
    if not text:
        return
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    for request in requests:
        prompt = str(getattr(request.args[0], "prompt", request.args[0]))  # lm-eval's JsonChatStr for APIs
        if not any(form in prompt for form in forms):
            raise ConfigurationError(
                f"question {request.doc['id']!r}: the prompt lacks the text of --system_instruction, because the "
                "model's chat template takes no system turn: remove the option"
            )


def added_end_tokens(model: Any) -> list[int]:
    """Return the end tokens of an answer that this package adds to those that the model's library knows.

    For transformers they are in its generation settings. Requests to vLLM carry them as ``stop_token_ids``; vLLM knows
    those of the weights and of the tokenizer.
    """
    if runs_on_transformers(model):
        from personalitybench.backends.end_tokens import add_end_tokens  # noqa: PLC0415 (torch)

        return add_end_tokens(model)
    if not runs_on_vllm(model):
        return []
    from personalitybench.backends.end_tokens import end_of_turn  # noqa: PLC0415 (torch)

    token = end_of_turn(model.tokenizer)
    return [] if token is None or token == model.tokenizer.eos_token_id else [token]


def runs_on_vllm(model: Any) -> bool:
    """Return True for lm-eval's vLLM models."""
    return isinstance(model, TemplateLM) and hasattr(getattr(model, "model", None), "llm_engine")


def runs_on_transformers(model: Any) -> bool:
    """Return True for lm-eval's transformers models, without importing them."""
    module = sys.modules.get("lm_eval.models.huggingface")
    return module is not None and isinstance(model, module.HFLM)


def context_error(count: int, tokens: int, new: int, context: int) -> str:
    """Return the text of the error for prompts that do not fit.

    Args:
        count: How many do not.
        tokens: Tokens of the longest.
        new: New tokens of an answer at most.
        context: Tokens that the model reads at most.
    """
    return (
        f"{count} {'prompt' if count == 1 else 'prompts'} would be cut: {tokens} tokens and {new} new ones exceed the "
        f"model's context of {context}; lower max_tokens, or take a model with a longer context"
    )


class ThinkingModel(TemplateLM):  # type: ignore[misc]  # lm-eval publishes no types
    """Mixin before lm-eval's classes of local models that are loaded with ``think_end_token``.

    lm-eval takes the whole text for the answer where the thoughts never end. Here that is :class:`NoAnswer`.

    Attributes:
        end_of_thoughts: The argument ``think_end_token``: text, or the number of a token.
    """

    end_of_thoughts: str | int
    cache_hook: Any
    _generating = False

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate; see lm-eval."""
        # A text that is cached before it is checked would be an answer after a restart.
        hook, self.cache_hook = self.cache_hook, CacheHook(None)
        self._generating = True
        try:
            texts = super().generate_until(requests, disable_tqdm=disable_tqdm)
        finally:
            self._generating = False
            self.cache_hook = hook
        detail = f"the generated text does not hold {self.end_of_thoughts!r}"
        return [NoAnswer(UNFINISHED_THOUGHTS, detail) if text.startswith(_UNFINISHED) else text for text in texts]

    def tok_decode(self, tokens: Any, *args: Any, **kwargs: Any) -> str:
        """Decode; generated tokens (transformers) without an end of thoughts are marked."""
        if not self._generating or not isinstance(tokens, list):
            return str(super().tok_decode(tokens, *args, **kwargs))
        end = self.end_of_thoughts
        rest = tokens
        if isinstance(end, int) and end in tokens:
            rest = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = str(super().tok_decode(rest, *args, **kwargs))
        if isinstance(end, int):
            return text.lstrip() if end in tokens else _UNFINISHED + text
        return text if end in text else _UNFINISHED + text

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; texts (vLLM) without an end of thoughts are marked."""
        outputs: Any = super()._model_generate(*args, **kwargs)
        if self._generating and isinstance(outputs, list):
            for completion in (output.outputs[0] for output in outputs):
                if str(self.end_of_thoughts) not in completion.text:
                    completion.text = _UNFINISHED + completion.text
        return outputs


def _require_whole_thoughts(model: Any) -> None:
    """Make a local model that is loaded with ``think_end_token`` answer as :class:`ThinkingModel` does."""
    end = getattr(model, "think_end_token", None)
    if not isinstance(model, TemplateLM) or isinstance(model, (TemplateAPI, ThinkingModel)) or end in {None, ""}:
        return
    kind = type(model)
    model.__class__ = type(kind.__name__, (ThinkingModel, kind), {})
    model.end_of_thoughts = end
    if isinstance(end, int):
        model.think_end_token = None  # lm-eval would cut before tok_decode sees whether the token is there
