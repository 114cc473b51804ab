"""NPTI on transformers: identification against a direct computation, a killed fit, a steered run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch")

from personalitybench.activations.interventions import Intervention, Operation  # noqa: E402
from personalitybench.activations.neurons import NeuronSet  # noqa: E402
from personalitybench.activations.statistics import GateStatistics  # noqa: E402
from personalitybench.errors import ConfigurationError, ModelError, StorageError  # noqa: E402
from personalitybench.files import JsonLines  # noqa: E402
from personalitybench.methods import Artifact, FitContext, MethodContext, create_method  # noqa: E402
from personalitybench.methods.npti import NptiManifest  # noqa: E402
from personalitybench.neurons.collection import find_sets  # noqa: E402
from personalitybench.neurons.report import make_report  # noqa: E402
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.questions import Question, open_source  # noqa: E402
from personalitybench.runs.progress import RunProgress  # noqa: E402
from personalitybench.runs.stages import Run  # noqa: E402
from personalitybench.runs.suite import load_suite  # noqa: E402
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target  # noqa: E402
from tests.test_lm_eval_command import lm_eval, results  # noqa: E402
from tests.test_runs import run  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_cache")]

SETTINGS = {"questions": 6, "max_tokens": 6, "batch_size": 4, "shards": 3}


def fit(model: Path, folder: Path, **settings: Any) -> Artifact:
    source = open_source("sample")
    context = FitContext(
        model=str(model),
        model_name="tiny",
        model_revision="1",
        source=source,
        wording=load_wording("project"),
        folder=folder / "artifact",
        model_args={"dtype": "float32"},
    )
    artifact = create_method("npti", SETTINGS | settings, MethodContext(load_wording("project"), source)).fit(context)
    assert artifact is not None
    return artifact


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npti")
    fit(tiny_model, folder)
    return folder


def test_statistics_are_those_of_a_direct_computation(fitted: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    (folder,) = (fitted / "identifications").glob("*/extraversion-low")
    found = GateStatistics.load(folder / "statistics" / "answer-octaves-3-reading")
    active, tokens, seen = np.zeros((2, 64), int), 0, []
    for row in JsonLines(folder / "answers.jsonl").read():
        ids = torch.tensor([row["prompt_tokens"] + row["answer_tokens"]])
        states = model(ids, output_hidden_states=True).hidden_states
        counted = slice(len(row["prompt_tokens"]), ids.shape[1] - 1)
        values = []
        for layer, block in enumerate(model.model.layers):
            after = (
                states[layer]
                + block.self_attn(
                    block.input_layernorm(states[layer]),
                    position_embeddings=model.model.rotary_emb(states[layer], torch.arange(ids.shape[1])[None]),
                    attention_mask=None,
                )[0]
            )
            gate = torch.nn.functional.silu(block.mlp.gate_proj(block.post_attention_layernorm(after)))[0, counted]
            active[layer] += (gate > 0).sum(0).numpy()
            values.append(gate.detach().numpy())
        tokens += counted.stop - counted.start
        seen.append(np.stack(values, 1))
    assert int(found.tokens.sum()) == tokens
    assert found.probability() == pytest.approx(active / tokens)
    exact = np.quantile(np.concatenate(seen), 0.95, axis=0, method="inverted_cdf")
    positive = exact > 2**-10
    assert found.quantile()[positive] == pytest.approx(exact[positive], rel=1 / 16)


def test_the_neurons_say_where_they_come_from_and_how_sure_they_are(fitted: Path) -> None:
    found = find_sets(fitted)
    assert list(found.sets) == list(TARGETS)
    assert (found.model, found.revision, found.shape) == ("tiny", "1", (2, 64))
    (folder,) = (fitted / "identifications").glob("*/openness-high")
    high, low = (
        GateStatistics.load(folder.parent / f"openness-{pole}" / "statistics" / "answer-octaves-3-reading")
        for pole in ("high", "low")
    )
    one = found.sets[Target.parse("openness:low")]
    assert one.about["settings"]["questions"] == SETTINGS["questions"]
    assert one.about["tokens"] == low.tokens.sum()
    errors = high.jackknife_error_of_difference(low)[one.neurons.layer, one.neurons.index]
    assert one.neurons.error == pytest.approx(errors)
    assert make_report(found).targets[1].median_error == pytest.approx(np.median(errors), abs=1e-6)


def test_a95_is_that_of_the_unprompted_model(fitted: Path) -> None:
    neurons = NeuronSet.load(fitted / "work" / "extraversion-low" / "neurons")
    (folder,) = (fitted / "identifications").glob("*/extraversion-unprompted")
    original = GateStatistics.load(folder / "statistics" / "answer-octaves-3-reading")
    assert original.manifest.target == "extraversion:unprompted"
    assert np.array_equal(neurons.a95, original.quantile()[neurons.layer, neurons.index])
    answers = list(JsonLines(folder / "answers.jsonl").read())
    assert {row["description"] for row in answers} == {None}
    asked = {row["id"]: row["question"] for row in answers}
    described = list(JsonLines(folder.parent / "extraversion-low" / "answers.jsonl").read())
    assert {row["id"]: row["question"] for row in described} == asked, "the same questions, under descriptions"
    assert all(
        row["description"] in open_source("sample").descriptions[Target.parse("extraversion:low")] for row in described
    )


def test_what_is_on_record(fitted: Path) -> None:
    found = NptiManifest.read(fitted / "artifact")
    assert found.model == {"name": "tiny", "revision": "1", "engine": "transformers", "args": {"dtype": "float32"}}
    assert (found.layers, found.neurons) == (2, 64)
    assert list(found.targets) == [str(target) for target in TARGETS]
    assert len(found.runs) == 15
    assert found.settings["selection"] == "paper"
    assert found.settings.keys().isdisjoint({"keep", "first_token"}), "these act when the method is used"
    for target, record in found.targets.items():
        folder = fitted / "artifact" / target.replace(":", "-")
        edits = json.loads((folder / "intervention.json").read_text())["edits"]
        assert edits == {"add": record.neurons, "clamp_max": record.clamped}
        assert (record.median_error_of_delta is None) == (record.neurons == 0)
        assert 0 < (record.median_error_of_delta or 0.5) < 1
        assert found.runs[target].questions == 6
    provenance = json.loads((fitted / "artifact" / "provenance.json").read_text())
    assert provenance["versions"].keys() >= {"personalitybench", "torch", "transformers"}
    assert all(spent["generate"] > 0 and spent["read"] > 0 for spent in provenance["seconds"].values())


def test_an_interrupted_fit_ends_with_the_same_artifact(fitted: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole = Artifact.open(fitted / "artifact")
    copy = tmp_path / "copy"
    shutil.copytree(fitted / "identifications", copy / "identifications")
    (folder,) = (path for path in (copy / "identifications").iterdir() if path.is_dir())
    names = [f"{trait}-{part}" for trait in TRAIT_NAMES for part in ("high", "low", "unprompted")]
    for name in names[4:]:  # interrupted while the fifth run was being answered
        shutil.rmtree(folder / name / "statistics")
        (folder / name / "answers.json").unlink()
        if name != names[4]:
            (folder / name / "answers.jsonl").unlink()
    answers = folder / names[4] / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-40])
    assert fit(tiny_model, copy).sha256 == whole.sha256


def test_counted_while_it_answers(fitted: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Without answers, and then with those of an earlier fit: the neurons of a fit that read its answers."""
    whole = fitted / "artifact"
    for name in ("new", "there"):
        artifact = fit(tiny_model, tmp_path / name, counted_in="decoding")
        assert NptiManifest.read(artifact.folder).runs == NptiManifest.read(whole).runs
        for target in TARGETS:
            place = Path(str(target).replace(":", "-"))
            ours, theirs = (Intervention.load(folder / place) for folder in (artifact.folder, whole))
            assert abs(len(ours) - len(theirs)) <= 1, "but for an activation within the last bits of zero"
        method = create_method("npti", SETTINGS, MethodContext(load_wording("project"), open_source("sample")))
        (row, *_) = method.describe_fit(artifact)
        times = {"new": {"answer, count s"}, "there": {"answer s", "read s"}}[name]
        assert set(row) - {"target", "neurons", "asked", "tokens", "δ error"} == times
        if name == "new":
            shutil.copytree(fitted / "identifications", tmp_path / "there" / "identifications")
            for statistics in (tmp_path / "there" / "identifications").rglob("statistics"):
                shutil.rmtree(statistics)


def test_statistics_from_elsewhere_are_refused(fitted: Path, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fitted / "identifications", copy / "identifications")
    (folder,) = (copy / "identifications").glob("*/openness-low/statistics/answer-octaves-3-reading")
    found = GateStatistics.load(folder)
    other = replace(found, manifest=found.manifest.model_copy(update={"revision": "2"}))
    with pytest.raises(ConfigurationError, match="cannot add statistics whose revision differs: '1' and '2'"):
        found + other
    other.save(folder)
    with pytest.raises(ConfigurationError, match=r"openness-low.* holds statistics whose revision is '2'.*'1'"):
        fit(tiny_model, copy)
    counts = next(folder.glob("*.safetensors"))
    counts.write_bytes(counts.read_bytes()[:-1])
    with pytest.raises(StorageError, match="truncated or altered"):
        fit(tiny_model, copy)


def test_what_it_needs_to_induce(fitted: Path) -> None:
    source = open_source("sample")
    question = Question.from_row(source.questions("evaluate", "openness")[0])
    target = Target.parse("openness:low")
    bare = create_method("npti", {}, MethodContext(load_wording("project"), source))
    with pytest.raises(ConfigurationError, match="needs a strength"):
        bare.induce(target, None, question)
    with pytest.raises(ConfigurationError, match="run 'personalitybench fit npti"):
        bare.induce(target, 1.0, question)
    context = MethodContext(load_wording("project"), source, artifact=Artifact.open(fitted / "artifact"))
    method = create_method("npti", {}, context)
    induction = method.induce(target, 1.4, question)
    assert induction.extra_args == {"intervention": str(fitted / "artifact" / "openness-low"), "strength": 1.4}
    assert induction.render(question.question) == create_method("none", {}, context).induce(
        target, None, question
    ).render(question.question), "the question is asked plainly (Table 11)"
    assert method.settings.model_dump()["questions"] == 6, "what is not set is what the fit had"
    with pytest.raises(
        ConfigurationError, match="'questions' of method 'npti' is 7, but the artifact was fitted with 6"
    ):
        create_method("npti", {"questions": 7}, context)
    drawing = create_method("npti", {"keep": 0.9, "first_token": True}, replace(context, seed=3))
    assert drawing.induce(target, 1.0, question).extra_args == {
        "intervention": str(fitted / "artifact" / "openness-low"),
        "strength": 1.0,
        "keep": 0.9,
        "seed": 3,
        "first_token": True,
    }
    assert drawing.settings.model_dump().items() >= {"keep": 0.9, "first_token": True, "questions": 6}.items()


def test_a_target_without_neurons_is_not_steered_in_silence(fitted: Path, tmp_path: Path) -> None:
    source = open_source("sample")
    question = Question.from_row(source.questions("evaluate", "openness")[0])
    shutil.copytree(fitted / "artifact", tmp_path / "artifact")
    manifest = json.loads((tmp_path / "artifact" / "npti.json").read_text())
    manifest["targets"]["openness:low"] |= {"neurons": 0, "clamped": 0}
    (tmp_path / "artifact" / "npti.json").write_text(json.dumps(manifest))
    context = MethodContext(load_wording("project"), source, artifact=Artifact.open(tmp_path / "artifact"))
    with pytest.raises(ConfigurationError, match="found no neuron for openness:low"):
        create_method("npti", {}, context).induce(Target.parse("openness:low"), 1.0, question)
    (tmp_path / "artifact" / "npti.json").write_text("{}")
    with pytest.raises(StorageError, match="describes no fit of npti"):
        create_method("npti", {}, context)
    del manifest["targets"]["openness:low"]
    (tmp_path / "artifact" / "npti.json").write_text(json.dumps(manifest))
    partial = create_method("npti", {}, context)
    with pytest.raises(ConfigurationError, match=r"no intervention toward openness:low \(it has openness:high, consc"):
        partial.induce(Target.parse("openness:low"), 1.0, question)
    (tmp_path / "artifact" / "npti.json").unlink()
    with pytest.raises(StorageError, match="no finished fit of npti"):
        create_method("npti", {}, context)


def test_a_steered_run(tiny_model: Path, tmp_path: Path, own_cache: Path) -> None:
    suite = tmp_path / "npti.yaml"
    suite.write_text(
        f"""
name: npti
models: [{{name: {tiny_model}, backend: personalitybench-hf, args: {{dtype: float32}}, batch_size: 8, device: cpu}}]
methods: [none, {{name: npti, settings: {json.dumps(SETTINGS | {"keep": 0.9})}, strengths: [0.5, 8.0]}}]
targets: ["agreeableness:high", "agreeableness:low"]
questions: {{source: sample, limit: 3}}
protocol: {{max_tokens: 8}}
"""
    )
    run(suite, tmp_path / "run")
    board = json.loads((tmp_path / "run" / "leaderboard.json").read_text())
    rows = {row["identity"]["method"]["strength"]: row for row in board["rows"]}
    assert set(rows) == {None, 0.5, 8.0}
    assert rows[0.5]["identity"]["method"]["artifact"] == rows[8.0]["identity"]["method"]["artifact"]
    assert rows[0.5]["identity"]["method"]["artifact"] is not None
    assert rows[8.0]["identity"]["method"]["settings"]["keep"] == 0.9
    made = Run(load_suite(str(suite)), tmp_path / "run", RunProgress(Console(quiet=True)))
    call = list(made.suite.calls())[1]
    fit = made.calls.fit(call)
    assert fit.folder.parent == own_cache / "fits"
    fit.folder.parent.rename(tmp_path / "elsewhere")
    run(suite, tmp_path / "run")
    assert not fit.folder.exists(), "a run that has its answers is judged and scored without the artifact"
    assert json.loads((tmp_path / "run" / "leaderboard.json").read_text()) == board
    shutil.rmtree(own_cache / "fits", ignore_errors=True)
    (tmp_path / "elsewhere").rename(own_cache / "fits")
    changed = call.model.model_copy(update={"args": {"dtype": "bfloat16"}})
    assert made.calls.fit(replace(call, model=changed)).folder != fit.folder, "a model loaded otherwise is fitted anew"
    folder = fit.folder / "artifact" / "agreeableness-low"
    one = Intervention.load(folder)
    added = one.operation == Operation.ADD
    assert added.any()
    nothing = np.zeros(added.sum(), np.float32)
    Intervention(one.shape, one.layer[added], one.index[added], one.operation[added], nothing).save(folder)
    with pytest.raises(StorageError, match=r"truncated or altered since it was fitted"):
        run(suite, tmp_path / "run")
    altered = Artifact.open(fit.folder / "artifact").sha256
    (fit.folder / "fitted.json").write_text(json.dumps({"sha256": altered}))
    with pytest.raises(StorageError, match="says that this run used another artifact"):
        run(suite, tmp_path / "run")
    with pytest.raises(ModelError, match="steering changed nothing"):
        run(suite, tmp_path / "another")


def test_steered_through_lm_eval(fitted: Path, tiny_model: Path, tmp_path: Path) -> None:
    metadata = {"method": "npti", "strength": 2.0, "artifact": str(fitted / "artifact"), "judge": None, "max_tokens": 6}
    done = lm_eval(
        "lm-eval",
        *("--tasks", "personalitybench_openness_low", "--model", "personalitybench-hf"),
        *("--model_args", f"pretrained={tiny_model},dtype=float32", "--device", "cpu", "--batch_size", "4"),
        *("--apply_chat_template", "--limit", "3", "--metadata", json.dumps(metadata)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
        module="personalitybench.cli",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(tmp_path / "out")["config"]["steered_tokens"] > 0
