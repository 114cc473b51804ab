"""Objective text measures of one answer, beside what a judge says of its fluency.

Judged fluency of today's models sits at the ceiling (9.8 of 10 in Table 14 of the paper) and an embedding sees no
collapse, while repetition and unfinished answers show one at once.
"""

from __future__ import annotations

from itertools import pairwise

import regex

# Scripts that write no blanks between words: every letter, with its marks, counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\uff70"
_MARK = r"[\p{M}--[\ufe00-\ufe0f\u20dd-\u20e4]]"  # without selectors and frames of emoji
_LETTER = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]"
_PART = rf"{_LETTER}(?:{_LETTER}|{_MARK}|[\u200c\u200d](?={_LETTER}))*"
_WORD = regex.compile(rf"(?V1)[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]{_MARK}*|{_PART}(?:['’-]{_PART})*")
# A sentence's end, then nothing but closing marks, blanks and symbols; a Greek question ends with a semicolon.
_FINISHED = regex.compile(
    r"(?V1)(?:[\p{Sentence_Terminal}…]|(?<=\p{Greek}\s*)[;\u037e])"
    r"[^\p{L}\p{N}_\p{Sentence_Terminal}…,;:–—“‘\-\p{Ps}，、；：،؛]*$"
)
# Scripts without a mark for the end of a sentence: an answer in them may be finished or not.
_UNMARKED = regex.compile(r"(?V1)[\p{Thai}\p{Lao}][^\p{L}\p{N}]*$")

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
        ``words``: number of words; letters where a script has no blanks between words (Han, Kana, Thai, Lao, Khmer,
        Myanmar). ``distinct_2``: distinct word pairs / word pairs (0-1; Li et al., 2016).
        ``repetition``: share of word triples that stood before in the same answer (0-1).
        ``unfinished``: 1 if the text does not end a sentence, as when it hit the limit of new tokens, else 0.
        A ratio is left out where the answer is too short to have it, ``unfinished`` where the script of the last
        letter (Thai, Lao) does not mark the end of a sentence.
    """
    words = [word.lower() for word in _WORD.findall(answer)]
    found = {"words": float(len(words))}
    if not _UNMARKED.search(answer):
        found["unfinished"] = 0.0 if _FINISHED.search(answer) else 1.0
    pairs = list(pairwise(words))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    if pairs:
        found["distinct_2"] = len(set(pairs)) / len(pairs)
    if triples:
        found["repetition"] = 1.0 - len(set(triples)) / len(triples)
    return found
