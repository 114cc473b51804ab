"""The calls that a suite comes to: what one ``lm_eval`` call would ask, and what a choice of strengths asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from personalitybench.questions import Half
from personalitybench.strengths import ChosenOn

if TYPE_CHECKING:
    from personalitybench.runs.suite import MethodSpec, ModelSpec


@dataclass(frozen=True)
class Call:
    """One model under one method, strength and seed, on one half: what one ``lm_eval`` call would ask.

    Attributes:
        model: The model.
        method: The method.
        strength: For all targets, or by target; None for methods that have none.
        seed: Seed of what the method draws.
        half: Which questions are asked.
        chosen_on: The half that the strength was chosen on, if it was.
    """

    model: ModelSpec
    method: MethodSpec
    strength: float | Mapping[str, float] | None
    seed: int
    half: Half = "all"
    chosen_on: ChosenOn | None = None

    @property
    def label(self) -> str:
        """Short name for progress and folders."""
        parts = [self.method.label]
        if self.strength is not None:
            parts.append(f"{self.strength:g}" if isinstance(self.strength, float) else "by-target")
        if self.seed:
            parts.append(f"seed{self.seed}")
        if self.half == "dev":
            parts.append("dev")
        return "-".join(parts)


@dataclass(frozen=True)
class Tuning:
    """One method on one model whose strength is to be chosen on the dev half.

    Attributes:
        model: The model.
        method: The method, with the strengths to choose among.
        baseline: The prompting method whose fluency is the floor.
        seeds: All seeds of the suite: the choice is over all of them, so that they stay one row.
    """

    model: ModelSpec
    method: MethodSpec
    baseline: MethodSpec
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """Short name for folders."""
        return self.method.label

    @property
    def strengths(self) -> list[float]:
        """The strengths to choose among, in ascending order."""
        return sorted(strength for strength in self.method.strengths if isinstance(strength, float))

    def baseline_calls(self) -> list[Call]:
        """What the baseline is asked."""
        return [Call(self.model, self.baseline, None, seed, "dev") for seed in self.seeds]

    def strength_calls(self, strength: float) -> list[Call]:
        """What is asked at one strength."""
        return [Call(self.model, self.method, strength, seed, "dev") for seed in self.seeds]

    def calls(self) -> list[Call]:
        """All that is asked."""
        return self.baseline_calls() + [call for strength in self.strengths for call in self.strength_calls(strength)]
