"""Libraries that changed: stand-ins with renamed keywords, other return types and missing attributes.

Each ends in the right answer or in one error that names the library, never in unsteered text or another number.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from personalitybench import versions
from personalitybench.errors import DependencyDriftError
from personalitybench.versions import SpecifierSet
from tests.test_activations_interventions import LAYERS, NEURONS, make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from personalitybench.activations import identification_transformers as identification  # noqa: E402
from personalitybench.activations.calls import ModelCall, generated_sequences, output_logits  # noqa: E402
from personalitybench.activations.interventions import Operation  # noqa: E402
from personalitybench.activations.layouts import find_gates  # noqa: E402
from personalitybench.activations.statistics import StatisticsBuilder  # noqa: E402
from personalitybench.activations.steering import end_tokens, steered  # noqa: E402
from personalitybench.backends import grouped_attention  # noqa: E402
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
    with pytest.raises(DependencyDriftError, match="gave the input embedding nothing instead of"):
        count_steps(model)


def test_counting_with_renamed_arguments_counts_the_same() -> None:
    expected = count_steps(build(transformers.LlamaForCausalLM))
    assert int(expected.sum()) > 0
    assert torch.equal(count_steps(build(RenamedKeywords)), expected)


def test_logits_of_a_tuple_are_found_by_their_width() -> None:
    model = build(transformers.LlamaForCausalLM)
    logits = torch.randn(1, 4, 96)
    assert output_logits((torch.randn(1), torch.randn(1, 4, 32), logits), model) is logits
    with pytest.raises(DependencyDriftError, match="gives no logits: LlamaForCausalLM returned a dict"):
        output_logits({}, model)


EXAMPLE = Example("a", "a?", tuple(range(5, 25)), (31, 8, 44, 1))


def test_counting_past_the_activation_modules_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(transformers.LlamaForCausalLM)
    silu = torch.nn.functional.silu
    monkeypatch.setattr(  # as a fused kernel does: the function and not the module
        type(model.model.layers[0].mlp),
        "forward",
        lambda self, x: self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x)),
    )
    with pytest.raises(DependencyDriftError, match="runs none of the activation modules of this llama model"):
        count_steps(model)


@pytest.mark.parametrize("chunk", [3, 4, 7, 8, 20])
def test_prefill_in_chunks_of_any_size_steers_and_counts_the_same(chunk: int, expected: list[list[int]]) -> None:
    model = build(transformers.LlamaForCausalLM)
    with steered(model, find_gates(model), rows(), keep=0.7, stop_tokens=(), prompt_columns=8) as state:
        assert generate(model, prefill_chunk_size=chunk) == expected
    assert state.edited_tokens == [7, 0, 7]
    assert torch.equal(count_steps(model, prefill_chunk_size=chunk), count_steps(model))


def test_sequences_without_their_prompts_are_refused() -> None:
    prompts = torch.tensor([[5, 6], [7, 8]])
    whole = torch.tensor([[5, 6, 9], [7, 8, 9]])
    assert generated_sequences(whole, prompts) is whole
    assert generated_sequences(types.SimpleNamespace(sequences=whole), prompts) is whole
    for wrong in (whole[:, 2:], whole[:1], {"sequences": whole}):
        with pytest.raises(DependencyDriftError, match=r"gives (no )?sequences"):
            generated_sequences(wrong, prompts)


def test_an_embedding_that_gets_other_tokens_too_is_ambiguous() -> None:
    class Twice(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, **kwargs)
            self.get_input_embeddings()(torch.full_like(input_ids, EOS))
            return output

    class First(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
            self.get_input_embeddings()(torch.full_like(input_ids, EOS))
            return super().forward(input_ids=input_ids, **kwargs)

    model = build(Twice)  # after the layers: what counts is known by then
    with steered(model, find_gates(model), rows(), stop_tokens=[EOS]) as state:
        generate(model)
    assert state.edited_tokens == [7, 0, 7]
    model = build(First)
    with pytest.raises(DependencyDriftError, match="gave the input embedding several batches of tokens"):
        _steer(model, stop_tokens=[EOS])


def count_steps(model: Any, **options: Any) -> Any:
    """Active neurons of the decode steps, int32 [1, layers, neurons]."""
    builder = StatisticsBuilder(LAYERS, NEURONS, 1, None, device=torch.device("cpu"))
    parts, there = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
    with identification._counting(
        model, find_gates(model), builder, parts=parts, there=there, stops=[EOS], prompt_columns=8
    ):
        generate(model, **options)
    return builder.counts[0].clone()


def _call(**values: Any) -> ModelCall:
    call = ModelCall((), values)
    call.tokens = torch.tensor([[0, 7, 9], [5, 6, 7]])
    return call


MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])
POSITIONS = torch.tensor([[1, 0, 1], [0, 1, 2]])


@pytest.mark.parametrize(
    "others",
    [
        {"token_type_ids": torch.ones_like(MASK)},
        {"image_mask": torch.zeros_like(MASK)},
        {"token_type_ids": torch.zeros_like(MASK), "cache_position": torch.arange(3)},
    ],
)
def test_the_padding_mask_is_told_from_arguments_that_look_like_it(others: dict[str, Any]) -> None:
    call = _call(**others, attention_mask=MASK, position_ids=POSITIONS)
    assert torch.equal(call.padding_mask(2, 3), MASK.bool())
    assert torch.equal(call.positions(2, 0, 3), POSITIONS)


def test_several_masks_of_unknown_names_are_refused() -> None:
    with pytest.raises(DependencyDriftError, match="several arguments that could be the padding mask: seen, kinds"):
        _call(seen=MASK, kinds=torch.ones_like(MASK)).padding_mask(2, 3)


def test_equal_rows_of_positions_tell_of_no_padding() -> None:
    assert _call(places=torch.tensor([[0, 1, 2]] * 2)).positions(2, 0, 3) is None
    assert _call(places=torch.tensor([[0, 1, 2]])).positions(2, 0, 3) is None
    assert torch.equal(_call(places=POSITIONS).positions(2, 0, 3), POSITIONS)


def test_a_cache_whose_length_is_told_in_another_way_is_counted() -> None:
    def needs_a_layer(layer: int) -> int:
        return layer

    for length in (needs_a_layer, lambda: None, lambda: torch.tensor([1, 2])):
        assert ModelCall((), {"kv": types.SimpleNamespace(get_seq_length=length)}).cached_columns is None


def test_going_on_from_a_cache_of_unknown_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(transformers.LlamaForCausalLM)
    ids = torch.tensor([[5, 9, 11, 40, 3]])
    cache = model(ids[:, :3], use_cache=True)
    held = next(value for value in cache.values() if hasattr(value, "get_seq_length"))
    monkeypatch.setattr(ModelCall, "_cached_columns", lambda _self: None)
    name = next(name for name in CACHES if name in _parameters(transformers.LlamaForCausalLM))
    with (
        pytest.raises(DependencyDriftError, match="goes on from a cache that does not tell its length"),
        steered(model, find_gates(model), rows()[:1], prompt_columns=5),
    ):
        model(ids[:, 3:], attention_mask=torch.ones_like(ids), **{name: held})


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
