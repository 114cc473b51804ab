"""The contract of an induction method, and the registry that finds methods by name.

A method is a class; an instance is the method with its settings. It is asked once for each question for an
:class:`~personalitybench.methods.induction.Induction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from personalitybench.errors import ConfigurationError
from personalitybench.methods.fitting import Artifact, FitContext, MethodContext
from personalitybench.methods.induction import Induction, Need
from personalitybench.questions import Question
from personalitybench.registry import Registry
from personalitybench.traits import Target
from personalitybench.validation import validate


class MethodSettings(BaseModel):
    """Base of a method's settings: a pydantic model in which an unknown name is an error.

    Attributes:
        used_after_fit: Names of settings that act when the method is used and not when it is fitted, so that a change
            in them needs no new fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    used_after_fit: ClassVar[frozenset[str]] = frozenset()

    def for_fit(self) -> dict[str, Any]:
        """The settings that a fit depends on, as plain JSON data."""
        return self.model_dump(mode="json", exclude=set(self.used_after_fit))


@runtime_checkable
class InductionMethod(Protocol):
    """A recipe that makes a model show a target.

    A class is built with its settings and a :class:`MethodContext`. It needs no base class.

    Attributes:
        summary: One line for lists.
        version: Raised when the same settings no longer give the same requests.
        needs: What the backend must be able to do; an instance may need less than its class says.
        has_strength: Whether a strength scales the effect; an instance may have none where its class says it may.
        Settings: Pydantic model of the settings.
        settings: The validated settings of an instance.
        context: What the instance may draw on.
    """

    summary: ClassVar[str]
    version: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    has_strength: ClassVar[bool]
    Settings: ClassVar[type[MethodSettings]]
    settings: MethodSettings
    context: MethodContext

    def __init__(self, settings: Any, context: MethodContext) -> None: ...

    def fit(self, context: FitContext) -> Artifact | None:
        """Do what is done once for a model; None where there is nothing to do."""

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Bind the method to a target, a strength and a question.

        Must be deterministic: the same arguments give the same induction on every machine.
        """


methods: Registry[type[InductionMethod]] = Registry(
    "method",
    "personalitybench.methods",
    {
        "none": "personalitybench.methods.none:Unprompted",
        "simple": "personalitybench.methods.simple:SimplePrompt",
        "p2": "personalitybench.methods.p2:DescriptionPrompt",
        "few_shot": "personalitybench.methods.few_shot:FewShotPrompt",
        "npti": "personalitybench.methods.npti:NeuronSteering",
        "combined": "personalitybench.methods.combined:CombinedMethods",
    },
)


def create_method(
    name: str, settings: Mapping[str, Any], context: MethodContext, strength: float | None = None
) -> InductionMethod:
    """Build a method by name with its settings.

    Args:
        name: Registered name.
        settings: What the user set; the method's own model checks it.
        context: What the method may draw on.
        strength: The strength that it will be used at, checked against what the method says of itself.

    Raises:
        ConfigurationError: Unknown method, or a setting is wrong or unknown (the text names the nearest).
    """
    kind = methods.get(name)
    missing = [part for part in ("version", "needs", "has_strength", "Settings", "induce") if not hasattr(kind, part)]
    if missing:
        raise ConfigurationError(f"method {name!r} lacks {', '.join(missing)}: see docs/add-a-method.md")
    made = kind(validate(kind.Settings, settings, f"settings of method {name!r}"), context)
    if strength is not None and not made.has_strength:
        raise ConfigurationError(f"method {name!r} has no strength: leave it out")
    return made
