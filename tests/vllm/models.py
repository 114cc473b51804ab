"""Tiny random models of the real architecture classes, with a tokenizer of their own, and interventions for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from personalitybench.activations.interventions import Intervention, Operation

LAYERS, NEURONS, VOCABULARY = 3, 128, 512
BOS, EOS, PAD = range(3)
"""Padding of its own: transformers' repetition penalty takes left padding for words of the prompt."""

FAMILIES: Mapping[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
}

_TEXT = (
    "She asked what I do when a plan falls apart, and I said that I begin again with a list.",
    "A friend calls late in the evening: how do you feel, and what would you say to him?",
    "I like long walks, old maps and the quiet before everybody else is awake.",
    "When people argue at work I listen first; then I tell them plainly what I think.",
    "New places make me nervous, but I go there anyway because somebody has to drive.",
)
_TEMPLATE = "{{ bos_token }}{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant: "


def save_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE of 512 tokens with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096, **marks)
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)


def save_model(folder: Path, config: PreTrainedConfig, *, seed: int = 0) -> None:
    """Save a random model and its tokenizer.

    Gemma multiplies what it reads by the root of its width, caps its logits, and normalises what an MLP gives before it
    is added. Small embeddings and large weights of that norm let its MLPs decide.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("post_feedforward_layernorm.weight"):
                weight.fill_(5.0)
            if config.model_type.startswith("gemma") and name.endswith("embed_tokens.weight"):
                weight.mul_(0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def config_of(family: str, **more: Any) -> PreTrainedConfig:
    """Configuration of a dense gated family: heads of 32, the smallest that vLLM's CPU attention has."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.25,
    }
    if family in {"qwen3", "gemma2", "gemma3"}:
        settings["head_dim"] = 32
    if family.startswith("gemma"):
        settings["query_pre_attn_scalar"] = 32
    return FAMILIES[family](**(settings | more))


def save_unsupported(folder: Path, kind: str) -> None:
    """Save a model that cannot be steered: ``mixtral`` has experts, ``opt`` has MLPs without a gate."""
    common = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "max_position_embeddings": 256}
    if kind == "mixtral":
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2}
        config: PreTrainedConfig = MixtralConfig(**common, **ends, **experts, intermediate_size=64)
    else:
        config = OPTConfig(**common, **ends, ffn_dim=64, word_embed_proj_dim=64)
    save_model(folder, config)


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_adapter(folder: Path, model: Path, seed: int, *, rank: int = 4, scale: float = 0.2, **settings: Any) -> str:
    """Save a random LoRA adapter of a model, strong enough to change its words, as peft saves it.

    Returns:
        The folder, as a request names it.
    """
    from peft import LoraConfig, get_peft_model

    given = {"r": rank, "lora_alpha": 2 * rank, "target_modules": list(PROJECTIONS)} | settings
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(loaded, LoraConfig(**given))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, scale)
    adapted.save_pretrained(folder)
    return str(folder)


def save_intervention(folder: Path, seed: int, shape: tuple[int, int] = (LAYERS, NEURONS), scale: float = 1.0) -> str:
    """Save clamps on a third of the neurons and additions on another third.

    Returns:
        The folder, as a request names it.
    """
    draw = np.random.default_rng(seed)
    layers, neurons = shape
    count = layers * neurons // 3
    places = draw.choice(layers * neurons, 2 * count, replace=False)
    operation = np.repeat(np.array([Operation.CLAMP_MAX, Operation.ADD], np.uint8), count)
    value = np.where(operation == Operation.ADD, scale * draw.uniform(0.2, 0.8, 2 * count), 0.0).astype(np.float32)
    layer, index = (part.astype(np.int32) for part in np.divmod(places, neurons))
    Intervention(shape, layer, index, operation, value).save(folder)
    return str(folder)
