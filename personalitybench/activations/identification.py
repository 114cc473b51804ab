"""Identification: answers of both poles, read again by the model, become statistics of its gate activations.

Two phases, so that generating runs at an engine's full speed and all after it can be repeated. Generating keeps token
ids, one line an answer. Reading runs prompt and answer through the model once (teacher forcing), which gives the
statistics of decoding. Where reading costs as much as answering did (a processor without a GPU), an engine can count
while it answers instead. Engines: transformers in ``identification_transformers.py`` beside this, vLLM in
``backends/vllm``. No torch here: methods import this to say what they want.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from personalitybench.errors import DataError
from personalitybench.files import JsonLines
from personalitybench.questions import Question, QuestionSource

if TYPE_CHECKING:
    from personalitybench.activations.bins import Bins  # with torch
    from personalitybench.activations.statistics import GateStatistics, StatisticsSource

Report = Callable[[str, int, int], None]
"""Is told (what, done, total) as the work goes on."""

UNPROMPTED = "unprompted"
"""In place of a pole, in a target such as ``openness:unprompted``: answers without a description."""

T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn: greedily (``search_neuron.py``: 500 new tokens, repetition penalty 1.1).

    Attributes:
        max_tokens: New tokens of an answer.
        repetition_penalty: 1 for none.
        batch_size: Answers at a time.
    """

    max_tokens: int = 500
    repetition_penalty: float = 1.1
    batch_size: int = 32


@dataclass(frozen=True)
class Counting:
    """What an engine is to count, for those that must know it before they start.

    Attributes:
        shards: The most parts for the jackknife.
        bins: Bins of the histogram; :meth:`Bins.default` where None.
        while_decoding: Whether :meth:`IdentificationEngine.generate_counting` is used.
    """

    shards: int = 20
    bins: Bins | None = None
    while_decoding: bool = False


class IdentificationEngine(Protocol):
    """A model that can answer and be read; an engine may load it when it is first needed."""

    def chat_prompt(self, turn: str) -> str:
        """Write a user turn as a prompt, by the model's chat template.

        Raises:
            ModelError: The model has none.
        """

    def generate(
        self, prompts: Sequence[tuple[str, str]], *, decoding: Decoding, lines: JsonLines, report: Report
    ) -> None:
        """Answer prompts greedily and append each answer to a file; what is in the file already is passed over.

        A kill at any moment loses what is being generated, and no answer depends on where that was.

        Args:
            prompts: Id and text of each prompt, special tokens included; each id once.
            decoding: How to draw.
            lines: Receives ``id``, ``prompt_tokens``, ``answer_tokens`` (with the end token, if it came), ``answer``.
            report: Told (what, done, total).
        """

    def generate_counting(
        self,
        prompts: Sequence[tuple[str, str]],
        *,
        decoding: Decoding,
        lines: JsonLines,
        source: StatisticsSource,
        shards: int,
        report: Report,
        bins: Bins | None = None,
    ) -> GateStatistics:
        """Answer prompts as :meth:`generate` does, and count in the same pass, as the released script does.

        The same positions count as in :meth:`read`. What a decode step computes differs from the reading in the last
        bits, so a gate within those bits of zero may be counted by one and not by the other: about one in a million
        in float32, a few in a thousand in bfloat16. Answers that are in the file already are read: of an interrupted
        run nothing is generated twice, but its statistics may differ in those bits from an uninterrupted one's.

        Args:
            prompts: As for :meth:`generate`.
            decoding: How to draw.
            lines: As for :meth:`generate`.
            source: What is run, for the manifest.
            shards: Parts for the jackknife.
            report: Told (what, done, total).
            bins: Bins of the histogram.

        Raises:
            NeedsNotMetError: The model has no gates that can be read.
        """

    def read(
        self, lines: JsonLines, source: StatisticsSource, *, shards: int, report: Report, bins: Bins | None = None
    ) -> GateStatistics:
        """Run prompts and answers through the model and count its gate activations over the answers' tokens.

        Args:
            lines: What :meth:`generate` left, of this model or another with the same tokens.
            source: What was run, for the manifest, and which tokens count.
            shards: Parts for the jackknife; :func:`part_of` tells a question's.
            report: Told (what, done, total).
            bins: Bins of the histogram; :meth:`Bins.default` where None.

        Raises:
            DataError: There is no answer.
            NeedsNotMetError: The model has no gates that can be read.
        """

    def close(self) -> None:
        """Let the model and its memory go; the engine is used no more."""


def draw_questions(source: QuestionSource, trait: str, count: int | None, seed: int) -> list[Question]:
    """Draw identification questions of a trait, as many of each facet as can be, by a seeded shuffle.

    Args:
        source: Where they come from.
        trait: Name of the trait.
        count: How many, all if None or if there are no more.
        seed: Of the shuffle.

    Returns:
        Questions, the facets taking turns.
    """
    by_facet: dict[str, list[Question]] = {}
    for row in source.questions("identify", trait).to_list():  # ten times as fast as a row at a time
        question = Question.from_row(row)
        by_facet.setdefault(question.facet, []).append(question)
    for facet, group in by_facet.items():
        digest = hashlib.sha256(f"{seed}\0identify\0{trait}\0{facet}".encode()).digest()
        random.Random(digest).shuffle(group)  # noqa: S311 (a reproducible draw, not a secret)
    turns: list[Question] = []
    for place in range(max(map(len, by_facet.values()), default=0)):
        turns += [group[place] for _, group in sorted(by_facet.items()) if place < len(group)]
    return turns[:count]


def part_of(question_id: str, shards: int) -> int:
    """Part of the jackknife that a question belongs to, by a hash of its id: the same for every target and engine."""
    return int.from_bytes(hashlib.sha256(f"part:{question_id}".encode()).digest()[:8]) % shards


def questions_by_part(question_ids: Iterable[str], shards: int) -> list[int]:
    """How many of some questions each part has."""
    found = [0] * shards
    for identity in question_ids:
        found[part_of(identity, shards)] += 1
    return found


def longest_first(lines: JsonLines) -> list[dict[str, Any]]:
    """Answers of a file, the longest sequences first, so that a batch has little padding and memory runs out early."""
    return sorted(lines.read(), key=lambda row: -len(row["prompt_tokens"]) - len(row["answer_tokens"]))


def answers_to_read(lines: JsonLines) -> list[dict[str, Any]]:
    """As :func:`longest_first`.

    Raises:
        DataError: There is none.
    """
    rows = longest_first(lines)
    if not rows:
        raise DataError(f"{lines.path} holds no answer: generate the answers first")
    return rows


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of ``size``; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
