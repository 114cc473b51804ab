"""lm-eval's internals that this package relies on: the form of 0.5 as stand-ins, the installed form as it is.

The first half runs our own classes on stand-ins with the signatures of 0.5.0.dev1. The second half pins one assumption
a test: these fail first on a new release.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from personalitybench import tasks as our_tasks
from personalitybench.errors import ConfigurationError, DependencyDriftError
from personalitybench.lm_eval_compat import (
    bound_model,
    filter_step,
    filtered_record,
    first_request,
    generation_settings,
    generation_task,
)
from personalitybench.metrics.counts import Count, count
from personalitybench.tasks import FILTER, JudgeFilter, PersonalityTask, tasks_folder
from tests.lm_eval_stand_ins import (
    ChatModel,
    NextGenerateTask,
    NextInstance,
    NextNormalisingTask,
    NextTask,
    NextTupleTask,
    make_task,
    next_group_metric,
    verdicts_with_gaps,
)

FAILS_WITH_VERSION = r"^lm_eval \d\S* "
"""Each error of drift begins with the package and the version found."""


# Our classes on stand-ins for lm-eval 0.5


@pytest.fixture
def steered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Give the method of a task an intervention."""

    def steer(task: Any) -> Any:
        plain = task.method.induce
        steering = {"intervention": "neurons", "strength": 1.4}
        monkeypatch.setattr(task.method, "induce", lambda *args: dataclasses.replace(plain(*args), **steering))
        return task

    return steer


@pytest.mark.parametrize("base", [NextGenerateTask, NextNormalisingTask])
def test_task_on_the_next_lm_eval_gives_the_same_prompts_and_metrics(
    base: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = load("personalitybench_openness_low", method="simple", judge=None)["personalitybench_openness_low"]
    today.build_all_requests(limit=3)
    monkeypatch.setattr(our_tasks, "judge_answers", verdicts_with_gaps)
    task = make_task(base)
    requests = task.build_all_requests(limit=3)
    assert [request.args for request in requests] == [request.args for request in today.instances]
    for request in requests:
        request.resps.append("I would go.")
    metrics = task.process_instances()["offline"]
    assert [question["unrated"] for question in metrics] == [1.0, 0.0, 1.0]
    assert [question.get("trait_score") for question in metrics] == [None, 2.0, None]
    assert {question["words"] for question in metrics} == {3.0}
    assert list(task.dump_config()["metadata"]["personalitybench"]["judges"]) == ["offline"]


def test_task_on_the_next_lm_eval_applies_the_chat_template_and_sees_the_model() -> None:
    task = make_task(NextGenerateTask)
    (request,) = task.build_all_requests(
        limit=1, apply_chat_template=True, chat_template=ChatModel().apply_chat_template, system_instruction="Be brief."
    )
    assert request.args[0].startswith("<system>Be brief.</system><user>")
    protocol = task.identity()["protocol"]
    assert (protocol["chat_template"], protocol["other"]) == (True, {"system_instruction": "Be brief."})


def test_construct_requests_that_returns_a_list_carries_the_induction(steered: Callable[[Any], Any]) -> None:
    task = steered(make_task(NextGenerateTask))
    for request in task.build_all_requests(limit=2):
        assert request.args[1]["extra_args"] == {"personalitybench": {"intervention": "neurons", "strength": 1.4}}


@pytest.mark.parametrize("base", [NextTask, NextTupleTask])
def test_construct_requests_of_another_form_fails_with_the_version(base: type) -> None:
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"builds .* instead of requests"):
        make_task(base).build_all_requests(limit=1)


def test_build_all_requests_with_a_template_of_no_model_fails_with_the_version() -> None:
    task = make_task(NextGenerateTask)
    template = partial(ChatModel().apply_chat_template, add_generation_prompt=True)
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"passes a chat template that is no method"):
        task.build_all_requests(limit=1, apply_chat_template=True, chat_template=template)


def test_apply_filters_without_built_requests_fails_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(NextGenerateTask)
    monkeypatch.setattr(type(task.method), "needs", frozenset({"intervention"}))
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"does not call build_all_requests"):
        task.apply_filters()


def test_apply_filters_of_a_steered_engine_without_requests_fails_with_the_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make_task(NextGenerateTask)
    task._model = ChatModel()
    monkeypatch.setattr(type(task.method), "needs", frozenset({"intervention"}))
    monkeypatch.setitem(type(task).apply_filters.__globals__, "engine_with_plugin", lambda model: model)
    monkeypatch.setitem(sys.modules, "personalitybench.backends.vllm.canary", SimpleNamespace(prove_steering=print))
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"applies the filters of a task that holds no"):
        task.apply_filters()


def test_group_of_the_next_lm_eval_adds_up_counts() -> None:
    assert next_group_metric([Count(2), Count(0), Count(5)], [10, 20, 30]) == 7
    assert next_group_metric([Count(2), Count(3)], [1, 1]) == 5


def test_count_that_the_next_lm_eval_resamples_is_an_integer() -> None:
    resampled = [count([1.0, 0.0, 1.0]), count([0.0, 0.0, 1.0]), count([1.0, 1.0, 1.0])]
    assert sum(resampled) / len(resampled) == 2.0
    assert [(value - 2.0) ** 2 for value in resampled] == [0.0, 1.0, 1.0]


# Both forms, piece by piece


def test_generation_task_of_each_lm_eval_is_the_class_that_builds_requests() -> None:
    assert (
        generation_task(SimpleNamespace(ConfigurableTask=NextTask, GenerateTask=NextGenerateTask)) is NextGenerateTask
    )
    assert generation_task(SimpleNamespace(ConfigurableTask=NextTask)) is NextTask
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"has neither GenerateTask nor Configurable"):
        generation_task(SimpleNamespace())


def test_generation_settings_of_one_request_and_of_a_list_are_those_sent() -> None:
    request = NextInstance("generate_until", {}, ("prompt", {"until": []}), "task", doc_id=0)
    for built in (request, [request]):
        (settings,) = generation_settings(built)
        assert settings is request.args[1]
    for built in (None, [], [None], NextInstance("loglikelihood", {}, ("prompt", "text"), "task", doc_id=0)):
        with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION):
            generation_settings(built)


@pytest.mark.parametrize("judge", ["offline", None])
@pytest.mark.parametrize("arguments", ["all keys but the function", "those in kwargs"])
def test_filter_step_in_each_form_names_the_judge(judge: str | None, arguments: str) -> None:
    step = filter_step(FILTER, judge=judge)
    passed = step["kwargs"] if arguments == "those in kwargs" else {k: v for k, v in step.items() if k != "function"}
    assert JudgeFilter(**passed).judge == judge
    assert JudgeFilter(judge=judge).judge == judge, "a flat step of a user's own task"


@pytest.mark.parametrize("passed", [{}, {"kwargs": {}}])
def test_judge_filter_without_its_argument_fails_with_the_version(passed: dict[str, Any]) -> None:
    with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"passes no judge to the filter"):
        JudgeFilter(**passed)


def test_filtered_record_in_each_form_is_the_verdicts() -> None:
    text = '{"text": {"words": 2.0}}'
    assert filtered_record([text]) == filtered_record(list(text)) == {"text": {"words": 2.0}}
    for results in ([], [None], [[text]], ["lol"], ["4"], None):
        with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION + r"passes .* to process_results"):
            filtered_record(results)  # type: ignore[arg-type]


def test_bound_model_without_a_chat_template_is_none() -> None:
    model = ChatModel()
    assert bound_model(model.apply_chat_template) is model
    assert bound_model(None) is None


def test_first_request_of_a_task_without_requests_fails_with_the_version() -> None:
    assert first_request(SimpleNamespace(instances=["first", "second"])) == "first"
    for task in (SimpleNamespace(instances=[]), SimpleNamespace(instances=None), SimpleNamespace()):
        with pytest.raises(DependencyDriftError, match=FAILS_WITH_VERSION):
            first_request(task)


def test_build_all_requests_with_the_request_cache_is_refused() -> None:
    """lm-eval's key of the cache names the task, not the method: a second method would get the first one's prompts."""
    (task,) = load("personalitybench_openness_low", judge=None).values()
    with pytest.raises(ConfigurationError, match="remove --cache_requests"):
        task.build_all_requests(limit=1, cache_requests=True)


def test_the_cache_of_answers_is_refused(tmp_path: Path) -> None:
    """lm-eval's key of an answer is its prompt and sampling: another model would get the first one's answers."""
    from lm_eval.api.model import CachingLM

    (task,) = load("personalitybench_openness_low", judge=None).values()
    cached = CachingLM(ChatModel(), str(tmp_path / "answers.db"))
    with pytest.raises(ConfigurationError, match="remove --use_cache"):
        task.build_all_requests(limit=1, apply_chat_template=True, chat_template=cached.apply_chat_template)


def test_answers_of_another_model_are_in_the_cache_of_answers(tmp_path: Path) -> None:
    """If this fails, lm-eval's key knows the model: the refusal may go."""
    from lm_eval.api.model import CachingLM

    class Other(ChatModel):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise AssertionError("not asked")

    (task,) = load("personalitybench_openness_low", judge=None).values()
    task.build_all_requests(limit=1)
    first = CachingLM(ChatModel(), str(tmp_path / "answers.db")).generate_until(task.instances)
    assert CachingLM(Other(), str(tmp_path / "answers.db")).generate_until(task.instances) == first


@pytest.mark.parametrize("name", ["token", "auth_token", "header"])
def test_model_arguments_reach_the_task_and_secrets_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--model_args: '{name}.*is a secret") as refused:
        load("personalitybench_openness_low", judge=None, **{name: {"Authorization": "planted"}})
    assert "planted" not in str(refused.value)


# The installed lm-eval: one assumption a test


def load(*names: str, **metadata: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    leaves: dict[str, Any] = manager.load(list(names))["tasks"]
    return leaves


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.fixture(scope="module")
def evaluation() -> Iterator[SimpleNamespace]:
    """One evaluation of a group by lm-eval itself."""
    from lm_eval.evaluator import simple_evaluate

    filtered: list[PersonalityTask] = []
    apply = PersonalityTask.apply_filters

    def spy(task: PersonalityTask) -> Any:
        filtered.append(task)
        return apply(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PersonalityTask, "apply_filters", spy)
        patch.setattr(our_tasks, "judge_answers", verdicts_with_gaps)
        metadata = {"method": "simple", "judge": "offline"}
        results = simple_evaluate(
            model=ChatModel(),
            tasks=["personalitybench_openness"],
            task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata),
            limit=3,
            bootstrap_iters=0,
            apply_chat_template=True,
        )
    yield SimpleNamespace(filtered=filtered, **{key: results[key] for key in ("results", "samples", "configs")})


def leaf(table: dict[str, Any], name: str) -> Any:
    """The entry of a task; lm-eval 0.5 puts the group before the name."""
    (entry,) = (value for key, value in table.items() if key.rpartition("::")[2] == name)
    return entry


def test_lm_eval_passes_the_chat_template_as_a_method_of_its_model(evaluation: SimpleNamespace) -> None:
    assert {type(task._model).__name__ for task in evaluation.filtered} == {"ChatModel"}


def test_lm_eval_applies_filters_through_the_task_when_its_requests_are_answered(evaluation: SimpleNamespace) -> None:
    assert len(evaluation.filtered) == 2
    for task in evaluation.filtered:
        assert [request.resps for request in task.instances] == [["Yes."]] * 3


def test_lm_eval_names_metrics_by_metric_and_filter(evaluation: SimpleNamespace) -> None:
    metrics = leaf(evaluation.results, "personalitybench_openness_low")
    assert {key: metrics[key] for key in ("trait_score,offline", "fluency,offline", "words,offline")} == {
        "trait_score,offline": 2.0,
        "fluency,offline": 5.0,
        "words,offline": 1.0,
    }


def test_lm_eval_groups_add_up_unrated_answers(evaluation: SimpleNamespace) -> None:
    leaves = [leaf(evaluation.results, f"personalitybench_openness_{pole}") for pole in ("high", "low")]
    assert [metrics["unrated,offline"] for metrics in leaves] == [2, 2]
    assert evaluation.results["personalitybench_openness"]["unrated,offline"] == 4


def test_lm_eval_groups_of_unequal_tasks_add_up_counts() -> None:
    group: Any = Group.from_config({"group": "all", "task": [], "aggregate_metric_list": [{"metric": "n"}]})
    leaves = load("personalitybench_openness_low", "personalitybench_openness_high", judge=None)
    for task in leaves.values():
        group.add(task)
    counts = zip(leaves, (2, 5), (10, 300), strict=True)
    metrics = {name: {"n,judge": Count(n), "sample_len": size} for name, n, size in counts}
    assert group.aggregate(metrics)["n,judge"] == 7


def test_lm_eval_samples_have_the_fields_that_boards_read(evaluation: SimpleNamespace) -> None:
    samples = leaf(evaluation.samples, "personalitybench_openness_low")
    assert [sample["filter"] for sample in samples] == ["offline"] * 3
    for sample in samples:
        assert {"id", "trait", "question"} <= sample["doc"].keys()
        assert sample["resps"] == [["Yes."]]
        assert "text" in filtered_record([sample["filtered_resps"][0]])


def test_lm_eval_writes_what_dump_config_returns(evaluation: SimpleNamespace) -> None:
    record = leaf(evaluation.configs, "personalitybench_openness_low")["metadata"]["personalitybench"]
    assert record["target"] == "openness:low"
    assert record["identity"]["protocol"]["chat_template"] is True


def test_dump_config_outside_the_tried_versions_records_them(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = load("personalitybench_openness_low", judge=None).values()
    monkeypatch.setattr(our_tasks, "untried_versions", lambda: ["lm_eval 0.6 (tried: <0.5)"])
    record = task.dump_config()["metadata"]["personalitybench"]
    assert record["untried_versions"] == ["lm_eval 0.6 (tried: <0.5)"]


def test_construct_requests_takes_the_question_and_its_prompt() -> None:
    assert parameters(PersonalityTask.__bases__[0].construct_requests)[:3] == ["self", "doc", "ctx"]


def test_build_all_requests_takes_the_keywords_that_are_passed() -> None:
    known = parameters(PersonalityTask.__bases__[0].build_all_requests)
    passed = {"limit", "system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template"}
    assert passed | {"cache_requests"} <= set(known)


def test_task_constructor_takes_the_configuration_by_name() -> None:
    assert "config" in parameters(PersonalityTask.__bases__[0].__init__)


def test_task_hooks_are_methods_of_the_base_class() -> None:
    for hook in ("download", "doc_to_text", "process_results", "apply_filters", "dump_config", "set_config"):
        assert callable(getattr(PersonalityTask.__bases__[0], hook)), hook


def test_task_instances_of_built_requests_are_a_list_in_the_order_of_the_questions() -> None:
    (task,) = load("personalitybench_openness_low", judge=None).values()
    task.build_all_requests(limit=2)
    assert [request.doc["id"] for request in task.instances] == list(task.dataset["test"]["id"][:2])


def test_filters_take_responses_and_questions() -> None:
    from lm_eval.api.filter import Filter

    assert parameters(Filter.apply) == ["self", "resps", "docs"]


def test_registered_filter_is_found_by_its_name() -> None:
    from lm_eval.api.registry import get_filter

    assert get_filter(FILTER) is JudgeFilter


def test_registered_model_is_found_by_its_name() -> None:
    pytest.importorskip("torch")
    from lm_eval.api.registry import get_model

    from personalitybench.backends.steerable import SteerableModel

    assert get_model("personalitybench-hf") is SteerableModel


def test_get_model_of_an_unknown_name_raises_a_key_or_value_error() -> None:
    from lm_eval.api.registry import get_model

    with pytest.raises((KeyError, ValueError)):
        get_model("no-such-model")


def test_models_are_created_from_two_mappings() -> None:
    from lm_eval.api.model import LM

    assert parameters(LM.create_from_arg_obj) == ["arg_dict", "additional_config"]


def test_requests_are_built_by_keywords_of_either_lm_eval() -> None:
    request = Instance("generate_until", {"id": "q"}, ("prompt", {}), idx=3, task_name="", doc_id=3)
    assert (request.args, request.doc, request.request_type) == (("prompt", {}), {"id": "q"}, "generate_until")
    assert dataclasses.replace(request, arguments=("prompt", {"until": []})).args[1] == {"until": []}


def test_collator_with_settings_as_groups_forms_the_planned_batches() -> None:
    from lm_eval.models.utils import Collator

    items = [("a", {"x": 1}, 0), ("bbb", {"x": 2}, 1), ("cc", {"x": 1}, 2)]
    collator = Collator(items, sort_fn=lambda item: -len(item[0]), group_fn=lambda item: item[1], group_by="gen_kwargs")
    assert sorted([item[2] for item in batch] for batch in collator.get_batched(n=2)) == [[1], [2, 0]]


def test_task_manager_of_a_leaf_keeps_its_name() -> None:
    assert list(load("personalitybench_openness_low", judge=None)) == ["personalitybench_openness_low"]


def test_task_manager_of_a_group_separates_tasks_and_groups() -> None:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={"judge": None})
    loaded = manager.load(["personalitybench_openness"])
    assert (len(loaded["tasks"]), list(loaded["groups"])) == (2, ["personalitybench_openness"])


def test_set_config_with_update_alters_the_generation_settings() -> None:
    (task,) = load("personalitybench_openness_low", judge=None).values()
    task.set_config("generation_kwargs", {"temperature": 0.5}, update=True)
    task.build_all_requests(limit=1)
    assert task.instances[0].args[1]["temperature"] == 0.5


def test_transformers_model_generates_through_the_hook_that_steers() -> None:
    pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM

    assert parameters(HFLM._model_generate)[:4] == ["self", "context", "max_length", "stop"]
    assert parameters(HFLM.generate_until) == ["self", "requests", "disable_tqdm"]
    assert "_model_generate" in inspect.getsource(HFLM.generate_until)
    assert parameters(HFLM.get_model_info) == ["self"]


def test_models_with_a_tokenizer_encode_text() -> None:
    from lm_eval.api.model import TemplateLM

    assert parameters(TemplateLM.tok_encode)[:2] == ["self", "string"]


def test_chat_apis_are_known_by_their_base_class() -> None:
    pytest.importorskip("aiohttp")
    from lm_eval.models.openai_completions import LocalChatCompletion

    assert our_tasks._speaks_to_api(object.__new__(LocalChatCompletion))


def test_vllm_model_is_in_the_module_that_is_subclassed() -> None:
    assert importlib.util.find_spec("lm_eval.models.vllm_causallms") is not None


def test_command_line_reads_the_arguments_of_the_process() -> None:
    from lm_eval.__main__ import cli_evaluate

    assert parameters(cli_evaluate) == []
