"""What a chat model is told when it judges: rubrics as files (``judges/rubrics/*.yaml``), and the paper's own.

A request becomes messages; :mod:`~personalitybench.judging.verdicts` reads the reply, or
:mod:`~personalitybench.judging.matrix_verdicts` where one reply rates all traits. The answer was written by a model
that may have been made to please the judge, so a rubric's templates never get at it: they place a fenced block whose
mark the answer cannot hold. Equal requests give equal messages, which is what a cache of replies needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.errors import ConfigurationError, unknown_name
from personalitybench.files import content_hash, is_file
from personalitybench.judging.base import FLUENCY, RatingRequest, Verdict
from personalitybench.judging.matrix_verdicts import matrix_schema, read_matrix
from personalitybench.judging.rubric_templates import TEMPLATE_ERRORS, render
from personalitybench.judging.verdicts import read_rating
from personalitybench.outside_files import load_yaml
from personalitybench.resources import bundled
from personalitybench.traits import BIG_FIVE, TRAIT_NAMES, Trait
from personalitybench.traits import trait as trait_by_name
from personalitybench.validation import validate

OFFICIAL = "official"

AGAIN = "Your reply held no rating. Give only the rating, a whole number from 1 to 5 in double square brackets."
"""What is said to a judge whose reply held no rating, if the rubric says nothing else."""

# Part of every rubric's hash: raise it when the fence, the variables of a template, or what is read out of a reply
# change, so that ratings of before and after never share a row.
_FORMAT = 4
_MARK_DIGITS = 16


class RubricFile(BaseModel):
    """A rubric as a file: plain text with ``{{ }}`` and ``{% %}`` of :mod:`.rubric_templates`.

    Attributes:
        summary: One line for lists.
        system: The system message; it has no variables. Empty: there is none.
        trait: The user turn that asks for a trait. Variables: ``trait`` (its name), ``facets`` (a list), ``high`` and
            ``low`` (what a person at that pole is called, with the article), and ``question`` and ``answer``, both
            fenced.
        matrix: Instead of ``trait``: the user turn that asks for all traits in one JSON object. Variables: ``traits``
            (a list; each with ``name``, ``facets``, ``high`` and ``low``), ``question`` and ``answer``.
        fluency: The user turn that asks for fluency. Its only variable is ``answer``, fenced.
        again: The further turn, without variables, where a reply held no rating in double brackets.
        matrix_again: The same where a reply to ``matrix`` held no such object; must be there with ``matrix``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str = Field(min_length=1)
    system: str
    trait: str | None = None
    matrix: str | None = None
    fluency: str
    again: str = Field(default=AGAIN, min_length=1)
    matrix_again: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if (self.trait is None) == (self.matrix is None):
            raise ValueError("give either 'trait' (one trait a reply) or 'matrix' (all traits in one reply)")
        if (self.matrix is None) != (self.matrix_again is None):
            raise ValueError("'matrix' and 'matrix_again' belong together")
        return self


@dataclass(frozen=True)
class Rubric:
    """What a judge goes by.

    Attributes:
        name: Its name, or that of its file.
        summary: One line for lists.
        system: Template of the system message; empty: there is none.
        turns: Template of the user turn for each trait and for fluency.
        again: The further turn where a reply held no rating.
        matrix_again: The same where all traits were asked for at once; None: each trait is asked for by itself.
        fenced: Whether question and answer come with a fence around them. Only the paper's text has none.
    """

    name: str
    summary: str = field(compare=False)
    system: str = field(repr=False)
    turns: Mapping[str, str] = field(repr=False, hash=False)
    again: str = field(default=AGAIN, repr=False)
    matrix_again: str | None = field(default=None, repr=False)
    fenced: bool = True

    @cached_property
    def sha256(self) -> str:
        """Hash of all that can change a message or the reading of a reply."""
        traits = {trait.name: [list(trait.facets), list(trait.adjectives)] for trait in BIG_FIVE}
        again = [self.again, self.matrix_again]
        texts = {"system": self.system, "turns": dict(self.turns), "again": again, "fenced": self.fenced}
        return content_hash(texts | {"format": _FORMAT, "traits": traits})

    def messages(self, item: RatingRequest) -> list[dict[str, str]]:
        """Say what the judge is asked, as messages of a chat. Equal items give equal messages.

        Half a surrogate pair, which no server can be sent, becomes U+FFFD; all other characters stay as they are.

        Raises:
            ConfigurationError: No such trait, or the template fails on this item or changes its fenced answer.
        """
        texts = {"answer": _sendable(item.answer)}
        about: dict[str, object] = {}
        if item.aspect != FLUENCY:
            asked = trait_by_name(item.aspect)
            if self.matrix_again is None:
                about = _described(asked)
                about["trait"] = about.pop("name")
            else:  # nothing of the one trait: all five share the messages, and so the reply
                about = {"traits": [_described(trait) for trait in BIG_FIVE]}
            texts["question"] = _sendable(item.question)
        if self.fenced:
            texts = fence(texts)
        said = {"system": self._render("system", self.system, {})} if self.system else {}
        said["user"] = self._render(item.aspect, self.turns[item.aspect], about | texts)
        shown = said["user"].count(texts["answer"])
        if self.fenced and shown != 1:
            times = "not there unchanged" if shown == 0 else f"there {shown} times"
            raise ConfigurationError(
                f"rubric {self.name!r}, {item.aspect}: {{{{ answer }}}} must stand once, it is {times}"
            )
        return [{"role": role, "content": content} for role, content in said.items()]

    def read(self, text: str, aspect: str) -> Verdict:
        """Read what the judge's reply says of an aspect."""
        return read_matrix(text, aspect) if self.asks_all(aspect) else read_rating(text)

    def asks_all(self, aspect: str) -> bool:
        """Whether the reply about this aspect rates all traits."""
        return self.matrix_again is not None and aspect != FLUENCY

    def further_turn(self, aspect: str) -> str:
        """What is said where a reply about this aspect held no rating."""
        return self.matrix_again if self.matrix_again is not None and aspect != FLUENCY else self.again

    def response_format(self, aspect: str) -> dict[str, Any] | None:
        """What a server is told of the reply's form (``response_format`` of OpenAI's API); None: nothing."""
        if not self.asks_all(aspect):
            return None
        schema = {"name": "ratings", "strict": True, "schema": matrix_schema(TRAIT_NAMES)}
        return {"type": "json_schema", "json_schema": schema}

    def _render(self, part: str, template: str, values: Mapping[str, object]) -> str:
        try:
            return render(template, values)
        except TEMPLATE_ERRORS as error:
            raise ConfigurationError(f"rubric {self.name!r}, {part}: {_first_line(error)}") from error


def rubric_names() -> list[str]:
    """Names of the bundled rubrics, and ``official``."""
    return sorted([path.stem for path in bundled("judges", "rubrics").glob("*.yaml")] + [OFFICIAL])


def load_rubric(name: str) -> Rubric:
    """Load a rubric.

    Args:
        name: A bundled rubric (``project``), a path ending in ``.yaml`` or ``.yml``, or ``official``: the paper's
            text, fetched on first use from a pinned public release.

    Raises:
        ConfigurationError: There is no such rubric, or its file is wrong: no YAML, an unknown key or variable, a
            template that cannot be rendered or that does not show the answer exactly once.
        DataError: The paper's text cannot be fetched, or is not what was pinned.
    """
    if name == OFFICIAL:
        from personalitybench.judging.official_rubric import read_official_turns  # noqa: PLC0415 (needs requests)

        summary = "the paper's text, in one user turn without a fence"
        return Rubric(OFFICIAL, summary, "", read_official_turns(), fenced=False)
    path = Path(name) if name.endswith((".yaml", ".yml")) else bundled("judges", "rubrics") / f"{name}.yaml"
    if not is_file(path):
        raise unknown_name("rubric", name, rubric_names())
    texts = validate(RubricFile, load_yaml(path, "rubric"), f"rubric {path}")
    turns = dict.fromkeys(TRAIT_NAMES, texts.trait or texts.matrix or "") | {FLUENCY: texts.fluency}
    rubric = Rubric(path.stem, texts.summary, texts.system, turns, texts.again, texts.matrix_again)
    for aspect in rubric.turns:  # now, rather than after a thousand paid ratings
        rubric.messages(RatingRequest("What would you do?", "I would go home.", aspect))
    return rubric


def fence(texts: Mapping[str, str], digits: int = _MARK_DIGITS) -> dict[str, str]:
    """Put each text between two lines that no text can hold.

    Args:
        texts: What is to be fenced, by the word that names its fence.
        digits: Length of the mark.

    Returns:
        ``<name-MARK>``, the text, ``</name-MARK>``, each on lines of their own. The mark is drawn by hash from the
        texts, so that it is the same the next time, and drawn again while a text holds it in whatever case.
    """
    seed = content_hash(dict(texts))
    folded = [text.casefold() for text in texts.values()]
    drawn = (hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:digits] for number in count())
    mark = next(mark for mark in drawn if not any(mark in text for text in folded))
    return {name: f"<{name}-{mark}>\n{text}\n</{name}-{mark}>" for name, text in texts.items()}


def _described(trait: Trait) -> dict[str, object]:
    high, low = trait.adjectives
    return {"name": trait.name, "facets": list(trait.facets), "high": high, "low": low}


def _sendable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
