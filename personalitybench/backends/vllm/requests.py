"""The check of a request that wants to be steered or counted: in the engine core, before it reaches a worker."""

from __future__ import annotations

from typing import Any

from personalitybench.backends.vllm.loader import LOAD_FORMAT, plugin_options
from personalitybench.backends.vllm.seams import load_intervention
from personalitybench.backends.wishes import Wish
from personalitybench.errors import ConfigurationError, NeedsNotMetError


def prepare_request(request: Any, vllm_config: Any) -> None:
    """Check a request's wish and keep its cached keys and values apart from those of others.

    Args:
        request: vLLM's ``EngineCoreRequest``; gets a salt of the prefix cache.
        vllm_config: Of the engine.

    Raises:
        NeedsNotMetError: The model was loaded without the plug-in, or without room for counts.
        StorageError: The artifact is missing, unfinished or damaged.
        ModelError: It was made for a model of another shape.
        ConfigurationError: The wish is not understood.
    """
    wish = Wish.parse(request.sampling_params.extra_args)
    if wish is None:
        return
    if vllm_config.load_config.load_format != LOAD_FORMAT:
        raise NeedsNotMetError(
            f"a request wants its activations edited, but the model was loaded without load_format={LOAD_FORMAT}: "
            "add it to the model's arguments"
        )
    if wish.intervention is not None:
        text = vllm_config.model_config.hf_text_config
        intervention = load_intervention(wish.intervention)
        intervention.check_model(
            text.num_hidden_layers, text.intermediate_size, where=f"intervention {wish.intervention}"
        )
        salt = wish.salt(intervention.sha256, len(request.prompt_token_ids or ()))
        request.cache_salt = "/".join(part for part in (request.cache_salt, salt) if part)
    if wish.shard is not None:
        counting = plugin_options(vllm_config).statistics
        if counting is None:
            raise NeedsNotMetError(
                "a request wants its activations counted, but the engine has no room for counts: load it with "
                'additional_config={"personalitybench": {"statistics": {}}}'
            )
        if wish.shard >= counting.shards:
            raise ConfigurationError(f"shard {wish.shard}: the engine counts shards 0 to {counting.shards - 1}")
        request.sampling_params.skip_reading_prefix_cache = True  # what is not computed cannot be counted
