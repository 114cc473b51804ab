"""A process that rates many answers and may be killed amid them: ``python -m tests.killed_judge PROFILE COUNT``.

With ``reversed`` as a third argument it begins with the last one.
"""

from __future__ import annotations

import sys

from personalitybench.judging import RatingRequest, create_judge, rate_all


def items(count: int) -> list[RatingRequest]:
    """Answers that all differ."""
    return [RatingRequest("How was your day?", f"Answer number {number}.", "extraversion") for number in range(count)]


if __name__ == "__main__":
    rate_all(create_judge(sys.argv[1]), items(int(sys.argv[2]))[:: -1 if "reversed" in sys.argv else 1])
