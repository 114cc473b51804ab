"""What vLLM calls in all its processes: registers the load format and the check of requests, and does no more.

Entry point of the group ``vllm.general_plugins``.
"""

from __future__ import annotations

import functools
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
    """Have the engine core check what a request wants, before the request reaches a worker."""
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415

    original = EngineCore.preprocess_add_request
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def checked(self: Any, request: Any) -> Any:
        params = request.sampling_params
        if params is not None and params.extra_args and "personalitybench" in params.extra_args:
            from personalitybench.backends.vllm.requests import prepare_request  # noqa: PLC0415

            prepare_request(request, self.vllm_config)
        return original(self, request)

    EngineCore.preprocess_add_request = checked
