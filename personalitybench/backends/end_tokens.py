"""Tokens that end an answer: those of the weights, the tokenizer's, and the end of an assistant's turn.

The end token of the weights may be another than the chat's (``eos_token_id`` of a base model). Then an answer would run
on into turns that the model makes up, until the longest answer of its batch ends.
"""

from __future__ import annotations

from typing import Any

from personalitybench.activations.steering import end_tokens
from personalitybench.backends.logits import inner_models
from personalitybench.errors import ModelError

_ADDED = "_personalitybench_end_tokens"
_TEXT = "An answer."


def add_end_tokens(lm: Any) -> list[int]:
    """Have ``generate`` of lm-eval's transformers model end answers at the chat's end tokens, too.

    They go into its ``generation_config``, from which steering, counts and training take them.

    Returns:
        The tokens that were added, now or before; empty where the weights have them all.
    """
    model = lm.model
    if not hasattr(model, _ADDED):
        own = end_tokens(model)
        added = sorted(chat_end_tokens(lm.tokenizer) - own)
        config = getattr(model, "generation_config", None)
        if added and config is not None:
            for each in inner_models(model):
                each.generation_config.eos_token_id = sorted({*own, *added})
        setattr(model, _ADDED, added if config is not None else [])
    found: list[int] = getattr(model, _ADDED)
    return found


def chat_end_tokens(tokenizer: Any) -> set[int]:
    """Return the tokenizer's end token, and the special token that its chat template writes after an answer."""
    eos = getattr(tokenizer, "eos_token_id", None)
    found = set() if eos is None else {int(eos)}
    turn = end_of_turn(tokenizer)
    return found if turn is None else found | {turn}


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that a chat template writes right after an assistant's text; None if there is none.

    Raises:
        ModelError: The template exceeds the limits of :mod:`personalitybench.chat_templates`.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    chat = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": _TEXT}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
        rest = text[text.rindex(_TEXT) + len(_TEXT) :].lstrip()
        tokens = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
        special = {int(token) for token, each in tokenizer.added_tokens_decoder.items() if each.special}
    except ModelError:
        raise
    except Exception:  # noqa: BLE001 (templates raise what they like, and some show no answer)
        return None
    return int(tokens[0]) if tokens and int(tokens[0]) in special else None
