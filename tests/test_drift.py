"""Libraries that changed: stand-ins with renamed keywords, other return types and missing attributes.

Each ends in the right answer or in one error that names the library, never in unsteered text or another number.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalitybench import versions
from personalitybench.errors import DependencyDriftError
from personalitybench.versions import SpecifierSet
from tests.test_activations_interventions import LAYERS, NEURONS, make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from personalitybench.activations import identification_transformers as identification  # noqa: E402
from personalitybench.activations.calls import output_logits  # noqa: E402
from personalitybench.activations.interventions import Operation  # noqa: E402
from personalitybench.activations.layouts import find_gates  # noqa: E402
from personalitybench.activations.statistics import StatisticsBuilder  # noqa: E402
from personalitybench.activations.steering import end_tokens, steered  # noqa: E402
from personalitybench.backends import adapter_products, grouped_attention, steerable  # noqa: E402
from personalitybench.training.examples import Example  # noqa: E402
from personalitybench.training.losses import answer_loss, check_padding, collate  # noqa: E402

PAD, EOS = 0, 1
PROMPTS = [[5, 9, 11, 40, 3], [7], [60, 61, 62, 63, 64, 65, 66, 67]]
RENAMED = {"input_ids": "tokens", "attention_mask": "seen", "position_ids": "places", "use_cache": "remember"}
CACHES = ("past_key_values", "cache")
"""Names that releases of transformers gave the cache."""


def config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, pad_token_id=PAD, bos_token_id=2,
        eos_token_id=EOS,
    )  # fmt: skip


def build(kind: type) -> Any:
    torch.manual_seed(3)
    return kind(config()).eval()


class RenamedKeywords(transformers.LlamaForCausalLM):
    """Every argument of ``forward`` has another name, and the cache hides its length."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {RENAMED.get(name, "memory" if name in CACHES else name): value for name, value in inputs.items()}

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Those of ``generate`` are named as ever."""

    def forward(self, **kwargs: Any) -> Any:
        cache = next((name for name in CACHES if name in _parameters(transformers.LlamaForCausalLM)), CACHES[0])
        names = {new: old for old, new in RENAMED.items()} | {"memory": cache}
        return super().forward(**{names.get(name, name): value for name, value in kwargs.items()})


class PositionalArguments(transformers.LlamaForCausalLM):
    """The arguments come without names."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = list(_parameters(transformers.LlamaForCausalLM))[1:]
        values = [kwargs.pop(name, None) for name in names[:4]] if not args else list(args)
        return super().__call__(*values, **kwargs)


def _parameters(kind: type) -> list[str]:
    import inspect

    return list(inspect.signature(kind.forward).parameters)


def batch(prompts: list[list[int]]) -> dict[str, Any]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, **settings: Any) -> list[list[int]]:
    found = model.generate(**batch(PROMPTS), max_new_tokens=8, do_sample=False, eos_token_id=None, **settings)
    return found[:, max(map(len, PROMPTS)) :].tolist()


def rows() -> list[Any]:
    raised = make([(layer, neuron, Operation.ADD, 0.9) for layer in range(LAYERS) for neuron in range(0, NEURONS, 2)])
    return [(raised, 1.0), None, (raised, 2.0)]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    model = build(transformers.LlamaForCausalLM)
    with steered(model, find_gates(model), rows(), keep=0.7, stop_tokens=()):
        found = generate(model)
    assert found != generate(model), "it is steered"
    return found


# Steering on transformers


@pytest.mark.parametrize("kind", [RenamedKeywords, PositionalArguments])
@pytest.mark.parametrize("use_cache", [True, False])
def test_steering_with_renamed_arguments_gives_the_same_answers(
    kind: type, use_cache: bool, expected: list[list[int]]
) -> None:
    model = build(kind)
    with steered(model, find_gates(model), rows(), keep=0.7, stop_tokens=()) as state:
        assert generate(model, use_cache=use_cache) == expected
    assert state.edited_tokens == [7, 0, 7]


def test_steering_with_a_cache_that_hides_its_length_counts_columns(
    expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from personalitybench.activations.calls import ModelCall

    monkeypatch.setattr(ModelCall, "_cached_columns", lambda _self: None)
    model = build(transformers.LlamaForCausalLM)
    with steered(model, find_gates(model), rows(), keep=0.7, stop_tokens=()):
        assert generate(model) == expected


def test_steering_a_batch_without_padding_mask_and_positions_fails() -> None:
    class Hidden(transformers.LlamaForCausalLM):
        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            inputs = super().prepare_inputs_for_generation(*args, **kwargs)
            return {name: value for name, value in inputs.items() if name not in {"attention_mask", "position_ids"}}

    model = build(Hidden)
    with pytest.raises(DependencyDriftError, match=r"transformers .* neither a padding mask nor positions"):
        _steer(model, keep=0.7)


def _steer(model: Any, **settings: Any) -> None:
    with steered(model, find_gates(model), rows(), **settings):
        generate(model)


def _activation_returns_a_tuple(model: Any) -> None:
    for layer in model.model.layers:
        activation = layer.mlp.act_fn.forward
        layer.mlp.act_fn.forward = lambda hidden, activation=activation: (activation(hidden),)


def _embedding_is_not_named(model: Any) -> None:
    model.get_input_embeddings = lambda: None


def _tokens_pass_by_the_embedding(model: Any) -> None:
    table = model.get_input_embeddings()
    other = torch.nn.Embedding.from_pretrained(table.weight.detach())
    model.model.embed_tokens = other
    model.get_input_embeddings = lambda: table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_activation_returns_a_tuple, "gives a tuple from model.layers.0.mlp.act_fn instead of a tensor"),
        (_embedding_is_not_named, "names no input embedding in LlamaForCausalLM"),
        (_tokens_pass_by_the_embedding, "gave the input embedding nothing instead of"),
    ],
)
def test_steering_a_model_that_changed_fails_with_the_version(
    change: Callable[[Any], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "tried_ranges", lambda: {"transformers": SpecifierSet(">=5,<5.1")})
    model = build(transformers.LlamaForCausalLM)
    change(model)
    with pytest.raises(DependencyDriftError) as error:
        _steer(model)
    text = str(error.value)
    assert message in text
    assert text.startswith(f"transformers {transformers.__version__} ")
    assert "(tried: >=5,<5.1): install 'transformers>=5,<5.1'" in text
    assert "\n" not in text


def test_end_tokens_without_generation_settings_are_none() -> None:
    assert end_tokens(torch.nn.Linear(1, 1)) == set()


# Counting and reading on transformers


def test_counting_steps_whose_tokens_are_hidden_fails() -> None:
    model = build(transformers.LlamaForCausalLM)
    _tokens_pass_by_the_embedding(model)
    gates = find_gates(model)
    builder = StatisticsBuilder(LAYERS, NEURONS, 1, None, device=torch.device("cpu"))
    parts, there = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
    with (
        pytest.raises(DependencyDriftError, match="brought nothing to a decode step of 1 columns"),
        identification._counting(model, gates, builder, parts=parts, there=there, stops=[EOS]),
    ):
        generate(model)


def test_counting_with_renamed_arguments_counts_the_same() -> None:
    counts = []
    for kind in (transformers.LlamaForCausalLM, RenamedKeywords):
        model = build(kind)
        builder = StatisticsBuilder(LAYERS, NEURONS, 1, None, device=torch.device("cpu"))
        parts, there = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
        with identification._counting(model, find_gates(model), builder, parts=parts, there=there, stops=[EOS]):
            generate(model)
        counts.append(builder.counts[0].clone())
    assert int(counts[0].sum()) > 0
    assert torch.equal(*counts)


def test_logits_of_a_tuple_are_found_by_their_width() -> None:
    model = build(transformers.LlamaForCausalLM)
    logits = torch.randn(1, 4, 96)
    assert output_logits((torch.randn(1), torch.randn(1, 4, 32), logits), model) is logits
    with pytest.raises(DependencyDriftError, match="gives no logits: LlamaForCausalLM returned a dict"):
        output_logits({}, model)


EXAMPLE = Example("a", "a?", tuple(range(5, 25)), (31, 8, 44, 1))


def test_a_padding_mask_that_is_passed_over_fails_before_training() -> None:
    class Deaf(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            return super().forward(input_ids=input_ids, **kwargs)

    check_padding(build(transformers.LlamaForCausalLM), EXAMPLE, PAD)
    with pytest.raises(DependencyDriftError, match="passes over the padding mask of Deaf: the loss of an example is"):
        check_padding(build(Deaf), EXAMPLE, PAD)


def test_a_forward_that_refuses_the_call_fails_with_its_reason() -> None:
    class Strict(transformers.LlamaForCausalLM):
        def forward(self, tokens: Any, seen: Any) -> Any:
            raise AssertionError("never reached")

    model = build(Strict)
    with pytest.raises(DependencyDriftError, match=r"refuses a forward call of Strict .*unexpected keyword"):
        answer_loss(model, collate([EXAMPLE], PAD, "cpu"))


def test_attention_that_is_not_told_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model = build(transformers.LlamaForCausalLM)
    monkeypatch.delattr("transformers.integrations.sdpa_attention.sdpa_attention_forward")
    assert not grouped_attention.group_queries(model)
    assert "transformers" in caplog.text
    text_config = types.SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)
    named = types.SimpleNamespace(get_text_config=lambda: text_config)
    assert not grouped_attention.group_queries(types.SimpleNamespace(config=named, device=torch.device("cpu")))


# lm-eval and peft


@pytest.mark.model
def test_lm_eval_that_batches_otherwise_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    from personalitybench.backends.loading import load_model
    from tests.test_steerable import PROMPTS as TEXTS
    from tests.test_steerable import request, save

    model: Any = load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")
    requests = [request(TEXTS[0], save(tmp_path / "one", 3.0)), request(TEXTS[1])]
    monkeypatch.setattr(steerable, "plan_batches", lambda *_: [[0, 1]])  # the longer prompt comes first in lm-eval
    with pytest.raises(DependencyDriftError, match=r"lm_eval .* forms other batches of the requests than were planned"):
        model.generate_until(requests, disable_tqdm=True)
    monkeypatch.undo()
    assert len(model.generate_until(requests, disable_tqdm=True)) == 2
    monkeypatch.setattr(HFLM, "generate_until", lambda _self, requests, disable_tqdm: ["unsteered"] * len(requests))
    with pytest.raises(DependencyDriftError, match="answered 2 of 2 requests without calling _model_generate"):
        model.generate_until(requests, disable_tqdm=True)


@pytest.mark.model
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
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    from personalitybench.backends.adapters import AdapterPool
    from tests.test_adapters import write_adapter

    folder = write_adapter(tiny_model, tmp_path / "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7]])
    plain = model(ids).logits
    original = adapter_products.RowProducts.__init__

    def doubled(self: Any, layer: Any, names: Any) -> None:
        original(self, layer, names)
        self._scales = self._scales * 2

    wrapped = PeftModel.__init__

    def renamed(self: Any, *args: Any, **options: Any) -> None:
        wrapped(self, *args, **options)
        for layer in (module for module in self.modules() if isinstance(module, LoraLayer)):
            layer.scales = layer.__dict__.pop("scaling")

    if change == "scaling":
        monkeypatch.setattr(adapter_products.RowProducts, "__init__", doubled)
    else:
        monkeypatch.setattr(PeftModel, "__init__", renamed)
    pool = AdapterPool(model)
    with pytest.raises(DependencyDriftError, match=f"peft .*{message}"):
        pool.names([(folder, 1.0)])
    monkeypatch.undo()
    if change == "scaling":
        assert torch.equal(model(ids).logits, plain), "the model is as it was"
        assert pool.names([(folder, 1.0)])[0] is not None


# What comes from a package: the demo model and the judge that reads with it


@pytest.mark.model
def test_the_demo_model_is_converted_to_the_recorded_numbers(demo_model: Path) -> None:
    from personalitybench import models

    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model)
    assert models._tensors_digest(model) == models.DEMO_MODEL.tensors_sha256
    assert models._tokens_digest(tokenizer) == models.DEMO_MODEL.tokens_sha256


@pytest.mark.model
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


@pytest.mark.model
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
