"""Combinations of methods: what they ask for, what they refuse, and what they share with their parts alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

torch = pytest.importorskip("torch")

from personalitybench.artifacts.store import Fit  # noqa: E402
from personalitybench.errors import ConfigurationError  # noqa: E402
from personalitybench.files import JsonLines  # noqa: E402
from personalitybench.leaderboard.render import method_labels  # noqa: E402
from personalitybench.leaderboard.schema import MethodId  # noqa: E402
from personalitybench.methods import InductionMethod, MethodContext, create_method  # noqa: E402
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.questions import Question, shared_source  # noqa: E402
from personalitybench.runs.progress import RunProgress  # noqa: E402
from personalitybench.runs.stages import Run  # noqa: E402
from personalitybench.runs.suite import load_suite  # noqa: E402
from personalitybench.traits import TARGETS, Target  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_cache")]

NPTI = {"questions": 4, "max_tokens": 5, "batch_size": 2, "shards": 2, "at_least": 5}
PARTS = [{"name": "p2"}, {"name": "npti", "settings": NPTI}]
HIGH = Target.parse("openness:high")


@pytest.fixture(scope="module")
def context(own_cache: Path) -> MethodContext:
    return MethodContext(load_wording("project"), shared_source("sample"))


@pytest.fixture(scope="module")
def question(context: MethodContext) -> Question:
    return Question.from_row(next(iter(context.source.questions("evaluate", HIGH.trait))))


def fit_of(name: str, settings: dict[str, Any], context: MethodContext, model: Path) -> Fit:
    method = create_method(name, settings, context)
    record = {"name": "tiny", "revision": "1"}
    return Fit(name, method, record, "personalitybench-hf", {"dtype": "float32", "pretrained": str(model)})


def combined(context: MethodContext, *parts: Any) -> InductionMethod:
    return create_method("combined", {"parts": list(parts)}, context)


def test_a_combination_holds_the_artifacts_of_its_parts(
    context: MethodContext, question: Question, tiny_model: Path
) -> None:
    alone = fit_of("npti", NPTI, context, tiny_model)
    both = fit_of("combined", {"parts": PARTS}, context, tiny_model)
    made = both.make(str(tiny_model))
    part = alone.artifact()
    assert made is not None
    assert part is not None, "the part was fitted as it would be alone"
    assert json.loads((made.folder / "combined.json").read_text()) == {"parts": {"npti": part.sha256}}
    assert made.cost is not None
    assert part.cost is not None
    assert (made.cost.neurons, made.cost.generated_tokens) == (part.cost.neurons, part.cost.generated_tokens)
    assert made.cost.bytes > part.cost.bytes > 0
    assert both.make("nowhere") == made, "a second time nothing is fitted"

    there = MethodContext(context.wording, context.source, artifact=made)
    found = create_method("combined", {"parts": PARTS}, there, 0.7).induce(HIGH, 0.7, question)
    steered = create_method("npti", {}, MethodContext(context.wording, context.source, artifact=part))
    prompted = create_method("p2", {}, context).induce(HIGH, None, question)
    own = steered.induce(HIGH, 0.7, question)
    assert found.render(question.question) == prompted.render(question.question)
    assert found.intervention is not None
    assert own.intervention is not None
    assert Path(found.intervention).name == Path(own.intervention).name
    names = {path.name for path in Path(own.intervention).iterdir()}
    assert {path.name: path.read_bytes() for path in Path(found.intervention).iterdir()} == {
        name: (Path(own.intervention) / name).read_bytes() for name in names
    }
    assert found.extra_args == {"intervention": found.intervention, "strength": 0.7}


def test_a_prompt_alone_does_not_change_the_fit(context: MethodContext, tiny_model: Path) -> None:
    one = fit_of("combined", {"parts": PARTS}, context, tiny_model)
    assert fit_of("combined", {"parts": ["simple", PARTS[1]]}, context, tiny_model).folder == one.folder
    other = {"name": "npti", "settings": NPTI | {"threshold": 0.2}}
    assert fit_of("combined", {"parts": ["p2", other]}, context, tiny_model).folder != one.folder


def test_strengths_of_the_parts_and_of_the_whole(context: MethodContext, question: Question, tiny_model: Path) -> None:
    made = fit_of("combined", {"parts": PARTS}, context, tiny_model).make(str(tiny_model))
    there = MethodContext(context.wording, context.source, artifact=made)
    fixed = combined(there, "p2", {**PARTS[1], "strength": {"openness": 0.3, "openness:low": 0.4}})
    assert not fixed.has_strength
    assert [fixed.induce(target, None, question).extra_args["strength"] for target in TARGETS[:2]] == [0.3, 0.4]
    with pytest.raises(ConfigurationError, match="'combined' has no strength: leave it out"):
        create_method("combined", fixed.settings.model_dump(mode="json"), there, 1.0)
    free = combined(there, *PARTS)
    assert free.has_strength
    assert free.needs == {"intervention"}, "what these parts need, and no adapter"
    with pytest.raises(ConfigurationError, match="'npti' needs a strength"):
        free.induce(HIGH, None, question)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"name": "p2"}], "at least 2 items"),
        (["p2", "simple"], "both 'p2' and 'simple' bring the prompt"),
        (["npti", {"name": "npti"}], "both 'npti' and 'npti' bring the intervention"),
        (["p2", "nptj"], "did you mean 'npti'"),
        (["p2", {"name": "npti", "settings": {"treshold": 1}}], "did you mean 'threshold'"),
        (["p2", {"name": "combined"}], "cannot be a part"),
        ([{"name": "p2", "strength": 1.0}, "npti"], "part 'p2' of method 'combined' has no strength"),
        (["p2", {"name": "npti", "strength": "much"}], "a strength is a number"),
    ],
)
def test_what_cannot_be_combined(context: MethodContext, parts: list[Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        combined(context, *parts)


def test_a_combination_is_called_by_its_parts() -> None:
    settings = {"parts": [{"name": "p2"}, {"name": "npti"}]}
    label = method_labels({"one": ("m", MethodId(name="combined", version="1", settings=settings, strength=0.7))})
    assert label == {"one": "p2 + npti at 0.7"}


def test_a_suite_with_a_combination(tiny_model: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        json.dumps(
            {
                "name": "both",
                "models": [{"name": str(tiny_model), "backend": "personalitybench-hf", "args": {"dtype": "float32"}}],
                "methods": ["p2", {"name": "combined", "settings": {"parts": PARTS}, "strengths": [1.0, 2000.0]}],
                "targets": ["openness:high"],
                "questions": {"limit": 2},
                "protocol": {"max_tokens": 6},
                "floors": False,
            }
        )
    )
    run = Run(load_suite(str(suite)), tmp_path / "run", RunProgress(Console(file=open(os.devnull, "w"))))  # noqa: PTH123, SIM115
    run.check()
    run.fit()
    run.generate()
    answers = {
        folder.folder.name.rpartition("-")[0]: list(JsonLines(folder.answers(HIGH).path).read())
        for folder in run.store.calls()
    }
    assert len(answers) == 3
    plain, low, high = (answers[name] for name in ("p2", "p2+npti-1", "p2+npti-2000"))
    assert [row["prompt"] for row in low] == [row["prompt"] for row in plain] == [row["prompt"] for row in high]
    moved = [folder.record for folder in run.store.calls() if "+" in folder.folder.name]
    for record in moved:  # answers are there, so the canary of the backend saw the logits move
        settings = record["settings"]["method"]["settings"]
        assert [part["name"] for part in settings["parts"]] == ["p2", "npti"]
        assert settings["parts"][1]["settings"]["threshold"] == 0.1, "defaults are on record, too"
        assert record["provenance"]["fit"]["neurons"] > 0
