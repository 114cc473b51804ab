"""Steering of a real tiny Llama: rows of a mixed batch, what is edited and counted, refusals, the random mask."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from personalitybench.activations.interventions import Intervention, Operation
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError
from tests.test_activations_interventions import LAYERS, NEURONS, make, neuron_set

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from personalitybench.activations.calls import ModelCall  # noqa: E402
from personalitybench.activations.layouts import Gates, find_gates  # noqa: E402
from personalitybench.activations.steering import Row, keep_mask, steered  # noqa: E402

VOCABULARY, PAD, EOS = 96, 0, 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are tiny: threads would only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def gates(model: Any) -> Gates:
    return find_gates(model)


@pytest.fixture(scope="module")
def kinds() -> list[Intervention]:
    """Two interventions like those of two targets; a few neurons are both clamped and raised."""
    found = []
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        order = [draw.permutation(NEURONS) for _ in range(LAYERS)]
        own = [(layer, int(i), 0.3, 0.8) for layer in range(LAYERS) for i in order[layer][:16]]
        opposite = [(layer, int(i), 0.3, 0.5) for layer in range(LAYERS) for i in order[layer][12:32]]
        found.append(Intervention.from_neurons(neuron_set(own), neuron_set(opposite)))
    return found


PROMPTS = [[5, 9, 11, 40, 3], [7], [60, 61, 62, 63, 64, 65, 66, 67], [8, 12, 90], [33, 4], [5, 9, 11, 40, 3]]


def batch_of(prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def generate(
    model: Any, prompts: Sequence[Sequence[int]], new: int = 12, **settings: Any
) -> tuple[list[list[int]], Any]:
    """Greedy answers up to and with the end token, and the logits [row, step, vocabulary]."""
    batch = batch_of(prompts)
    found = model.generate(
        **batch, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True, **settings
    )
    answers = found.sequences[:, batch["input_ids"].shape[1] :].tolist()
    cut = [answer[: answer.index(EOS) + 1] if EOS in answer else answer for answer in answers]
    return cut, torch.stack(found.logits, dim=1)


def ended_early(model: Any, rows: list[Row], gates: Gates) -> int:
    """A token that some row generates in mid-answer when steered, to be its end token."""
    with steered(model, gates, rows, stop_tokens=()):
        answers, _ = generate(model, PROMPTS, eos_token_id=None)
    for answer in answers:
        for place, token in enumerate(answer[2:8], 2):
            if token not in answer[:place] and sum(token in other for other in answers) < len(answers):
                return token
    raise AssertionError("no token to end with")


@pytest.fixture(scope="module")
def rows(kinds: list[Intervention]) -> list[Row]:
    return [(kinds[0], 2.0), (kinds[1], 0.5), None, (kinds[0], -1.0), (kinds[1], 2.0), None]


@pytest.mark.parametrize("from_last", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.9])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_a_row_in_a_mixed_batch_gets_what_it_gets_alone(
    model: Any, rows: list[Row], from_last: bool, keep: float, precision: Any, tolerance: float
) -> None:
    # In float64 nothing is left of the noise of other kernels for other batch sizes (generate() gives float32 logits).
    model = copy.deepcopy(model).to(precision)
    gates = find_gates(model)
    settings: dict[str, Any] = {"from_last_prompt_token": from_last, "keep": keep}
    seeds = [11, 12, 13, 14, 15, 16]
    with steered(model, gates, rows, seed=seeds, **settings) as state:
        together, logits = generate(model, PROMPTS)
    for place, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        with steered(model, gates, [row], seed=seeds[place], **settings) as alone_state:
            alone, alone_logits = generate(model, [prompt])
        assert together[place] == alone[0]
        steps = len(alone[0])
        assert torch.allclose(logits[place, :steps], alone_logits[0, :steps], atol=tolerance, rtol=0)
        expected = 0 if row is None else steps - 1 + from_last
        assert state.edited_tokens[place] == alone_state.edited_tokens[0] == expected
    assert together[0] != together[5], "the same prompt, steered and not"


def test_unsteered_rows_keep_every_bit(model: Any, gates: Gates, rows: list[Row]) -> None:
    plain, plain_logits = generate(model, PROMPTS)
    with steered(model, gates, rows, from_last_prompt_token=True):
        mixed, logits = generate(model, PROMPTS)
    with steered(model, gates, [None] * len(rows)) as state:
        none, none_logits = generate(model, PROMPTS)
    for place, row in enumerate(rows):
        if row is None:
            assert mixed[place] == plain[place]
            assert torch.equal(logits[place, : len(plain[place])], plain_logits[place, : len(plain[place])])
    assert none == plain
    assert torch.equal(none_logits, plain_logits)
    assert state.edited_tokens == [0] * len(rows)


def test_strength_zero_without_clamps_changes_nothing(model: Any, gates: Gates) -> None:
    raised = make([(layer, index, Operation.ADD, 1.0) for layer in range(LAYERS) for index in range(NEURONS)])
    plain, plain_logits = generate(model, PROMPTS)
    with steered(model, gates, [(raised, 0.0)] * len(PROMPTS)) as state:
        found, logits = generate(model, PROMPTS)
    assert found == plain
    assert torch.equal(logits, plain_logits)
    assert state.edited_tokens == [len(answer) - 1 for answer in plain]
    with steered(model, gates, [(make([]), 2.0)] * len(PROMPTS)) as state:
        assert generate(model, PROMPTS)[0] == plain
    assert state.edited_tokens == [0] * len(PROMPTS)


def test_strength_matters_and_the_first_token_only_on_request(
    model: Any, gates: Gates, kinds: list[Intervention]
) -> None:
    _, plain = generate(model, PROMPTS[:1])
    with steered(model, gates, [(kinds[0], 0.0)]):
        _, clamped = generate(model, PROMPTS[:1])
    with steered(model, gates, [(kinds[0], 2.0)]):
        _, raised = generate(model, PROMPTS[:1])
    with steered(model, gates, [(kinds[0], 2.0)], from_last_prompt_token=True):
        _, first = generate(model, PROMPTS[:1])
    assert torch.equal(clamped[:, 0], plain[:, 0])
    assert torch.equal(raised[:, 0], plain[:, 0])
    assert not torch.allclose(first[:, 0], plain[:, 0], atol=1e-2)
    assert not torch.allclose(clamped[:, 1], plain[:, 1], atol=1e-2)
    assert not torch.allclose(raised[:, 1], clamped[:, 1], atol=1e-2)


@pytest.mark.parametrize("from_last", [False, True])
def test_finished_rows_are_neither_edited_nor_counted(
    model: Any, gates: Gates, rows: list[Row], from_last: bool
) -> None:
    end = ended_early(model, rows, gates)
    with steered(model, gates, rows, stop_tokens={end}, from_last_prompt_token=from_last) as state:
        batch = batch_of(PROMPTS)
        found = model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=end)
    answers = found[:, batch["input_ids"].shape[1] :].tolist()
    lengths = [answer.index(end) + 1 if end in answer else len(answer) for answer in answers]
    assert min(lengths) < max(lengths)
    expected = [0 if row is None else length - 1 + from_last for row, length in zip(rows, lengths, strict=True)]
    assert state.edited_tokens == expected


def slow_step(model: Any, sequence: list[int], edited_from: int, intervention: Intervention, strength: float) -> Any:
    """Logits of the last token, without hooks or cache: every MLP by hand, act(gate) edited from a position on."""
    clamp, add = (torch.from_numpy(table) for table in intervention.tables())

    def by_hand(mlp: Any, layer: int) -> Any:
        def forward(hidden: Any) -> Any:
            gate = torch.nn.functional.silu(hidden @ mlp.gate_proj.weight.T)
            for position in range(edited_from, gate.shape[1]):
                for neuron in range(NEURONS):
                    value = min(float(gate[0, position, neuron]), float(clamp[layer, neuron]))
                    gate[0, position, neuron] = value + strength * float(add[layer, neuron])
            return (gate * (hidden @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T

        return forward

    mlps = [block.mlp for block in model.model.layers]
    for layer, mlp in enumerate(mlps):
        mlp.forward = by_hand(mlp, layer)
    try:
        with torch.no_grad():
            return model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
    finally:
        for mlp in mlps:
            del mlp.forward


@pytest.mark.parametrize("from_last", [False, True])
def test_agrees_with_a_slow_direct_computation(
    model: Any, gates: Gates, kinds: list[Intervention], from_last: bool
) -> None:
    prompt = PROMPTS[3]
    rows: list[Row] = [None, (kinds[1], 1.4), (kinds[0], 1.0)]
    with steered(model, gates, rows, from_last_prompt_token=from_last):
        answers, logits = generate(model, [PROMPTS[2], prompt, PROMPTS[0]], new=4)
    for step in range(4):
        expected = slow_step(model, prompt + answers[1][:step], len(prompt) - from_last, kinds[1], 1.4)
        assert torch.allclose(logits[1, step], expected, atol=1e-4, rtol=0)


def test_the_same_without_a_cache_in_chunks_and_in_one_call(model: Any, gates: Gates, rows: list[Row]) -> None:
    with steered(model, gates, rows, keep=0.8) as state:
        expected, logits = generate(model, PROMPTS)
    width = max(map(len, PROMPTS))
    with steered(model, gates, rows, keep=0.8) as uncached:
        found, without = generate(model, PROMPTS, use_cache=False)
    assert found == expected
    assert torch.allclose(without, logits, atol=1e-4)
    assert uncached.edited_tokens == state.edited_tokens
    with steered(model, gates, rows, keep=0.8, prompt_columns=width) as chunked:
        assert generate(model, PROMPTS, prefill_chunk_size=3)[0] == expected
    assert chunked.edited_tokens == state.edited_tokens
    with steered(model, gates, rows, keep=0.8) as static:
        assert generate(model, PROMPTS, cache_implementation="static")[0] == expected
    assert static.edited_tokens == state.edited_tokens
    with pytest.raises(NeedsNotMetError, match="prompt_columns="), steered(model, gates, rows):
        generate(model, PROMPTS, prefill_chunk_size=3)
    # Teacher-forced: the answers appended to the prompts, one forward call.
    batch = batch_of(PROMPTS)
    longest = max(map(len, expected))
    tails = torch.tensor([answer + [PAD] * (longest - len(answer)) for answer in expected])
    mask = torch.cat(
        [batch["attention_mask"], torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in expected])], 1
    )
    with steered(model, gates, rows, keep=0.8, prompt_columns=width), torch.no_grad():
        forced = model(input_ids=torch.cat([batch["input_ids"], tails], 1), attention_mask=mask).logits
    for place, answer in enumerate(expected):
        steps = len(answer)
        assert torch.allclose(forced[place, width - 1 : width - 1 + steps], logits[place, :steps], atol=1e-3)


def test_an_edit_is_rounded_once_and_other_rows_keep_their_bits(
    model: Any, gates: Gates, kinds: list[Intervention]
) -> None:
    seen: list[Any] = []
    module = gates.sites[1].module
    before = module.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    gate = torch.randn(1, 1, NEURONS, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate[0, 0, 0] = -0.0
    rows: list[Row] = [(kinds[0], 1.4), (kinds[0], 1.4), None]  # the second has finished
    try:
        with steered(model, gates, rows, prompt_columns=1) as state:
            call = ModelCall((), {})
            call.tokens = torch.tensor([[5, 6], [5, EOS], [5, 6]])
            state.begin_call(call)
            output = module(gate.expand(3, 2, NEURONS))
    finally:
        before.remove()
    clamp, add = (torch.from_numpy(table[1]) for table in kinds[0].tables())
    assert output.dtype == torch.bfloat16
    changed = (torch.minimum(seen[0][0, 1].float(), clamp) + 1.4 * add).bfloat16()
    assert torch.equal(output[0, 1], changed)
    assert not torch.equal(changed, seen[0][0, 1])
    for row, column in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1)):
        assert torch.equal(output[row, column].view(torch.int16), seen[0][row, column].view(torch.int16))


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_model_is_restored_after_anything(model: Any, gates: Gates, rows: list[Row]) -> None:
    plain, _ = generate(model, PROMPTS)
    assert hooks_of(model) == 0
    with steered(model, gates, rows):
        assert hooks_of(model) == LAYERS + 3
        with pytest.raises(ConfigurationError, match="being steered already"), steered(model, gates, rows):
            raise AssertionError("nested")
        assert hooks_of(model) == LAYERS + 3
    assert hooks_of(model) == 0
    with pytest.raises(KeyboardInterrupt), steered(model, gates, rows):
        raise KeyboardInterrupt
    with pytest.raises(ConfigurationError, match="6 rows but the model got a batch of 1"), steered(model, gates, rows):
        generate(model, PROMPTS[:1])
    assert hooks_of(model) == 0
    assert generate(model, PROMPTS)[0] == plain
    with steered(model, gates, rows):
        pass


def test_an_adapter_around_the_model_is_seen_through(model: Any, gates: Gates, kinds: list[Intervention]) -> None:
    class Adapter(torch.nn.Module):  # as peft's: generate() is that of the model within
        def get_base_model(self) -> Any:
            return model

    with steered(model, gates, [(kinds[0], 1.0)]):
        expected, _ = generate(model, PROMPTS[:1])
    with steered(Adapter(), gates, [(kinds[0], 1.0)], stop_tokens={EOS}) as state:
        assert generate(model, PROMPTS[:1])[0] == expected
    assert state.edited_tokens == [len(expected[0]) - 1]


def test_only_layers_with_edits_are_hooked(model: Any, gates: Gates) -> None:
    with steered(model, gates, [(make([(1, 3, Operation.ADD, 1.0)]), 1.0)]):
        assert hooks_of(model) == 4


def test_what_cannot_be_steered_is_refused(
    model: Any, gates: Gates, rows: list[Row], kinds: list[Intervention], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make([(0, 1, Operation.ADD, 1.0)], (LAYERS, NEURONS * 2))
    with pytest.raises(ModelError, match="3 layers x 96 neurons, but this model has 3 layers x 48 neurons"):
        steered(model, gates, [(other, 1.0)]).__enter__()
    for settings, said in (
        ({"keep": 0.0}, "keep 0.0"),
        ({"keep": 1.5}, "keep 1.5"),
        ({"seed": [1]}, "1 values of seed for 6 rows"),
        ({"prompt_columns": 0}, "prompt_columns 0"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            steered(model, gates, rows, **settings).__enter__()
    with pytest.raises(ConfigurationError, match="strength inf"):
        steered(model, gates, [(kinds[0], float("inf"))]).__enter__()
    with pytest.raises(ConfigurationError, match="padded on the right"), steered(model, gates, rows[:1]):
        model(input_ids=torch.tensor([[5, 6, PAD]]), attention_mask=torch.tensor([[1, 1, 0]]))
    with pytest.raises(ConfigurationError, match="one call of generate"), steered(model, gates, rows[:1]):
        generate(model, PROMPTS[:1])
        generate(model, PROMPTS[:1])
    with pytest.raises(ModelError, match="give steered"), steered(model, gates, rows[:1]):
        model.model(torch.tensor([[5, 6]]))
    shared = dataclasses.replace(gates, sites=(gates.sites[0], dataclasses.replace(gates.sites[0], layer=1)))
    with pytest.raises(ModelError, match="share one activation module"):
        steered(model, shared, rows).__enter__()
    block = model.model.layers[1].mlp
    fused = lambda hidden: block.down_proj(torch.nn.functional.silu(block.gate_proj(hidden)) * block.up_proj(hidden))  # noqa: E731
    monkeypatch.setattr(block, "forward", fused)
    with pytest.raises(ModelError, match=r"had no effect: .*layers\.1\..* bypassed"), steered(model, gates, rows[:1]):
        generate(model, PROMPTS[:1])
    assert hooks_of(model) == 0


# The random mask


def test_the_mask_is_the_stated_hash() -> None:
    def mix(word: int) -> int:
        word = ((word ^ (word >> 16)) * 0x85EBCA6B) % 2**32
        word = ((word ^ (word >> 13)) * 0xC2B2AE35) % 2**32
        return word ^ (word >> 16)

    for seed, position, layer in ((0, 0, 0), (2**32 - 1, 5, 31), (123456789, 4000, 7)):
        found = keep_mask(torch.tensor([seed]), torch.tensor([position]), layer, 40, 0.9)[0].tolist()
        base = mix((mix((mix(seed) + position) % 2**32) + layer) % 2**32)
        assert found == [mix((base + neuron) % 2**32) < int(0.9 * 2**32) for neuron in range(40)]


def test_the_mask_keeps_its_share_and_differs_in_every_key() -> None:
    seed, position = torch.arange(20).unsqueeze(1), torch.arange(10).unsqueeze(0)
    masks = torch.stack([keep_mask(seed, position, layer, 200, 0.9) for layer in range(4)])
    assert masks.shape == (4, 20, 10, 200)
    assert float(masks.float().mean()) == pytest.approx(0.9, abs=0.005)
    assert len(set(map(tuple, masks.reshape(-1, 200).tolist()))) == 800
    columns = masks.float().reshape(-1, 200)
    assert float(columns.mean(0).min()) > 0.85  # no neuron is left out for good
    assert keep_mask(seed, position, 0, 200, 1.0).all()


def test_the_mask_leaves_clamps_alone(model: Any, gates: Gates) -> None:
    clamped = make([(layer, i, Operation.CLAMP_MAX, 0.0) for layer in range(LAYERS) for i in range(NEURONS)])
    with steered(model, gates, [(clamped, 1.0)]):
        _, whole = generate(model, PROMPTS[:1])
    with steered(model, gates, [(clamped, 1.0)], keep=0.01):
        _, masked = generate(model, PROMPTS[:1])
    assert torch.equal(whole, masked)
