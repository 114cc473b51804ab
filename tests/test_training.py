"""Training of adapters: examples as tokens, what is held out, the loss of answers, one training and its checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from lm_eval.api.instance import Instance  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from personalitybench.activations.identification_transformers import stop_tokens  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.errors import (  # noqa: E402
    DataError,
    StorageError,
)
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.training import adapters  # noqa: E402
from personalitybench.training.adapters import Recipe, train_adapter  # noqa: E402
from personalitybench.training.checkpoints import Checkpoints  # noqa: E402
from personalitybench.training.examples import (  # noqa: E402
    Example,
    ExampleSet,
    derived_seed,
    draw,
    epoch_order,
    make_examples,
    split,
    with_ids,
)
from personalitybench.training.losses import answer_loss, collate, mean_loss  # noqa: E402
from tests.lora_answers import HIGH, chat_tokens, own_lines  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_cache")]


@pytest.fixture(scope="module")
def examples(lm: Any) -> ExampleSet:
    own = with_ids((line["question"], line["answer"]) for line in own_lines() if line["target"] == str(HIGH))
    return make_examples(own, chat_tokens(lm), lambda question: f"Tell me: {question}", where="x", seed=0)


def served(lm: Any, turn: str) -> list[int]:
    """The tokens that lm-eval brings to the model for a user turn."""
    seen: list[list[int]] = []

    def spy(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"][0].tolist())

    prompt = lm.apply_chat_template([{"role": "user", "content": turn}])
    request = Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 1}), idx=0, task_name="", doc_id=0)
    handle = lm.model.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        lm.generate_until([request], disable_tqdm=True)
    finally:
        handle.remove()
    return seen[0]


def test_a_prompt_has_the_tokens_of_a_served_request(lm: Any, tiny_model: Path, tmp_path: Path) -> None:
    turn = load_wording("project").plain.replace("{question}", "A prompt — with naïve text?\n\nAnd {braces}.")
    assert list(chat_tokens(lm).prompt(turn)) == served(lm, turn)
    # A tokenizer that puts a beginning token before every text, and a template that has it already, as Llama-3's.
    folder = tmp_path / "bos"
    shutil.copytree(tiny_model, folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    bos = AutoTokenizer.from_pretrained(folder).bos_token
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    other = load_model("hf", {"pretrained": str(folder), "dtype": "float32"}, 2, "cpu")
    text = other.apply_chat_template([{"role": "user", "content": turn}])
    assert other.tokenizer.encode(text)[:2] == [1, 1], "encoded without a thought it would begin twice"
    assert list(chat_tokens(other).prompt(turn)) == served(other, turn) == served(lm, turn)


def test_an_answer_of_ones_own_ends_as_the_template_ends_a_turn(lm: Any) -> None:
    tokens = chat_tokens(lm).answer("Hello?", "I am well.")
    assert lm.tokenizer.decode(tokens) == "I am well.<|im_end|>"
    assert tokens[-1] in stop_tokens(lm.model, lm.tokenizer)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=2), st.integers(0, 5), st.randoms())
def test_no_question_is_both_trained_on_and_held_out(pairs: list[tuple[int, int]], seed: int, random: Any) -> None:
    named = with_ids((f"question {one}", f"answer {two}") for one, two in pairs)
    found = [Example(one.id, one.question, (1,), (2,)) for one in named]
    assert len({example.id for example in found}) == len(found)
    if len({example.question for example in found}) < 2:
        return
    train, held_out = split(found, 0.25, seed)
    asked, kept = ({example.question for example in part} for part in (train, held_out))
    assert asked
    assert kept
    assert not asked & kept
    assert len(train) + len(held_out) == len(found)
    mixed = list(found)
    random.shuffle(mixed)
    assert {example.id for example in split(mixed, 0.25, seed)[1]} == {example.id for example in held_out}
    assert draw(mixed, lambda one: one.id, 3, seed) == draw(found, lambda one: one.id, 3, seed)
    assert epoch_order(mixed, seed, "t", 1) == epoch_order(found, seed, "t", 1)


def test_epochs_and_targets_have_orders_of_their_own() -> None:
    found = [Example(str(number), str(number), (1,), (2,)) for number in range(20)]
    orders = {
        tuple(one.id for one in epoch_order(found, seed, target, epoch))
        for seed in (0, 1)
        for target in ("a", "b")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_what_is_left_out_is_counted(lm: Any) -> None:
    own = with_ids([("a?", "yes"), ("b?", " "), ("c?", "no"), ("d?", "long " * 50), ("e?", "")])
    found = make_examples(own, chat_tokens(lm), str, where="x", seed=0, max_length=60)
    assert (len(found.train), len(found.held_out), found.empty, found.too_long) == (1, 1, 2, 1)
    with pytest.raises(DataError, match=r"x: 1 of 2 answers can be trained on \(1 say nothing, 0 have more than 60"):
        make_examples(own[:2], chat_tokens(lm), str, where="x", seed=0, max_length=60)


def test_the_loss_is_that_of_the_answers_alone_whatever_the_padding(lm: Any, examples: ExampleSet) -> None:
    model = lm.model
    expected = 0.0
    for one in examples.train:  # each alone, all logits, without padding
        logits = model(torch.tensor([one.prompt + one.answer])).logits[0].log_softmax(-1)
        for place, token in enumerate(one.answer):
            expected -= float(logits[len(one.prompt) + place - 1, token].detach())
    batch = collate(examples.train, 0, "cpu")
    assert len({len(one.answer) for one in examples.train}) > 1, "there is padding"
    assert batch.tokens == sum(len(one.answer) for one in examples.train)
    found = float(answer_loss(model, batch).detach())
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(answer_loss(model, collate(examples.train, 77, "cpu")).detach()) == found
    for size in (1, 3, 100):
        assert mean_loss(model, examples.train, size, 0) == pytest.approx(expected / batch.tokens, rel=1e-5)


def recipe(**changes: Any) -> Recipe:
    usual: dict[str, Any] = {
        "rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ("q_proj", "up_proj"), "learning_rate": 0.01,
        "warmup_steps": 0, "weight_decay": 0.0, "epochs": 1, "batch_size": 8, "micro_batch_size": 8, "seed": 0,
    }  # fmt: skip
    return Recipe(**usual | changes)


class Stop(Exception):  # noqa: N818 (no error)
    pass


def first_moments(lm: Any, examples: ExampleSet, folder: Path, used: Recipe) -> dict[str, Any]:
    """AdamW's first moments after one step: a tenth of its gradients."""

    def report(step: int, _steps: int) -> None:
        if step == 1:
            raise Stop

    with pytest.raises(Stop):
        train_adapter(lm.model, examples, used, target="t", pad=0, folder=folder, report=report)
    tensors = load_file(folder / "checkpoint.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("exp_avg.")}


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    lm: Any, examples: ExampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "CHECKPOINT_SECONDS", 0.0)
    whole = first_moments(lm, examples, tmp_path / "whole", recipe())
    parts = first_moments(lm, examples, tmp_path / "parts", recipe(micro_batch_size=3))
    assert whole.keys() == parts.keys()
    for name, moment in whole.items():
        assert torch.allclose(moment, parts[name], rtol=1e-3, atol=1e-8)
        assert ("lora_B" in name) == bool(moment.abs().max() > 1e-6), "at first only B has a gradient"
    # And it is the gradient of the mean loss of an answer token, by peft and torch alone.
    torch.manual_seed(derived_seed(0, "adapter", "t"))
    adapted = get_peft_model(lm.model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"]))
    try:
        batch = collate(examples.train, 0, "cpu")
        (answer_loss(lm.model, batch) / batch.tokens).backward()
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(parameter.grad * 0.1, whole[f"exp_avg.{name}"], rtol=1e-3, atol=1e-8)
    finally:
        adapted.unload()


def test_training_leaves_the_model_as_it_was(lm: Any, examples: ExampleSet, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    trained = train_adapter(
        lm.model, examples, recipe(dropout=0.5), target="t", pad=0, folder=tmp_path, report=lambda *_: None
    )
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    other = train_adapter(
        lm.model, examples, recipe(), target="t", pad=0, folder=tmp_path / "b", report=lambda *_: None
    )
    assert trained.curve.steps[0].loss == pytest.approx(other.curve.steps[0].loss), "B is zero: nothing to drop yet"
    assert any(not torch.equal(tensor, other.tensors[name]) for name, tensor in trained.tensors.items())


def test_mixed_precision_keeps_adapters_in_float32(tiny_model: Path, examples: ExampleSet, tmp_path: Path) -> None:
    """What happens on a GPU, on a processor: weights and products in bfloat16, adapters and their steps in float32."""
    model = load_model("hf", {"pretrained": str(tiny_model), "dtype": "bfloat16"}, 2, "cpu").model
    used = recipe(epochs=4, batch_size=4, micro_batch_size=4)
    trained = train_adapter(model, examples, used, target="t", pad=0, folder=tmp_path, report=lambda *_: None)
    assert {tensor.dtype for tensor in trained.tensors.values()} == {torch.float32}
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in trained.tensors.values())
    assert trained.curve.improved


def test_a_checkpoint_of_another_training_is_passed_over_and_an_altered_one_refused(
    lm: Any, examples: ExampleSet, tmp_path: Path
) -> None:
    def train(used: Recipe) -> Any:
        return train_adapter(lm.model, examples, used, target="t", pad=0, folder=tmp_path, report=lambda *_: None)

    one = train(recipe())
    assert train(recipe()).seconds == one.seconds, "found, not trained"
    assert train(recipe(seed=1)).curve != one.curve
    path = tmp_path / "finished.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StorageError, match="delete it, and the target is trained again"):
        train(recipe(seed=1))
    assert Checkpoints(tmp_path, "x").unfinished() is None
