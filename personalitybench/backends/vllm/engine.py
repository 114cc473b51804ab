"""Start a vLLM engine with the plug-in: what every user of it here has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from personalitybench.backends.needs import LOAD_FORMAT
from personalitybench.backends.vllm.versions import check_version, vllm_version
from personalitybench.errors import ConfigurationError
from personalitybench.traits import TARGETS

_ON_CPU: Mapping[str, Any] = {
    # Share of the machine's memory, of which vLLM wants 92 % by default.
    "gpu_memory_utilization": 0.25,
    # Compiling takes longer than a small model's answers.
    "enforce_eager": True,
    # Tokens that are kept together in the prefix cache, 128 by default: most prompts share less than that.
    "block_size": 32,
}

_WITH_ADAPTERS: Mapping[str, Any] = {
    "max_loras": len(TARGETS),  # one for each target, all in one batch
    "max_lora_rank": 16,
}


def engine_arguments(given: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments for ``vllm.LLM`` that load a model with the plug-in.

    Args:
        given: What the user said; wins over our defaults for machines without a GPU, and for adapters, for which
            room is made where ``enable_lora`` is true.
        options: Of the plug-in (:class:`~personalitybench.backends.vllm.loader.PluginOptions`).

    Raises:
        MissingDependencyError: vLLM is not installed.
        NeedsNotMetError: Its version was not tested.
        ConfigurationError: The user asked for another load format.
    """
    check_version(vllm_version())
    from vllm.platforms import current_platform  # noqa: PLC0415 (optional)

    wanted = given.get("load_format", LOAD_FORMAT)
    if wanted not in {LOAD_FORMAT, "auto", "dummy"}:
        raise ConfigurationError(
            f"load_format={wanted}: steering loads with load_format={LOAD_FORMAT}; say how the weights are read with "
            f'additional_config={{"{LOAD_FORMAT}": {{"weights": "{wanted}"}}}}'
        )
    extra = dict(given.get("additional_config") or {})
    own = dict(extra.get(LOAD_FORMAT) or {}) | dict(options or {})
    if wanted == "dummy":
        own["weights"] = "dummy"
    defaults = dict(_ON_CPU) if current_platform.is_cpu() else {}
    if given.get("enable_lora"):
        defaults |= _WITH_ADAPTERS
    return defaults | dict(given) | {"load_format": LOAD_FORMAT, "additional_config": extra | {LOAD_FORMAT: own}}
