"""What backends can do as they are loaded, and what of that a fit depends on."""

from __future__ import annotations

import pytest

from personalitybench.backends.engines import loading_identity
from personalitybench.backends.needs import STEERABLE, STEERABLE_VLLM, capabilities_for, check_needs
from personalitybench.errors import NeedsNotMetError

ADAPTER = frozenset({"adapter"})


def test_vllm_serves_adapters_where_it_was_told_of_them() -> None:
    check_needs("lora", ADAPTER, capabilities_for(STEERABLE_VLLM, {"enable_lora": True}), STEERABLE_VLLM)
    check_needs("lora", ADAPTER, capabilities_for(STEERABLE, {}), STEERABLE)
    assert capabilities_for(STEERABLE_VLLM, {}) == {"intervention"}
    assert capabilities_for("dummy", {"enable_lora": True}) == frozenset()
    for args in ({}, {"enable_lora": False}):
        with pytest.raises(NeedsNotMetError, match=r"as this model is loaded: .*args: \{enable_lora: true\}"):
            check_needs("lora", ADAPTER, capabilities_for(STEERABLE_VLLM, args), STEERABLE_VLLM)


def test_others_are_told_who_can() -> None:
    with pytest.raises(NeedsNotMetError, match=r"'dummy' cannot do; backends that can: .*-hf, personalitybench-vllm$"):
        check_needs("lora", ADAPTER, frozenset(), "dummy")
    with pytest.raises(NeedsNotMetError, match=r"this model type cannot do; .*own vllm: load it with enable_lora=True"):
        check_needs("lora", ADAPTER, frozenset())


def test_room_for_adapters_is_no_part_of_what_a_model_answers() -> None:
    args = {"dtype": "float32", "max_model_len": 1024}
    roomy = args | {"enable_lora": True, "max_loras": 4, "max_lora_rank": 32, "max_cpu_loras": 20}
    assert loading_identity(STEERABLE_VLLM, roomy) == loading_identity(STEERABLE_VLLM, args)
    assert loading_identity(STEERABLE_VLLM, roomy | {"dtype": "bfloat16"}) != loading_identity(STEERABLE_VLLM, args)
