"""Which engine identifies for a backend, and how a model is loaded into it. Nothing heavy is imported before that.

An engine is a library that runs a model. Backends that run it the same way share one, and so share what was fitted:
neurons found under ``hf`` serve ``personalitybench-hf``, whose unsteered answers are the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from personalitybench.errors import MissingDependencyError, NeedsNotMetError
from personalitybench.versions import import_failure

if TYPE_CHECKING:
    from personalitybench.activations.identification import Counting, IdentificationEngine

TRANSFORMERS = "transformers"
VLLM = "vllm"

_ENGINES: dict[str, str] = {
    "hf": TRANSFORMERS,
    "hf-auto": TRANSFORMERS,
    "huggingface": TRANSFORMERS,
    "personalitybench-hf": TRANSFORMERS,
    "vllm": VLLM,
    "personalitybench-vllm": VLLM,
}
# Arguments that say where the weights lie and on what they run, not what they compute.
_PLACES = frozenset({"pretrained", "model", "revision", "device"})
# Arguments of vLLM that make room for adapters: without a request for one the model answers the same.
_ADAPTERS = frozenset(
    {"enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype", "fully_sharded_loras"}
)


def engine_of(backend: str) -> str:
    """Name of the engine that runs a backend's models; a backend with none of ours stands for itself."""
    return _ENGINES.get(backend, backend)


def loading_identity(backend: str, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an engine's answers besides the weights: the engine, and how it loads them."""
    left_out = _PLACES | (_ADAPTERS if engine_of(backend) == VLLM else frozenset())
    args = {key: model_args[key] for key in sorted(model_args) if key not in left_out}
    return {"engine": engine_of(backend), "args": args}


def open_engine(
    backend: str,
    model: str,
    model_args: Mapping[str, Any],
    batch_size: int,
    device: str | None = None,
    *,
    counting: Counting | None = None,
) -> IdentificationEngine:
    """Load a model into the engine of a backend.

    Args:
        backend: lm-eval model type.
        model: Local path or hub name of the model.
        model_args: Further arguments of the model type, such as ``dtype``.
        batch_size: Answers at a time.
        device: Torch device, or None for the default; vLLM chooses for itself.
        counting: What it is to count, if that is known.

    Raises:
        NeedsNotMetError: The backend gives no access to activations; the text names those that do.
        MissingDependencyError: A package is missing.
        ModelError: The model cannot be loaded.
    """
    engine = engine_of(backend)
    if engine == TRANSFORMERS:
        return _open_transformers(model, model_args, batch_size, device)
    if engine == VLLM:
        return _open_vllm(model, model_args, batch_size, counting)
    raise NeedsNotMetError(
        f"backend {backend!r} gives no access to a model's weights and activations, so nothing is fitted under it: use "
        f"one of {', '.join(sorted(_ENGINES))}"
    )


def _open_transformers(
    model: str, model_args: Mapping[str, Any], batch_size: int, device: str | None
) -> IdentificationEngine:
    # Through lm-eval's model class, so that weights and chat template are those of the answers to come.
    try:
        import torch  # noqa: F401, PLC0415 (heavy, and optional)
        import transformers  # noqa: F401, PLC0415
    except ImportError as error:
        raise import_failure(error, "asking and counting with transformers", "hf") from error
    from personalitybench.activations.identification_transformers import TransformersEngine  # noqa: PLC0415
    from personalitybench.backends.loading import load_model  # noqa: PLC0415 (lm-eval's models are slow to import)

    loaded: Any = load_model("hf", {"pretrained": model, **model_args}, batch_size, device)

    def template(turn: str) -> str:
        return str(loaded.apply_chat_template([{"role": "user", "content": turn}]))

    return TransformersEngine(loaded.model, loaded.tokenizer, batch_size, template)


def _open_vllm(
    model: str, model_args: Mapping[str, Any], batch_size: int, counting: Counting | None
) -> IdentificationEngine:
    missing = "asking and counting with vLLM needs vLLM, which is not installed{}: pip install 'personalitybench[vllm]'"
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(missing.format(""))
    try:
        from personalitybench.backends.vllm.identification import VllmEngine  # noqa: PLC0415 (heavy, and optional)
    except ImportError as error:
        raise MissingDependencyError(missing.format(f" whole ({error})")) from error
    args = {key: value for key, value in model_args.items() if key not in _ADAPTERS}
    return VllmEngine(model, args, batch_size, counting)
