"""Faster decode steps of transformers models without a GPU, where several query heads share one key head.

torch's attention for processors reads the keys and values of a sequence once for each query head. In a decode step, of
one query a head, the heads that share a key head can as well be the queries of one head: the same sums in the same
order, and the keys are read once. Registered by transformers' own interface for attention functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from personalitybench.versions import drift_error

logger = logging.getLogger(__name__)

NAME = "personalitybench-grouped"
STOCK = "sdpa"
_TOLERANCE = 0.02
"""Relative: bfloat16 sums in another order stay below it."""


def group_queries(model: Any) -> bool:
    """Have a model's decode steps read each key once, if they can.

    The logits are those of ``sdpa``: to the bit with transformers 5.24, in float32 and bfloat16; with transformers 5.6
    to rounding.

    Args:
        model: A transformers model.

    Returns:
        Whether it will: it runs without a GPU, with torch's attention (``sdpa``), and query heads share key heads.
    """
    try:
        if not _shares_keys(model):
            return False
        from transformers import AttentionInterface  # noqa: PLC0415 (slow to import)
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask  # noqa: PLC0415

        expected = _probe(model)
        AttentionInterface.register(NAME, partial(_attention, sdpa_attention_forward))
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
        if torch.allclose(_probe(model), expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max())):
            return True
        model.set_attn_implementation(STOCK)
        reason = "attends in another way than this was written for"
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = f"lacks what it needs ({error})"
    logger.warning("decode steps are not sped up: %s", drift_error("transformers", reason))
    return False


def _shares_keys(model: Any) -> bool:
    config = model.config.get_text_config()
    heads: int = getattr(config, "num_attention_heads", 1)
    shared = heads // (getattr(config, "num_key_value_heads", None) or heads)
    # transformers has no public word for the attention in use; where it is not told, the model stays as it is.
    return bool(model.device.type == "cpu" and shared >= 2 and getattr(config, "_attn_implementation", None) == STOCK)


def _probe(model: Any) -> Tensor:
    """Logits of two decode steps after a short prompt, float32 [2, vocabulary]."""
    ids = torch.arange(8, device=model.device).unsqueeze(0)
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.cat(output.logits[1:]).float()


def _attention(  # noqa: PLR0917 (transformers' signature)
    stock: Callable[..., tuple[Tensor, Any]],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend, with the signature that transformers wants.

    Args:
        stock: transformers' own function for ``sdpa``.
        module: The attention layer.
        query: [batch, heads, queries, size].
        key: [batch, key heads, tokens, size].
        value: As ``key``.
        attention_mask: [batch, 1, queries, tokens] or None.
        options: ``scaling`` and what transformers' own function takes.

    Returns:
        [batch, queries, heads, size], and no weights.
    """
    batch, heads, queries, size = query.shape
    if queries != 1 or options.get("position_bias") is not None:
        output, _ = stock(module, query, key, value, attention_mask, **options)
        return output, None
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    attended = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return attended.reshape(batch, 1, heads, size), None
