"""What a chat model wrote as a judge becomes a rating, or a reason why there is none.

A judge explains itself and ends with a whole number from 1 to 5 in double brackets. It may quote the answer that it
rates, brackets and all, so the last verdict counts. Nothing is guessed: a missing rating can be asked for again, a
wrong one cannot be seen.
"""

from __future__ import annotations

import re
import unicodedata

from personalitybench.completions import without_thoughts
from personalitybench.judging.base import Rating, Unrated, Verdict

_BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
_LINE_END = re.compile(r"[\n\r]")
_QUOTING = '"“”«»`'
_QUOTATION_MARKS = re.compile(f"[{_QUOTING}]")
# Words that make a number the end of a scale. The first pattern ends at the verdict, the second begins after it.
_SCALE_BEFORE = re.compile(
    r"(?:\bout\s+of|/|\bup\s+to|\b(?:scale|range)\s+(?:of|from)|\d\s*(?:to|through|-|–|—)"
    r"|\b(?:maximum|minimum|highest|lowest|max|min|top|bottom)(?:\s+\w+)?(?:\s+(?:is|of|being))?)[\s:=(*_]*\Z",
    re.IGNORECASE,
)
_SCALE_AFTER = re.compile(
    r"[\s)*_,]*(?:(?:is|being|means|meaning|stands\s+for|would\s+be|would\s+mean|as)\b[^.!?\n]*"
    r"\b(?:scale|maximum|minimum|highest|lowest|max|min|top|bottom|best|worst|extreme(?:ly)?)\b"
    r"|(?:is\s+|being\s+)?(?:the\s+)?(?:scale|maximum|minimum|highest|lowest)\b)",
    re.IGNORECASE,
)
_SCALE_LINE = re.compile(
    r"\b(?:scale|scales|range|ranges|out\s+of|maximum|minimum|highest|lowest|max|min|means|legend)\b", re.IGNORECASE
)
# Double brackets of other forms, cut off or escaped: after the last plain ones, they may hold the verdict.
_OTHER_BRACKETS = re.compile(r"\[ *\[|\\\[\s*\\?\[|［\s*［|【\s*【|〖|〚|⟦")
_BLOCK_QUOTE = re.compile(r"[ \t]*>")
# Words or marks that take a number back. The first pattern ends at the verdict, the second begins after it.
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never)(?:\s+(?:an?|as|at|be|give|rate|it|this|deserve|worth))*|\binstead\s+of|\brather\s+than|~~)"
    r"[\s*_]*\Z",
    re.IGNORECASE,
)
_OTHER_AFTER = re.compile(
    r"\b(?:rating|score|verdict|rate|rated|but(?!\s+not\b)|however|actually)\b[^\d\n]{0,60}?"
    r"(?<![\w.,/-])([1-5])(?![\w/-]|[.,]\d)",
    re.IGNORECASE,
)
_AFTER_CHARACTERS = 2000
_CONTEXT_CHARACTERS = 200
_SHOWN_CHARACTERS = 40


def read_rating(text: str) -> Verdict:
    """Read a judge's reply, in time linear in its length.

    Thoughts (``<think>...</think>``) are no part of it. The last ``[[...]]`` is the verdict. A rating is a whole number
    from 1 to 5 in the digits of any script; blanks around it do not matter. Never guessed: two different ratings on the
    last verdict's line (``[[3]] or [[4]]``, ``[[4]] out of [[5]]``) are no rating, unless quotation marks close
    between them; nor is a verdict that quotes the scale (``out of [[5]]``, ``Note: [[5]] is the maximum``), stands in a
    quotation with other words, is taken back (``not [[5]]``, ``[[5]] ... I rate it 2``), or is followed by double
    brackets of another form (``［［2］］``, ``[[2]``). A verdict on an earlier line, such as a quotation from the
    answer, is ignored.

    Args:
        text: The whole reply.

    Returns:
        The rating with the text before it as its explanation; or unrated, because of ``no-rating`` (no double
        brackets), ``not-a-rating`` (something else than one whole number in the last ones: a decimal, a range, a
        word, nothing; or more than one number, or the scale) or ``out-of-range``.
    """
    text = without_thoughts(text)
    latest = {found[1]: found for found in _BRACKETS.finditer(text)}
    last = max(latest.values(), key=re.Match.start, default=None)
    if last is None:
        return Unrated("no-rating", "the reply has no number in double brackets")
    number = _whole_number(last[1])
    if number is None:
        return Unrated("not-a-rating", f"the last double brackets hold {_shown(last[1])}, not one whole number")
    if not 1 <= number <= 5:
        return Unrated("out-of-range", f"the last double brackets hold {_shown(last[1])}, a rating is from 1 to 5")
    start, end = _line(text, last)
    others = [found for held, found in latest.items() if _whole_number(held) not in {None, number}]
    on_line = [found for found in others if found.start() >= start]
    quoted = [len(_QUOTATION_MARKS.findall(text, found.end(), last.start())) % 2 == 1 for found in on_line]
    about_scale = others and _SCALE_LINE.search(text, max(start, last.start() - _CONTEXT_CHARACTERS), end)
    if not all(quoted) or (about_scale and len(on_line) < len(others)):
        other = max(others, key=re.Match.start)
        return Unrated("not-a-rating", f"the reply ends with two ratings, {_shown(other[1])} and {number}")
    before = text[max(start, last.start() - _CONTEXT_CHARACTERS) : last.start()]
    about = None
    if _SCALE_BEFORE.search(before) or _SCALE_AFTER.match(text[last.end() : end]):
        about = "quote the scale"
    elif _is_quoted(text, last, start, end):
        about = "stand in a quotation"
    elif _is_taken_back(number, before, text[last.end() :][:_AFTER_CHARACTERS]):
        about = "are taken back, or another rating follows"
    if about is not None:
        return Unrated("not-a-rating", f"the last double brackets {about}: {number}")
    return Rating(float(number), text[: last.start()].strip())


def _is_quoted(text: str, verdict: re.Match[str], start: int, end: int) -> bool:
    """Return True if the verdict on a line is part of a longer quotation."""
    if _BLOCK_QUOTE.match(text, start):
        return True
    marks = sum(text.count(mark, start, verdict.start()) for mark in _QUOTING)
    closed = _QUOTATION_MARKS.search(text, verdict.end(), end)
    if marks % 2 == 0 or closed is None:
        return False
    opened = max(text.rfind(mark, start, verdict.start()) for mark in _QUOTING)
    around = text[opened + 1 : verdict.start()] + text[verdict.end() : closed.start()]
    return any(map(str.isalnum, around)) and "rating" not in around.casefold()


def _is_taken_back(number: int, before: str, after: str) -> bool:
    """Return True if the text around a verdict denies it, or gives another one in another form."""
    others = {int(found[1]) for found in _OTHER_AFTER.finditer(after)} - {number}
    return bool(others or _OTHER_BRACKETS.search(after) or _DENIED_BEFORE.search(before))


def _line(text: str, verdict: re.Match[str]) -> tuple[int, int]:
    """Return start and end of the line with a verdict, at most :data:`_CONTEXT_CHARACTERS` after it."""
    start = max(text.rfind("\n", 0, verdict.start()), text.rfind("\r", 0, verdict.start())) + 1
    limit = min(len(text), verdict.end() + _CONTEXT_CHARACTERS)
    ended = _LINE_END.search(text, verdict.end(), limit)
    return start, ended.start() if ended else limit


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


def _shown(content: str) -> str:
    """A text of any length as a short quotation for an error."""
    cut = content if len(content) <= _SHOWN_CHARACTERS else content[: _SHOWN_CHARACTERS - 1] + "…"
    return repr(cut)
