"""The projections of attention and MLP in a decoder, by the names that transformers gives them, and their widths."""

from __future__ import annotations

from typing import Any

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All of a layer, where none are fused."""


def projection_widths(text_config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each projection of a layer, fused ones too, whether the model has them or not.

    Args:
        text_config: transformers' configuration of the model, or of its text part.
    """
    hidden, neurons = int(text_config.hidden_size), int(text_config.intermediate_size)
    heads = int(text_config.num_attention_heads)
    keys = int(getattr(text_config, "num_key_value_heads", None) or heads)
    size = int(getattr(text_config, "head_dim", None) or hidden // heads)
    return {
        "q_proj": (hidden, heads * size),
        "k_proj": (hidden, keys * size),
        "v_proj": (hidden, keys * size),
        "qkv_proj": (hidden, (heads + 2 * keys) * size),
        "o_proj": (heads * size, hidden),
        "gate_proj": (hidden, neurons),
        "up_proj": (hidden, neurons),
        "gate_up_proj": (hidden, 2 * neurons),
        "down_proj": (neurons, hidden),
    }
