"""Stand-ins for lm-eval with the signatures of 0.5.0.dev1, and our task class on top of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.model import LM

from personalitybench import lm_eval_compat
from personalitybench import tasks as our_tasks
from personalitybench.judging.base import Rating, Unrated, Verdict


@dataclasses.dataclass
class NextInstance:
    """A request of 0.5: the task's name and the number of the question are required."""

    request_type: str
    doc: dict[str, Any]
    arguments: tuple[Any, ...]
    task_name: str
    doc_id: int = dataclasses.field(kw_only=True)
    idx: int = 0
    resps: list[str] = dataclasses.field(default_factory=list)
    filtered_resps: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class NextTask:
    """The abstract task of 0.5, which ``ConfigurableTask`` is an alias of: it builds no requests."""

    reads_flat_arguments: bool = False

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(num_fewshot=None, **config)
        self._dataset: Any = None
        self._instances: list[NextInstance] | None = None

    @property
    def dataset(self) -> Any:
        if self._dataset is None:
            self.download(None)
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        self._dataset = value

    @property
    def instances(self) -> list[NextInstance]:
        return self._instances or []

    def construct_requests(self, doc: dict[str, Any], ctx: str, *, doc_id: int, **_: Any) -> Any: ...

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: Callable[..., str] | None = None,
    ) -> list[NextInstance]:
        built: list[NextInstance] = []
        for number, doc in enumerate(list(self.dataset["test"])[:limit]):
            prompt = self.doc_to_text(doc)
            if apply_chat_template and chat_template:
                system = [{"role": "system", "content": system_instruction}] if system_instruction else []
                prompt = chat_template([*system, {"role": "user", "content": prompt}], add_generation_prompt=True)
            built += self.construct_requests(
                doc=doc,
                ctx=prompt,
                doc_id=number,
                apply_chat_template=apply_chat_template,
                chat_template=chat_template,
            )
        self._instances = built
        return built

    def apply_filters(self) -> None:
        from lm_eval.api.registry import get_filter

        for pipeline in self.config.filter_list:
            (step,) = pipeline["filter"]
            arguments = dict(step.get("kwargs", {}))
            if self.reads_flat_arguments:
                arguments |= {key: value for key, value in step.items() if key not in {"function", "kwargs"}}
            make = partial(get_filter(step["function"]), **arguments)
            filtered = make().apply([request.resps for request in self.instances], [r.doc for r in self.instances])
            for request, response in zip(self.instances, filtered, strict=True):
                request.filtered_resps[pipeline["name"]] = response

    def process_instances(self) -> dict[str, list[dict[str, float]]]:
        """Metrics of each question, by the name of the filter."""
        self.apply_filters()
        return {
            pipeline["name"]: [
                self.config.process_results(
                    request.doc, list(chain.from_iterable([request.filtered_resps[pipeline["name"]]]))
                )
                for request in self.instances
            ]
            for pipeline in self.config.filter_list
        }

    def dump_config(self) -> dict[str, Any]:
        return {"metadata": self.config.metadata}


class NextGenerateTask(NextTask):
    def construct_requests(
        self,
        doc: dict[str, Any],
        ctx: str,
        *,
        doc_id: int,
        metadata: dict[str, Any] | None = None,
        apply_chat_template: bool = False,
        chat_template: Any = None,
    ) -> list[NextInstance]:
        arguments = (ctx, dict(self.config.generation_kwargs))
        return [NextInstance("generate_until", doc, arguments, self.config.task, doc_id=doc_id)]


class NextTupleTask(NextTask):
    """A third form: requests are no longer objects."""

    def construct_requests(self, doc: dict[str, Any], ctx: str, *, doc_id: int, **_: Any) -> Any:
        return [(ctx, dict(self.config.generation_kwargs))]


class NextNormalisingTask(NextGenerateTask):
    """0.5.0.dev1 moves flat arguments of a filter into ``kwargs``; other commits of the branch drop them."""

    reads_flat_arguments = True


def next_group_metric(values: Sequence[float], sizes: Sequence[int]) -> float:
    """A group of 0.5, with the factors in the other order."""
    return sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)


class ChatModel(LM):
    """Answers everything with one word."""

    tokenizer_name = "none"

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return ["Yes."] * len(requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}</{turn['role']}>" for turn in chat_history)


def verdicts_with_gaps(_judge: str, docs: Sequence[Any], answers: Sequence[str], *_: Any) -> list[dict[str, Verdict]]:
    """Every other answer is unrated, the first among them."""
    rated: list[Verdict] = [Rating(4.0) if number % 2 else Unrated("refusal") for number in range(len(answers))]
    return [{"trait": verdict, "fluency": Rating(5.0)} for verdict in rated]


def tasks_on(base: type) -> ModuleType:
    """``personalitybench.tasks`` once more, its task class on another base; the filter stays the registered one."""
    spec = importlib.util.spec_from_file_location("tasks_on_stand_in", our_tasks.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_compat, "GenerationTask", base)
        patch.setattr(lm_eval_compat, "register_filter", lambda _name: lambda filter_class: filter_class)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return module


def make_task(base: type) -> Any:
    """Our own task class on another base class."""
    metadata = {"version": 1, "target": "openness:low", "method": "simple", "judge": "offline"}
    return tasks_on(base).PersonalityTask({"task": "personalitybench_openness_low", "metadata": metadata})
