"""LoRA: what a fit leaves, what it is trained on, its kills, the folders that peft loads, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from personalitybench.artifacts.store import Fit  # noqa: E402
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
from personalitybench.runs.plan_models import PlannedModel  # noqa: E402
from personalitybench.runs.suite import ModelSpec  # noqa: E402
from personalitybench.training.adapters import Recipe, train_adapter  # noqa: E402
from personalitybench.training.curves import Curve  # noqa: E402
from personalitybench.training.examples import (  # noqa: E402
    Example,
    ExampleSet,
    split,
)
from personalitybench.traits import Target  # noqa: E402
from tests.killed_fit import fit  # noqa: E402
from tests.lora_answers import HIGH, LOW, own_lines, write  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_cache")]

SHORT = {"rank": 2, "epochs": 3, "learning_rate": 0.01, "train_batch_size": 4}
QUESTION = Question("q", "evaluate", "extraversion", "", "", "", "", "test", "What now?")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "own.jsonl", own_lines())


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fit(tiny_model, tmp_path_factory.mktemp("lora"), {**SHORT, "data": str(data)})


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
    widths = PlannedModel(ModelSpec(name=str(tiny_model))).widths(planned.projections)
    assert widths is not None
    assert planned.bytes_per_width * widths == 4 * cost.parameters


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


def test_a_complete_fit_in_the_store_keeps_its_artifact_alone(tiny_model: Path, data: Path) -> None:
    made = method(data=str(data), **SHORT)
    stored = Fit("lora", made, {"name": "tiny", "revision": "1"}, "personalitybench-hf", {"dtype": "float32"})
    artifact = stored.make(str(tiny_model))
    assert artifact is not None
    assert not (stored.folder / "work").exists()
    assert stored.make("nowhere") == artifact
    assert artifact.cost is not None
    assert artifact.cost.bytes == artifact.size > 0


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
