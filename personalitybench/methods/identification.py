"""Answers to identification questions and their statistics, kept by what they depend on, so that fits share them.

A fit asks for what it needs; what is there already is not done again. The answers depend on the model, the data, the
wording, the seed and the decoding, and so does the name of their folder; how they are read and what is selected from
the readings does not matter to them::

    <shared>/identifications/<hash>/identity.json                   what the answers depend on
    <shared>/identifications/<hash>/<run>/answers.jsonl             one line an answer
    <shared>/identifications/<hash>/<run>/answers.json              manifest: count and hash; the answers are complete
    <shared>/identifications/<hash>/<run>/statistics/<reading>/     counts of every neuron, one folder a way to read
    <shared>/identifications/<hash>/<run>/seconds.jsonl             how long each session took

A run is a target (``openness-high``) or the questions of a trait asked plainly (``openness-unprompted``). A line of
answers has ``id``, ``question``, ``description`` (null where there was none), ``prompt_tokens``, ``answer_tokens``,
``answer``: what a neuron is found in, and what an adapter can be trained on.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from personalitybench import prompts
from personalitybench.activations.bins import Bins
from personalitybench.activations.identification import (
    Counting,
    Decoding,
    IdentificationEngine,
    Report,
    draw_questions,
)
from personalitybench.activations.statistics import GateStatistics, StatisticsSource, TokenRule
from personalitybench.activations.statistics_files import UNPROMPTED, CountedIn
from personalitybench.backends.engines import open_engine
from personalitybench.errors import ConfigurationError
from personalitybench.files import JsonLines, Sheet, content_hash, locked, read_json, write_json
from personalitybench.methods.fitting import FitContext, MethodContext
from personalitybench.methods.identification_settings import IdentificationSettings, answers_identity
from personalitybench.questions import Question
from personalitybench.traits import Target

STEPS = ("generate", "generate and count", "read")
"""What takes time in a run."""


@dataclass(frozen=True)
class Reading:
    """A way to read answers.

    Attributes:
        token_rule: Which tokens count.
        bins: Bins of the histogram, by the name that the folder gets.
        shards: Parts of the questions for the jackknife; fewer where there are fewer questions.
        counted_in: Whether they are counted when they are read, or as they are generated.
    """

    token_rule: TokenRule
    bins: str
    shards: int
    counted_in: CountedIn = "reading"

    @property
    def name(self) -> str:
        """Name of the folder of its statistics."""
        return f"{self.token_rule}-{self.bins}-{self.shards}-{self.counted_in}"

    @property
    def counting(self) -> Counting:
        """What an engine is told of it."""
        return Counting(self.shards, BINS[self.bins], while_decoding=self.counted_in == "decoding")


BINS: dict[str, Bins] = {"octaves": Bins.default(), "released-code": Bins.paper_code()}


@dataclass(frozen=True)
class Asked:
    """An identification question as it is asked.

    Attributes:
        question: The question.
        description: Under which persona, or None.
        turn: The user turn.
    """

    question: Question
    description: str | None
    turn: str


class AnswerLines(JsonLines):
    """Lines of answers, to which question and description are added as they are written."""

    def __init__(self, path: Path, asked: Iterable[Asked] = ()) -> None:
        super().__init__(path)
        self._about = {one.question.id: one for one in asked}

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """See :meth:`JsonLines.append`."""
        about = ((row, self._about[row["id"]]) for row in rows)
        super().append(
            {"id": row["id"], "question": one.question.question, "description": one.description, **row}
            for row, one in about
        )


class Identification:
    """The identification of a model: opened once in a fit, under :meth:`lock`.

    Args:
        settings: How questions are answered.
        context: Model, data, wording, seed, and where to work.
        reading: How answers are counted; None where only the answers are wanted, and then nothing can be measured.
    """

    def __init__(self, settings: IdentificationSettings, context: FitContext, reading: Reading | None = None) -> None:
        self.settings = settings
        self.context = context
        self._reading = reading
        shared = context.shared or context.folder.parent
        self.folder = shared / "identifications" / content_hash(self.identity)[:12]

    @property
    def reading(self) -> Reading:
        """How answers are counted.

        Raises:
            TypeError: Nothing was said about that.
        """
        if self._reading is None:
            raise TypeError("this identification was opened for its answers alone: give it a Reading to count")
        return self._reading

    @property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on."""
        return answers_identity(self.context.identity, self.settings.model_dump(mode="json"))

    @cached_property
    def _engine(self) -> IdentificationEngine:
        """Loaded when it is first needed, which may be never."""
        context = self.context
        return open_engine(
            context.backend,
            context.model,
            context.model_args,
            self.settings.batch_size,
            context.device,
            counting=None if self._reading is None else self._reading.counting,
        )

    def close(self) -> None:
        """Let the model go, if it was loaded."""
        engine = self.__dict__.pop("_engine", None)  # where cached_property keeps it
        if engine is not None:
            engine.close()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out. The model is let go at the end.

        Raises:
            StorageError: Another process is identifying the same, for whichever method.
        """
        with locked(self.folder, f"answering identification questions of {self.context.model_name}"):
            if not (self.folder / "identity.json").is_file():
                write_json(self.folder / "identity.json", self.identity)
            try:
                yield
            finally:
                self.close()

    def answers(self, run: str) -> Sheet:
        """Answers of a run; those that are missing are generated.

        Args:
            run: ``openness:high``, or ``openness:unprompted``.

        Raises:
            PersonalityBenchError: The model cannot be loaded or has no chat template, or a file cannot be written.
        """
        sheet = self._sheet(run)
        if not sheet.complete:
            asked = self._asked(run)
            prompts = self._prompts(asked)
            lines = AnswerLines(sheet.path, asked)
            with self._timed(run, "generate"):
                self._engine.generate(prompts, decoding=self._decoding, lines=lines, report=self._report(run))
            sheet.finish()
        return sheet

    def measure(self, run: str) -> None:
        """Answer the questions of a run and count, unless its statistics are there; answers that are there are read.

        Raises:
            PersonalityBenchError: As for :meth:`answers`; or the model has no gated MLP.
        """
        folder = self._statistics_folder(run)
        if (folder / "manifest.json").is_file():
            return
        sheet = self._sheet(run)
        if sheet.complete or self.reading.counted_in == "reading":
            lines = self.answers(run).lines
            with self._timed(run, f"read {self.reading.name}"):
                self._engine.read(lines, **self._how(run, read_json(sheet.manifest)["lines"])).save(folder)
            return
        asked = self._asked(run)
        prompts = self._prompts(asked)
        lines = AnswerLines(sheet.path, asked)
        with self._timed(run, f"generate and count {self.reading.name}"):
            statistics = self._engine.generate_counting(
                prompts, decoding=self._decoding, lines=lines, **self._how(run, len(asked))
            )
            sheet.finish()
            statistics.save(folder)

    @property
    def _decoding(self) -> Decoding:
        settings = self.settings
        return Decoding(settings.max_tokens, settings.repetition_penalty, settings.batch_size)

    def _prompts(self, asked: Iterable[Asked]) -> list[tuple[str, str]]:
        return [(one.question.id, self._engine.chat_prompt(one.turn)) for one in asked]

    def _how(self, run: str, questions: int) -> dict[str, Any]:
        """How an engine is to count a run of so many questions."""
        return {
            "source": self._source(run),
            "shards": min(self.reading.shards, questions),
            "report": self._report(run),
            "bins": BINS[self.reading.bins],
        }

    def statistics(self, run: str) -> GateStatistics:
        """Statistics of a run that was measured.

        Raises:
            StorageError: They are missing, truncated or altered.
            ConfigurationError: They are of another model, revision, wording, data, seed or way to read.
        """
        folder = self._statistics_folder(run)
        found = GateStatistics.load(folder)
        wanted = self._source(run)
        pairs = [(name, getattr(found.manifest, name), getattr(wanted, name)) for name in StatisticsSource.model_fields]
        for name, given, own in [*pairs, ("bins", found.manifest.bins, BINS[self.reading.bins])]:
            if given != own:
                raise ConfigurationError(
                    f"{folder} holds statistics whose {name} is {given!r} where this fit's is {own!r}: they came from "
                    "elsewhere; delete the folder and the answers are read again"
                )
        return found

    def seconds(self, run: str) -> dict[str, float]:
        """How long a run took, over all sessions that ended other than by a kill.

        Returns:
            ``generate`` and ``read``, or ``generate and count``; all three where an earlier session was cut. Of ways to
            read only this one's.
        """
        spent: dict[str, float] = defaultdict(float)
        for row in JsonLines(self._run_folder(run) / "seconds.jsonl").read():
            spent[row["step"]] += row["seconds"]
        suffix = "" if self._reading is None else f" {self._reading.name}"
        own = {step.removesuffix(suffix): seconds for step, seconds in spent.items()}
        return {step: round(own[step], 2) for step in STEPS if step in own}

    def _asked(self, run: str) -> list[Asked]:
        """The questions of a run, in the order in which they are asked."""
        context = self.context
        trait, _, condition = run.partition(":")
        count = None if self.settings.questions == "all" else self.settings.questions
        questions = draw_questions(context.source, trait, count, context.seed)
        if condition == UNPROMPTED:
            plain = context.wording.plain
            return [Asked(one, None, prompts.fill(plain, question=one.question)) for one in questions]
        target = Target.parse(run)
        texts = context.source.descriptions[target]
        template = context.wording.identify_as(target)
        draw = MethodContext(context.wording, context.source, context.seed).draw
        asked = []
        for one in questions:
            text = texts[draw("identify", len(texts), target, one.id)]
            turn = prompts.fill(template, personality=text, question=one.question)
            asked.append(Asked(one, text, turn))
        return asked

    def _source(self, run: str) -> StatisticsSource:
        context = self.context
        return StatisticsSource(
            model=context.model_name,
            revision=context.model_revision,
            target=run,
            wording_sha256=context.wording.sha256,
            data_revision=context.source.revision,
            seeds={"questions": context.seed, "descriptions": context.seed},
            token_rule=self.reading.token_rule,
            counted_in=self.reading.counted_in,
        )

    def _sheet(self, run: str) -> Sheet:
        return Sheet(self._run_folder(run) / "answers.jsonl")

    def _run_folder(self, run: str) -> Path:
        return self.folder / run.replace(":", "-")

    def _statistics_folder(self, run: str) -> Path:
        return self._run_folder(run) / "statistics" / self.reading.name

    def _report(self, run: str) -> Report:
        def report(what: str, done: int, total: int) -> None:
            self.context.report(f"{run} {what}", done, total)

        return report

    @contextmanager
    def _timed(self, run: str, step: str) -> Iterator[None]:
        """Keep how long a step took, also where it was interrupted; loading the model does not count."""
        _ = self._engine  # loaded before the clock starts
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = {"step": step, "seconds": round(time.monotonic() - started, 3)}
            JsonLines(self._run_folder(run) / "seconds.jsonl").append([seconds])
