"""What a chat model wrote as a judge becomes a rating, or a reason why there is none.

A judge explains itself and ends with a whole number from 1 to 5 in double brackets. It may quote the answer that it
rates, brackets and all, so the last verdict counts. Nothing is guessed: a missing rating can be asked for again, a
wrong one cannot be seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque

from personalitybench.judging.base import Rating, Unrated, Verdict

_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_WORD = re.compile(r"\w+")
_CHOICE_CHARACTERS = 16
"""Two verdicts that stand this close may be one choice between two numbers."""
_ENDS_A_CHOICE = frozenset("\n\r\"'.:;!?“”‘’«»`")
_SHOWN_CHARACTERS = 40


def read_rating(text: str) -> Verdict:
    """Read a judge's reply, in time linear in its length.

    The last ``[[...]]`` is the verdict. A rating is a whole number from 1 to 5 in the digits of any script; blanks
    around it do not matter. Two different numbers that are offered as a choice (``[[3]] or [[4]]``: on one line, at
    most one word between them, no end of a sentence, colon or quotation mark) are no rating, as ``[[3-4]]`` is none.
    Any other verdict before the last one, such as a quotation from the answer, is left where it stands.

    Args:
        text: The whole reply.

    Returns:
        The rating with the text before it as its explanation; or unrated, because of ``no-rating`` (no double
        brackets), ``not-a-rating`` (something else than one whole number in the last ones: a decimal, a range, a
        word, nothing) or ``out-of-range``.
    """
    found = deque(_BRACKETS.finditer(text), maxlen=2)
    if not found:
        return Unrated("no-rating", "the reply has no number in double brackets")
    last = found[-1]
    number = _whole_number(last[1])
    if number is None:
        return Unrated("not-a-rating", f"the last double brackets hold {_shown(last[1])}, not one whole number")
    if not 1 <= number <= 5:
        return Unrated("out-of-range", f"the last double brackets hold {_shown(last[1])}, a rating is from 1 to 5")
    if len(found) == 2:
        before = _whole_number(found[0][1])
        if before not in {None, number} and _is_choice(text, found[0].end(), last.start()):
            return Unrated("not-a-rating", f"the reply ends with two ratings, {_shown(found[0][1])} and {number}")
    return Rating(float(number), text[: last.start()].strip())


def _whole_number(content: str) -> int | None:
    """The number that a text is; 6 stands for all greater ones, and 0 for those below."""
    digits = content.strip()
    negative = digits[:1] in {"-", "\N{MINUS SIGN}"}
    values = [unicodedata.digit(character, -1) for character in digits[negative:]]
    if not values or -1 in values:
        return None
    if negative:
        return 0
    # Not int(): it refuses thousands of digits.
    return min(values[-1], 6) if not any(values[:-1]) else 6


def _is_choice(text: str, start: int, end: int) -> bool:
    """Whether what stands between two verdicts makes them one choice."""
    if end - start > _CHOICE_CHARACTERS:
        return False
    between = text[start:end]
    return not _ENDS_A_CHOICE.intersection(between) and len(_WORD.findall(between)) <= 1


def _shown(content: str) -> str:
    """A text of any length as a short quotation for an error."""
    cut = content if len(content) <= _SHOWN_CHARACTERS else content[: _SHOWN_CHARACTERS - 1] + "…"
    return repr(cut)
