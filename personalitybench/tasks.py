"""The lm-eval tasks: questions in, requests out, verdicts back as metrics. The judge is a filter.

A run of this project uses these same task objects, so prompts and answers are those of ``lm_eval``.
Method, judge and question source are chosen with lm-eval's ``--metadata``; :class:`TaskOptions` lists the keys.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from personalitybench.backends.devices import describe_device
from personalitybench.backends.needs import capabilities_of, check_needs, engine_with_plugin
from personalitybench.completions import NoAnswer
from personalitybench.errors import ConfigurationError
from personalitybench.judging import (
    FLUENCY,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
    create_judge,
    rate_all,
    verdict_from_json,
)
from personalitybench.judging.base import Rating, fingerprint
from personalitybench.lm_eval_compat import (
    Filter,
    GenerationTask,
    bound_model,
    filter_step,
    filtered_record,
    first_request,
    generation_settings,
    refuse_answer_cache,
    register_filter,
)
from personalitybench.methods import Artifact, Induction, InductionMethod, MethodContext, create_method
from personalitybench.methods.ready import ready_sha256
from personalitybench.metrics.counts import count
from personalitybench.metrics.fluency import TEXT_MEASURES, measure_text
from personalitybench.prompts import load_wording
from personalitybench.questions import Question, shared_source
from personalitybench.resources import bundled
from personalitybench.strengths import strength_for, strength_protocol
from personalitybench.task_options import TaskOptions, changed_settings, refuse_own_settings
from personalitybench.task_record import record_files
from personalitybench.traits import Target
from personalitybench.versions import drift_error, package_versions, untried_versions, warn_of_untried_versions

logger = logging.getLogger(__name__)

FILTER = "personalitybench-judge"
UNJUDGED = "unjudged"
_NOT_IN_APIS = frozenset({"repetition_penalty"})  # settings that chat APIs refuse
TRAIT_SCORE = "trait_score"
UNRATED = "unrated"
TASK_VERSION = 1
_NOT_PASSED: Any = object()


class PersonalityTask(GenerationTask):  # type: ignore[misc]  # lm-eval publishes no types
    """Evaluation questions of one target, asked under an induction method.

    Attributes:
        target: What the method is to induce, and what answers are scored for.
        options: What ``--metadata`` chose.
        strength: The target's strength, for methods that have one.
        method: The induction method, ready.
    """

    VERSION = TASK_VERSION
    split: ClassVar[str] = "evaluate"
    default_tokens: ClassVar[int] = 400
    default_penalty: ClassVar[float] = 1.15

    def __init__(self, config: dict[str, Any]) -> None:
        warn_of_untried_versions()
        metadata = dict(config.get("metadata") or {})
        self.target = Target.parse(metadata["target"])
        self.options = TaskOptions.from_metadata(metadata)
        self.strength = strength_for(self.options.strength, self.target)
        if "source" not in metadata:
            _warn_about_sample()
        self.source = shared_source(self.options.source, self.options.data_dir)
        self.wording = load_wording(self.options.prompts)
        self.left_out: list[str] = []
        self.canary: dict[str, float] = {}
        self.chat_template = False
        self.system_instruction: str | None = None
        self.thoughts_end_at: str | None = None
        self.end_tokens: list[int] = []
        self.files: dict[str, Any] | None = None
        self._model: Any = None
        self.method = self._make_method()
        self.judges = _by_id(self.options.judge_ids)  # a wrong name is told before the answers are drawn, not after
        config = {key: value for key, value in config.items() if key != "class"}
        refuse_own_settings(config)
        super().__init__(
            config=config
            | {
                "output_type": "generate_until",
                "test_split": "test",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{target}}",
                "process_results": score_document,
                "metric_list": _metric_list(),
                "filter_list": self._filter_list(),
                "generation_kwargs": {
                    "until": [],
                    "max_gen_toks": self.default_tokens,
                    "do_sample": False,
                    "temperature": 0.0,
                    "repetition_penalty": self.default_penalty,
                    **(config.get("generation_kwargs") or {}),
                    **self.options.generation,
                },
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Load the questions (lm-eval's hook); each gets the target's name in a column."""
        table = self.source.questions(self.split, self.target.trait, self.options.half)  # type: ignore[arg-type]
        table = table.flatten_indices(keep_in_memory=True)  # else datasets leaves a file in the cache at every start
        self.dataset = {"test": table.add_column("target", [str(self.target)] * len(table))}

    def induce(self, doc: Mapping[str, Any]) -> Induction:
        """Bind the method to this task's target and a question."""
        question = Question.from_row(dict(doc))
        return self.method.induce(self.target, self.strength, question)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> str:  # noqa: ARG002
        """Write the user turn."""
        return self.induce(doc).render(doc["question"])

    def build_all_requests(
        self,
        *,
        apply_chat_template: bool = False,
        chat_template: Any = None,
        system_instruction: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Build the requests, without the settings that the model's interface refuses.

        Raises:
            ConfigurationError: One of lm-eval's caches or its examples are on, a prompt is too long, or the method
                needs to see the model and cannot.
            NeedsNotMetError: The model cannot serve the method.
        """
        if kwargs.get("cache_requests"):
            raise ConfigurationError(
                "lm-eval's request cache would return the prompts of another method: remove --cache_requests"
            )
        if self.config.num_fewshot:
            raise ConfigurationError(
                "lm-eval's examples would tell the model its target: remove --num_fewshot; the method 'few_shot' shows "
                "examples"
            )
        self._model = bound_model(chat_template)
        refuse_answer_cache(self._model)
        if self.method.needs and self._model is None:
            raise ConfigurationError(
                f"method {self.options.method!r} needs {' and '.join(sorted(self.method.needs))}, and lm-eval says "
                "which model it has only with --apply_chat_template: add it"
            )
        check_needs(self.options.method, self.method.needs, capabilities_of(self._model))
        self.chat_template = bool(apply_chat_template)
        self.system_instruction = system_instruction
        if not self.chat_template:
            _warn_about_chat_template()
        from personalitybench.backends.whole_answers import (  # noqa: PLC0415 (lm-eval's models are slow to import)
            added_end_tokens,
            require_system_text,
            require_whole_answers,
            require_whole_prompts,
        )

        if self._model is not None:
            self.thoughts_end_at = require_whole_answers(self._model)
            self.end_tokens = added_end_tokens(self._model)
        self.files = record_files(self.config.metadata, self._model)
        if _speaks_to_api(self._model):
            for name in _NOT_IN_APIS & self.config.generation_kwargs.keys():
                del self.config.generation_kwargs[name]
                self.left_out.append(name)
        built = super().build_all_requests(
            apply_chat_template=apply_chat_template,
            chat_template=chat_template,
            system_instruction=system_instruction,
            **kwargs,
        )
        require_whole_prompts(self._model, self.instances)
        require_system_text(system_instruction, self.instances)
        return built

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Any:
        """Build the requests of a question; they carry the induction only if it needs more than the prompt.

        Returns:
            What lm-eval's class returns: one request in 0.4, a list in 0.5.
        """
        built = super().construct_requests(doc, ctx, **kwargs)
        extra = self.induce(doc).extra_args
        for settings in generation_settings(built):
            if self.end_tokens and hasattr(getattr(self._model, "model", None), "llm_engine"):
                settings["stop_token_ids"] = self.end_tokens
            if extra:
                settings["extra_args"] = {"personalitybench": extra}
        return built

    def apply_filters(self) -> Any:
        """Judge (lm-eval's hook), after the proof that a steered engine has steered.

        Raises:
            DependencyDriftError: lm-eval did not build the requests of a steering method through this class.
        """
        if self.method.needs and self._model is None:
            raise drift_error("lm_eval", "does not call build_all_requests, so nothing proves that the model steered")
        if self.method.needs and (engine := engine_with_plugin(self._model)) is not None:
            from personalitybench.backends.vllm.canary import prove_steering  # noqa: PLC0415 (vllm is optional)

            self.canary = prove_steering(engine, self._model, first_request(self))
        return super().apply_filters()

    def identity(self) -> dict[str, Any]:
        """All that decides the answers and ratings besides the model: half of a row's identity."""
        artifact = self.method.context.artifact
        generation = dict(self.config.generation_kwargs)
        return {
            "method": {
                "name": self.options.method,
                "version": self.method.version,
                "settings": self.method.settings.model_dump(mode="json"),
                "strength": self.options.strength,
                "strength_protocol": strength_protocol(
                    self.options.strength, self.options.half, self.options.chosen_on
                ),
                "artifact": artifact.sha256 if artifact else self.ready_sha256,
            },
            "data": {
                "source": self.source.name,
                "revision": self.source.revision,
                "split": self.split,
                "half": self.options.half,
            },
            "protocol": {
                "task_version": TASK_VERSION,
                "prompts": self.wording.name,
                "prompts_sha256": self.wording.sha256,
                "max_tokens": generation.get("max_gen_toks"),
                "temperature": generation.get("temperature"),
                "repetition_penalty": generation.get("repetition_penalty"),
                "chat_template": self.chat_template,
                "left_out": self.left_out,
                "other": self._other_settings(generation),
            },
            "seed": self.options.seed,
        }

    def fit_cost(self) -> dict[str, Any] | None:
        """What the method's fit took, as plain JSON data; None if it fits nothing, or nobody wrote it down."""
        artifact = self.method.context.artifact
        cost = artifact.cost if artifact else None
        return None if cost is None else cost.model_dump(mode="json")

    def _other_settings(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        found = changed_settings(self.config, generation)
        if self.system_instruction:
            found["system_instruction"] = self.system_instruction
        if self.thoughts_end_at is not None:
            found["think_end_token"] = self.thoughts_end_at
        if self.end_tokens:
            found["end_tokens"] = self.end_tokens
        return found

    def dump_config(self) -> dict[str, Any]:
        """Add the identity to what lm-eval writes into ``results_*.json``."""
        dumped: dict[str, Any] = super().dump_config()
        judged = {id_: judge_fingerprint(name) for id_, name in self.judges.items()}
        untried = untried_versions()
        record = {
            "target": str(self.target),
            "judges": judged,
            "identity": self.identity(),
            "versions": package_versions(),
            "device": describe_device(self._model),
            "files": self.files,
            **({"untried_versions": untried} if untried else {}),
            "fit": self.fit_cost(),
            **({"canary": self.canary} if self.canary else {}),
        }
        return dumped | {"metadata": {**dumped.get("metadata", {}), "personalitybench": record}}

    def _make_method(self) -> InductionMethod:
        artifact = Artifact.open(Path(self.options.artifact)) if self.options.artifact else None
        context = MethodContext(self.wording, self.source, self.options.seed, artifact)
        method = create_method(self.options.method, self.options.settings, context, self.strength)
        self.ready_sha256 = None if artifact else ready_sha256(method, self.source, self.options.strength)
        if method.needs and artifact is None and self.ready_sha256 is None:
            raise ConfigurationError(
                f"method {self.options.method!r} needs what its fit leaves: run 'personalitybench fit "
                f"{self.options.method} --model ...', or the stage 'fit' of its suite, and name the folder of the "
                "artifact in 'artifact'"
            )
        return method

    def _filter_list(self) -> list[dict[str, Any]]:
        judges: dict[str, str | None] = {**self.judges} or {UNJUDGED: None}
        return [{"name": id_, "filter": [filter_step(FILTER, judge=name)]} for id_, name in judges.items()]


class IdentifyTask(PersonalityTask):
    """Identification questions of one target, asked under a drawn description (``search_neuron.py``).

    500 new tokens, repetition penalty 1.1, no judge. Activations are read off these answers.
    """

    split: ClassVar[str] = "identify"
    default_tokens: ClassVar[int] = 500
    default_penalty: ClassVar[float] = 1.1

    def induce(self, doc: Mapping[str, Any]) -> Induction:
        """Draw a description and put it into the identification template."""
        texts = self.source.descriptions[self.target]
        draw = self.method.context.draw("identify", len(texts), self.target, doc["id"])
        template = self.wording.identify_as(self.target)
        return Induction("identify", self.target, None, template, texts[draw])

    def _make_method(self) -> InductionMethod:
        self.ready_sha256 = None
        return create_method("none", {}, MethodContext(self.wording, self.source, self.options.seed))

    def _filter_list(self) -> list[dict[str, Any]]:
        return [{"name": UNJUDGED, "filter": [filter_step(FILTER, judge=None)]}]


@register_filter(FILTER)
class JudgeFilter(Filter):  # type: ignore[misc]  # lm-eval publishes no types
    """Rates all answers of a task at once, so a judge can work concurrently.

    Each response becomes a JSON text with the verdicts and the text measures of the answer; JSON because lm-eval
    turns any other object into its ``str`` in the samples file.

    Args:
        judge: Name of the judge, or None to leave the answers unrated.
        kwargs: The same, as lm-eval 0.4 passes it (see :func:`~personalitybench.lm_eval_compat.filter_step`).

    Raises:
        DependencyDriftError: lm-eval passed neither: the answers would be unrated by mistake.
    """

    def __init__(self, judge: str | None = _NOT_PASSED, *, kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.judge: str | None = (kwargs or {}).get("judge", judge)
        if self.judge is _NOT_PASSED:
            raise drift_error("lm_eval", "passes no judge to the filter that rates the answers")

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Judge the first response to each document."""
        answers = ["" if response[0] is None else response[0] for response in resps]
        judged = judge_answers(self.judge, docs, answers) if self.judge else [{} for _ in answers]
        return [
            json.dumps({**{k: v.to_json() for k, v in verdicts.items()}, "text": measure_text(answer)})
            for verdicts, answer in zip(judged, answers, strict=True)
        ]


def rating_requests(docs: Sequence[Mapping[str, Any]], answers: Sequence[str], repeat: int = 0) -> list[RatingRequest]:
    """What is to be rated: each answer for its question's trait, and for fluency."""
    return [
        RatingRequest(doc["question"], answer, aspect, repeat)
        for doc, answer in zip(docs, answers, strict=True)
        for aspect in (doc["trait"], FLUENCY)
    ]


def judge_answers(
    judge: str,
    docs: Sequence[Mapping[str, Any]],
    answers: Sequence[str],
    report: RatingsReport | None = None,
    repeat: int = 0,
) -> list[dict[str, Verdict]]:
    """Rate each answer for its question's trait and for fluency, as the asking of that number.

    Returns:
        For each answer ``{"trait": verdict, "fluency": verdict}``.
    """
    verdicts = list(rate_all(create_judge(judge), rating_requests(docs, answers, repeat), report))
    missing = [_no_answer(doc, answer) for doc, answer in zip(docs, answers, strict=True)]
    return [
        {"trait": reason or trait_verdict, "fluency": reason or fluency_verdict}
        for reason, trait_verdict, fluency_verdict in zip(missing, verdicts[::2], verdicts[1::2], strict=True)
    ]


def _no_answer(doc: Mapping[str, Any], answer: str) -> Unrated | None:
    """Return why the model gave no answer, if the answer or its line in a sheet says so."""
    if isinstance(answer, NoAnswer):
        return Unrated(answer.reason, answer.detail)
    recorded = doc.get(UNRATED)
    return None if recorded is None or answer else Unrated(str(recorded["reason"]), str(recorded.get("detail", "")))


def judge_fingerprint(name: str) -> dict[str, str]:
    """Identity of a judge as a row records it."""
    return fingerprint(create_judge(name))


def score_document(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Turn one filtered response into metrics; an unrated answer is counted and has no score."""
    judged = filtered_record(results)
    metrics = dict(judged.pop("text"))
    verdicts = {aspect: verdict_from_json(value) for aspect, value in judged.items()}
    trait_verdict = verdicts.get("trait")
    if isinstance(trait_verdict, Rating):
        metrics[TRAIT_SCORE] = Target.parse(doc["target"]).score(trait_verdict.value)
    fluency = verdicts.get("fluency")
    if isinstance(fluency, Rating):
        metrics[FLUENCY] = fluency.value
    if trait_verdict is not None:
        metrics[UNRATED] = float(not isinstance(trait_verdict, Rating))
    return metrics


def _by_id(names: Sequence[str]) -> dict[str, str]:
    """Judges as they were named, by the ids that stand in the results.

    Raises:
        ConfigurationError: No such judge, or two of one id.
    """
    found: dict[str, str] = {}
    for name in names:
        id_ = create_judge(name).profile.id
        if id_ in found:
            raise ConfigurationError(
                f"judges {found[id_]!r} and {name!r} have the same id {id_!r}: columns are named by it, so name each "
                "judge once, or give one of the profiles another id"
            )
        found[id_] = name
    return found


@lru_cache(maxsize=1)
def _warn_about_sample() -> None:
    """Say once in a process that these are not the paper's questions."""
    logger.warning('asking the bundled sample questions: add "source": "official" to --metadata for the paper\'s')


@lru_cache(maxsize=1)
def _warn_about_chat_template() -> None:
    """Say once in a process that prompts are meant for a chat."""
    logger.warning("prompts are user turns of a chat: add --apply_chat_template unless the model has no template")


def tasks_folder() -> Path:
    """Folder with the task files, for ``lm_eval --include_path``."""
    return bundled("tasks")


def _metric_list() -> list[dict[str, Any]]:
    higher: dict[str, bool | None] = {TRAIT_SCORE: True, FLUENCY: True, UNRATED: False, **TEXT_MEASURES}
    return [
        {
            "metric": name,
            "aggregation": count if name == UNRATED else "mean",
            "higher_is_better": better,
        }
        for name, better in higher.items()
    ]


def _speaks_to_api(model: Any) -> bool:
    """Whether the requests go to a chat API."""
    return any(base.__name__ == "TemplateAPI" for base in type(model).__mro__)
