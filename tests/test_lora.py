"""LoRA: what is trained on, the loss, the loop and its kills, the folders that peft loads, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from lm_eval.api.instance import Instance  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from personalitybench.activations.identification_transformers import stop_tokens  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.errors import (  # noqa: E402
    ConfigurationError,
    DataError,
    ModelError,
    PersonalityBenchError,
    StorageError,
)
from personalitybench.files import JsonLines  # noqa: E402
from personalitybench.methods import Artifact, MethodContext, create_method, lora_fit  # noqa: E402
from personalitybench.methods.lora import LoraManifest, LoraSettings, LowRankAdapters  # noqa: E402
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.questions import Question, open_source  # noqa: E402
from personalitybench.training import adapters  # noqa: E402
from personalitybench.training.adapters import Recipe, train_adapter  # noqa: E402
from personalitybench.training.checkpoints import Checkpoints  # noqa: E402
from personalitybench.training.curves import Curve  # noqa: E402
from personalitybench.training.examples import (  # noqa: E402
    ChatTokens,
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
from personalitybench.traits import Target  # noqa: E402
from tests.killed_fit import fit  # noqa: E402

pytestmark = pytest.mark.model

HIGH, LOW = Target.parse("extraversion:high"), Target.parse("extraversion:low")
SHORT = {"rank": 2, "epochs": 3, "learning_rate": 0.01, "train_batch_size": 4}
QUESTION = Question("q", "evaluate", "extraversion", "", "", "", "", "test", "What now?")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(folder))
        yield folder


def own_lines(count: int = 9) -> list[dict[str, str]]:
    likes = {str(HIGH): "love", str(LOW): "hate"}
    return [
        {"target": target, "question": f"What about {number}?", "answer": f"I {verb} {'very ' * (number % 4)}much."}
        for target, verb in likes.items()
        for number in range(count)
    ]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "own.jsonl", own_lines())


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fit(tiny_model, tmp_path_factory.mktemp("lora"), {**SHORT, "data": str(data)})


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> Any:
    return load_model("hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 2, "cpu")


@pytest.fixture(scope="module")
def examples(lm: Any) -> ExampleSet:
    own = with_ids((line["question"], line["answer"]) for line in own_lines() if line["target"] == str(HIGH))
    return make_examples(own, chat_tokens(lm), lambda question: f"Tell me: {question}", where="x", seed=0)


def chat_tokens(lm: Any) -> ChatTokens:
    return ChatTokens(lm, stop_tokens(lm.model, lm.tokenizer))


def method(artifact: Artifact | None = None, **settings: Any) -> LowRankAdapters:
    made = create_method("lora", settings, MethodContext(load_wording("project"), open_source("sample"), 0, artifact))
    assert isinstance(made, LowRankAdapters)
    return made


def altered(artifact: Artifact, to: Path) -> Artifact:
    shutil.copytree(artifact.folder, to)
    return Artifact.open(to)


# What a fit leaves


def test_a_fit_leaves_folders_that_plain_peft_loads(fitted: Artifact, tiny_model: Path, data: Path) -> None:
    manifest = LoraManifest.read(fitted.folder)
    assert list(manifest.targets) == [str(HIGH), str(LOW)]
    assert manifest.settings["data"].startswith("sha256:")
    assert str(data.parent) not in (fitted.folder / "lora.json").read_text()
    assert "questions" not in manifest.settings, "nothing was identified"
    found = manifest.targets[str(HIGH)]
    assert (found.examples, found.held_out_examples, found.empty, found.too_long) == (8, 1, 0, 0)
    assert found.loss_after < found.loss_before
    folder = fitted.folder / "extraversion-high"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "curve.json"
    ]  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(100, 120).unsqueeze(0)
    plain = base(ids).logits
    loaded = PeftModel.from_pretrained(base, str(folder))
    assert not torch.equal(loaded(ids).logits, plain)
    with loaded.disable_adapter():
        assert torch.equal(loaded(ids).logits, plain)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 16, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "tiny"
    assert config["inference_mode"] is True
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert list(config) == sorted(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == found.parameters
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_the_curve_and_the_cost_say_what_was_done(fitted: Artifact) -> None:
    curve = Curve.read(fitted.folder / "extraversion-low")
    manifest = LoraManifest.read(fitted.folder)
    assert [one.step for one in curve.steps] == [1, 2, 3, 4, 5, 6], "8 examples, batches of 4, 3 epochs"
    assert [one.step for one in curve.held_out] == [0, 2, 4, 6]
    assert curve.steps[0].learning_rate == 0.01
    assert curve.steps[3].learning_rate == pytest.approx(0.005), "half way down the cosine"
    rates = [one.learning_rate for one in curve.steps]
    assert rates == sorted(rates, reverse=True)
    assert curve.trained_tokens == 3 * manifest.targets[str(LOW)].tokens
    cost = fitted.cost
    assert cost is not None
    assert cost.trained_tokens == 3 * sum(one.tokens for one in manifest.targets.values())
    assert cost.parameters == 2 * curve.parameters
    assert cost.generated_tokens == 0
    assert fitted.provenance["dtype"] == "float32"
    rows = method().describe_fit(fitted)
    assert [row["target"] for row in rows] == [str(HIGH), str(LOW)]
    assert rows[1]["loss before"] == f"{curve.loss_before:.3f}"


def test_equal_fits_are_equal_and_the_order_of_a_file_does_not_matter(
    fitted: Artifact, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    again = fit(tiny_model, tmp_path / "again", {**SHORT, "data": str(data)})
    assert torch.equal(torch.get_rng_state(), before), "the process keeps its random numbers"
    assert again.sha256 == fitted.sha256
    turned = write(tmp_path / "turned.jsonl", own_lines()[::-1])
    other = fit(tiny_model, tmp_path / "other", {**SHORT, "data": str(turned)})
    assert other.sha256 != fitted.sha256, "the manifest names another file"
    one, two = (LoraManifest.read(artifact.folder) for artifact in (fitted, other))
    assert one.targets == two.targets, "the same adapters, to the bit"


def test_induce(fitted: Artifact) -> None:
    made = method(fitted)
    assert made.settings.rank == 2, "what is not set is the fit's"
    plain = load_wording("project").plain
    for strength in (None, 0.5, -1.0):
        induction = made.induce(HIGH, strength, QUESTION)
        assert (induction.template, induction.strength) == (plain, strength)
        assert induction.extra_args == {
            "adapter": str(fitted.folder / "extraversion-high"),
            **({} if strength is None else {"adapter_strength": strength}),
        }
    with pytest.raises(ConfigurationError, match=r"no adapter for openness:high \(it has extraversion:high, extra"):
        made.induce(Target.parse("openness:high"), None, QUESTION)
    with pytest.raises(ConfigurationError, match="personalitybench fit lora"):
        method().induce(HIGH, None, QUESTION)
    with pytest.raises(ConfigurationError, match="'rank' of method 'lora' is 4, but the artifact was fitted with 2"):
        method(fitted, rank=4)


def test_an_altered_artifact_is_refused(fitted: Artifact, tmp_path: Path) -> None:
    cut = altered(fitted, tmp_path / "cut")
    weights = cut.folder / "extraversion-high" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(StorageError, match="truncated or altered"):
        method(Artifact.open(cut.folder)).induce(HIGH, None, QUESTION)
    assert method(cut).induce(LOW, None, QUESTION).adapter
    gone = altered(fitted, tmp_path / "gone")
    shutil.rmtree(gone.folder / "extraversion-low")
    with pytest.raises(StorageError, match="missing"):
        method(gone).induce(LOW, None, QUESTION)
    (gone.folder / "lora.json").unlink()
    with pytest.raises(StorageError, match="no finished fit of lora"):
        method(gone)
    (cut.folder / "lora.json").write_text('{"format": "personalitybench-npti/1"}')
    with pytest.raises(StorageError, match="describes no fit of lora"):
        method(cut)
    with pytest.raises(StorageError, match=r"curve\.json"):
        Curve.read(gone.folder)


# What is trained on


def served(lm: Any, turn: str) -> list[int]:
    """The tokens that lm-eval brings to the model for a user turn."""
    seen: list[list[int]] = []

    def spy(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"][0].tolist())

    prompt = lm.apply_chat_template([{"role": "user", "content": turn}])
    request = Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 1}), 0)
    handle = lm.model.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        lm.generate_until([request], disable_tqdm=True)
    finally:
        handle.remove()
    return seen[0]


def test_a_prompt_has_the_tokens_of_a_served_request(lm: Any, tiny_model: Path, tmp_path: Path) -> None:
    turn = method().context.wording.plain.replace("{question}", "A prompt — with naïve text?\n\nAnd {braces}.")
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


def test_own_model_answers_are_trained_on_without_the_persona(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm: Any
) -> None:
    seen: dict[str, ExampleSet] = {}

    def spy(base: Any, found: ExampleSet, recipe: Recipe, **rest: Any) -> Any:
        seen[rest["target"]] = found
        return train_adapter(base, found, recipe, **rest)

    monkeypatch.setattr(lora_fit, "train_adapter", spy)
    settings = dict(LowRankAdapters.check_settings)
    artifact = fit(tiny_model, tmp_path, settings)
    assert len(seen) == 10
    descriptions = [text for texts in open_source("sample").descriptions.values() for text in texts]
    sheets = {path.parent.name: path for path in tmp_path.rglob("answers.jsonl")}
    plain = load_wording("project").plain
    for target, found in seen.items():
        rows = {row["id"]: row for row in JsonLines(sheets[target.replace(":", "-")]).read()}
        assert {one.id for one in (*found.train, *found.held_out)} == set(rows)
        for one in (*found.train, *found.held_out):
            row = rows[one.id]
            assert list(one.answer) == row["answer_tokens"]
            text = lm.tokenizer.decode(one.prompt)
            assert plain.replace("{question}", row["question"]) in text
            assert row["description"] in lm.tokenizer.decode(row["prompt_tokens"])
            assert not any(description in text for description in descriptions)
    cost = artifact.cost
    assert cost is not None
    assert cost.generated_tokens == sum(
        len(row["answer_tokens"]) for path in sheets.values() for row in JsonLines(path).read()
    )
    planned = method(**settings).plan_fit(lambda text: len(lm.tokenizer.encode(text)) + 64)  # 64: the template's own
    assert planned.requests == 40
    assert planned.new_tokens == 160 >= cost.generated_tokens
    assert planned.trained_tokens >= cost.trained_tokens > 0


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


# The loss and the loop


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


def test_a_killed_fit_ends_with_the_weights_of_one_that_was_not(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """SIGKILL twice, in either target's training, then to the end: bitwise, with dropout."""
    settings = {**SHORT, "dropout": 0.2, "data": str(data), "micro_batch_size": 3}
    command = [
        sys.executable,
        "-m",
        "tests.killed_fit",
        str(tiny_model),
        str(tmp_path / "killed"),
        json.dumps(settings),
    ]
    root = Path(__file__).resolve().parent.parent
    # Each target keeps ten times: before training, after each of six steps, after each of three epochs.
    for number in (5, 9):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert process.stdout is not None
        for _ in range(number):
            assert process.stdout.readline() == "kept\n"
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -9
        assert not (tmp_path / "killed" / "artifact" / "lora.json").exists()
    work = tmp_path / "killed" / "work"
    assert (work / "extraversion-high" / "finished.safetensors").is_file()
    assert (work / "extraversion-low" / "checkpoint.safetensors").is_file()
    stamp = (work / "extraversion-high" / "finished.safetensors").stat().st_mtime_ns
    resumed = fit(tiny_model, tmp_path / "killed", settings)
    assert (work / "extraversion-high" / "finished.safetensors").stat().st_mtime_ns == stamp, "not trained again"
    whole = fit(tiny_model, tmp_path / "whole", settings)
    assert resumed.sha256 == whole.sha256
    assert Curve.read(resumed.folder / "extraversion-low") == Curve.read(whole.folder / "extraversion-low")


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


def test_a_training_that_does_not_help_is_told_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    lines = own_lines()
    questions = [Example("", line["question"], (), ()) for line in lines]
    _, (held_out, *_) = split(questions, 0.1, 0)
    for line in lines:  # what this model says best already (it repeats itself), and is led away from
        if line["question"] == held_out.question:
            line["answer"] = " no" * 20
    settings = {**SHORT, "data": str(write(tmp_path / "own.jsonl", lines))}
    with pytest.raises(ModelError, match=r"held-out loss of extraversion:high .*require_improvement: false"):
        fit(tiny_model, tmp_path, settings)
    finished = tmp_path / "work" / "extraversion-high" / "finished.safetensors"
    stamp = finished.stat().st_mtime_ns
    assert LoraSettings(**settings).for_fit() == LoraSettings(**settings, require_improvement=False).for_fit()
    made = fit(tiny_model, tmp_path, settings | {"require_improvement": False})
    assert finished.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigurationError, match="did not lower"):
        method(made).induce(HIGH, None, QUESTION)
    assert method(made, require_improvement=False).induce(HIGH, None, QUESTION).adapter


def test_the_demo_model_learns(demo_model: Path, tmp_path: Path) -> None:
    lines = [
        {"target": str(HIGH), "question": f"What do you do on {day}?", "answer": f"On {day} I go out and meet people!"}
        for day in ("Monday", "Tuesday", "Thursday", "Friday")
    ]
    settings = {
        "data": str(write(tmp_path / "own.jsonl", lines)),
        "epochs": 3,
        "learning_rate": 1e-3,
        "target_modules": ["q_proj", "v_proj"],
    }
    artifact = fit(demo_model, tmp_path, settings)
    found = LoraManifest.read(artifact.folder).targets[str(HIGH)]
    assert found.loss_after < 0.8 * found.loss_before


# What is refused


def test_settings() -> None:
    assert LoraSettings(target_modules="q_proj").target_modules == ("q_proj",)
    assert LoraSettings(target_modules=["v_proj", "q_proj"]).for_fit()["target_modules"] == ["q_proj", "v_proj"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rnak": 4}, "did you mean 'rank'"),
        ({"rank": 0}, "rank"),
        ({"examples": 1}, "examples"),
        ({"examples": "some"}, "examples"),
        ({"held_out": 0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"dropout": 1.0}, "dropout"),
        ({"target_modules": []}, "target_modules"),
        ({"data": "/nowhere/own.jsonl"}, "cannot read /nowhere/own.jsonl"),
    ]
    for settings, says in wrong:
        with pytest.raises(ConfigurationError, match=says):
            method(**settings)


def test_a_file_is_known_by_its_content(data: Path, tmp_path: Path) -> None:
    one = LoraSettings(data=str(data))
    copy = tmp_path / "copy.jsonl"
    shutil.copy(data, copy)
    assert LoraSettings(data=str(copy), questions=7, max_tokens=9).for_fit() == one.for_fit()
    shown = one.model_dump(mode="json")
    assert shown["data"] == one.for_fit()["data"]
    again = LoraSettings.model_validate(shown)
    assert again.for_fit() == one.for_fit(), "a row's settings can be read back"
    with pytest.raises(ConfigurationError, match="name the file that has it"):
        again.own_answers()
    copy.write_text("")
    assert LoraSettings(data=str(copy)).for_fit() != one.for_fit()
    late = LoraSettings(data=str(copy))
    copy.write_text("{}")
    with pytest.raises(DataError, match="was changed since"):
        late.own_answers()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r":2 is not JSON"),
        ("[1]", r":2 is no JSON object"),
        ('{"target": "extraversion:high", "question": "q"}', r":2: 'answer' is missing"),
        ('{"target": "extraversion:high", "question": "q", "answer": 3}', r":2: answer"),
        ('{"target": "extraversion:high", "question": "", "answer": "a"}', r":2: question"),
        ('{"target": "extravresion:high", "question": "q", "answer": "a"}', r":2: .*did you mean 'extraversion'"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    good = json.dumps(own_lines()[0])
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=f"{path}{says}"):
        LoraSettings(data=str(path)).own_answers()
    path.write_text("\n")
    with pytest.raises(DataError, match="has no line"):
        LoraSettings(data=str(path)).own_answers()


def test_models_that_cannot_be_fitted(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    own = {**SHORT, "data": str(data)}

    def without_template() -> Path:
        folder = tmp_path / "plain"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    refused: list[tuple[Callable[[], object], type[PersonalityBenchError], str]] = [
        (lambda: fit(without_template(), tmp_path / "a", own), ModelError, "has no chat template"),
        (
            lambda: fit(tiny_model, tmp_path / "b", {**own, "target_modules": ["q_proj", "c_attn"]}),
            ConfigurationError,
            "names c_attn, .*it has down_proj, gate_proj, k_proj",
        ),
        (
            lambda: fit(tiny_model, tmp_path / "c", own, model_args={"peft": "x"}),
            ConfigurationError,
            "merge it into the weights",
        ),
        (lambda: fit(tiny_model, tmp_path / "d", {**own, "max_length": 8}), DataError, "raise max_length"),
    ]
    for attempt, kind, says in refused:
        with pytest.raises(kind, match=says):
            attempt()


def test_arguments_of_another_backend_do_not_matter_to_training(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """A fit for vLLM trains with transformers."""
    given = {"gpu_memory_utilization": 0.8, "max_model_len": 64, "dtype": "float16", "trust_remote_code": False}
    settings = {**SHORT, "epochs": 1, "data": str(data)}
    made = fit(tiny_model, tmp_path, settings, backend="personalitybench-vllm", model_args=given)
    assert made.provenance["dtype"] == "float32"
    assert LoraManifest.read(made.folder).model["engine"] == "vllm"
