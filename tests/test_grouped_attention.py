"""Grouped queries: the answers that transformers gives, from fewer reads of the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from personalitybench.backends import grouped_attention  # noqa: E402
from personalitybench.backends.grouped_attention import NAME, group_queries  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402

pytestmark = pytest.mark.model

TURNS = ["Why?", "A friend calls you late in the evening. What do you tell her?", "Go on."]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_those_of_torchs_attention(demo_model: Path, dtype: str) -> None:
    """Prompts of several lengths, one row that is not padded; then one prompt alone, where no mask is needed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(demo_model, dtype=dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model)

    def answers(texts: list[str]) -> tuple[Any, Any]:
        encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with torch.inference_mode():
            output = model.generate(**encoded, **options)
        return output.sequences, torch.stack(output.logits)

    asked = [TURNS, TURNS[1:2]]
    expected = [answers(texts) for texts in asked]
    assert group_queries(model)
    assert model.config._attn_implementation == NAME
    for texts, (tokens, logits) in zip(asked, expected, strict=True):
        found, close = answers(texts)
        assert torch.equal(found, tokens)
        # Equal to the bit with transformers 5.24; transformers 5.6 rounds masked steps in bfloat16 in another order.
        share = 1e-5 if dtype == "float32" else 0.05
        assert float((close - logits).abs().max()) <= share * float(logits.abs().max())


def test_models_that_we_load_group_their_queries(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = []
    attend = grouped_attention._attention

    def counted(*args: Any, **options: Any) -> Any:
        grouped.append(args[2].shape[2])
        return attend(*args, **options)

    monkeypatch.setattr(grouped_attention, "_attention", counted)
    for backend in ("hf", "personalitybench-hf"):
        loaded: Any = load_model(backend, {"pretrained": str(demo_model), "dtype": "bfloat16"}, 1, "cpu")
        grouped.clear()
        with torch.inference_mode():
            loaded.model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, min_new_tokens=3)
        assert grouped == [3] * 30 + [1] * 60, "a prefill and two steps in thirty layers"


def test_queries_are_grouped_only_where_it_helps(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not group_queries(model), "every query head has a key head of its own"
    assert model.config._attn_implementation == "sdpa"
    model.config.num_key_value_heads = 2
    model.set_attn_implementation("eager")
    assert not group_queries(model), "somebody asked for another attention"
