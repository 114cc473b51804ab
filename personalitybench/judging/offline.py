"""The offline judge: rates any answer for any trait and for fluency without a key or a network.

It is a judge for development and for demonstrations. Its numbers are not those of GPT-4o: see its report in
``judges/offline/report.md`` for how well it tells the poles apart on texts that it never saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from personalitybench.errors import unknown_name
from personalitybench.files import cached_sha256, content_hash
from personalitybench.judging.base import (
    FLUENCY,
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Verdict,
)
from personalitybench.judging.features import AnswerFeatures, shared_reader
from personalitybench.judging.heads import load_heads
from personalitybench.models import DEMO_MODEL
from personalitybench.resources import bundled
from personalitybench.validation import validate

_DIGITS = 4


class OfflineSettings(BaseModel):
    """Settings of the profile: ``heads`` is a file below ``judges/``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: str


class OfflineJudge:
    """Heads trained on hand-written answers, over one pass of a small language model.

    Args:
        profile: Its profile.
    """

    at_a_time: ClassVar[int] = 8
    summary: ClassVar[str] = "trained heads over a small language model; no key, no network"

    def __init__(self, profile: JudgeProfile) -> None:
        self.profile = profile
        settings = validate(OfflineSettings, profile.settings, f"judge profile {profile.id!r}: settings")
        self._path = bundled("judges", *settings.heads.split("/"))
        self._heads = load_heads(self._path)

    @property
    def rubric_sha256(self) -> str:
        """Hash of the heads and of the model whose states they read."""
        return content_hash([cached_sha256(self._path), DEMO_MODEL.sha256])

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        """Rate items.

        Raises:
            ConfigurationError: There is no head for an aspect.
        """
        verdicts = []
        for item in items:
            verdicts.append(await asyncio.to_thread(self._rate, item))
            if report is not None:
                report(1)
        return verdicts

    def _rate(self, item: RatingRequest) -> Verdict:
        if item.aspect not in self._heads:
            raise unknown_name("aspect to rate", item.aspect, self._heads)
        features = _read(item.answer)
        seen = features.fluency if item.aspect == FLUENCY else features.state
        return Rating(round(self._heads[item.aspect].rating(seen), _DIGITS))


@lru_cache(maxsize=4096)
def _read(answer: str) -> AnswerFeatures:
    """Features of an answer; the pass over the model is made once for all aspects."""
    return shared_reader().read(answer)
