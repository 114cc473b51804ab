"""The Big Five as data: traits, poles and targets. The root of the way of the data; imports nothing of ours.

Names and facets follow the IPIP-NEO (Johnson, 2014), as PersonalityBench does (Deng et al., ICLR 2025, §3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from personalitybench.errors import ConfigurationError, unknown_name


class Pole(StrEnum):
    """One end of a trait. The paper's files write ``high`` as the plain name and ``low`` as ``_reversed``."""

    HIGH = "high"
    LOW = "low"


@dataclass(frozen=True)
class Trait:
    """A personality trait.

    Attributes:
        name: Lower-case name, as used everywhere in this project.
        facets: Its six facets.
        adjectives: What a person at the high and at the low pole is called (Table 6 of the paper),
            with the article that belongs before it.
    """

    name: str
    facets: tuple[str, ...]
    adjectives: tuple[str, str]

    @property
    def file_name(self) -> str:
        """Name of the trait in the paper's file names, e.g. ``Openness``."""
        return self.name.capitalize()


@dataclass(frozen=True, order=True)
class Target:
    """A trait and a pole, written ``extraversion:high``."""

    trait: str
    pole: Pole

    def __str__(self) -> str:
        return f"{self.trait}:{self.pole}"

    @property
    def opposite(self) -> Target:
        """The other pole of the same trait."""
        return Target(self.trait, Pole.LOW if self.pole is Pole.HIGH else Pole.HIGH)

    @property
    def file_key(self) -> str:
        """Key in the paper's files: ``Openness`` or ``Openness_reversed``."""
        return trait(self.trait).file_name + ("" if self.pole is Pole.HIGH else "_reversed")

    @property
    def adjective(self) -> str:
        """The paper's adjective for this target with its article, e.g. ``an introverted``."""
        high, low = trait(self.trait).adjectives
        return high if self.pole is Pole.HIGH else low

    def score(self, rating: float) -> float:
        """See a rating (1-5) from this target: ``r`` for a high pole, ``6 - r`` for a low one."""
        return rating if self.pole is Pole.HIGH else 6.0 - rating

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``extraversion:high``.

        Raises:
            ConfigurationError: The trait or the pole does not exist.
        """
        name, _, pole = text.partition(":")
        if pole not in set(Pole):
            raise ConfigurationError(
                f"target {text!r}: write a trait and a pole, such as 'extraversion:high' (poles: high, low)"
            )
        return cls(trait(name).name, Pole(pole))


BIG_FIVE: tuple[Trait, ...] = (
    Trait(
        "openness",
        ("imagination", "artistic interests", "emotionality", "adventurousness", "intellect", "liberalism"),
        ("an open", "a closed"),
    ),
    Trait(
        "conscientiousness",
        (
            "self-efficacy",
            "orderliness",
            "dutifulness",
            "achievement-striving",
            "self-discipline",
            "cautiousness",
        ),
        ("a conscientious", "an unconscientious"),
    ),
    Trait(
        "extraversion",
        (
            "friendliness",
            "gregariousness",
            "assertiveness",
            "activity level",
            "excitement-seeking",
            "cheerfulness",
        ),
        ("an extraverted", "an introverted"),
    ),
    Trait(
        "agreeableness",
        ("trust", "morality", "altruism", "cooperation", "modesty", "sympathy"),
        ("an agreeable", "a disagreeable"),
    ),
    Trait(
        "neuroticism",
        ("anxiety", "anger", "depression", "self-consciousness", "immoderation", "vulnerability"),
        ("a neurotic", "a calm"),
    ),
)

TRAIT_NAMES: tuple[str, ...] = tuple(t.name for t in BIG_FIVE)
TARGETS: tuple[Target, ...] = tuple(Target(t.name, pole) for t in BIG_FIVE for pole in Pole)


def trait(name: str) -> Trait:
    """Look a trait up by name.

    Raises:
        ConfigurationError: There is no such trait; the text names the nearest.
    """
    for candidate in BIG_FIVE:
        if candidate.name == name:
            return candidate
    raise unknown_name("trait", name, TRAIT_NAMES)
