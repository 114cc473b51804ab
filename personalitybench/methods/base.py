"""The contract of an induction method, and the registry that finds methods by name.

A method is a class; an instance is the method with its settings. It is asked once for each question for an
:class:`Induction`: plain data that travels with the request to whatever runs the model.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from personalitybench import prompts
from personalitybench.backends.engines import loading_identity
from personalitybench.errors import ConfigurationError
from personalitybench.files import content_hash, sha256_file
from personalitybench.prompts import Wording
from personalitybench.questions import Question, QuestionSource
from personalitybench.registry import Registry
from personalitybench.traits import Target
from personalitybench.validation import validate

Need = Literal["adapter", "intervention"]

PROVENANCE = "provenance.json"
"""File of an artifact that says how it came to be (seconds, versions): for people, not part of its hash."""


@dataclass(frozen=True)
class Induction:
    """A method bound to a target and a strength; JSON-serialisable and hashable.

    Attributes:
        method: Registered name of the method.
        target: What is to be induced.
        strength: The scalar that scales the effect, or None for methods that have none.
        template: What the user turn says; ``{question}``, ``{personality}`` and ``{examples}`` are filled in.
        description: What ``{personality}`` or ``{examples}`` stands for, if the template has it.
        adapter: Path of a LoRA artifact, if the method needs one.
        intervention: Path of an activation artifact, if the method needs one.
        keep: Share of the intervention's additions that stay at each step, 1 for all.
        seed: Of that draw.
        first_token: Whether the last prompt token is steered too, and with it the first token of the answer.
    """

    method: str
    target: Target
    strength: float | None
    template: str
    description: str | None = None
    adapter: str | None = None
    intervention: str | None = None
    keep: float = 1.0
    seed: int = 0
    first_token: bool = False

    def render(self, question: str) -> str:
        """Write the user turn for a question."""
        about = self.description or ""
        return prompts.fill(self.template, question=question, personality=about, examples=about)

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data, the target written as text."""
        return {
            "method": self.method,
            "target": str(self.target),
            "strength": self.strength,
            "template": self.template,
            "description": self.description,
            "adapter": self.adapter,
            "intervention": self.intervention,
            "keep": self.keep,
            "seed": self.seed,
            "first_token": self.first_token,
        }

    @property
    def extra_args(self) -> dict[str, Any]:
        """What a backend must do besides reading the prompt; empty for a prompting method.

        ``keep``, ``seed`` and ``first_token`` are there only where they change something.
        """
        found = {"adapter": self.adapter, "intervention": self.intervention}
        needed: dict[str, Any] = {key: value for key, value in found.items() if value is not None}
        if not needed:
            return {}
        needed["strength"] = self.strength
        if self.keep != 1.0:
            needed["keep"] = self.keep
            needed |= {"seed": self.seed} if self.seed else {}
        return needed | ({"first_token": True} if self.first_token else {})


@dataclass(frozen=True)
class MethodContext:
    """What a method may draw on.

    Attributes:
        wording: Templates of the protocol.
        source: Questions and descriptions.
        seed: Seed of everything that the method draws.
        artifact: What :meth:`InductionMethod.fit` left for this model, if the method fits anything.
    """

    wording: Wording
    source: QuestionSource
    seed: int = 0
    artifact: Artifact | None = None

    def draw(self, key: str, count: int, *about: object) -> int:
        """Draw one of ``count`` by a hash of the seed and the key: independent of order, batch and machine."""
        text = "\0".join(map(str, (self.seed, key, *about)))
        digest = hashlib.sha256(text.encode()).digest()
        return random.Random(digest).randrange(count)  # noqa: S311 (a reproducible draw, not a secret)


@dataclass(frozen=True)
class FitContext:
    """What a fit works with.

    Attributes:
        model: Local path or hub name of the model, as transformers loads it.
        model_name: What the model is called.
        model_revision: Which weights these are.
        source: Questions to identify with, and descriptions.
        wording: Templates of the protocol.
        folder: Where the artifact goes. What a fit keeps for itself goes into :attr:`work` beside it; both may hold
            what an interrupted fit left.
        seed: Seed of everything that is drawn.
        backend: lm-eval model type that the fitted model will answer under.
        model_args: Its further arguments, such as ``dtype``.
        device: Torch device, or None for the default.
        shared: Where work is kept that other fits can use, each piece in a folder named by all that it depends on.
            None: beside the artifact, for this fit alone.
        report: Told (what, done, total) as the work goes on.
    """

    model: str
    model_name: str
    model_revision: str
    source: QuestionSource
    wording: Wording
    folder: Path
    seed: int = 0
    backend: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    shared: Path | None = None
    report: Callable[[str, int, int], None] = lambda *_: None

    @property
    def work(self) -> Path:
        """What a fit keeps for itself, to go on after a kill."""
        return self.folder.parent / "work"

    @property
    def identity(self) -> dict[str, Any]:
        """All that a fit depends on besides the method."""
        return fit_identity(
            model={"name": self.model_name, "revision": self.model_revision},
            backend=self.backend,
            model_args=self.model_args,
            drawn=MethodContext(self.wording, self.source, self.seed),
        )


def fit_identity(
    *, model: Mapping[str, str], backend: str, model_args: Mapping[str, Any], drawn: MethodContext
) -> dict[str, Any]:
    """All that a fit depends on besides the method: weights and how they are loaded, data, wording, seed.

    Args:
        model: ``name`` and ``revision`` of the weights.
        backend: lm-eval model type.
        model_args: Its arguments; those that only say where the weights lie are left out.
        drawn: Data, wording and seed.
    """
    return {
        "model": {**model, **loading_identity(backend, model_args)},
        "data": {"source": drawn.source.name, "revision": drawn.source.revision},
        "wording": {"name": drawn.wording.name, "sha256": drawn.wording.sha256},
        "seed": drawn.seed,
    }


@dataclass(frozen=True)
class Artifact:
    """What a fit leaves on disk: a folder of safetensors and JSON.

    Attributes:
        folder: The folder.
        sha256: Hash of the names and contents of its files, part of a row's identity. :data:`PROVENANCE` is left
            out, so that fits that found the same are the same.
    """

    folder: Path
    sha256: str

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """Open what a fit left.

        Raises:
            ConfigurationError: The folder holds nothing.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / PROVENANCE)
        if not files:
            raise ConfigurationError(f"artifact folder {folder} is missing or empty: fit the method first")
        return cls(folder, content_hash({str(path.relative_to(folder)): sha256_file(path) for path in files}))


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
        needs: What the backend must be able to do.
        has_strength: Whether a strength scales the effect.
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
    if strength is not None and not kind.has_strength:
        raise ConfigurationError(f"method {name!r} has no strength: leave it out")
    return kind(validate(kind.Settings, settings, f"settings of method {name!r}"), context)
