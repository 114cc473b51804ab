"""An adapter that a request wishes, as vLLM's own ``LoRARequest``: made where the request is given to vLLM."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from personalitybench.backends.needs import LORA_HINT
from personalitybench.backends.vllm.served_adapters import ServedAdapter
from personalitybench.backends.wishes import Wish
from personalitybench.errors import ConfigurationError, NeedsNotMetError

_SERVED = "_personalitybench_adapters"
"""Attribute of a client: the requests for adapters that it made, by content and strength."""
_FIRST_ID = 1 << 20  # small numbers are for people who number their adapters themselves
_IDS = (1 << 31) - 1 - _FIRST_ID  # vLLM 0.32 keeps the numbers in 32 bits

_names: dict[int, str] = {}
"""Numbers of adapters that this process gave away, and the names that they stand for."""


def put_adapter(wish: Wish, client: Any, call: inspect.BoundArguments) -> None:
    """Have a request that wishes an adapter answered with it.

    Args:
        wish: What the request asks for.
        client: vLLM's ``LLMEngine`` or ``AsyncLLM``.
        call: Of its ``add_request``; gets the ``lora_request``.

    Raises:
        ConfigurationError: The request names another adapter already.
        NeedsNotMetError: The engine has no room for adapters, or for none of that rank.
        StorageError, ModelError: As :meth:`ServedAdapter.open`, :meth:`check_model` and :meth:`scaled` say.
    """
    if wish.adapter is None:
        return
    prompt = call.arguments["prompt"]  # already an EngineCoreRequest where a client made one itself
    holder = prompt if hasattr(prompt, "lora_request") else None
    given = call.arguments.get("lora_request") or getattr(holder, "lora_request", None)
    if given is not None:
        raise ConfigurationError(
            f"a request names the LoRA adapter {given.lora_name!r} itself and wishes {wish.adapter} besides: leave one "
            "of them out"
        )
    wanted = _lora_request(wish.adapter, wish.adapter_strength, client)
    if holder is not None:
        holder.lora_request = wanted
    call.arguments["lora_request"] = wanted


def _lora_request(folder: Path, strength: float, client: Any) -> LoRARequest | None:
    lora_config = client.vllm_config.lora_config
    if lora_config is None:
        raise NeedsNotMetError(
            f"a request wishes the adapter {folder}, but the model was loaded without room for adapters: {LORA_HINT}"
        )
    files = ServedAdapter.open(folder)
    served: dict[tuple[str, float], LoRARequest | None] = client.__dict__.setdefault(_SERVED, {})
    key = (files.sha256, strength)
    if key not in served:
        _check(files, client.vllm_config)
        served[key] = _named(files, strength) if strength else None
    return served[key]


def _named(files: ServedAdapter, strength: float) -> LoRARequest:
    """Name an adapter by content and strength: vLLM's prefix cache and its loaded adapters go by name and number."""
    name = f"personalitybench-{files.sha256}-{strength!r}"
    number = _FIRST_ID + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _IDS
    while _names.setdefault(number, name) != name:
        number = _FIRST_ID + (number + 1 - _FIRST_ID) % _IDS
    return LoRARequest(name, number, str(files.scaled(strength)))


def _check(files: ServedAdapter, vllm_config: Any) -> None:
    """Refuse in the caller's process what would end the engine, or be cut to fit, when a worker loads it."""
    config = vllm_config.lora_config
    if files.rank > config.max_lora_rank:
        raise NeedsNotMetError(
            f"adapter {files.folder} has rank {files.rank}, the engine was loaded for adapters of rank "
            f"{config.max_lora_rank} at most: raise max_lora_rank among the model's arguments"
        )
    files.check_model(vllm_config.model_config.hf_text_config)
    left_out = files.modules - frozenset(config.target_modules or files.modules)
    if left_out:
        raise NeedsNotMetError(
            f"adapter {files.folder} changes {', '.join(sorted(left_out))}, which the engine leaves out "
            f"(lora_target_modules={config.target_modules}): load it without"
        )
    try:
        PEFTHelper.from_dict(dict(files.config)).validate_legal(config)
    except ValueError as error:
        raise NeedsNotMetError(f"vLLM does not serve adapter {files.folder}: {error}") from error
