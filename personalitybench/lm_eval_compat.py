"""lm-eval's interfaces that the tasks build on, in the forms of lm-eval 0.4 and 0.5.

``personalitybench.tasks`` imports them from here. Each function raises ``DependencyDriftError`` for a third form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from personalitybench.errors import ConfigurationError
from personalitybench.task_options import ANSWER_CACHE
from personalitybench.versions import drift_error

try:
    from lm_eval.api import task as _task_module
    from lm_eval.api.filter import Filter
    from lm_eval.api.registry import register_filter
except ImportError as error:
    raise drift_error("lm_eval", f"lacks an interface that the tasks build on ({error})") from error

__all__ = [
    "Filter",
    "GenerationTask",
    "bound_model",
    "filter_step",
    "filtered_record",
    "first_request",
    "generation_settings",
    "generation_task",
    "refuse_answer_cache",
    "register_filter",
]


def generation_task(module: Any) -> Any:
    """Return the class of generating tasks in ``lm_eval.api.task``.

    lm-eval 0.4 has ``ConfigurableTask``. In 0.5 that name is an alias of the common base class, which builds no
    requests; ``GenerateTask`` does.
    """
    for name in ("GenerateTask", "ConfigurableTask"):
        if hasattr(module, name):
            return getattr(module, name)
    raise drift_error("lm_eval", "has neither GenerateTask nor ConfigurableTask in lm_eval.api.task")


GenerationTask = generation_task(_task_module)


def generation_settings(built: Any) -> list[dict[str, Any]]:
    """Return the generation settings of each request that ``construct_requests`` built, to be altered in place.

    ``construct_requests`` returns one request in lm-eval 0.4, a list in 0.5; each carries ``(prompt, settings)``.

    Raises:
        DependencyDriftError: There is no request, or one without settings.
    """
    requests = built if isinstance(built, list) else [built]
    try:
        settings = [request.args[1] for request in requests]
    except (AttributeError, IndexError, TypeError):
        settings = []
    if not settings or not all(isinstance(values, dict) for values in settings):
        raise drift_error("lm_eval", f"builds {built!r:.80} instead of requests with a prompt and generation settings")
    return settings


def first_request(task: Any) -> Any:
    """Return the first request of a task.

    Raises:
        DependencyDriftError: The task holds none.
    """
    requests = getattr(task, "instances", None)
    if not requests:
        raise drift_error("lm_eval", "applies the filters of a task that holds no requests in 'instances'")
    return requests[0]


def bound_model(chat_template: Any) -> Any:
    """Return the model whose method ``chat_template`` is; None where lm-eval applies no chat template.

    Raises:
        DependencyDriftError: ``chat_template`` is no method of an object.
    """
    if chat_template is None:
        return None
    model = getattr(chat_template, "__self__", None)
    if model is None:
        raise drift_error("lm_eval", "passes a chat template that is no method of its model, so the model is not known")
    return model


def refuse_answer_cache(model: Any) -> None:
    """Refuse lm-eval's cache of answers: its keys hold prompts and sampling, not the model.

    Args:
        model: The model, or None where it is not known.

    Raises:
        ConfigurationError: The cache is on.
    """
    if getattr(getattr(model, "cache_hook", None), "dbdict", None) is not None:
        raise ConfigurationError(ANSWER_CACHE)


def filter_step(function: str, **arguments: Any) -> dict[str, Any]:
    """Return a step of a ``filter_list``.

    lm-eval 0.5 passes the contents of ``kwargs`` to the filter. 0.4 passes every key except ``function``, so its filter
    gets a single argument ``kwargs``.
    """
    return {"function": function, "kwargs": arguments}


def filtered_record(results: Sequence[Any]) -> dict[str, Any]:
    """Return the JSON object that a filter wrote for a question.

    Args:
        results: Second argument of ``process_results``. In lm-eval 0.4 it is ``[text]``. 0.5 chains the filtered
            responses of the question, so it is the characters of the text.

    Raises:
        DependencyDriftError: It is neither.
    """
    try:
        record = json.loads("".join(results))
    except (TypeError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise drift_error("lm_eval", f"passes {results!r:.80} to process_results instead of the filtered response")
    return record
