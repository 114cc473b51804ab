"""LoRA adapters on transformers: rows of one batch with their own, at their own strength, on top of them NPTI."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from personalitybench.activations.layouts import captured, find_gates  # noqa: E402
from personalitybench.backends.adapter_files import file_stamp, read_adapter  # noqa: E402
from personalitybench.backends.adapter_products import RowProducts  # noqa: E402
from personalitybench.backends.adapters import AdapterPool  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError  # noqa: E402
from personalitybench.methods import Artifact, FitContext, Induction, MethodContext, MethodSettings, Need, methods  # noqa: E402
from personalitybench.questions import Question  # noqa: E402
from personalitybench.tasks import tasks_folder  # noqa: E402
from personalitybench.traits import Target  # noqa: E402
from tests.test_steerable import PROMPTS, SETTINGS, save  # noqa: E402

pytestmark = pytest.mark.model

Q_PROJ = "model.layers.0.self_attn.q_proj"


def write_adapter(base: Path, folder: Path, seed: int = 0, spread: float = 0.5, **settings: Any) -> Path:
    """An adapter of random matrices, saved by peft."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = spread * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def edit_config(folder: Path, copy: Path, **changes: Any) -> Path:
    """The same adapter under a configuration that was changed by hand."""
    shutil.copytree(folder, copy)
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters that differ in rank, place and scale."""
    home = tmp_path_factory.mktemp("adapters")
    gated = {"r": 2, "lora_alpha": 3, "target_modules": ["gate_proj", "down_proj"], "layers_to_transform": [1]}
    mixed: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "use_rslora": True}
    mixed |= {"rank_pattern": {"k_proj": 3}, "alpha_pattern": {"layers.0.self_attn.v_proj": 16, "up_proj": 2}}
    return {
        "attention": write_adapter(tiny_model, home / "attention", 1),
        "gate": write_adapter(tiny_model, home / "gate", 2, **gated),
        "everywhere": write_adapter(tiny_model, home / "everywhere", 3, spread=0.3, **mixed),
    }


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 12, "cpu")


def request(prompt: str, adapter: Path | None = None, adapter_strength: float = 1.0, **more: Any) -> Instance:
    wanted = more if adapter is None else {"adapter": str(adapter), "adapter_strength": adapter_strength, **more}
    settings: dict[str, Any] = dict(SETTINGS) | ({"extra_args": {"personalitybench": wanted}} if wanted else {})
    return Instance("generate_until", {"id": prompt}, (prompt, settings), idx=0, task_name="", doc_id=0)


def answers(model: Any, *requests: Instance) -> list[str]:
    found: list[str] = model.generate_until(list(requests), disable_tqdm=True)
    return found


def plain_peft(base: Path, adapter: Path | None, prompt: str, tokenizer: Any) -> str:
    """What peft's own model answers, loaded by ``from_pretrained`` and asked alone."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    tokens = tokenizer(prompt, return_tensors="pt")
    settings = {"max_new_tokens": SETTINGS["max_gen_toks"], "repetition_penalty": SETTINGS["repetition_penalty"]}
    output = model.generate(**tokens, **settings, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    answer: str = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def logits(model: Any) -> Any:
    tokens = torch.tensor([model.tok_encode(PROMPTS[1])])
    with torch.inference_mode():
        return model.model(input_ids=tokens).logits


def added(layer: Any, rows: list[str | None], x: Any) -> Any:
    """What a layer of peft's gives with what the adapters of the rows add."""
    result = layer.base_layer(x)
    RowProducts(layer, rows).add(x, result)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_numbers_of_peft_s_layer_with_its_adapter_alone(
    tiny_model: Path, folders: dict[str, Path], dtype: torch.dtype
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).eval()
    adapted = PeftModel.from_pretrained(base, folders["everywhere"], "everywhere")
    for name in ("attention", "gate"):
        adapted.load_adapter(folders[name], name)
    rows = ["everywhere", None, "gate", "attention", "everywhere"]
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert {len(RowProducts(layer, rows).names) for layer in layers} == {1, 2}, "of three, a layer has one or two"
    for layer in layers:
        x = torch.randn(5, 7, layer.in_features, dtype=dtype, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            plain = layer.base_layer(x)
            mixed = added(layer, rows, x)
            for row, name in enumerate(rows):
                if name not in layer.lora_A:
                    assert torch.equal(mixed[row], plain[row]), "no adapter, or none in this layer: nothing is added"
                    continue
                layer.set_adapter(name)
                alone = layer(x)
                assert not torch.equal(alone, plain)
                assert torch.equal(added(layer, [name] * 5, x), alone), "to the bit where all rows have it"
                torch.testing.assert_close(mixed[row], alone[row])


def test_an_adapter_that_overflows_spoils_no_other_row(tiny_model: Path, folders: dict[str, Path]) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    adapted = PeftModel.from_pretrained(base, folders["everywhere"], "good")
    adapted.load_adapter(folders["everywhere"], "wild")
    layer = next(module for module in adapted.modules() if isinstance(module, LoraLayer))
    with torch.inference_mode():
        layer.lora_A["wild"].weight.fill_(3e38)
        x = torch.ones(3, 2, layer.in_features)
        plain = layer.base_layer(x)
        mixed = added(layer, ["good", "wild", None], x)
    assert not mixed[1].isfinite().all()
    assert torch.equal(mixed[2], plain[2])
    assert mixed[0].isfinite().all()


def test_rows_of_a_mixed_batch_answer_as_plain_peft_does(
    model: Any, tiny_model: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    before = logits(model)
    adapted_before = model.adapted_answers
    wanted: list[tuple[Path | None, float]] = [
        (None, 1.0),
        (folders["attention"], 1.0),
        (folders["attention"], -0.5),
        (folders["gate"], 1.0),
        (folders["everywhere"], 1.0),
        (folders["everywhere"], 0.6),
        (folders["everywhere"], 0.0),
    ]
    mixed = [request(PROMPTS[number % 4], *one) for number, one in enumerate(wanted)]
    together = answers(model, *mixed)
    assert model.adapted_answers - adapted_before == 5
    assert together == [answers(model, one)[0] for one in mixed], "a row gets what it gets alone"
    assert model.get_model_info()["adapted_answers"] == model.adapted_answers == adapted_before + 10
    for number, (folder, strength) in enumerate(wanted):
        edited = folder
        if folder is not None and strength != 1:
            own = json.loads((folder / "adapter_config.json").read_text())
            scaled = {key: alpha * strength for key, alpha in own["alpha_pattern"].items()}
            changes = {"lora_alpha": own["lora_alpha"] * strength, "alpha_pattern": scaled}
            edited = edit_config(folder, tmp_path / str(number), **changes)
        expected = plain_peft(tiny_model, None if strength == 0 else edited, PROMPTS[number % 4], model.tokenizer)
        assert together[number] == expected, (folder, strength)
    everywhere = answers(model, *(request(PROMPTS[0], *one) for one in wanted))
    assert len(set(everywhere)) == 6, "each adapter and each strength shows; none and zero are the same"
    assert torch.equal(logits(model), before), "to the bit as before the first adapter"


def test_interventions_on_top_of_adapters(model: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    npti = {"intervention": str(save(tmp_path / "npti", 4.0)), "strength": 1.0}
    half = npti | {"keep": 0.5, "seed": 3, "first_token": True}
    mixed = [
        request(PROMPTS[0]),
        request(PROMPTS[0], **npti),
        request(PROMPTS[0], folders["gate"]),
        request(PROMPTS[0], folders["gate"], **npti),
        request(PROMPTS[0], folders["gate"], 0.0, **npti),
        request(PROMPTS[0], folders["attention"], 2.0, **half),
        request(PROMPTS[1], folders["gate"], **half),
    ]
    steered_before, adapted_before = model.steered_tokens, model.adapted_answers
    together = answers(model, *mixed)
    assert model.adapted_answers - adapted_before == 4
    assert model.steered_tokens > steered_before
    assert together == [answers(model, one)[0] for one in mixed]
    assert len(set(together[:4])) == 4, "an adapter, an intervention, and both give three answers of their own"
    assert together[4] == together[1]


def test_a_model_that_never_needs_an_adapter_is_not_touched(tiny_model: Path, folders: dict[str, Path]) -> None:
    fresh = load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 4, "cpu")
    modules = {name: type(module) for name, module in fresh.model.named_modules()}
    first = answers(fresh, request(PROMPTS[0]), request(PROMPTS[1], folders["gate"], 0.0))
    assert {name: type(module) for name, module in fresh.model.named_modules()} == modules
    size, kind = fresh.get_model_info()["model_num_parameters"], fresh.model
    drawn = torch.random.get_rng_state()
    answers(fresh, request(PROMPTS[0], folders["everywhere"]))
    assert torch.equal(torch.random.get_rng_state(), drawn), (
        "loading an adapter draws nothing from the sampling's numbers"
    )
    assert fresh.model is kind
    assert fresh.get_model_info()["model_num_parameters"] == size, "the adapters are not the model's parameters"
    assert answers(fresh, request(PROMPTS[0]), request(PROMPTS[1])) == first
    seen: list[int] = []
    with captured(find_gates(fresh.model), lambda layer, _gate: seen.append(layer)):
        logits(fresh)
    assert seen == [0, 1], "the gates are found under peft's layers"


def test_the_canary(model: Any, tiny_model: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    nothing = write_adapter(tiny_model, tmp_path / "nothing", spread=0.0)
    with pytest.raises(ModelError, match=r"adapter changed nothing.*nothing at strength 1 "):
        answers(model, request(PROMPTS[0], nothing))
    idle = {"intervention": str(save(tmp_path / "idle", 0.0)), "strength": 1.0}
    with pytest.raises(ModelError, match="steering changed nothing"):
        answers(model, request(PROMPTS[0], folders["gate"], **idle))
    helped = {"intervention": str(save(tmp_path / "npti", 4.0)), "strength": 1.0}
    with pytest.raises(ModelError, match="adapter changed nothing"):
        answers(model, request(PROMPTS[0], nothing, **helped))
    assert answers(model, request(PROMPTS[0])) == [plain_peft(tiny_model, None, PROMPTS[0], model.tokenizer)]


def test_a_folder_that_is_written_again_is_loaded_again(model: Any, tiny_model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tiny_model, tmp_path / "one", 5)
    first = answers(model, request(PROMPTS[0], folder))
    shutil.copytree(folder, tmp_path / "copy")
    loaded = list(model._adapters._loaded)
    assert answers(model, request(PROMPTS[0], tmp_path / "copy")) == first
    assert list(model._adapters._loaded) == loaded, "folders of the same content share an adapter"
    write_adapter(tiny_model, folder, 6)
    second = answers(model, request(PROMPTS[0], folder))
    assert second != first
    assert second == [plain_peft(tiny_model, folder, PROMPTS[0], model.tokenizer)]


def test_old_files_are_read_once(
    tiny_model: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folders["gate"], tmp_path / "one")
    pool = AdapterPool(AutoModelForCausalLM.from_pretrained(tiny_model).eval())
    now = time.time_ns()
    monkeypatch.setattr("personalitybench.backends.adapter_files.time.time_ns", lambda: now)
    assert file_stamp(folder) is None, "just written: its times tell nothing yet"
    reads: list[Path] = []
    monkeypatch.setattr(
        "personalitybench.backends.adapters.read_adapter", lambda path: reads.append(path) or read_adapter(path)
    )
    first = pool.names([(folder, 1.0)] * 2)
    assert pool.names([(folder, 1.0)] * 2) == first
    assert len(reads) == 2, "so they are read for each batch"
    now += 10 * 10**9
    assert pool.names([(folder, 1.0)]) == pool.names([(folder, 1.0)]) == first[:1]
    assert len(reads) == 3, "and once they are old, no more"
    write_adapter(tiny_model, folder, 8)
    now += 10 * 10**9
    assert pool.names([(folder, 1.0)]) != first[:1]
    assert len(reads) == 4


def test_what_was_not_used_for_longest_is_dropped(tiny_model: Path, folders: dict[str, Path]) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    pool = AdapterPool(bare, limit=2)
    gate, attention = (folders["gate"], 1.0), (folders["attention"], 1.0)
    first = pool.names([gate, None, attention, (folders["gate"], 2.0), (folders["gate"], 0.0)])
    assert [name is None for name in first] == [False, True, False, False, True]
    assert len(pool._loaded) == 3, "a batch keeps what it needs"
    (again,) = pool.names([attention])
    assert again == first[2]
    assert list(pool._loaded) == [first[3], first[2]]
    assert pool.parameters == 2 * (2 * 32 + 64 * 2) + 2 * 2 * (4 * 32 + 32 * 4)
    with pytest.raises(ConfigurationError, match="not loaded"), pool.chosen([first[0]]):
        pass
    assert pool.names([gate]) == [first[0]]


def test_the_model_is_restored_whatever_happens(tiny_model: Path, folders: dict[str, Path]) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    plain = bare(input_ids=tokens).logits
    pool = AdapterPool(bare)
    names = pool.names([(folders["everywhere"], 1.0), None])
    with pool.chosen(names):
        mixed = bare(input_ids=tokens).logits
        with pytest.raises(ConfigurationError, match="chosen already"), pool.chosen(names):
            pass
        with pytest.raises(ConfigurationError, match="chosen already"):
            pool.names([(folders["gate"], 1.0)])
    assert torch.equal(mixed[1], plain[1]), "a row without an adapter keeps its bits"
    assert not torch.equal(mixed[0], plain[0])
    with pytest.raises(ConfigurationError, match="2 rows but a layer got"), pool.chosen(names):
        bare(input_ids=tokens[:1])
    with pytest.raises(KeyError), pool.chosen(names):
        raise KeyError
    with pytest.raises(ModelError, match="none of the layers that it adapts was called"), pool.chosen(names):
        pass
    assert torch.equal(bare(input_ids=tokens).logits, plain)
    assert not any(module._forward_pre_hooks for module in bare.modules())


def _unpickled(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


def _changed(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _reweighted(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        edit(weights)
        save_file(weights, path)

    return change


KEY = f"base_model.model.{Q_PROJ}.lora_A.weight"
WRONG: list[tuple[str, Callable[[Path], Any], type[Exception], str]] = [
    ("a pickle", _unpickled, StorageError, r"adapter_model\.bin, a pickle"),
    ("nothing", shutil.rmtree, StorageError, "is missing"),
    (
        "no weights",
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        StorageError,
        "has no adapter_model",
    ),
    ("cut off", lambda folder: os.truncate(folder / "adapter_model.safetensors", 900), StorageError, "truncated"),
    ("another type", _changed(peft_type="IA3"), NeedsNotMetError, "type 'IA3'"),
    ("DoRA", _changed(use_dora=True), NeedsNotMetError, r"DoRA \(use_dora\)"),
    ("biases", _changed(bias="all"), NeedsNotMetError, "bias='all'"),
    ("whole modules", _changed(modules_to_save=["lm_head"]), NeedsNotMetError, "modules_to_save"),
    ("a changed base", _changed(init_lora_weights="pissa"), NeedsNotMetError, "init_lora_weights='pissa'"),
    ("the unknown", _changed(brand_new="yes"), NeedsNotMetError, "brand_new='yes'"),
    ("no rank", _changed(r=0), StorageError, r"adapter_config\.json: r: .*greater than 0"),
    ("another rank", _changed(r=5), ModelError, r"[qv]_proj a matrix A of shape \[4, 32\], .*rank 5 .*needs \[5, 32\]"),
    (
        "another model",
        _reweighted(lambda held: held.update({KEY: torch.ones(4, 48)})),
        ModelError,
        r"\[4, 48\].*\[4, 32\]",
    ),
    (
        "more layers",
        _reweighted(lambda held: held.update({KEY.replace("layers.0", "layers.7"): held[KEY].clone()})),
        ModelError,
        r"adapts model\.layers\.7\.self_attn\.q_proj, but this model has no linear layer of that name",
    ),
    ("a missing half", _reweighted(lambda held: held.pop(KEY)), ModelError, f"no whole weights for {Q_PROJ}"),
    ("missing targets", _changed(target_modules=["q_proj", "v_proj", "o_proj"]), ModelError, r"no whole .*\.o_proj"),
    ("surplus", _changed(target_modules=["q_proj"]), ModelError, r"weights for .*\.v_proj, which .* not target"),
    (
        "an embedding",
        _reweighted(
            lambda held: held.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)})
        ),
        ModelError,
        "embed_tokens.lora_embedding_A, which is not a weight of LoRA on a linear layer",
    ),
    ("no numbers", _reweighted(lambda held: held[KEY].fill_(float("nan"))), ModelError, "not finite"),
]


@pytest.mark.parametrize(("harm", "error", "text"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_wrong_adapters_are_refused(
    model: Any,
    folders: dict[str, Path],
    tmp_path: Path,
    harm: Callable[[Path], Any],
    error: type[Exception],
    text: str,
) -> None:
    before = logits(model)
    folder = tmp_path / "wrong"
    shutil.copytree(folders["attention"], folder)
    harm(folder)
    with pytest.raises(error, match=text) as raised:
        answers(model, request(PROMPTS[0], folders["gate"]), request(PROMPTS[1], folder))
    assert str(folder) in str(raised.value)
    assert torch.equal(logits(model), before)


def test_a_model_with_an_adapter_of_its_own_serves_no_others(tiny_model: Path, folders: dict[str, Path]) -> None:
    args = {"pretrained": str(tiny_model), "dtype": "float32", "peft": str(folders["gate"])}
    own = load_model("personalitybench-hf", args, 4, "cpu")
    assert answers(own, request(PROMPTS[0])) == [plain_peft(tiny_model, folders["gate"], PROMPTS[0], own.tokenizer)]
    with pytest.raises(ConfigurationError, match="adapter of its own"):
        answers(own, request(PROMPTS[0], folders["attention"]))


def test_what_peft_writes_is_read(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert read_adapter(folder).config.r in {2, 4}
    assert len({read_adapter(folder).sha256 for folder in folders.values()}) == 3


@methods.register("graft")
class Graft:
    """One adapter for all targets."""

    summary: ClassVar[str] = "an adapter"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({"adapter"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:
        return None

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        return Induction("graft", target, strength, "{question}", adapter=str(self.context.artifact.folder))


def test_a_method_with_an_adapter_through_lm_eval(model: Any, tiny_model: Path, folders: dict[str, Path]) -> None:
    def run(with_model: Any, strength: float) -> list[str]:
        metadata = {"method": "graft", "artifact": str(folders["attention"]), "strength": strength}
        metadata |= {"judge": None, "max_tokens": 8}
        manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
        name = "personalitybench_openness_low"
        found = simple_evaluate(
            with_model, tasks=[name], task_manager=manager, limit=3, apply_chat_template=True, metadata=metadata
        )
        assert found is not None
        written[strength] = found["config"]["adapted_answers"]
        return [sample["resps"][0][0] for sample in found["samples"][name]]

    written: dict[float, int] = {}
    before = model.adapted_answers
    whole, half, none = (run(model, strength) for strength in (1.0, 0.5, 0.0))
    assert written == {1.0: before + 3, 0.5: before + 6, 0.0: before + 6}
    assert len({tuple(whole), tuple(half), tuple(none)}) == 3, "the strength of the method is the adapter's"
    stock = load_model("hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 12, "cpu")
    stock.generate_until = None  # nothing may run
    with pytest.raises(NeedsNotMetError, match=r"needs adapter, which this .* cannot do; .*personalitybench-hf"):
        run(stock, 1.0)
