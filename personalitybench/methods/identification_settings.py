"""How identification questions are answered: settings that methods share which learn from such answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from personalitybench.methods.base import MethodSettings

FORMAT = 2
"""Raised when the same identity no longer gives the same answers."""


class IdentificationSettings(MethodSettings):
    """Settings of identification.

    Attributes:
        questions: Identification questions of each trait, drawn balanced over facets; ``all`` takes every one.
        max_tokens: New tokens of an answer.
        repetition_penalty: Of the answers.
        batch_size: Answers at a time.
    """

    questions: Annotated[int, Field(ge=1)] | Literal["all"] = 2000
    max_tokens: int = Field(default=500, ge=2)
    repetition_penalty: float = Field(default=1.1, gt=0)
    batch_size: int = Field(default=32, ge=1)


def answers_identity(about: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that identification answers depend on; its hash names their folder.

    Args:
        about: What the fit depends on besides the method: model, data, wording, seed.
        settings: Of the method; at least those of :class:`IdentificationSettings`.

    Raises:
        KeyError: The method has not all of these settings, so it asks no identification questions.
    """
    return {
        "format": FORMAT,
        **about,
        "settings": {name: settings[name] for name in IdentificationSettings.model_fields},
    }
