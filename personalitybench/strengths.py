"""Strengths: the scalar that scales a method's effect, one for all targets or one for each, and how it was come by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from personalitybench.errors import ConfigurationError
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target, trait

ChosenOn = Literal["dev"]  # the half that a strength was chosen on
StrengthProtocol = Literal["held-out", "paper", "given"]


def parse_strength(value: Any) -> float | dict[str, float]:
    """Read a strength as a user writes it.

    Args:
        value: A number for all targets, or a mapping of targets (``openness:low``) or traits (both poles, as the
            paper's gamma) to numbers; a target's own number goes before its trait's.

    Returns:
        The number, or a number by target in the usual order of targets.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(value, Mapping):
        return _number(value)
    if not value:
        raise ValueError("a strength for each target is a mapping of targets or traits to numbers, this one is empty")
    try:
        for name in value:
            Target.parse(name) if ":" in str(name) else trait(str(name))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    wide = {target: value[target.trait] for target in TARGETS if target.trait in value}
    own = {target: value[str(target)] for target in TARGETS if str(target) in value}
    found = wide | own
    return {str(target): _number(found[target]) for target in TARGETS if target in found}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        traits = ", ".join(f"{name}: 1.0" for name in TRAIT_NAMES[:2])
        raise ValueError(f"a strength is a number, or a mapping such as {{{traits}}}, not {value!r}")
    return float(value)


Strength = Annotated[float | dict[str, float], PlainValidator(parse_strength)]


def strength_for(strength: float | Mapping[str, float] | None, target: Target) -> float | None:
    """Strength of one target.

    Raises:
        ConfigurationError: There is one for each target, but none for this.
    """
    if not isinstance(strength, Mapping):
        return strength
    if str(target) not in strength:
        raise ConfigurationError(
            f"the strengths {dict(strength)} have none for {target}: add one, or leave the target out of the suite"
        )
    return strength[str(target)]


def strength_protocol(
    strength: float | Mapping[str, float] | None, half: str, chosen_on: ChosenOn | None
) -> StrengthProtocol | None:
    """Say how the strength of a result was come by: what a reader must know before comparing it.

    Returns:
        ``held-out``: chosen on the dev half, reported on the test half. ``paper``: given, and all questions were
        asked, so whoever gave it may have chosen it on these very answers, as the paper did. ``given``: given, and
        one half was asked. None where there is no strength.
    """
    if strength is None:
        return None
    if chosen_on is not None:
        return "held-out"
    return "paper" if half == "all" else "given"


def show_strength(strength: float | Mapping[str, float]) -> str:
    """Write a strength shortly: ``1.4``, or the range ``0.6-1.4`` where targets have their own."""
    if not isinstance(strength, Mapping):
        return f"{strength:g}"
    low, high = min(strength.values()), max(strength.values())
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"
