"""Answers that judges are compared on: of a run, of lm-eval, the gold texts, or frozen with their ratings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from personalitybench.errors import DataError
from personalitybench.files import content_hash
from personalitybench.judging import Verdict, verdict_from_json
from personalitybench.judging.agreement.gold import gold_answers
from personalitybench.judging.agreement.table import ASPECTS, Aspect, ComparedAnswer, RatingTable
from personalitybench.judging.agreement.table_files import read_table
from personalitybench.leaderboard.render import method_labels
from personalitybench.leaderboard.schema import MethodId
from personalitybench.runs.judge_command import open_answers
from personalitybench.runs.lm_eval_folder import LmEvalFolder
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.rating import Row, current_ratings
from personalitybench.runs.stages import Run
from personalitybench.runs.store import CallFolder
from personalitybench.traits import Target

GOLD = "gold"

Judge = Mapping[str, str]
_Rated = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class AnswerSource:
    """Answers from one place, and the ratings that lie there with them.

    Attributes:
        about: Where the answers are from, in a few words.
        answers: The answers, each once.
        known: Verdicts that a judge of that fingerprint gave them there.
        frozen: The ratings of a file of frozen ones.
    """

    about: str
    answers: Sequence[ComparedAnswer]
    known: Callable[[Judge], dict[tuple[str, Aspect], Verdict]] = field(default=lambda _: {})
    frozen: RatingTable | None = None


def open_source(name: str, progress: RunProgress, judges: Sequence[str] = ()) -> AnswerSource:
    """Find answers.

    Args:
        name: Folder of a run or of lm-eval's results, a file of frozen ratings, or ``gold``.
        progress: Where progress is shown.
        judges: Those that the user named.

    Raises:
        PersonalityBenchError: There are no answers, or not all of a run.
    """
    if name == GOLD:
        return AnswerSource("the gold texts", _once(gold_answers()))
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"{name} does not exist: name the folder of a run or of lm-eval's results, the ratings.jsonl of an earlier "
            f"comparison, or {GOLD!r}"
        )
    if path.is_file() and path.suffix == ".jsonl":
        table = read_table(path)
        return AnswerSource(table.source, table.answers, frozen=table)
    found, _ = open_answers(path, progress, named=judges)
    parts = list(_of_lm_eval(found) if isinstance(found, LmEvalFolder) else _of_run(found))
    kind = "lm-eval's answers in" if isinstance(found, LmEvalFolder) else "run"
    answers = _together(parts)

    def known(judge: Judge) -> dict[tuple[str, Aspect], Verdict]:
        return {
            (answer.id, aspect): verdict_from_json(verdicts[aspect])
            for part, own in zip(parts, answers, strict=True)
            for identity, verdicts in part.verdicts(judge)
            if (answer := own.get(identity)) is not None
            for aspect in ASPECTS
        }

    return AnswerSource(f"{kind} {path.resolve().name}", _once(each for own in answers for each in own.values()), known)


def sample_answers(answers: Sequence[ComparedAnswer], count: int) -> list[ComparedAnswer]:
    """Take some answers of each method and target by a fixed rule, not by how they read; their order stays.

    Questions are taken in the order of their hashed ids, so that methods are compared on the same ones; a second answer
    to a question is taken only when all questions have one.
    """
    turns: Counter[tuple[str, ...]] = Counter()
    order: list[tuple[int, bytes, ComparedAnswer]] = []
    for answer in sorted(answers, key=lambda answer: answer.id):
        one = (*_group(answer), answer.question_id)
        order.append((turns[one], hashlib.sha256(f"compare:{answer.question_id}".encode()).digest(), answer))
        turns[one] += 1
    taken: Counter[tuple[str, ...]] = Counter()
    found = set()
    for _, _, answer in sorted(order, key=lambda entry: entry[:2]):
        taken[_group(answer)] += 1
        if taken[_group(answer)] <= count:
            found.add(answer.id)
    return [answer for answer in answers if answer.id in found]


def _group(answer: ComparedAnswer) -> tuple[str, ...]:
    return answer.method, answer.trait, answer.pole


@dataclass(frozen=True)
class _Part:
    """The answers of one target under one setting and seed; ``verdicts`` of a judge, by the question's id."""

    model: Mapping[str, str]
    settings: Mapping[str, Any]
    target: Target
    rows: Iterable[Mapping[str, Any]]
    verdicts: Callable[[Judge], _Rated]

    @property
    def row(self) -> str:
        """The row of a board that it belongs to."""
        return content_hash([dict(self.model), {key: value for key, value in self.settings.items() if key != "seed"}])


def _of_run(run: Run) -> Iterator[_Part]:
    for folder, target, rows in run.answered():

        def verdicts(
            judge: Judge, folder: CallFolder = folder, target: Target = target, rows: Sequence[Row] = rows
        ) -> _Rated:
            sheet = folder.ratings(target, judge)
            _ = sheet.complete  # it tells what was altered
            return iter(current_ratings(rows, sheet).items())

        record = folder.record
        yield _Part(record["model"], record["settings"], target, rows, verdicts)


def _of_lm_eval(folder: LmEvalFolder) -> Iterator[_Part]:
    for task in folder.tasks:
        verdicts = partial(folder.verdicts, task)
        yield _Part(task.model, task.settings, task.target, task.answers(), verdicts)


def _together(parts: Sequence[_Part]) -> list[dict[str, ComparedAnswer]]:
    """For each part its answers by the question's id."""
    methods = {part.row: (part.model["name"], MethodId.model_validate(part.settings["method"])) for part in parts}
    labels = method_labels(methods)
    if len({model for model, _ in methods.values()}) > 1:
        labels = {row: f"{methods[row][0].rpartition('/')[2]} {label}" for row, label in labels.items()}
    return [
        {
            row["id"]: ComparedAnswer(
                question_id=row["id"],
                question=row["question"],
                answer=row["answer"],
                trait=row["trait"],
                pole=str(part.target.pole),
                method=labels[part.row],
            )
            for row in part.rows
        }
        for part in parts
    ]


def _once(answers: Iterable[ComparedAnswer]) -> list[ComparedAnswer]:
    return list({answer.id: answer for answer in answers}.values())
