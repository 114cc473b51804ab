"""A judge's reply that rates all traits at once, as a JSON object: one trait's rating, or a reason why there is none.

Like :mod:`personalitybench.judging.verdicts` this guesses nothing. The judge may quote the answer that it rates, with
whatever JSON stands in it, so only the object that the reply ends with counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personalitybench.completions import dump, valid_text, without_thoughts
from personalitybench.judging.base import Rating, Unrated, Verdict
from personalitybench.outside_files import UnreadableError, parse_json

_BRACES = re.compile(r'["{}\\]')
_DEEPEST = 50  # braces within braces; a verdict has two
_STRAY_BRACES = 4  # that open nothing and are passed over
_SHOWN_CHARACTERS = 40
_LONGEST_NUMBER = 18  # digits; no rating has more, and int() refuses thousands


class TraitVerdict(BaseModel):
    """What the object says of one trait.

    Attributes:
        explanation: In a few words.
        rating: A whole number.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    explanation: str = ""
    rating: int = Field(ge=1, le=5)


class _RepeatedKeyError(UnreadableError):
    """An object has a key twice, so that it says two things."""


def matrix_schema(traits: Sequence[str]) -> dict[str, Any]:
    """JSON schema of the reply, within what OpenAI's structured outputs allow (``strict``)."""
    rating = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    about = _closed_object({"explanation": {"type": "string"}, "rating": rating})
    return _closed_object(dict.fromkeys(traits, about))


def read_matrix(text: str, trait: str) -> Verdict:
    """Read one trait's verdict in a judge's reply, in time linear in its length.

    Thoughts (``<think>...</think>``) do not count. The last ``{...}`` of the rest counts, whatever stands around it
    (prose, a code fence). It must be a JSON object ``{"openness": {"explanation": "...", "rating": 4}, ...}``; other
    traits' verdicts do not matter.

    Args:
        text: The whole reply.
        trait: The trait.

    Returns:
        The rating; or unrated, because of ``no-rating`` (no such object, or it lacks the trait or its rating),
        ``not-a-rating`` (the rating is no whole number; a key stands twice) or ``out-of-range``.
    """
    found = _last_object(without_thoughts(text))
    if found is None:
        return Unrated("no-rating", "the reply does not end with a JSON object")
    try:
        # Not strict: some models break lines inside their explanations.
        value = parse_json(
            found, finite=False, strict=False, object_pairs_hook=_without_repeats, parse_int=_bounded_number
        )
    except _RepeatedKeyError as error:
        return Unrated("not-a-rating", f"the key {_shown(str(error))} stands twice in one object")
    except UnreadableError as error:
        return Unrated("no-rating", f"the braces that the reply ends with are no JSON ({_first_line(error)})")
    return _read_entry(value.get(trait), trait)


def _read_entry(entry: object, trait: str) -> Verdict:
    if not isinstance(entry, dict) or "rating" not in entry:
        return Unrated("no-rating", f"the object that the reply ends with has no rating for {trait}")
    try:
        verdict = TraitVerdict.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        rating = f"{trait} has the rating {_shown(entry['rating'])}"
        if first["type"] in {"greater_than_equal", "less_than_equal"}:
            return Unrated("out-of-range", f"{rating}, a rating is from 1 to 5")
        if first["loc"] == ("rating",):
            return Unrated("not-a-rating", f"{rating}, not one whole number")
        return Unrated("not-a-rating", f"{trait} has an explanation that is no text")
    return Rating(float(verdict.rating), valid_text(verdict.explanation.strip()))


def _last_object(text: str) -> str | None:
    """The last ``{...}`` that stands in no other one, or None where nothing closes what is opened last.

    A brace that opens nothing, as prose may have one, is passed over, but not often: so the time stays linear.
    """
    last, start = None, text.find("{")
    for _ in range(_STRAY_BRACES):
        while start >= 0 and (end := _end_of_object(text, start)) >= 0:
            last = text[start:end]
            start = text.find("{", end)
        if start < 0:
            return last
        last, start = None, text.find("{", start + 1)
    return None


def _end_of_object(text: str, start: int) -> int:
    """Place after the brace that closes the one at ``start``; -1 if none does. Braces in JSON strings are text."""
    depth, in_string, place = 0, False, start
    while mark := _BRACES.search(text, place):
        place = mark.end()
        match mark[0]:
            case "\\" if in_string:
                place += 1
            case '"':
                in_string = not in_string
            case "{" if not in_string:
                depth += 1
                if depth > _DEEPEST:
                    return -1
            case "}" if not in_string:
                depth -= 1
                if depth == 0:
                    return place
    return -1


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, member in pairs:
        if key in value:
            raise _RepeatedKeyError(key)
        value[key] = member
    return value


def _bounded_number(digits: str) -> int:
    """A whole number; what has more digits than any that matters becomes one that is out of range."""
    return int(digits) if len(digits) <= _LONGEST_NUMBER else 10**_LONGEST_NUMBER


def _closed_object(members: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(members),
        "required": list(members),
        "additionalProperties": False,
    }


def _shown(value: object) -> str:
    """A value of any length as a short quotation for an error."""
    text = valid_text(value) if isinstance(value, str) else dump(value)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
