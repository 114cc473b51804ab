"""The seam of model runner V2: a model state that hears of requests and steps."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from personalitybench.backends.vllm.worker import CONTROL


class GateModelState(DefaultModelState):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's state of a decoder, which tells the plug-in what comes."""

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Take in a request; a preempted one comes again."""
        super().add_request(req_index, new_req_data)
        getattr(self.model, CONTROL).add(
            new_req_data.req_id, new_req_data.sampling_params, len(new_req_data.prompt_token_ids)
        )

    def remove_request(self, req_id: str) -> None:
        """Let go of a request that finished or was preempted."""
        getattr(self.model, CONTROL).router.remove(req_id)
        super().remove_request(req_id)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """Write the step's orders before the forward pass, in eager mode and before a graph is replayed."""
        getattr(self.model, CONTROL).before_forward(
            input_batch.req_ids, input_batch.query_start_loc_np, input_batch.num_computed_tokens_np
        )
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs
