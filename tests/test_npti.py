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

from personalitybench.activations.identification import draw_questions  # noqa: E402
from personalitybench.activations.interventions import Intervention, Operation  # noqa: E402
from personalitybench.activations.statistics import GateStatistics  # noqa: E402
from personalitybench.errors import ConfigurationError, ModelError  # noqa: E402
from personalitybench.files import JsonLines  # noqa: E402
from personalitybench.methods import Artifact, FitContext, MethodContext, create_method  # noqa: E402
from personalitybench.neurons.collection import find_sets  # noqa: E402
from personalitybench.neurons.report import make_report  # noqa: E402
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.questions import Question, open_source  # noqa: E402
from personalitybench.runs.progress import RunProgress  # noqa: E402
from personalitybench.runs.stages import Run  # noqa: E402
from personalitybench.runs.suite import load_suite  # noqa: E402
from personalitybench.traits import TARGETS, Target  # noqa: E402
from tests.test_lm_eval_command import lm_eval, results  # noqa: E402
from tests.test_runs import run  # noqa: E402

pytestmark = pytest.mark.model

SETTINGS = {"questions": 6, "max_tokens": 6, "batch_size": 4, "shards": 3}


def fit(model: Path, folder: Path) -> Artifact:
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
    artifact = create_method("npti", SETTINGS, MethodContext(load_wording("project"), source)).fit(context)
    assert artifact is not None
    return artifact


@pytest.fixture(scope="module")
def fitted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npti")
    fit(tiny_model, folder)
    return folder


def test_questions_are_drawn_evenly_over_facets() -> None:
    source = open_source("sample")
    drawn = draw_questions(source, "openness", 12, seed=0)
    assert sorted(question.facet for question in drawn) == sorted([*{q.facet for q in drawn}] * 2)
    assert drawn == draw_questions(source, "openness", 12, seed=0)
    assert drawn != draw_questions(source, "openness", 12, seed=1)
    assert len(draw_questions(source, "openness", None, seed=0)) == 36


def test_statistics_are_those_of_a_direct_computation(fitted: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    folder = fitted / "work" / "extraversion-low"
    found = GateStatistics.load(folder / "statistics")
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
    high, low = (GateStatistics.load(fitted / "work" / f"openness-{pole}" / "statistics") for pole in ("high", "low"))
    one = found.sets[Target.parse("openness:low")]
    assert one.about["settings"]["questions"] == SETTINGS["questions"]
    assert one.about["tokens"] == low.tokens.sum()
    errors = high.jackknife_error_of_difference(low)[one.neurons.layer, one.neurons.index]
    assert one.neurons.error == pytest.approx(errors)
    assert make_report(found).targets[1].median_error == pytest.approx(np.median(errors), abs=1e-6)


def test_a_killed_fit_ends_with_the_same_artifact(fitted: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole = Artifact.open(fitted / "artifact")
    copy = tmp_path / "copy"
    shutil.copytree(fitted / "work", copy / "work")
    for target in TARGETS[3:]:  # killed while the fourth target was being answered
        folder = copy / "work" / f"{target.trait}-{target.pole}"
        shutil.rmtree(folder / "statistics")
        if target != TARGETS[3]:
            (folder / "answers.jsonl").unlink()
    answers = copy / "work" / f"{TARGETS[3].trait}-{TARGETS[3].pole}" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-40])
    assert fit(tiny_model, copy).sha256 == whole.sha256


def test_what_it_needs_to_induce(fitted: Path) -> None:
    source = open_source("sample")
    question = Question.from_row(source.questions("evaluate", "openness")[0])
    target = Target.parse("openness:low")
    bare = create_method("npti", {}, MethodContext(load_wording("project"), source))
    with pytest.raises(ConfigurationError, match="needs a strength"):
        bare.induce(target, None, question)
    with pytest.raises(ConfigurationError, match="run the stage 'fit' first"):
        bare.induce(target, 1.0, question)
    context = MethodContext(load_wording("project"), source, artifact=Artifact.open(fitted / "artifact"))
    induction = create_method("npti", {}, context).induce(target, 1.4, question)
    assert induction.extra_args["strength"] == 1.4
    assert Path(induction.extra_args["intervention"]).name == "openness-low"
    assert induction.render(question.question) == create_method("none", {}, context).induce(
        target, None, question
    ).render(question.question), "the question is asked plainly (Table 11)"


def test_a_steered_run(tiny_model: Path, tmp_path: Path) -> None:
    suite = tmp_path / "npti.yaml"
    suite.write_text(
        f"""
name: npti
models: [{{name: {tiny_model}, backend: personalitybench-hf, args: {{dtype: float32}}, batch_size: 8, device: cpu}}]
methods: [none, {{name: npti, settings: {json.dumps(SETTINGS)}, strengths: [0.5, 8.0]}}]
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
    (artifact,) = (tmp_path / "run" / "fits").glob("*/artifact")
    other = Run(load_suite(str(suite)), tmp_path / "run", RunProgress(Console(quiet=True)))
    calls = list(other.suite.calls())
    changed = replace(calls[1], model=calls[1].model.model_copy(update={"args": {"dtype": "bfloat16"}}))
    assert other._fit_folder(calls[1]) == artifact.parent
    assert other._fit_folder(changed) != artifact.parent, "a model loaded otherwise is fitted anew"
    one = Intervention.load(artifact / "agreeableness-low")
    added = one.operation == Operation.ADD
    assert added.any()
    nothing = np.zeros(added.sum(), np.float32)
    Intervention(one.shape, one.layer[added], one.index[added], one.operation[added], nothing).save(
        artifact / "agreeableness-low"
    )
    with pytest.raises(ModelError, match="steering changed nothing"):
        run(suite, tmp_path / "run")


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
