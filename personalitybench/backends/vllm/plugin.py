"""What vLLM calls in all its processes: registers the load format, the check of requests, and LoRA's products on CPUs.

Entry point of the group ``vllm.general_plugins``.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

_registered = False


def register() -> None:
    """Register, once in a process; vLLM may call it again.

    A vLLM of another version than those tested gets a loader that refuses, and is left as it is.
    """
    from vllm.model_executor.model_loader import (  # noqa: PLC0415 (only where vLLM is running)
        BaseModelLoader,
        register_model_loader,
    )

    from personalitybench.backends.vllm.versions import is_tested, vllm_version  # noqa: PLC0415

    global _registered  # noqa: PLW0603 (vLLM's registry is a global as well)
    if _registered:
        return
    _registered = True

    class LazyLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not installed where types are checked
        """Becomes the real loader when a model is loaded with it; nothing of ours is imported for other models."""

        def __new__(cls, load_config: Any) -> Any:
            from personalitybench.backends.vllm.versions import check_version  # noqa: PLC0415

            check_version(vllm_version())
            from personalitybench.backends.vllm.loader import GateModelLoader  # noqa: PLC0415

            return GateModelLoader(load_config)

        def download_model(self, model_config: Any) -> None:
            """Never called: the object is a GateModelLoader."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Never called: the object is a GateModelLoader."""

    register_model_loader("personalitybench")(LazyLoader)
    if is_tested(vllm_version()):
        _check_requests()
        _right_products_on_cpus()


def _check_requests() -> None:
    """Have requests checked where a client gives them, and again where the engine core takes them in.

    An error in the core is only logged there, and the client gets an empty answer; one in the client reaches the
    caller, and leaves nothing behind.
    """
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    for client in (LLMEngine, AsyncLLM):
        _admit_before(client)
    _prepare_before(EngineCore)


def _admit_before(client_class: Any) -> None:
    original = client_class.add_request
    if hasattr(original, "__wrapped__"):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def admitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = kwargs["params"] if "params" in kwargs else args[2]
        if not _wants_anything(params):
            return original(self, *args, **kwargs)
        from personalitybench.backends.vllm.requests import admit_request  # noqa: PLC0415

        call = signature.bind(self, *args, **kwargs)
        admit_request(self, call)
        return original(*call.args, **call.kwargs)

    client_class.add_request = admitted


def _prepare_before(core_class: Any) -> None:
    original = core_class.preprocess_add_request
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def prepared(self: Any, request: Any) -> Any:
        if _wants_anything(request.sampling_params):
            from personalitybench.backends.vllm.requests import prepare_request  # noqa: PLC0415

            prepare_request(self, request)
        return original(self, request)

    core_class.preprocess_add_request = prepared


def _wants_anything(params: Any) -> bool:
    return "personalitybench" in (getattr(params, "extra_args", None) or {})


def _right_products_on_cpus() -> None:
    """Have engines with LoRA on CPUs leave tokens without an adapter alone; see :mod:`.punica`, imported by them."""
    from vllm.platforms import current_platform  # noqa: PLC0415

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(
            lambda _: "personalitybench.backends.vllm.punica.PunicaWrapper"
        )
