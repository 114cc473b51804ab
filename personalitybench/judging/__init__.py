"""What rates answers. Judging knows questions and answers, never the models or methods that wrote them."""

from personalitybench.judging.base import (
    FLUENCY,
    Judge,
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
    create_judge,
    judge_names,
    judges,
    rate_all,
    verdict_from_json,
)

__all__ = [
    "FLUENCY",
    "Judge",
    "JudgeProfile",
    "Rating",
    "RatingRequest",
    "RatingsReport",
    "Unrated",
    "Verdict",
    "create_judge",
    "judge_names",
    "judges",
    "rate_all",
    "verdict_from_json",
]
