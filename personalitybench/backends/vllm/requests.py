"""The check of a request that wants an adapter, or to be steered or counted, before it reaches a worker."""

from __future__ import annotations

import functools
import hashlib
import inspect
import uuid
from typing import Any

from personalitybench.activations.interventions import Intervention
from personalitybench.backends.needs import LOAD_FORMAT
from personalitybench.backends.vllm.adapters import put_adapter
from personalitybench.backends.vllm.loader import plugin_options
from personalitybench.backends.vllm.seams import load_intervention
from personalitybench.backends.wishes import Wish
from personalitybench.errors import ConfigurationError, NeedsNotMetError

_ADMITTED = "_personalitybench_admitted"
"""Attribute of a client: which intervention each of its requests wants, by the request's id."""
_OWN = "_personalitybench_own"
"""Attribute of a request in the core: what makes the names of its cached answer unlike all others."""


def admit_request(client: Any, call: inspect.BoundArguments) -> None:
    """Check a request where it is given to vLLM, so that the caller gets the error and nothing is left behind.

    Args:
        client: vLLM's ``LLMEngine`` or ``AsyncLLM``.
        call: Of its ``add_request``; gets a ``lora_request`` where the request wishes an adapter.

    Raises:
        NeedsNotMetError: Also where the unfinished requests want more interventions than there are slots.
        StorageError, ModelError, ConfigurationError: As :func:`check_wish` and :func:`put_adapter` say.
    """
    wish = Wish.parse(call.arguments["params"].extra_args)
    if wish is None:
        return
    intervention = check_wish(wish, client.vllm_config)
    put_adapter(wish, client, call)
    if intervention is None or not len(intervention):
        return
    admitted: dict[str, str] = client.__dict__.setdefault(_ADMITTED, {})
    here = client.output_processor.external_req_ids
    slots = plugin_options(client.vllm_config).slots
    if len({*admitted.values(), intervention.sha256}) > slots or len(admitted) > 2 * len(here) + 64:
        for gone in [name for name in admitted if name not in here]:
            del admitted[gone]
    if len({*admitted.values(), intervention.sha256}) > slots:
        raise NeedsNotMetError(
            f"more than {slots} interventions at once: raise additional_config="
            '{"personalitybench": {"slots": N}} of the model, or ask for fewer at a time'
        )
    admitted[call.arguments["request_id"]] = intervention.sha256


def prepare_request(core: Any, request: Any) -> None:
    """Keep a request's cached keys and values apart from those of others; in the engine core.

    A steered request shares with those that are steered alike; by adapters vLLM keeps them apart itself. A counted one
    shares its prompt with all, and its answer with none: what comes out of the cache is not computed, and what is not
    computed cannot be counted.

    Args:
        core: vLLM's ``EngineCore``.
        request: Its ``EngineCoreRequest``; gets a salt of the prefix cache.

    Raises:
        NeedsNotMetError, StorageError, ModelError, ConfigurationError: As :func:`check_wish` says.
    """
    wish = Wish.parse(request.sampling_params.extra_args)
    if wish is None:
        return
    if wish.adapter is not None and wish.adapter_strength and request.lora_request is None:
        raise NeedsNotMetError(
            f"a request wishes the adapter {wish.adapter} and came to the engine without: give requests to vLLM where "
            "personalitybench is installed"
        )
    intervention = check_wish(wish, core.vllm_config)
    if intervention is not None:
        salt = wish.salt(intervention.sha256, len(request.prompt_token_ids or ()))
        request.cache_salt = "/".join(part for part in (request.cache_salt, salt) if part)
    hasher = core.request_block_hasher
    if wish.shard is not None and hasher is not None and not hasattr(hasher, "__wrapped__"):
        core.request_block_hasher = _apart(hasher, core.scheduler.hash_block_size)


def _apart(hasher: Any, block_size: int) -> Any:
    """Give the blocks that hold a counted answer names of their own in the prefix cache.

    Args:
        hasher: Names the full blocks of a request that have no name yet.
        block_size: Tokens of a block.
    """

    @functools.wraps(hasher)
    def apart(request: Any) -> list[bytes]:
        names: list[bytes] = hasher(request)
        wish = Wish.parse(getattr(request.sampling_params, "extra_args", None))
        if wish is None or wish.shard is None:
            return names
        first = request.num_prompt_tokens if wish.answer_from is None else wish.answer_from
        shared = max(first // block_size - len(request.block_hashes), 0)
        own = request.__dict__.setdefault(_OWN, uuid.uuid4().bytes)
        return names[:shared] + [hashlib.sha256(own + name).digest() for name in names[shared:]]

    return apart


def check_wish(wish: Wish, vllm_config: Any) -> Intervention | None:
    """Refuse what an engine cannot edit or count.

    Returns:
        The intervention, if one is wanted.

    Raises:
        NeedsNotMetError: The model was loaded without the plug-in, or without room for counts.
        StorageError: The artifact is missing, unfinished or damaged.
        ModelError: It was made for a model of another shape.
        ConfigurationError: It holds what cannot be, or the shard is not one of the engine's.
    """
    if wish.intervention is None and wish.shard is None:
        return None
    if vllm_config.load_config.load_format != LOAD_FORMAT:
        raise NeedsNotMetError(
            f"a request wants its activations edited or counted, but the model was loaded without "
            f"load_format={LOAD_FORMAT}: add it to the model's arguments"
        )
    if wish.shard is not None:
        counting = plugin_options(vllm_config).statistics
        if counting is None:
            raise NeedsNotMetError(
                "a request wants its activations counted, but the engine has no room for counts: load it with "
                'additional_config={"personalitybench": {"statistics": {}}}'
            )
        if wish.shard >= counting.shards:
            raise ConfigurationError(f"shard {wish.shard}: the engine counts shards 0 to {counting.shards - 1}")
    if wish.intervention is None:
        return None
    intervention = load_intervention(wish.intervention)
    text = vllm_config.model_config.hf_text_config
    intervention.check_model(text.num_hidden_layers, text.intermediate_size, where=f"intervention {wish.intervention}")
    return intervention
