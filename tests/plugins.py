"""Plug-ins for tests: a method with a strength that fits nothing, and a judge whose ratings are drawn by a hash."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from personalitybench.judging.base import FLUENCY, JudgeProfile, Rating, RatingRequest, RatingsReport, Verdict, judges
from personalitybench.methods import methods

sys.path.insert(0, str(Path(__file__).parent / "example_package" / "src"))
from personalitybench_example import InsistentDiary

methods.register("insistent")(InsistentDiary)


@judges.register("hash")
class HashJudge:
    """The same answer always gets the same rating, and another ``salt`` gives others; fluency is 4 or 5."""

    at_a_time = 8
    summary = "ratings drawn by a hash of the answer"

    def __init__(self, profile: JudgeProfile) -> None:
        self.profile = profile

    @property
    def rubric_sha256(self) -> str:
        return "none"

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        if report is not None:
            report(len(items))
        return [Rating(self._draw(item)) for item in items]

    def _draw(self, item: RatingRequest) -> float:
        digest = hashlib.sha256(f"{self.profile.settings['salt']}\0{item.aspect}\0{item.answer}".encode()).digest()
        return random.Random(digest).choice([4.0, 5.0] if item.aspect == FLUENCY else [1.0, 2.0, 3.0, 4.0, 5.0])  # noqa: S311 (reproducible, not secret)


def write_judge(folder: Path, salt: str) -> Path:
    """Write a profile of :class:`HashJudge`."""
    path = folder / f"hash-{salt}.yaml"
    path.write_text(f"id: hash-{salt}\nprovider: hash\nsummary: for tests\nsettings: {{salt: {salt}}}\n")
    return path
