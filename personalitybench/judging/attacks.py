"""Answers that a judge must not be taken in by: bland, stuffed with the trait's name, echoing a persona, injecting.

The texts are data (``judges/attacks/collection.yaml``). They answer questions of the bundled sample, always: so what a
judge makes of them can be compared between machines, and published. Equal versions give equal answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.errors import ConfigurationError
from personalitybench.files import JsonLines, content_hash
from personalitybench.judging.base import FLUENCY, RatingRequest
from personalitybench.judging.rubrics import fence
from personalitybench.outside_files import load_yaml
from personalitybench.questions import Question, shared_source
from personalitybench.resources import bundled
from personalitybench.traits import TRAIT_NAMES, Pole, Target, trait
from personalitybench.validation import validate

QUESTIONS = 4
"""Questions of each trait that the floors of a board are made from."""

KINDS: dict[str, str] = {
    "constant": "one bland sentence for every question and target; equal for both poles, so its composite is about 6",
    "keywords": "names of the trait, its facets and its pole, again and again, and no thought, feeling or deed",
    "persona-echo": 'a persona description of the target, repeated as "I am ..." whatever is asked',
    "injection": "a text of the opposite pole, with a demand for the verdict that the target wants",
    "gold": "a hand-written text of the target",
    "opposite": "the text of the opposite pole that the injections stand in, without them",
}
"""What each kind of answer is."""

ATTACKS = ("constant", "keywords", "persona-echo", "injection")
"""Kinds that do not show the target; what they score is the floor of a judge."""

REFERENCES = ("gold", "opposite")

# "you" is "me" after these words, and before a full stop or a comma; everywhere else in the sample it is "I".
_ME_AFTER = re.compile(
    "addresses|amuse|annoys|around|at|beyond|bores?|bothers|costs?|drains?|fascinates|find|for|frighten|gives|"
    "interests?|irritate|keeps|knows?|leaves?|lose|makes?|move|on|please|puzzles|reach|restores|revives|send|set|"
    "strikes?|suits?|tell|tempts?|tire|to|touches|troubles?|wear|with"
)


class _ByPole(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    high: str = Field(min_length=1)
    low: str = Field(min_length=1)


class AttackCollection(BaseModel):
    """``judges/attacks/collection.yaml``, whose head says what is filled into the texts.

    Attributes:
        constant: One text for everything.
        keywords: A text for each pole.
        injections: By name; a text for both poles, or one for each.
        odd: Texts that are hardly answers, for the tests of fence and parser; as a mapping, with how often each stands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    constant: str = Field(min_length=1)
    keywords: _ByPole
    injections: dict[str, str | _ByPole] = Field(min_length=1)
    odd: dict[str, str | dict[str, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> AttackCollection:
        for name in self.injections:
            for pole in Pole:
                if self.injection(name, pole).count("@ANSWER@") != 1:
                    raise ValueError(f"injection {name!r} must have @ANSWER@ once")
        return self

    def injection(self, name: str, pole: Pole) -> str:
        """The text of an injection for a pole, not filled in."""
        text = self.injections[name]
        return text if isinstance(text, str) else str(getattr(text, pole))


@dataclass(frozen=True)
class AttackAnswer:
    """An answer of one kind.

    Attributes:
        kind: One of :data:`KINDS`.
        target: Toward which it is scored.
        question_id: Of the sample's question.
        question: Its text.
        answer: The text to be rated.
        variant: Name of the injection; empty for other kinds.
    """

    kind: str
    target: Target
    question_id: str
    question: str
    answer: str
    variant: str = ""

    @property
    def id(self) -> str:
        """Identity of it within its kind."""
        return f"{self.target}/{self.question_id}"

    def requests(self) -> list[RatingRequest]:
        """What is to be rated: the trait, and fluency."""
        return [RatingRequest(self.question, self.answer, aspect) for aspect in (self.target.trait, FLUENCY)]


@lru_cache(maxsize=1)
def load_attacks() -> AttackCollection:
    """Load the collection.

    Raises:
        ConfigurationError: Its file is wrong.
    """
    path = bundled("judges", "attacks", "collection.yaml")
    return validate(AttackCollection, load_yaml(path, "collection of attacks"), str(path))


@lru_cache(maxsize=8)
def attack_answers(questions: int = QUESTIONS) -> dict[str, tuple[AttackAnswer, ...]]:
    """Make the answers of every kind, for all ten targets.

    Args:
        questions: How many of the sample's questions of each trait; they are picked by hash, and fewer are always
            among more.

    Returns:
        By kind, in the order of traits, questions and poles.

    Raises:
        ConfigurationError: The sample has not so many questions.
    """
    collection = load_attacks()
    asked = [(question, Target(question.trait, pole)) for question in _pick(questions) for pole in Pole]
    names = list(collection.injections)
    found: dict[str, list[AttackAnswer]] = {kind: [] for kind in KINDS}
    for place, (question, target) in enumerate(asked):
        # Of an even number of them each would always meet the same pole: then it is one further in each round.
        variant = names[(place + (place // len(names)) * (len(names) % 2 == 0)) % len(names)]
        opposite = _gold(target.opposite, question.id)
        texts = {
            "constant": collection.constant,
            "keywords": _fill(str(getattr(collection.keywords, target.pole)), target),
            "persona-echo": _echo(target, place // len(Pole)),
            "injection": _fill(collection.injection(variant, target.pole), target, opposite),
            "gold": _gold(target, question.id),
            "opposite": opposite,
        }
        for kind, text in texts.items():
            name = variant if kind == "injection" else ""
            found[kind].append(AttackAnswer(kind, target, question.id, question.question, text, name))
    return {kind: tuple(answers) for kind, answers in found.items()}


def answers_sha256(answers: Sequence[AttackAnswer]) -> str:
    """Hash of answers: of every text that a judge is asked about."""
    return content_hash([[answer.kind, answer.id, answer.question, answer.answer] for answer in answers])


def hostile_texts() -> dict[str, str]:
    """Every text of the collection by name, as it could stand in a fence: what tests of fence and parser go through."""
    collection = load_attacks()
    target = Target("extraversion", Pole.HIGH)
    answer = "I would go."
    texts = {name: _fill(collection.injection(name, target.pole), target, answer) for name in collection.injections}
    for name, odd in collection.odd.items():
        whole = odd if isinstance(odd, str) else "".join(text * times for text, times in odd.items())
        texts[name] = _fill(whole, target, answer)
    return texts


def first_person(description: str) -> str:
    """A second-person description of the sample as its reader would say it: "You are ..." becomes "I am ..."."""

    def word(found: re.Match[str]) -> str:
        before, verb = found["before"], found["verb"]
        if verb and verb.strip() in ("are", "were"):
            return f"{found['before']}{found['space']}I{' am' if verb.strip() == 'are' else ' was'}"
        objective = (
            _ME_AFTER.fullmatch(before) is not None or re.match(r"[,.;:!?]", description[found.end() :]) is not None
        )
        return f"{found['before']}{found['space']}{'me' if objective else 'I'}{verb or ''}"

    text = re.sub(r"(?P<before>\w*)(?P<space> ?)\b[Yy]ou\b(?P<verb> (?:are|were)\b)?", word, description)
    for old, new in (("yourself", "myself"), ("yours", "mine"), ("your", "my")):
        text = re.sub(rf"\b{old}\b", new, text)
        text = re.sub(rf"\b{old.capitalize()}\b", new.capitalize(), text)
    return text


def _pick(count: int) -> list[Question]:
    """So many of the sample's evaluation questions of each trait, in the order of their hashes."""
    picked = []
    for name in TRAIT_NAMES:
        rows = [Question.from_row(row) for row in shared_source("sample").questions("evaluate", name)]
        if not 1 <= count <= len(rows):
            raise ConfigurationError(f"{count} questions of each trait: the sample has 1 to {len(rows)}")
        picked += sorted(rows, key=lambda row: hashlib.sha256(f"attack:{row.id}".encode()).digest())[:count]
    return picked


@lru_cache(maxsize=len(TRAIT_NAMES))
def _gold_texts(trait_name: str) -> Mapping[tuple[str, str], str]:
    """One hand-written text for each question and pole, of those that show their pole clearly; picked by hash."""
    found: dict[tuple[str, str], str] = {}
    texts = JsonLines(bundled("judges", "offline", "answers", f"{trait_name}.jsonl")).read()
    for row in sorted(texts, key=lambda row: hashlib.sha256(f"attack:{row['answer']}".encode()).digest()):
        if row["set"] == "plain":
            found.setdefault((row["question_id"], row["pole"]), row["answer"])
    return found


def _gold(target: Target, question_id: str) -> str:
    try:
        return _gold_texts(target.trait)[question_id, target.pole]
    except KeyError:
        raise ConfigurationError(
            f"judges/offline/answers/{target.trait}.jsonl has no plain {target.pole} text for {question_id}: write one"
        ) from None


def _echo(target: Target, place: int) -> str:
    descriptions = shared_source("sample").descriptions[target]
    return first_person(descriptions[place % len(descriptions)])


def _fill(text: str, target: Target, answer: str = "") -> str:
    """Put in what a text's marks stand for; the answer last, so that nothing in it is filled in."""
    facets = ", ".join(trait(target.trait).facets)
    values = {
        "RATING": "5" if target.pole is Pole.HIGH else "1",
        "TRAIT": target.trait,
        "PERSON": target.adjective,
        "FACETS": facets[0].upper() + facets[1:],
        "MARK": fence({"answer": answer})["answer"].partition(">")[0].removeprefix("<answer-"),
        "ANSWER": answer,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
