"""What a judge made of the attack answers, rated once on a machine and kept in the user's cache.

::

    <cache>/judges/floors/<judge>-<hash>/<kind>-<hash>.jsonl    one line an answer, its two verdicts
    <cache>/judges/floors/<judge>-<hash>/<kind>-<hash>.json     manifest, written when all are rated

The first hash is that of the judge's fingerprint, the second that of the answers, so that changed texts, rubrics or
weights never meet old ratings. Lines are appended as they come and survive a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from personalitybench.errors import StorageError
from personalitybench.files import Sheet, cache_folder, content_hash
from personalitybench.judging.attacks import KINDS, QUESTIONS, AttackAnswer, answers_sha256, attack_answers
from personalitybench.judging.base import (
    MAY_PASS,
    Judge,
    RatingRequest,
    RatingsReport,
    Verdict,
    fingerprint,
    rate_all,
    verdict_from_json,
)
from personalitybench.judging.rating_lines import judge_models, may_pass, read_ratings

logger = logging.getLogger(__name__)

_WAIT = 5.0  # seconds in silence for another process that rates the same
_LONGEST_WAIT = 7200.0  # seconds


@dataclass(frozen=True)
class RatedAttack:
    """An attack answer and its verdicts."""

    answer: AttackAnswer
    trait: Verdict
    fluency: Verdict


class AttackRatings:
    """Ratings of the attack answers by one judge.

    Args:
        judge: Who rates.
        questions: Questions of each trait.
        kinds: Which kinds of answers.

    Raises:
        ConfigurationError: The sample has not so many questions.
    """

    def __init__(self, judge: Judge, questions: int = QUESTIONS, kinds: Sequence[str] = tuple(KINDS)) -> None:
        self._judge = judge
        made = attack_answers(questions)
        self._answers = {kind: made[kind] for kind in kinds}
        own = fingerprint(judge)
        self._folder = cache_folder("judges", "floors") / f"{own['id']}-{content_hash(own)[:12]}"

    @property
    def total(self) -> int:
        """How many answers there are."""
        return sum(map(len, self._answers.values()))

    def missing(self) -> dict[str, list[AttackAnswer]]:
        """Answers of each kind that have no lasting verdict yet.

        Raises:
            StorageError: A file was altered.
        """
        return {kind: self._missing(kind) for kind in self._answers}

    def requests(self) -> Iterator[RatingRequest]:
        """What the judge would be asked by :meth:`rate`."""
        for answers in self.missing().values():
            for answer in answers:
                yield from answer.requests()

    def rate(self, report: RatingsReport | None = None, say: Callable[[str], None] | None = None) -> None:
        """Have rated what is missing. A second process waits for the first and finds its ratings.

        Args:
            report: Is told how many more answers are rated.
            say: Is told what is waited for.

        Raises:
            PersonalityBenchError: The judge cannot be asked, or a file cannot be written; what is rated is kept.
        """
        if not any(self.missing().values()):
            return
        with self._alone(say):
            for kind, answers in self.missing().items():
                step = max(1, self._judge.at_a_time)
                for start in range(0, len(answers), step):
                    self._rate(kind, answers[start : start + step], report)
                if answers and not self._missing(kind):
                    sheet = self._sheet(kind)
                    sheet.finish(models=judge_models(sheet))

    def read(self) -> list[RatedAttack] | None:
        """All answers with their verdicts, or None where some were never rated.

        Raises:
            StorageError: A file was altered.
        """
        found = []
        for kind, answers in self._answers.items():
            kept = self._kept(kind)
            if any(answer.id not in kept for answer in answers):
                return None
            for answer in answers:
                row = kept[answer.id]
                verdicts = (verdict_from_json(row["trait"]), verdict_from_json(row["fluency"]))
                found.append(RatedAttack(answer, *verdicts))
        return found

    def _rate(self, kind: str, answers: Sequence[AttackAnswer], report: RatingsReport | None) -> None:
        told = 0

        def rated(more: int) -> None:
            nonlocal told
            if report is not None:
                report((told + more) // 2 - told // 2)
            told += more

        verdicts = rate_all(self._judge, [item for answer in answers for item in answer.requests()], rated)
        self._sheet(kind).lines.append(
            {"id": answer.id, "trait": trait.to_json(), "fluency": fluency.to_json()}
            for answer, trait, fluency in zip(answers, verdicts[::2], verdicts[1::2], strict=True)
        )

    def _missing(self, kind: str) -> list[AttackAnswer]:
        if self._sheet(kind).complete:
            return []
        lasting = {id_ for id_, row in self._kept(kind).items() if not may_pass(row, MAY_PASS)}
        return [answer for answer in self._answers[kind] if answer.id not in lasting]

    def _kept(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """The last line of each answer."""
        sheet = self._sheet(kind)
        _ = sheet.complete  # refuses a file that was altered
        return {identity: row for (identity, _), row in read_ratings(sheet)}

    def _sheet(self, kind: str) -> Sheet:
        return Sheet(self._folder / f"{kind}-{answers_sha256(self._answers[kind])[:12]}.jsonl")

    @contextmanager
    def _alone(self, say: Callable[[str], None] | None) -> Iterator[None]:
        lock = FileLock(self._folder.parent / f".{self._folder.name}.lock")
        try:
            try:
                lock.acquire(timeout=_WAIT)
            except Timeout:
                (say or logger.warning)(
                    f"waiting for another process that rates the floors of judge {self._judge.profile.id}"
                )
                lock.acquire(timeout=_LONGEST_WAIT)
        except Timeout as error:
            raise StorageError(
                f"another process has rated the floors of judge {self._judge.profile.id} for "
                f"{_LONGEST_WAIT / 3600:.0f} hours: end it, then run this again (it holds {lock.lock_file})"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot write {self._folder}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()
