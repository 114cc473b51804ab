"""The task class and the judge filter inside lm-eval's Python interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from personalitybench.errors import ConfigurationError, NeedsNotMetError
from personalitybench.metrics.counts import Count
from personalitybench.tasks import JudgeFilter, TaskOptions, score_document, tasks_folder
from personalitybench.traits import TARGETS


def load(name: str, **metadata: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    found: dict[str, Any] = manager.load([name])
    return found


@pytest.fixture(scope="module")
def leaves() -> dict[str, Any]:
    tasks = load("personalitybench", method="simple", judge=None)["tasks"]
    return {task.config.task: task for task in tasks.values()}  # lm-eval 0.5 puts the group before the name


def test_the_group_has_a_leaf_for_each_target(leaves: dict[str, Any]) -> None:
    assert {str(task.target) for task in leaves.values()} == set(map(str, TARGETS))
    groups = load("personalitybench", judge=None)["groups"]
    assert {"personalitybench", "personalitybench_openness", "personalitybench_neuroticism"} <= groups.keys()


def test_requests_carry_the_protocol_and_nothing_a_stock_backend_would_refuse(leaves: dict[str, Any]) -> None:
    task = leaves["personalitybench_extraversion_low"]
    task.build_all_requests(limit=2)
    prompt, settings = task.instances[0].args
    assert "an introverted" in prompt
    assert settings == {
        "until": [],
        "max_gen_toks": 400,
        "do_sample": False,
        "temperature": 0.0,
        "repetition_penalty": 1.15,
    }


def test_identification_asks_under_a_description() -> None:
    task = load("personalitybench_identify_agreeableness_low", judge="offline")["tasks"].popitem()[1]
    task.build_all_requests(limit=3)
    descriptions = task.source.descriptions[task.target]
    for instance in task.instances:
        prompt, settings = instance.args
        assert any(text in prompt for text in descriptions)
        assert (settings["max_gen_toks"], settings["repetition_penalty"]) == (500, 1.1)
    assert task.dump_config()["metadata"]["personalitybench"]["identity"]["data"]["split"] == "identify"


def test_a_method_that_needs_more_than_a_prompt_sends_its_induction(
    leaves: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    task = leaves["personalitybench_openness_high"]
    plain = task.method.induce

    def steered(*arguments: Any) -> Any:
        return replace(plain(*arguments), intervention="neurons", strength=1.4)

    monkeypatch.setattr(task.method, "induce", steered)
    task.build_all_requests(limit=1)
    extra = task.instances[0].args[1]["extra_args"]
    assert extra == {"personalitybench": {"intervention": "neurons", "strength": 1.4}}


def test_a_need_that_stock_models_do_not_meet_is_refused(
    leaves: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = leaves["personalitybench_neuroticism_high"]
    monkeypatch.setattr(type(task.method), "needs", frozenset({"intervention"}))

    class Stock:
        def apply_chat_template(self, history: list[dict[str, str]]) -> str:
            return history[-1]["content"]

    with pytest.raises(NeedsNotMetError, match="'simple' needs intervention, which this model type cannot do"):
        task.build_all_requests(limit=1, chat_template=Stock().apply_chat_template)
    with pytest.raises(ConfigurationError, match=r"needs intervention, and lm-eval says .* --apply_chat_template"):
        task.build_all_requests(limit=1)
    with pytest.raises(ConfigurationError, match="needs what its fit leaves"):
        load("personalitybench_openness_high", method="simple", judge=None)


def test_a_strength_for_each_target() -> None:
    from tests import plugins

    assert plugins.InsistentDiary.has_strength
    metadata = {"method": "insistent", "judge": None, "strength": {"openness": 2, "openness:low": 3, "neuroticism": 1}}
    tasks = load("personalitybench_openness", **metadata, half="test", chosen_on="dev")["tasks"]
    for task in tasks.values():
        task.build_all_requests(limit=1)
        prompt = task.instances[0].args[0]
        assert prompt.count("Remember: you are") == {"high": 2, "low": 3}[task.target.pole]
    identities = [task.identity()["method"] for task in tasks.values()]
    assert identities[0] == identities[1], "one row"
    assert identities[0]["strength_protocol"] == "held-out"
    with pytest.raises(ConfigurationError, match="have none for extraversion:high"):
        load("personalitybench_extraversion_high", **metadata)
    given = load("personalitybench_openness_high", **metadata)["tasks"].popitem()[1]
    assert given.identity()["method"]["strength_protocol"] == "paper", "all questions at a given strength"


def test_a_chosen_strength_is_reported_on_the_test_half() -> None:
    with pytest.raises(ConfigurationError, match="set 'half' to 'test', not 'all'"):
        TaskOptions.from_metadata({"strength": 1.0, "chosen_on": "dev"})
    with pytest.raises(ConfigurationError, match="add the 'strength'"):
        TaskOptions.from_metadata({"chosen_on": "dev", "half": "test"})
    with pytest.raises(ConfigurationError, match="strength: a strength is a number"):
        TaskOptions.from_metadata({"strength": "strong"})


def test_metadata_with_a_misspelt_key_names_the_right_one() -> None:
    with pytest.raises(ConfigurationError, match="'methd': did you mean 'method'"):
        TaskOptions.from_metadata({"methd": "simple"})
    assert TaskOptions.from_metadata({"pretrained": "x", "dtype": "float32", "version": 1}).method == "none"
    with pytest.raises(ConfigurationError, match="half"):
        TaskOptions.from_metadata({"half": "third"})


def test_an_unrated_answer_is_counted_and_has_no_score() -> None:
    judged = {"trait": {"unrated": "refusal"}, "fluency": {"rating": 4.0}, "text": {"words": 3.0}}
    metrics = score_document({"target": "openness:low"}, [json.dumps(judged)])
    assert metrics == {"words": 3.0, "fluency": 4.0, "unrated": 1.0}
    judged["trait"] = {"rating": 2.0}
    assert score_document({"target": "openness:low"}, [json.dumps(judged)])["trait_score"] == 4.0
    assert score_document({"target": "openness:high"}, [json.dumps(judged)])["trait_score"] == 2.0


def test_counts_add_up_in_a_group() -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics

    assert aggregate_subtask_metrics([Count(2), Count(0), Count(5)], [10, 20, 30], True) == 7
    assert aggregate_subtask_metrics([Count(2), Count(3)], [10, 20], False) == 5


def test_the_filter_without_a_judge_measures_the_text() -> None:
    (found,) = JudgeFilter(None).apply([["Yes. Yes."]], [{"question": "?", "trait": "openness"}])
    assert json.loads(found) == {"text": {"words": 2.0, "unfinished": 0.0, "distinct_2": 1.0}}


def test_a_wrong_judge_is_told_before_anything_is_asked() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'offline'"):
        load("personalitybench_openness_high", judge="ofline")


def test_what_lm_eval_changes_is_in_the_identity() -> None:
    task = load("personalitybench_openness_high", judge=None)["tasks"].popitem()[1]
    assert task.identity()["protocol"]["other"] == {}
    task.set_config("generation_kwargs", {"top_p": 0.9, "temperature": 0.7}, update=True)
    task.build_all_requests(limit=1, system_instruction="Be brief.")
    protocol = task.identity()["protocol"]
    assert protocol["other"] == {"top_p": 0.9, "system_instruction": "Be brief."}
    assert protocol["temperature"] == 0.7


def including(folder: Path, settings: str) -> Any:
    """Load a task file of a user's own that includes one of ours."""
    ours = tasks_folder() / "evaluate" / "personalitybench_openness_high.yaml"
    (folder / "mine.yaml").write_text(f"include: {ours}\ntask: mine\n{settings}\n")
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata={"judge": None})
    return manager.load(["mine"])["tasks"].popitem()[1]


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ("description: Answer as a pirate.", {"description": "Answer as a pirate."}),
        ("gen_prefix: 'Well,'", {"gen_prefix": "Well,"}),
        ("generation_kwargs: {top_p: 0.9}", {"top_p": 0.9}),
        ("generation_kwargs: {until: ['.']}", {"until": ["."]}),
        ("generation_kwargs: {do_sample: true}", {"do_sample": True}),
        ("fewshot_delimiter: '\\n'", {"fewshot_delimiter": "\\n"}),
    ],
)
def test_what_an_including_file_changes_is_in_the_identity(
    settings: str, other: dict[str, Any], tmp_path: Path
) -> None:
    task = including(tmp_path, settings)
    task.build_all_requests(limit=1)
    protocol = task.identity()["protocol"]
    assert protocol["other"] == other
    assert protocol["repetition_penalty"] == 1.15
    (request,) = task.instances
    assert ("pirate" in request.args[0]) == ("description" in other)
    assert request.args[1]["max_gen_toks"] == 400


def test_generation_settings_of_an_including_file_are_heeded(tmp_path: Path) -> None:
    protocol = including(tmp_path, "generation_kwargs: {max_gen_toks: 7, temperature: 0.5}").identity()["protocol"]
    assert (protocol["max_tokens"], protocol["temperature"], protocol["other"]) == (7, 0.5, {})


@pytest.mark.parametrize(
    "settings", ["doc_to_text: 'Hi {{question}}'", "repeats: 3", "filter_list: []", "test_split: train"]
)
def test_an_including_file_may_not_change_questions_or_measures(settings: str, tmp_path: Path) -> None:
    name = settings.partition(":")[0]
    with pytest.raises(ConfigurationError, match=f"task mine: '{name}' is defined by the tasks"):
        including(tmp_path, settings)
