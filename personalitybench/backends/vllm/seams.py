"""Where the plug-in meets vLLM's two model runners: requests come in, every forward pass is announced.

Runner V1 (the CPU's) has one method around the forward pass; runner V2 (a GPU's by default) asks the model for the
class of its state, which hears of requests and steps. Both are reached only when a model was loaded by the plug-in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.utils.import_utils import resolve_obj_by_qualname

from personalitybench.activations.interventions import Intervention
from personalitybench.backends.vllm.gates import take_turn
from personalitybench.backends.vllm.router import Router
from personalitybench.backends.vllm.state import GateState
from personalitybench.backends.vllm.worker import CONTROL, WorkerMethods
from personalitybench.backends.wishes import Wish


@dataclass(frozen=True)
class GateControl:
    """State and router of one model: what hangs at the model, and what the worker's methods reach."""

    state: GateState
    router: Router

    def add(self, request_id: str, sampling_params: Any, prompt_tokens: int) -> None:
        """Take in a request."""
        wish = Wish.parse(getattr(sampling_params, "extra_args", None))
        if wish is None:
            return
        slot = 0
        if wish.intervention is not None:
            slot = self.state.slot(load_intervention(wish.intervention), self.router.slots_in_use)
        self.router.add(request_id, wish, slot, prompt_tokens)

    def before_forward(self, request_ids: list[str], starts: Any, computed: Any) -> None:
        """Lay out a step and write its orders."""
        take_turn(self.state)
        self.state.order(self.router.step(request_ids, starts, computed))


def load_intervention(folder: Any) -> Intervention:
    """Read an artifact, once as long as it is not written again."""
    manifest = folder / "intervention.json"
    return _load(folder, manifest.stat().st_mtime_ns if manifest.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _load(folder: Any, _written: int) -> Intervention:
    return Intervention.load(folder)


def install_seams(model: nn.Module, vllm_config: VllmConfig, control: GateControl) -> None:
    """Connect a loaded model with the runner of this worker."""
    setattr(model, CONTROL, control)
    _extend_worker(vllm_config)
    if vllm_config.use_v2_model_runner:
        from personalitybench.backends.vllm.model_state import GateModelState  # noqa: PLC0415 (needs Triton)

        model.get_model_state_cls = lambda: GateModelState  # type: ignore[assignment]  # vLLM's own hook
    else:
        _wrap_runner_v1()


def _extend_worker(vllm_config: VllmConfig) -> None:
    """Give the worker the plug-in's methods, the way vLLM adds ``worker_extension_cls``."""
    worker = resolve_obj_by_qualname(vllm_config.parallel_config.worker_cls)
    if WorkerMethods not in worker.__mro__:
        worker.__bases__ = (*worker.__bases__, WorkerMethods)


def _wrap_runner_v1() -> None:
    """Announce the forward passes of runner V1, whose ``_model_forward`` is there to be overridden."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # noqa: PLC0415 (heavy)

    original = GPUModelRunner._model_forward
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def announced(self: Any, *args: Any, **kwargs: Any) -> Any:
        control = getattr(self.get_model(), CONTROL, None)
        if control is not None:
            _announce_v1(self, control)
        return original(self, *args, **kwargs)

    GPUModelRunner._model_forward = announced


def _announce_v1(runner: Any, control: GateControl) -> None:
    batch = runner.input_batch
    request_ids = batch.req_ids
    for gone in [name for name in control.router.request_ids if name not in runner.requests]:
        control.router.remove(gone)
    for name in request_ids:
        if name not in control.router and (state := runner.requests[name]).sampling_params is not None:
            control.add(name, state.sampling_params, state.num_prompt_tokens)
    count = len(request_ids)
    control.before_forward(request_ids, runner.query_start_loc.np[: count + 1], batch.num_computed_tokens_cpu[:count])
