"""What is checked: a method with its settings, what it is asked, and what its fits left so far."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from personalitybench.checks.results import BrokenPromiseError, NotCheckedError, describe_error
from personalitybench.checks.workshop import Workshop
from personalitybench.methods import Artifact, Induction, InductionMethod, MethodContext, Need, create_method, methods
from personalitybench.methods.ready import ready_sha256
from personalitybench.prompts import load_wording
from personalitybench.questions import Question, QuestionSource, shared_source
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target

BRACES = "Is {personality} in {question} and {examples} with {} or {{x}}?"
"""A question that a template must not be confused by."""

Asked = tuple[Target, Question]


@dataclass(frozen=True)
class Wanted:
    """What to check.

    Attributes:
        name: Registered name of the method.
        settings: Its settings, over those that it names in ``check_settings``.
        strength: At which strength; None for 1 where it has one.
        model: Local folder, hub name or ``demo``; None to leave out what needs a model.
        backend: lm-eval model type that answers.
        model_args: Its further arguments.
        device: Torch device, or None for the default.
        seed: Seed of what the method draws.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    strength: float | None = None
    model: str | None = "demo"
    backend: str = "personalitybench-hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class CheckedModel:
    """The model that a method is fitted to, resolved.

    Attributes:
        location: What transformers loads.
        record: ``name`` and ``revision`` of its weights.
        arguments: Arguments of lm-eval's model class.
    """

    location: str
    record: Mapping[str, str]
    arguments: Mapping[str, Any]


class Subject:
    """A method under test.

    Args:
        wanted: What to check.
        workshop: Where fits are made.

    Raises:
        ConfigurationError: There is no such method.
    """

    def __init__(self, wanted: Wanted, workshop: Workshop) -> None:
        self.wanted = wanted
        self.workshop = workshop
        self.kind: type[InductionMethod] = methods.get(wanted.name)
        self.model: CheckedModel | None = None
        self.before: Any = None  # what the model answered before anything was fitted
        self.fits_nothing = False  # whether that is known before any model is there
        self.fitted: Artifact | None = None
        self.reports = 0  # times that the first fit told how far it was
        self.unfitted_because = ""
        self.repeats = False  # whether induce was seen to give the same again
        self.later_fits: dict[str, Any] = {}  # what fits left that were made to compare with the first

    @cached_property
    def source(self) -> QuestionSource:
        """The bundled questions."""
        return shared_source("sample")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the method is checked with: those that it names for it, and over them the user's."""
        return {**getattr(self.kind, "check_settings", {}), **self.wanted.settings}

    @cached_property
    def declared(self) -> InductionMethod | type[InductionMethod]:
        """What says what the method needs: an instance, whose settings may make that less than its class says."""
        try:
            return self.create()
        except Exception:  # noqa: BLE001 (whatever it raises; the check of the settings is about it)
            return self.kind

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs of a backend with these settings."""
        return self.declared.needs

    @property
    def strength(self) -> float | None:
        """The strength that the method is asked at."""
        if not self.declared.has_strength:
            return None
        return 1.0 if self.wanted.strength is None else self.wanted.strength

    def context(self, artifact: Artifact | None = None, seed: int | None = None) -> MethodContext:
        """What an instance may draw on."""
        drawn = self.wanted.seed if seed is None else seed
        return MethodContext(load_wording("project"), self.source, drawn, artifact)

    def create(self, artifact: Artifact | None = None, seed: int | None = None) -> InductionMethod:
        """A new instance."""
        return create_method(self.wanted.name, self.settings, self.context(artifact, seed))

    @cached_property
    def ready_sha256(self) -> str | None:
        """Hash of the folders that the method names without a fit; None if it names none that are there."""
        try:
            return ready_sha256(self.create(), self.source, self.strength)
        except Exception:  # noqa: BLE001 (whatever it raises; other checks are about it)
            return None

    def ready(self) -> InductionMethod:
        """A new instance that can be asked.

        Raises:
            NotCheckedError: It would need what a fit leaves, and there is none.
        """
        if self.needs and self.fitted is None and self.ready_sha256 is None:
            raise NotCheckedError(f"needs what a fit leaves: {self.unfitted_because}")
        return self.create(self.fitted)

    def made(self) -> Artifact:
        """What the first fit left.

        Raises:
            NotCheckedError: There is nothing.
        """
        if self.fitted is None:
            raise NotCheckedError(self.unfitted_because)
        return self.fitted

    def need_model(self) -> CheckedModel:
        """The model.

        Raises:
            NotCheckedError: There is none, or nothing to run it.
        """
        if self.model is None:
            raise NotCheckedError(self.no_model())
        return self.model

    def no_model(self) -> str:
        """Why there is no model."""
        if self.wanted.model is None:
            return "--no-model was given"
        if not has_torch():
            return "torch is not installed: pip install 'personalitybench[hf]'"
        return "no model was loaded"

    @cached_property
    def asked(self) -> list[Asked]:
        """Two questions for each target, each of the target's trait."""
        found = {}
        for trait in TRAIT_NAMES:
            table = self.source.questions("evaluate", trait)
            found[trait] = [Question.from_row(table[index]) for index in (0, len(table) - 1)]
        return [(target, question) for target in TARGETS for question in found[target.trait]]

    @property
    def with_braces(self) -> list[Asked]:
        """A question with braces, for each target."""
        return [(target, replace(question, question=BRACES)) for target, question in self.asked[::2]]

    def induce(
        self, method: InductionMethod, asked: Iterable[Asked], strength: float | None = None
    ) -> dict[tuple[str, str], Induction]:
        """Ask a method, at the strength of the check if none is given.

        Returns:
            Inductions by target and id of the question.

        Raises:
            BrokenPromiseError: It raises something.
        """
        own = self.strength if strength is None else strength
        found = {}
        for target, question in asked:
            try:
                found[str(target), question.id] = method.induce(target, own, question)
            except Exception as error:  # whatever a method of somebody else raises
                raise BrokenPromiseError(
                    f"induce({target}, {own}, a question of the sample) raised {describe_error(error, self.kind)}"
                ) from error
        return found


def plain_data(found: Mapping[tuple[str, str], Induction]) -> dict[tuple[str, str], dict[str, str]]:
    """Inductions as texts to compare; of what is no plain data only the type, which another check is about."""
    return {
        place: {
            name: repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
            for name, value in induction.to_json().items()
        }
        for place, induction in found.items()
    }


def has_torch() -> bool:
    """Whether a model can be run at all."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def show_place(place: tuple[str, str]) -> str:
    """Say which request: its target and question."""
    return f"{place[0]}, question {place[1]}"
