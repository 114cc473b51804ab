"""lm-eval, peft and the converted demo model that changed: the right answer, or one error that names the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from personalitybench.errors import DependencyDriftError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft  # noqa: E402
from lm_eval.models import huggingface  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402

from personalitybench.backends import adapter_products, adapters, grouped_attention, steerable  # noqa: E402
from personalitybench.backends.adapters import AdapterPool  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.training import adapters as training  # noqa: E402
from tests.test_adapters import write_adapter  # noqa: E402
from tests.test_steerable import PROMPTS as TEXTS  # noqa: E402
from tests.test_steerable import request, save  # noqa: E402

pytestmark = pytest.mark.model


def test_lm_eval_that_batches_otherwise_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")
    requests = [request(TEXTS[0], save(tmp_path / "one", 3.0)), request(TEXTS[1])]
    encode = HFLM.tok_batch_encode
    monkeypatch.setattr(steerable.SteerableModel, "tok_batch_encode", encode)
    with pytest.raises(DependencyDriftError, match=r"lm_eval .* does not encode the 2 prompts of a batch right before"):
        model.generate_until(requests, disable_tqdm=True)
    monkeypatch.undo()
    assert len(model.generate_until(requests, disable_tqdm=True)) == 2
    monkeypatch.setattr(HFLM, "generate_until", lambda _self, requests, disable_tqdm: ["unsteered"] * len(requests))
    with pytest.raises(DependencyDriftError, match="answered 1 requests without calling _model_generate"):
        model.generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scaling", "adds another product to a layer than is served here"),
        ("missing", "has other layers than adapters are served with"),
    ],
)
def test_peft_that_multiplies_otherwise_fails(
    change: str, message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tiny_model, tmp_path / "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7]])
    plain = model(ids).logits
    original = adapter_products.RowProducts.__init__

    def doubled(self: Any, layer: Any, names: Any) -> None:
        original(self, layer, names)
        self._scales = self._scales * 2

    wrapped = peft.PeftModel.__init__

    def renamed(self: Any, *args: Any, **options: Any) -> None:
        wrapped(self, *args, **options)
        for layer in (module for module in self.modules() if isinstance(module, LoraLayer)):
            layer.scales = layer.__dict__.pop("scaling")

    if change == "scaling":
        monkeypatch.setattr(adapter_products.RowProducts, "__init__", doubled)
    else:
        monkeypatch.setattr(peft.PeftModel, "__init__", renamed)
    pool = AdapterPool(model)
    with pytest.raises(DependencyDriftError, match=f"peft .*{message}"):
        pool.names([(folder, 1.0)])
    monkeypatch.undo()
    if change == "scaling":
        assert torch.equal(model(ids).logits, plain), "the model is as it was"
        assert pool.names([(folder, 1.0)])[0] is not None


def test_equal_prompts_keep_their_own_wishes_in_whatever_order(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")
    first, second = save(tmp_path / "one", 3.0), save(tmp_path / "two", 5.0, seed=1)
    requests = [request(TEXTS[0], first), request(TEXTS[0], second), request(TEXTS[0])]
    expected = model.generate_until(requests, disable_tqdm=True)
    assert len(set(expected)) == 3
    batched = huggingface.Collator.get_batched

    def reversed_batches(self: Any, **options: Any) -> Any:
        for chunk in batched(self, **options):
            self._reorder_indices[-len(chunk) :] = self._reorder_indices[-len(chunk) :][::-1]
            yield chunk[::-1]

    monkeypatch.setattr(huggingface.Collator, "get_batched", reversed_batches)
    found = model.generate_until(requests, disable_tqdm=True)
    assert sorted(found) == sorted(expected)
    assert found in (expected, expected[::-1]), "each wish has its own answer"


def test_renamed_arguments_of_lm_eval_are_found_by_what_they_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")
    requests = [request(TEXTS[0], save(tmp_path / "one", 3.0)), request(TEXTS[1])]
    expected = model.generate_until(requests, disable_tqdm=True)
    own, stock = steerable.SteerableModel._model_generate, HFLM._model_generate
    names = {"context": "tokens", "attention_mask": "seen", "max_length": "most"}

    def renamed(self: Any, **options: Any) -> Any:
        return own(self, **{names.get(name, name): value for name, value in options.items()})

    def restored(self: Any, **options: Any) -> Any:
        back = {new: old for old, new in names.items()}
        return stock(self, **{back.get(name, name): value for name, value in options.items()})

    monkeypatch.setattr(steerable.SteerableModel, "_model_generate", renamed)
    monkeypatch.setattr(HFLM, "_model_generate", restored)
    assert model.generate_until(requests, disable_tqdm=True) == expected


def test_peft_that_loads_half_of_an_adapter_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tiny_model, tmp_path / "adapter")
    pool = AdapterPool(transformers.AutoModelForCausalLM.from_pretrained(tiny_model))
    load = adapters.set_peft_model_state_dict
    monkeypatch.setattr(
        adapters,
        "set_peft_model_state_dict",
        lambda model, weights, name: load(model, {key: one for key, one in weights.items() if ".0." in key}, name),
    )
    with pytest.raises(DependencyDriftError, match=r"other matrices than those of the file into model\.layers\.1"):
        pool.names([(folder, 1.0)])


@pytest.mark.parametrize("change", ["half", "base", "unsaved"])
def test_training_of_anything_but_an_adapter_in_float32_is_refused(
    change: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    state = training._Training.__new__(training._Training)
    state.adapted, state.model = adapted, adapted.get_base_model()
    if change == "half":
        adapted.to(torch.bfloat16)
    if change == "base":
        adapted.get_base_model().lm_head.requires_grad_(True)
    if change == "unsaved":
        monkeypatch.setattr(training, "get_peft_model_state_dict", lambda *_args, **_options: {})
    state.parameters = {name: one for name, one in adapted.named_parameters() if one.requires_grad}
    with pytest.raises(DependencyDriftError, match=r"peft .* (trains|saves) "):
        state._check_parameters()


def test_attention_that_does_something_else_stays_stock(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.integrations import sdpa_attention

    config = transformers.AutoConfig.from_pretrained(tiny_model)
    config.num_key_value_heads, config.initializer_range = 2, 0.5
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    stock = sdpa_attention.sdpa_attention_forward

    def capped(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        output, weights = stock(module, query, key, value, mask, **options)
        return output * 0.1, weights

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", capped)
    transformers.AttentionInterface.register("sdpa", capped)
    try:
        assert not grouped_attention.group_queries(model)
        assert "attends in another way than this was written for" in caplog.text
        assert model.config._attn_implementation == "sdpa"
    finally:
        transformers.AttentionInterface.register("sdpa", stock)


# What comes from a package: the demo model and the judge that reads with it


def test_the_demo_model_is_converted_to_the_recorded_numbers(demo_model: Path) -> None:
    from personalitybench import models

    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model)
    assert models._tensors_digest(model) == models.DEMO_MODEL.tensors_sha256
    assert models._tokens_digest(tokenizer) == models.DEMO_MODEL.tokens_sha256


def test_a_conversion_to_other_numbers_is_refused(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from personalitybench import models

    loaded = transformers.AutoModelForCausalLM.from_pretrained
    changed = loaded(demo_model, dtype=torch.float32)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_args, **_options: changed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_args, **_options: tokenizer)
    norm = changed.model.norm.weight.data.clone()
    changed.model.norm.weight.data += 1
    with pytest.raises(DependencyDriftError, match=r"expands the weights of x\.gguf to other numbers"):
        models._convert(tmp_path / "x.gguf", tmp_path / "out", models.DEMO_MODEL)
    changed.model.norm.weight.data = norm.to(torch.bfloat16)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DependencyDriftError, match=r"reads text with other tokens by the tokenizer of x\.gguf"):
        models._convert(tmp_path / "x.gguf", tmp_path / "out", models.DEMO_MODEL)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_reads_another_layer_is_refused(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalitybench.judging import features
    from personalitybench.resources import bundled

    reader = features.AnswerReader()
    folder = bundled("judges", "offline")
    features.check_reader(reader, folder)
    for layer in (features.LAYER - 1, features.LAYER + 1):
        monkeypatch.setattr(features, "LAYER", layer)
        with pytest.raises(DependencyDriftError, match="reads the offline judge's reference text otherwise"):
            features.check_reader(reader, folder)
    monkeypatch.setattr(features, "LAYER", 99)
    with pytest.raises(DependencyDriftError, match="gives no hidden states of layer 99"):
        features.check_reader(reader, folder)
