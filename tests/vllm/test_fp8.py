"""vLLM's fused activation and quantisation of FP8 models: stock modules take it, a steered one is never passed by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

FUSED = "the fused kernel was taken"


@pytest.mark.parametrize("steerable", [False, True])
def test_a_steered_activation_is_not_fused_with_the_quantisation_behind_it(
    engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, steerable: bool
) -> None:
    """With a stand-in for the kernel, which processors have not, and for a down projection of FP8."""
    import torch
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.fusion import fused_act_quant

    key = fused_act_quant.kFp8StaticTensorSym
    monkeypatch.setattr(fused_act_quant, "get_input_quant_key", lambda _linear: key)
    monkeypatch.setitem(fused_act_quant._FUSED_ACT_QUANT, (SiluAndMul, key), lambda *_: FUSED)

    def outcomes(model: Any) -> list[Any]:
        inputs = torch.randn(3, 2 * model.config.intermediate_size)
        found = []
        for layer in model.model.layers:
            result = fused_act_quant.maybe_fused_act_quant(layer.mlp.act_fn, inputs, layer.mlp.down_proj)
            plain = torch.nn.functional.silu(inputs.chunk(2, -1)[0]) * inputs.chunk(2, -1)[1]
            found.append(result if result is FUSED else torch.allclose(result, plain))
        return found

    found = engine(steerable=steerable).apply_model(outcomes)[0]
    assert found == [True if steerable else FUSED] * len(found)
    assert found
