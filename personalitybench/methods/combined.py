"""``combined``: several methods at once: a prompt with an adapter, an adapter with edited neurons, all three.

Each part is fitted as it would be alone, and found again if it was; the combination's artifact holds the same files.
Neurons are those of the model without the adapter.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.files import read_json, write_json
from personalitybench.methods.base import InductionMethod, MethodSettings, create_method, methods
from personalitybench.methods.fitting import PROVENANCE, Artifact, FitContext, MethodContext
from personalitybench.methods.induction import Induction, Need
from personalitybench.questions import Question
from personalitybench.strengths import Strength, strength_for
from personalitybench.titles import COMBINED
from personalitybench.traits import Target
from personalitybench.validation import validate

MANIFEST = "combined.json"


class Part(BaseModel):
    """A method that takes part.

    Attributes:
        name: Registered name.
        settings: Its settings.
        strength: Its strength, for all targets or by target or trait. None: the strength of the combination.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: dict[str, Any] = {}
    strength: Strength | None = None

    def for_fit(self) -> dict[str, Any]:
        """What its fit depends on, as plain JSON data."""
        chosen = validate(methods.get(self.name).Settings, self.settings, f"settings of method {self.name!r}")
        return {"name": self.name, "settings": chosen.for_fit()}


class CombinedSettings(MethodSettings):
    """Settings of ``combined``.

    Attributes:
        parts: The methods. One may write the prompt, one may bring an adapter, one an intervention.
    """

    used_after_fit: ClassVar[frozenset[str]] = frozenset({"parts"})  # prompt and strengths; for the rest see for_fit

    parts: list[Part] = Field(default=[Part(name="p2"), Part(name="lora")], min_length=2)

    @field_validator("parts", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A bare name stands for the method with its defaults."""
        return [{"name": item} if isinstance(item, str) else item for item in value] if _is_list(value) else value

    @model_validator(mode="after")
    def _nothing_twice(self) -> CombinedSettings:
        """Two parts that do the same would be in each other's way."""
        taken: dict[str, str] = {}
        for part in self.parts:
            if part.name == COMBINED:
                raise ValueError("a combination cannot be a part of one: list its parts instead")
            try:
                needs = methods.get(part.name).needs
            except ConfigurationError as error:
                raise ValueError(str(error)) from error
            brought: list[str] = sorted(needs) or ["prompt"]
            for need in brought:
                if need in taken:
                    raise ValueError(
                        f"both {taken[need]!r} and {part.name!r} bring the {need}: a combination has one of each "
                        "(prompt, adapter, intervention)"
                    )
                taken[need] = part.name
        return self

    def for_fit(self) -> dict[str, Any]:
        """Only parts that fit something matter to a fit."""
        fitted = [part for part in self.parts if methods.get(part.name).needs]
        versions = {part.name: methods.get(part.name).version for part in fitted}
        return {"parts": [part.for_fit() for part in fitted], "versions": versions}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


class CombinedMethods:
    """Put the prompt of one part, the adapter of another and the intervention of a third into one induction."""

    summary: ClassVar[str] = "several methods at once: a prompt with an adapter, an adapter with neurons"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset({"adapter", "intervention"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = CombinedSettings
    check_settings: ClassVar[Mapping[str, Any]] = {
        "parts": [
            {"name": "p2"},
            {"name": "npti", "settings": {"questions": 4, "max_tokens": 8, "batch_size": 4, "at_least": 100}},
        ]
    }

    def __init__(self, settings: CombinedSettings, context: MethodContext) -> None:
        self.context = context
        self.parts: list[InductionMethod] = [
            create_method(part.name, part.settings, replace(context, artifact=_part_artifact(context, part.name)))
            for part in settings.parts
        ]
        self._own = [part.strength for part in settings.parts]
        self._asked = settings.parts
        for part, method in zip(settings.parts, self.parts, strict=True):
            if part.strength is not None and not method.has_strength:
                raise ConfigurationError(f"part {part.name!r} of method 'combined' has no strength: leave it out")
        # Settings of a part are those that its artifact was fitted with.
        known = [
            part.model_copy(update={"settings": method.settings.model_dump(mode="json")})
            for part, method in zip(settings.parts, self.parts, strict=True)
        ]
        self.settings: CombinedSettings = settings.model_copy(update={"parts": known})
        # The class says what parts may need; an instance what its own do.
        self.needs = frozenset[Need]().union(*(method.needs for method in self.parts))  # type: ignore[misc]
        self.has_strength = any(  # type: ignore[misc]  # as above
            method.has_strength and own is None for method, own in zip(self.parts, self._own, strict=True)
        )

    @property
    def named_parts(self) -> dict[str, InductionMethod]:
        """The parts by name, whose fits are all that a fit of the combination takes."""
        return {part.name: method for part, method in zip(self.settings.parts, self.parts, strict=True)}

    def fit(self, context: FitContext) -> Artifact | None:
        """Fit every part that fits anything, or find it, and put the files of all into one folder.

        Raises:
            PersonalityBenchError: A part cannot be fitted.
        """
        made: dict[str, Artifact] = {}
        # By what was asked for: settings that are shown may name a file by its hash alone.
        for method, part in zip(self.parts, self._asked, strict=True):
            if method.needs and (artifact := context.fit_part(part.name, part.settings)) is not None:
                made[part.name] = artifact
        if not made:
            return None
        shutil.rmtree(context.folder, ignore_errors=True)  # of an interrupted fit
        for name, artifact in made.items():
            _link_files(artifact.folder, part_folder(context.folder, name))
        cost = _sum([artifact.cost for artifact in made.values()])
        about = {"cost": cost.model_dump(mode="json"), "parts": {name: one.provenance for name, one in made.items()}}
        write_json(context.folder / PROVENANCE, about)
        write_json(context.folder / MANIFEST, {"parts": {name: one.sha256 for name, one in made.items()}})
        return Artifact.open(context.folder)

    def describe_fit(self, artifact: Artifact) -> list[dict[str, Any]]:
        """One row for each part: which artifact of its own it is."""
        path = artifact.folder / MANIFEST
        if not path.is_file():
            raise StorageError(
                f"{artifact.folder} holds no finished fit of combined ({MANIFEST} is missing): fit again"
            )
        return [{"part": name, "artifact": sha256} for name, sha256 in read_json(path)["parts"].items()]

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Ask every part, and put together what they say.

        Raises:
            ConfigurationError: A part has no artifact or no strength, or two parts change the prompt.
        """
        plain = self.context.wording.plain
        found = Induction(COMBINED, target, strength, plain)
        prompted = ""
        for part, method, own in zip(self.settings.parts, self.parts, self._own, strict=True):
            given = strength if own is None else strength_for(own, target)
            one = method.induce(target, given if method.has_strength else None, question)
            if one.template != plain:
                if prompted:
                    raise ConfigurationError(
                        f"parts {prompted!r} and {part.name!r} of method {COMBINED!r} write the prompt: leave one out"
                    )
                prompted = part.name
                found = replace(found, template=one.template, description=one.description)
            if one.adapter is not None:
                scale = one.strength if one.adapter_strength is None else one.adapter_strength
                found = replace(found, adapter=one.adapter, adapter_strength=1.0 if scale is None else scale)
            if one.intervention is not None:
                scale = one.strength if one.intervention_strength is None else one.intervention_strength
                found = replace(
                    found, intervention=one.intervention, intervention_strength=scale, keep=one.keep, seed=one.seed,
                    first_token=one.first_token,
                )  # fmt: skip
        return found


def part_folder(artifact: Path, name: str) -> Path:
    """Where a combination keeps the files of a part."""
    return artifact / name.replace("/", "_")


def _part_artifact(context: MethodContext, name: str) -> Artifact | None:
    """The artifact of a part; None before the fit, and for parts that fit nothing."""
    if context.artifact is None:
        return None
    folder = part_folder(context.artifact.folder, name)
    return Artifact.open(folder) if folder.is_dir() else None


def _link_files(source: Path, to: Path) -> None:
    """Give files a second name, or copy them where a file system has no links.

    Provenance is left out: it differs from one time to the next, and what it says stands in the combination's own.
    """
    for path in sorted(source.rglob("*")):
        if path.is_dir() or path == source / PROVENANCE:
            continue
        goal = to / path.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, goal)
        except OSError:
            shutil.copy2(path, goal)


def _sum(costs: list[FitCost | None]) -> FitCost:
    """What all parts took together; seconds are unknown where one part's are."""
    known = [cost for cost in costs if cost is not None]
    seconds = [cost.seconds for cost in known if cost.seconds is not None]
    counted = ("generated_tokens", "trained_tokens", "parameters", "neurons")
    total = {name: sum(getattr(cost, name) for cost in known) for name in counted}
    return FitCost(seconds=round(sum(seconds), 2) if len(seconds) == len(costs) else None, **total)
