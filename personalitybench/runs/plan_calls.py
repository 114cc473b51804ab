"""What the calls of a suite would ask: which questions have no answer yet, and how long their prompts are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from personalitybench.backends.whole_answers import context_error
from personalitybench.errors import ConfigurationError
from personalitybench.files import content_hash
from personalitybench.methods import Induction, InductionMethod, create_method
from personalitybench.questions import Half, Question
from personalitybench.runs.call_folders import CallFolders, is_asked_for
from personalitybench.runs.calls import Call
from personalitybench.runs.plan_models import PlannedModel
from personalitybench.runs.store import CallFolder
from personalitybench.strengths import strength_for
from personalitybench.tasks import PersonalityTask
from personalitybench.traits import Target

_LINE = 150  # bytes of a line of answers besides its texts
_BYTES_OF_TOKEN = 5  # of an answer, a little more than English prose has


@dataclass
class PlannedCall:
    """A call as it would run.

    Attributes:
        call: The call. Where its strengths are not chosen yet, they are the largest there are to choose from.
        stage: ``tune`` or ``generate``.
        model: Who answers.
        folder: Where its answers lie; None where that is not known.
        questions: What each target is asked.
        max_tokens: New tokens of an answer at most.
        decided: Whether its strengths are known.
    """

    call: Call
    stage: str
    model: PlannedModel
    folder: CallFolder | None
    questions: Mapping[Target, Sequence[Question]]
    max_tokens: int
    decided: bool
    _method: InductionMethod = field(repr=False)

    @cached_property
    def missing(self) -> dict[Target, list[Question]]:
        """Questions without an answer."""
        return {target: self._missing(target, asked) for target, asked in self.questions.items()}

    def _missing(self, target: Target, asked: Sequence[Question]) -> list[Question]:
        there = set() if self.folder is None else {row["id"] for row in self.folder.answers(target).lines.read()}
        return [question for question in asked if question.id not in there]

    def answers(self, target: Target) -> Iterator[dict[str, Any]]:
        """Answers that are there."""
        return iter(()) if self.folder is None else self.folder.answers(target).lines.read()

    @property
    def requests(self) -> int:
        """Answers in all."""
        return sum(map(len, self.questions.values()))

    @property
    def to_ask(self) -> int:
        """Answers that are missing."""
        return sum(map(len, self.missing.values()))

    def turns(self) -> Iterator[str]:
        """User turns of the questions that have no answer."""
        for target, questions in self.missing.items():
            strength = strength_for(self.call.strength, target)
            for question in questions:
                yield self._induce(target, strength, question).render(question.question)

    def _induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """What the method says; before its fit, what a part of it says, or the plain question that is steered."""
        if self._method.context.artifact is not None:
            return self._method.induce(target, strength, question)
        # A combination cannot be asked before its fit, but its prompting part can.
        parts: Mapping[str, InductionMethod] = getattr(self._method, "named_parts", {})
        for method in (self._method, *parts.values()):
            try:
                return method.induce(target, strength if method.has_strength else None, question)
            except ConfigurationError:
                if not method.needs:
                    raise
        return Induction(self.call.method.name, target, strength, self._method.context.wording.plain)

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Of what is missing: tokens of prompts, new tokens at most, bytes on disk (roughly).

        Raises:
            ConfigurationError: A prompt does not fit into the model's context.
        """
        prompt = size = longest = too_long = 0
        context = self.model.context if self.model.counts_exactly else None
        for turn in self.turns():
            tokens = self.model.count(turn)
            prompt += tokens
            size += len(turn.encode()) + _LINE
            if context is not None and tokens + self.max_tokens > context:
                longest, too_long = max(longest, tokens), too_long + 1
        if too_long and context is not None:
            raise ConfigurationError(f"{self.call.label}: {context_error(too_long, longest, self.max_tokens, context)}")
        size += sum(len(question.question.encode()) for asked in self.missing.values() for question in asked)
        new = self.to_ask * self.max_tokens
        return prompt, new, size + new * _BYTES_OF_TOKEN


def plan_calls(
    folders: CallFolders,
    calls: Iterable[tuple[str, Call, bool]],
    models: Mapping[str, PlannedModel],
    *,
    same_wording: bool,
) -> list[PlannedCall]:
    """Plan calls, each once.

    Args:
        folders: Where they lie.
        calls: Stage, call, and whether its strengths are known.
        models: By :meth:`~personalitybench.runs.suite.ModelSpec.model_dump_json`.
        same_wording: Whether the wording is that of the run; if not, no folder is known.
    """
    found: dict[str, PlannedCall] = {}
    asked: dict[Half, dict[Target, list[Question]]] = {}  # shared by all calls: reading questions takes a while
    targets = folders.suite.parsed_targets()
    limit = folders.suite.questions.limit
    for stage, call, decided in calls:
        model = models[call.model.model_dump_json()]
        identity = [model.spec.model_dump(mode="json"), folders.suite.task_metadata(call)]
        key = content_hash([*identity, decided])
        if key in found:
            continue
        known = decided and same_wording and can_name(folders, model)
        context = folders.context(call.seed)
        if known:
            context = replace(context, artifact=folders.fit(call).artifact())
        if call.half not in asked:
            tables = {target: folders.source.questions("evaluate", target.trait, call.half) for target in targets}
            asked[call.half] = {
                target: [Question.from_row(row) for row in table][:limit] for target, table in tables.items()
            }
        found[key] = PlannedCall(
            call=call,
            stage=stage,
            model=model,
            folder=folders.folder(call) if known else None,
            questions=asked[call.half],
            max_tokens=folders.suite.protocol.max_tokens or PersonalityTask.default_tokens,
            decided=decided,
            _method=create_method(call.method.name, call.method.settings, context),
        )
    return list(found.values())


def can_name(folders: CallFolders, model: PlannedModel) -> bool:
    """Whether the folders and fits of a model have names: it is here, or its answers say which weights it had."""
    if not model.missing:
        return True
    return any(is_asked_for(folder.record["asked_for"], model.spec) for folder in folders.store.calls())
