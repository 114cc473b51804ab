"""``personalitybench run --dry-run``: what it says is what a run then does, and it touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.numpy import save_file

from personalitybench.cli import app
from personalitybench.costs import FitPlan
from personalitybench.errors import ConfigurationError, NeedsNotMetError, NotHereError, StorageError
from personalitybench.files import JsonLines, write_json
from personalitybench.resources import bundled
from personalitybench.runs.plan import Plan, make_plan
from personalitybench.runs.plan_data import BYTES, EVALUATE, PlanningSource
from personalitybench.runs.plan_fits import PlannedFit
from personalitybench.runs.plan_models import PlannedModel
from personalitybench.runs.plan_tables import show_plan
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import estimate_judges
from personalitybench.runs.stages import Run
from personalitybench.runs.suite import ModelSpec, load_suite
from personalitybench.runs.throughput import Throughput, parse_throughput
from tests.plugins import write_judge
from tests.test_runs import contents, run

NPTI = {"questions": 6, "max_tokens": 6, "batch_size": 8, "shards": 3, "at_least": 5}
PAID = """
id: paid
provider: chat
summary: for tests
settings: {model: gpt-4o-2024-08-06, sampling: {temperature: 0, max_tokens: 60}}
"""


def files(*folders: Path) -> dict[str, int]:
    """All files and folders with the times of their last change."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def shown(plan: Plan) -> str:
    console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show_plan(plan, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    return text


# A real run on a tiny model.


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a suite and judges, a cache of its own, and a tiny model whose answers are words."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("dry")
    lively = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weights in lively.model.layers.parameters():
            weights.mul_(20.0 if weights.dim() > 1 else 1.0)
    lively.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "model")
    (folder / "paid.yaml").write_text(PAID)
    npti = {"name": "npti", "settings": NPTI, "strengths": [1.0]}
    suite = {
        "name": "dry",
        "models": [
            {"name": str(folder / "model"), "backend": "personalitybench-hf", "batch_size": 8, "device": "cpu",
             "args": {"dtype": "float32"}}
        ],
        "methods": [
            "none", "simple", npti, npti | {"settings": {**NPTI, "keep": 0.9}},
            {"name": "insistent", "strengths": [1, 2], "choose_on": "dev"},
        ],
        "targets": ["extraversion:high", "openness:low"],
        "judges": [str(write_judge(folder, "six"))],
        "questions": {"limit": 2},
        "protocol": {"max_tokens": 5},
    }  # fmt: skip
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(folder / "cache"))
        yield folder


def plan(place: Path, output: Path, **options: Any) -> Plan:
    return make_plan(load_suite(str(place / "suite.yaml")), output, **options)


@pytest.fixture(scope="module")
def before(place: Path) -> Plan:
    """The plan of a run that has not begun, made where even the cache is not there."""
    was = files(place)
    found = plan(place, place / "run")
    assert files(place) == was, "nothing was written: no run, no cache, no table of questions"
    return found


@pytest.fixture(scope="module")
def finished(place: Path, before: Plan) -> Path:
    run(place / "suite.yaml", place / "run")
    return place / "run"


@pytest.mark.model
def test_a_run_asks_what_the_plan_said(before: Plan, finished: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made: dict[str, list[dict[str, Any]]] = {}
    for path in finished.glob("calls/*/*/answers.jsonl"):
        made.setdefault(path.parts[-3].rpartition("-")[0], []).extend(JsonLines(path).read())
    planned: dict[str, list[int]] = {}
    for call in before.calls:
        assert (call.targets, call.requests, call.there, call.new_tokens) == (2, 4, 0, 4 * 5)
        numbers = planned.setdefault(call.call, [0, 0])
        numbers[0] += call.requests
        numbers[1] += call.prompt_tokens
    assert (
        set(made)
        == set(planned)
        == {
            *("simple-dev", "insistent-1-dev", "insistent-2-dev"),
            *("none", "simple", "npti-1", "insistent-by-target"),
        }
    )
    for label, rows in made.items():
        assert len(rows) == planned[label][0]
        tokens = sum(len(tokenizer.encode(row["prompt"])) for row in rows)
        if label == "insistent-by-target":
            assert tokens <= planned[label][1], "not chosen yet: planned at the largest strength"
        else:
            assert tokens == planned[label][1], label
    assert [call.strength_known for call in before.calls].count(False) == 1
    assert before.models[0].own_tokenizer
    assert before.models[0].here


@pytest.mark.model
def test_the_size_of_adapters_follows_from_the_shape_of_the_model(tmp_path: Path) -> None:
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    write_json(tmp_path / "config.json", llama)
    write_json(tmp_path / "tokenizer.json", {})
    save_file({}, tmp_path / "model.safetensors")
    model = PlannedModel(ModelSpec(name=str(tmp_path)))
    widths = model.widths(())
    assert widths is not None
    assert 8 * widths == 20_971_520, "as many parameters as peft says that an adapter of rank 8 has on Llama-3-8B"
    assert model.widths(["q_proj", "v_proj"]) == 32 * (4096 + 4096 + 4096 + 1024)
    assert model.widths(["q_proj", "c_attn"]) is None

    def planned(**plan: int) -> PlannedFit:
        return PlannedFit("mine", PlannedModel(ModelSpec(name=str(tmp_path))), 0, "to do", FitPlan(**plan))

    assert planned(bytes=7, bytes_per_width=32).bytes == 7 + 32 * widths
    (tmp_path / "config.json").unlink()
    assert PlannedModel(ModelSpec(name=str(tmp_path))).widths(()) is None
    assert planned(bytes=7, bytes_per_width=32).bytes is None
    assert planned(bytes=7, bytes_per_width=32).lacks_shape
    assert not planned(trained_tokens=5).lacks_shape, "the method does not say: no configuration would help"


def test_a_fit_takes_what_the_plan_said_and_is_planned_once(place: Path, before: Plan, finished: Path) -> None:
    (fit,) = before.fits  # of two methods that differ in what is used after the fit
    assert fit.state == "to do"
    assert fit.takes is not None
    lines = [
        row for path in (place / "cache").glob("identifications/*/*/answers.jsonl") for row in JsonLines(path).read()
    ]
    assert fit.takes.requests == len(lines) == 6 * 15, "both poles and unprompted, of five traits"
    assert fit.takes.prompt_tokens == sum(len(row["prompt_tokens"]) for row in lines)
    written = sum(len(row["answer_tokens"]) for row in lines)
    assert written <= fit.takes.new_tokens == len(lines) * 6
    assert fit.takes.read_tokens == fit.takes.prompt_tokens + fit.takes.new_tokens
    on_disk = [*(place / "cache").glob("identifications/*/*/statistics/**/*.safetensors"),
               *(place / "cache").glob("fits/*/**/*.safetensors")]  # fmt: skip
    used = sum(path.stat().st_size for path in on_disk)
    assert fit.bytes is not None
    assert used - 1500 * len(on_disk) < fit.bytes < 2 * used, "but for the heads of the files"
    answers = sum(path.stat().st_size for path in (place / "cache").glob("identifications/*/*/answers.jsonl"))
    assert 0.5 < before.disk.identification / answers < 2


@pytest.mark.model
def test_afterwards_nothing_is_left_to_do(place: Path, finished: Path) -> None:
    was = files(place)
    after = plan(place, finished)
    assert files(place) == was
    assert all(call.there == call.requests == 4 for call in after.calls)
    assert all(call.prompt_tokens == call.new_tokens == 0 for call in after.calls)
    assert all(call.strength_known for call in after.calls), "the choice was made"
    assert [fit.state for fit in after.fits] == ["there"]
    assert [(judge.ratings, judge.there) for judge in after.judges] == [(0, 2 * 4 * len(after.calls))]
    assert (after.models[0].prompt_tokens, after.models[0].new_tokens, after.disk.answers) == (0, 0, 0)
    text = shown(after)
    assert "there" in text
    elsewhere = plan(place, place / "elsewhere")
    assert [fit.state for fit in elsewhere.fits] == ["there"], "another run finds the fit"
    assert not any(call.there for call in elsewhere.calls)


@pytest.mark.model
def test_an_interrupted_run_is_planned_from_where_it_stopped(place: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (call,) = set(folder.glob("calls/simple-*")) - set(folder.glob("calls/simple-dev-*"))
    sheet = call / "openness-low" / "answers.jsonl"
    lines = sheet.read_text().splitlines(keepends=True)
    sheet.write_text(lines[0])
    sheet.with_suffix(".json").unlink()
    (ratings,) = [path for path in sheet.parent.glob("*.jsonl") if path != sheet]
    ratings.write_text(ratings.read_text().splitlines(keepends=True)[0])
    ratings.with_suffix(".json").unlink()
    found = plan(place, folder)
    left = {call.call: (call.requests - call.there, call.new_tokens) for call in found.calls if call.new_tokens}
    assert left == {"simple": (1, 5)}
    assert found.judges[0].ratings == 2
    sheet.write_text(lines[0].replace("answer", "anwser"))
    write_json(sheet.with_suffix(".json"), {"lines": 1, "sha256": "0"})
    with pytest.raises(StorageError, match="was altered"):
        run(place / "suite.yaml", folder)


@pytest.mark.model
def test_the_cost_of_judges_is_that_of_judge_dry_run(place: Path, finished: Path) -> None:
    suite = load_suite(str(place / "suite.yaml"))
    paid = suite.model_copy(update={"judges": [*suite.judges, str(place / "paid.yaml")]})
    found = make_plan(paid, finished)
    own, other = found.judges
    assert (own.free, own.ratings) == (True, 0)
    (told,) = estimate_judges(Run(paid, finished, RunProgress(Console(quiet=True))), [str(place / "paid.yaml")])
    assert told.estimate is not None
    assert (other.ratings, other.calls, other.prompt_tokens, other.completion_tokens, other.dollars, other.about) == (
        told.ratings,
        told.estimate.calls,
        told.estimate.prompt_tokens,
        told.estimate.completion_tokens,
        told.estimate.dollars,
        told.about,
    )
    assert other.ratings == 5 * 4 * 2 + 320, "the board's answers and the floors; dev answers are the first judge's"
    unbegun = make_plan(paid, place / "elsewhere").judges[1]
    assert unbegun.ratings == other.ratings
    assert unbegun.dollars is not None
    assert other.dollars is not None
    assert unbegun.dollars > 0
    assert "US $" in shown(found)
    without = paid.model_copy(update={"floors": False})
    assert make_plan(without, finished).judges[1].ratings == 5 * 4 * 2


@pytest.mark.model
def test_only_some_stages(place: Path) -> None:
    found = plan(place, place / "elsewhere", stages=["generate"])
    assert {call.stage for call in found.calls} == {"generate"}
    assert not found.fits
    assert not found.judges
    rated = plan(place, place / "elsewhere", stages=["tune"])
    assert {call.half for call in rated.calls} == {"dev"}
    assert [judge.ratings for judge in rated.judges] == [3 * 4 * 2]


@pytest.mark.model
def test_a_combination_shares_the_fit_of_its_part(place: Path) -> None:
    suite = load_suite(str(place / "suite.yaml"))
    both = {"name": "combined", "settings": {"parts": ["p2", {"name": "npti", "settings": NPTI}]}, "strengths": [1.0]}
    content = suite.model_dump(mode="json") | {"questions": {"limit": 2}, "tuning": {}}
    content["methods"] = ["p2", {"name": "npti", "settings": NPTI, "strengths": [1.0]}, both]
    path = place / "both.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(place / "no-cache"))
        found = make_plan(load_suite(str(path)), place / "elsewhere")
    assert [fit.method for fit in found.fits] == ["npti"]
    tokens = {call.call: call.prompt_tokens for call in found.calls}
    assert tokens["p2+npti-1"] == tokens["p2"] > tokens["npti-1"], "it asks as its prompting part does"


@pytest.mark.model
def test_answers_that_fits_share_are_asked_once(place: Path) -> None:
    content = yaml.safe_load((place / "suite.yaml").read_text())
    shared = {name: NPTI[name] for name in ("questions", "max_tokens", "batch_size")}
    alike, other = ({"name": "lora", "settings": {**shared, **more}} for more in ({}, {"max_tokens": 7}))
    content |= {"methods": [alike, {"name": "npti", "settings": NPTI, "strengths": [1.0]}, other]}
    path = place / "shared.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(place / "no-cache"))
        found = make_plan(load_suite(str(path)), place / "elsewhere")
    takes = [fit.takes for fit in found.fits]
    assert [(fit.method, one.requests) for fit, one in zip(found.fits, takes, strict=True) if one] == [
        ("lora", 0),
        ("npti", 90),
        ("lora", 60),
    ]
    assert [one.trained_tokens > 0 for one in takes if one] == [True, False, True]


# Throughput.


@pytest.mark.model
def test_hours_follow_from_what_is_stated(place: Path, before: Plan, finished: Path) -> None:
    assert before.models[0].hours is None
    assert "not stated" in shown(before)
    assert "--throughput" in " ".join(shown(before).split())
    asked = plan(place, place / "elsewhere", throughput="prompt=100,new=10")
    model = asked.models[0]
    assert model.hours == pytest.approx((model.prompt_tokens / 100 + model.new_tokens / 10) / 3600)
    assert "given on the command line" in " ".join(shown(asked).split())
    suite = load_suite(str(place / "suite.yaml"))
    stated = suite.models[0].model_copy(update={"throughput": Throughput(prompt=1, new=1, stated="a guess")})
    faster = suite.model_copy(update={"models": [stated]})
    found = make_plan(faster, finished)
    assert all(call.there == call.requests for call in found.calls), "it is no part of what decides answers"
    assert "a guess" in " ".join(shown(found).split())


def test_throughput_on_the_command_line() -> None:
    own = Throughput(prompt=1, new=2, trained=3, stated="the suite")
    assert parse_throughput("prompt=20000,new=2500") == Throughput(
        prompt=20000, new=2500, stated="given on the command line"
    )
    mixed = parse_throughput("new=5", own)
    assert (mixed.prompt, mixed.new, mixed.trained) == (1, 5, 3)
    assert mixed.stated == "new given on the command line; else: the suite"
    assert own.seconds(10, 10) == 15
    assert Throughput(prompt=1, new=1, stated="x").seconds(1, 1, 1) is None, "how fast it trains is not stated"
    for wrong in ("20000", "prompt=fast,new=1", "prompt=1", "prompt=1,new=0", "prompt=1,new=nan", "prompt=1,news=3"):
        with pytest.raises(ConfigurationError, match="--throughput"):
            parse_throughput(wrong)


# The paper's table, on any machine.


def test_the_paper_s_table_can_be_planned_without_model_data_or_network(tmp_path: Path) -> None:
    """In a process of its own: no cache, no hub, no torch."""
    code = (
        "import sys, socket\n"
        "def refuse(*_): raise AssertionError('a dry run asked for the network')\n"
        "socket.socket.connect = refuse\n"
        "from personalitybench.cli import app\n"
        "try: app(['run', sys.argv[1], '--dry-run', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'peft', 'altair'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    place = tmp_path / "empty"
    place.mkdir()
    environment = os.environ | {
        "PERSONALITYBENCH_CACHE": str(place / "cache"),
        "HF_HOME": str(place / "hub"),
        "HOME": str(place),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "paper-table1"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(place.iterdir()), "nothing was written"
    found = Plan.model_validate_json(done.stdout)
    asked = {call.call: call for call in found.calls}
    assert set(asked) == {"none", "simple", "p2", "npti-by-target", "lora"}
    assert {call.requests for call in found.calls} == {918}, "459 questions for both poles"
    assert {call.new_tokens for call in found.calls} == {918 * 400}
    npti, lora = found.fits
    assert (npti.method, lora.method) == ("npti", "lora")
    assert npti.takes is not None
    assert lora.takes is not None
    assert (lora.takes.requests, lora.takes.new_tokens) == (0, 0), "it learns from answers that npti asks for"
    assert 3 * 10 * 1_800 * 500 < lora.takes.trained_tokens < 3 * 10 * 1_800 * 1_024, "epochs, targets, examples"
    assert (npti.takes.requests, npti.takes.new_tokens) == (360_000, 180_000_000)
    assert npti.takes.read_tokens == 0, "the released code counts as it decodes"
    assert npti.bytes is None
    (judge,) = found.judges
    assert judge.ratings == len(found.calls) * 918 * 2 + 320
    assert judge.dollars is not None
    assert 20 < judge.dollars < 80
    (model,) = found.models
    assert not model.here
    assert not model.own_tokenizer
    assert model.throughput is not None
    assert "assumed" in model.throughput.stated
    notes = " ".join(found.notes)
    assert "--data-dir or PERSONALITYBENCH_DATA" in notes
    assert "official wording is not on this machine" in notes
    assert "all counts as to do" in notes
    assert "lora learns from answers that stand in the line of another fit" in notes
    assert "follows from the shape of the model, which its configuration says: that is not on this machine" in notes
    assert "statistics and artifacts" in shown(found)


def test_what_the_paper_s_table_asks_for() -> None:
    content = yaml.safe_load((bundled("harness") / "paper-table1.yaml").read_text())
    named = [one if isinstance(one, str) else one["name"] for one in content["methods"]]
    assert named == ["none", "simple", "p2", "npti", "lora"]
    (strengths,) = content["methods"][3]["strengths"]
    assert strengths == {
        "openness": 0.6, "conscientiousness": 1.3, "extraversion": 1.1, "agreeableness": 1.4, "neuroticism": 1.4,
    }  # fmt: skip
    suite = load_suite("paper-table1")
    assert (suite.protocol.name, suite.protocol.prompts, suite.questions.source) == ("paper", "official", "official")
    assert suite.questions.half == "all"


def test_with_the_official_questions_their_own_lengths_count(official_files: Path, tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(official_files / "evaluate", data / "test")
    shutil.copy(official_files / "description.json", data)
    suite = load_suite("paper-table1")
    found = make_plan(suite.with_data(data), tmp_path / "run", stages=["generate"])
    guessed = make_plan(suite, tmp_path / "run", stages=["generate"])
    assert [call.requests for call in found.calls] == [call.requests for call in guessed.calls]
    for own, other in zip(found.calls, guessed.calls, strict=True):
        assert own.prompt_tokens != other.prompt_tokens
        assert own.prompt_tokens == pytest.approx(other.prompt_tokens, rel=0.03), "the stand-ins are as long"
    assert "evaluation questions" in " ".join(guessed.notes)
    assert "evaluation questions" not in " ".join(found.notes)
    assert not cache.exists()
    source = PlanningSource(load_source(data))
    lengths = []
    for name, count in EVALUATE.items():
        texts = source.questions("evaluate", name)["question"]
        assert len(texts) == count
        lengths += [len(text.encode()) for text in texts]
    assert round(sum(lengths) / len(lengths)) == BYTES["evaluate"]
    texts = [text for group in source.descriptions.values() for text in group]
    assert round(sum(len(text.encode()) for text in texts) / len(texts)) == BYTES["description"]
    assert not source.missing


def load_source(data: Path) -> Any:
    from personalitybench.questions import open_source

    return open_source("official", data)


def test_stand_ins_have_the_halves_of_the_official_questions(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = PlanningSource(load_source(tmp_path / "data"))
    halves = {half: len(source.questions("evaluate", None, half)) for half in ("dev", "test", "all")}
    assert halves == {"dev": 229, "test": 230, "all": 459}
    assert source.missing == {"evaluation questions"}
    sample = PlanningSource(load_sample(tmp_path))
    with pytest.raises(NotHereError):
        sample.questions("evaluate")


def load_sample(folder: Path) -> Any:
    from personalitybench.questions import FolderSource

    return FolderSource(folder, name="sample")


# The command.


@pytest.mark.parametrize("options", [["--json"], ["--throughput", "prompt=1,new=1"]])
def test_the_command_line_refuses_what_belongs_to_a_dry_run(options: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="belong to --dry-run"):
        app(["run", "demo", *options], standalone_mode=False)


def test_what_a_run_refuses_a_dry_run_refuses(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "suite.yaml"
    content = {"name": "x", "models": [{"name": "nowhere/model"}], "methods": [{"name": "npti", "strengths": [1.0]}]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(NeedsNotMetError, match="cannot do"):
        make_plan(load_suite(str(path)), tmp_path / "run")
    path.write_text(json.dumps(content | {"methods": ["p2"], "judges": ["no-such-judge"]}))
    with pytest.raises(ConfigurationError, match="no-such-judge"):
        make_plan(load_suite(str(path)), tmp_path / "run")
    assert not cache.exists()
    assert contents(tmp_path).keys() == {"suite.yaml"}


def test_the_bins_that_a_plan_counts_are_those_of_the_statistics() -> None:
    pytest.importorskip("torch")
    from personalitybench.methods.identification import BINS
    from personalitybench.methods.npti_plan import HISTOGRAM_BINS

    assert {name: bins.count for name, bins in BINS.items()} == HISTOGRAM_BINS
