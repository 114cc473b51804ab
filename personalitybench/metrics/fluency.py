"""Objective text measures of one answer, beside what a judge says of its fluency.

Judged fluency of today's models sits at the ceiling (9.8 of 10 in Table 14 of the paper) and an embedding sees no
collapse, while repetition and unfinished answers show one at once.
"""

from __future__ import annotations

import re
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FINISHED = re.compile(r"[.!?…][^\w.!?…,;:–—(\[{“‘„-]*$")

# Name of each measure, and whether more of it is better (None where neither direction is).
TEXT_MEASURES: dict[str, bool | None] = {
    "words": None,
    "distinct_2": True,
    "repetition": False,
    "unfinished": False,
}


def measure_text(answer: str) -> dict[str, float]:
    """Measure an answer.

    Returns:
        ``words``: number of words. ``distinct_2``: distinct word pairs / word pairs (0-1; Li et al., 2016).
        ``repetition``: share of word triples that stood before in the same answer (0-1).
        ``unfinished``: 1 if the text does not end a sentence, as when it hit the limit of new tokens, else 0.
        A ratio is left out where the answer is too short to have it.
    """
    words = [word.lower() for word in _WORD.findall(answer)]
    found: dict[str, float] = {
        "words": float(len(words)),
        "unfinished": 0.0 if _FINISHED.search(answer) else 1.0,
    }
    pairs = list(pairwise(words))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    if pairs:
        found["distinct_2"] = len(set(pairs)) / len(pairs)
    if triples:
        found["repetition"] = 1.0 - len(set(triples)) / len(triples)
    return found
