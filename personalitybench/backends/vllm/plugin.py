"""What vLLM calls in all its processes: registers the load format and the check of requests, and does no more.

Entry point of the group ``vllm.general_plugins``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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


def _check_requests() -> None:
    """Have requests checked where a client gives them, and again where the engine core takes them in.

    An error in the core is only logged there, and the client gets an empty answer; one in the client reaches the
    caller, and leaves nothing behind.
    """
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    for client in (LLMEngine, AsyncLLM):
        _put_before(client, "add_request", _admit)
    _put_before(EngineCore, "preprocess_add_request", _prepare)


def _put_before(owner: Any, method: str, check: Callable[..., None]) -> None:
    original = getattr(owner, method)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        check(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(owner, method, checked)


def _admit(client: Any, request_id: str, prompt: Any, params: Any, *_args: Any, **_kwargs: Any) -> None:  # noqa: ARG001
    if _wants_anything(params):
        from personalitybench.backends.vllm.requests import admit_request  # noqa: PLC0415

        admit_request(client, request_id, params)


def _prepare(core: Any, request: Any) -> None:
    if _wants_anything(request.sampling_params):
        from personalitybench.backends.vllm.requests import prepare_request  # noqa: PLC0415

        prepare_request(core, request)


def _wants_anything(params: Any) -> bool:
    return "personalitybench" in (getattr(params, "extra_args", None) or {})
