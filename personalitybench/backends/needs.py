"""What a backend can do for an induction besides reading a prompt, checked before anything runs."""

from __future__ import annotations

from typing import Any

from personalitybench.errors import NeedsNotMetError

# lm-eval model types by what they can do; a class that can do something says so in its attribute ``capabilities``.
STEERABLE = "personalitybench-hf"
STEERABLE_VLLM = "personalitybench-vllm"
CAPABILITIES: dict[str, frozenset[str]] = {
    STEERABLE: frozenset({"adapter", "intervention"}),
    STEERABLE_VLLM: frozenset({"intervention"}),
}

MODEL_TYPES = {
    STEERABLE: "personalitybench.backends.steerable",
    STEERABLE_VLLM: "personalitybench.backends.vllm.model",
}
"""Our model types, and the modules that register them: lm-eval 0.4.13 finds no plug-ins."""

LOAD_FORMAT = "personalitybench"
"""``load_format`` with which lm-eval's own ``vllm`` model can do what ``personalitybench-vllm`` can."""


def capabilities_of(model: Any) -> frozenset[str]:
    """What a loaded model of lm-eval can do besides reading a prompt."""
    if engine_with_plugin(model) is not None:
        return CAPABILITIES[STEERABLE_VLLM]
    found: frozenset[str] = getattr(type(model), "capabilities", frozenset())
    return found


def engine_with_plugin(model: Any) -> Any:
    """The ``vllm.LLM`` behind a model of lm-eval, if it was loaded with the plug-in; else None."""
    arguments = getattr(model, "model_args", None)
    if not isinstance(arguments, dict) or arguments.get("load_format") != LOAD_FORMAT:
        return None
    engine = getattr(model, "model", None)
    return engine if hasattr(engine, "collective_rpc") else None


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
    if lacking:
        able = sorted(name for name, can in CAPABILITIES.items() if needs <= can)
        which = f"backend {backend!r}" if backend else "this model type"
        raise NeedsNotMetError(
            f"method {method!r} needs {' and '.join(lacking)}, which {which} cannot do; "
            f"backends that can: {', '.join(able) or 'none in this version'}"
        )
