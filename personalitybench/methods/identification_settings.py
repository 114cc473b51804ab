"""How identification questions are answered: settings that methods share which learn from such answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from personalitybench.methods.base import MethodSettings


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
