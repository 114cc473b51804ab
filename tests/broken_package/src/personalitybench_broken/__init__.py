"""Induction methods with one defect each; every one is failed by the check that is about its defect, and by no other.

These only prompt; the ones that fit something are in :mod:`personalitybench_broken.fitted`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict

from personalitybench.methods import Artifact, FitContext, Induction, MethodContext, MethodSettings, Need
from personalitybench.questions import Question
from personalitybench.traits import Target

PACKAGE = "personalitybench-broken"


class Sound:
    """Nothing is wrong with this one; the others differ from it in their defect."""

    name: ClassVar[str] = "sound"
    summary: ClassVar[str] = "an adjective in the second sentence"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset()
    has_strength: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:
        """Nothing is fitted."""
        return None

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Name the adjective."""
        adjective = self.context.wording.adjectives[target]
        return Induction(
            f"{PACKAGE}/{self.name}", target, strength, "{question} Answer as {personality} person.", adjective
        )


class Shapeless(Sound):
    """Its needs are a list, and its fit takes no context."""

    name: ClassVar[str] = "shapeless"
    needs: ClassVar[Any] = ["adapter"]

    def fit(self) -> None:  # type: ignore[override]
        """Nothing is fitted."""


class CarelessSettings(MethodSettings):
    """Settings that take any name."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Careless(Sound):
    """Accepts unknown settings, so a misspelt one goes unseen."""

    name: ClassVar[str] = "careless"
    Settings: ClassVar[type[MethodSettings]] = CarelessSettings


class Moody(Sound):
    """Draws with Python's generator, so nobody gets the same again."""

    name: ClassVar[str] = "moody"

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Draw one of three."""
        mood = random.choice(["very", "quite", "somewhat"])  # noqa: S311 (the defect)
        plain = super().induce(target, strength, question)
        return replace(plain, template=f"{plain.template} Be {mood} sure.")


class Forgetful(Sound):
    """Depends on the order of a set, which differs from process to process."""

    name: ClassVar[str] = "forgetful"

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Name some words in the order of a set."""
        words = ", ".join({"calm", "brave", "kind", "wild", "fair", "loud", "shy"})
        plain = super().induce(target, strength, question)
        return replace(plain, template=f"{plain.template} Think of these words: {words}.")


class Misnamed(Sound):
    """Writes another name into its inductions than the one that it is registered under."""

    name: ClassVar[str] = "misnamed-v2"


class Odd(Sound):
    """Has a number of numpy's in its inductions, which JSON cannot hold."""

    name: ClassVar[str] = "odd"

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Compute something."""
        share: Any = np.float32(1.0)
        return replace(super().induce(target, strength, question), keep=share)


class Deaf(Sound):
    """Says that it has a strength, and does not use it."""

    name: ClassVar[str] = "deaf"
    has_strength: ClassVar[bool] = True


class Silent(Sound):
    """Loses the question."""

    name: ClassVar[str] = "silent"

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Forget what was asked."""
        return replace(super().induce(target, strength, question), template="Answer as {personality} person.")
