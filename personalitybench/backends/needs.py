"""What a backend can do for an induction besides reading a prompt, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from personalitybench.errors import NeedsNotMetError

# lm-eval model types by what they can do; a class that can do something says so in its attribute ``capabilities``.
STEERABLE = "personalitybench-hf"
STEERABLE_VLLM = "personalitybench-vllm"
CAPABILITIES: dict[str, frozenset[str]] = {
    STEERABLE: frozenset({"adapter", "intervention"}),
    STEERABLE_VLLM: frozenset({"adapter", "intervention"}),
}

MODEL_TYPES = {
    STEERABLE: "personalitybench.backends.steerable",
    STEERABLE_VLLM: "personalitybench.backends.vllm.model",
}
"""Our model types, and the modules that register them: lm-eval 0.4.13 finds no plug-ins."""

LOAD_FORMAT = "personalitybench"
"""``load_format`` with which lm-eval's own ``vllm`` model can do what ``personalitybench-vllm`` can."""


LORA_HINT = "load it with enable_lora=True among the model's arguments (in a suite, args: {enable_lora: true})"
"""What to do where vLLM was told of no adapters: room for them is made when a model is loaded."""


def capabilities_for(backend: str, args: Mapping[str, Any]) -> frozenset[str]:
    """What a backend can do besides reading a prompt if it loads a model with these arguments.

    Args:
        backend: lm-eval model type.
        args: Its arguments, as ``--model_args``.
    """
    can = CAPABILITIES.get(backend, frozenset())
    if backend == STEERABLE_VLLM and not args.get("enable_lora"):
        return can - {"adapter"}
    return can


def capabilities_of(model: Any) -> frozenset[str]:
    """What a loaded model of lm-eval can do besides reading a prompt."""
    engine = engine_with_plugin(model)
    if engine is None:
        found: frozenset[str] = getattr(type(model), "capabilities", frozenset())
        return found
    steers = engine.llm_engine.vllm_config.load_config.load_format == LOAD_FORMAT
    return frozenset({"intervention"} if steers else ()) | ({"adapter"} if _has_adapters(engine) else set())


def engine_with_plugin(model: Any) -> Any:
    """The ``vllm.LLM`` behind a model of lm-eval, if the plug-in can do anything for it; else None."""
    engine = getattr(model, "model", None)
    config = getattr(getattr(engine, "llm_engine", None), "vllm_config", None)
    if config is None:
        return None
    return engine if config.load_config.load_format == LOAD_FORMAT or _has_adapters(engine) else None


def _has_adapters(engine: Any) -> bool:
    return engine.llm_engine.vllm_config.lora_config is not None


def check_needs(method: str, needs: frozenset[str], capabilities: frozenset[str], backend: str = "") -> None:
    """Refuse a method that a backend cannot serve.

    Args:
        method: Name of the method.
        needs: What it needs.
        capabilities: What the backend can do.
        backend: Name of the backend, if it is known.

    Raises:
        NeedsNotMetError: Names what is missing and the backends that can.
    """
    lacking = sorted(needs - capabilities)
    if not lacking:
        return
    needed = f"method {method!r} needs {' and '.join(lacking)}, which"
    if needs <= CAPABILITIES.get(backend, frozenset()):
        raise NeedsNotMetError(f"{needed} backend {backend!r} cannot do as this model is loaded: {LORA_HINT}")
    able = sorted(name for name, can in CAPABILITIES.items() if needs <= can)
    # A model that is loaded already may be lm-eval's own vllm, which can what it was loaded for.
    how = f"; lm-eval's own vllm: {LORA_HINT}" if "adapter" in lacking and not backend else ""
    raise NeedsNotMetError(
        f"{needed} {f'backend {backend!r}' if backend else 'this model type'} cannot do; "
        f"backends that can: {', '.join(able) or 'none in this version'}{how}"
    )
