"""Has the same answers rated by several judges: what is there already is taken, the rest is asked and kept.

::

    <cache>/judges/comparisons/<hash of answers>/<judge>-<hash>.jsonl            one line an answer, its two verdicts
    <cache>/judges/comparisons/<hash of answers>/<judge>-<hash>-repeat1.jsonl    the same asked once more
    <cache>/judges/comparisons/<hash of answers>/<judge>-<hash>.json             manifest, with the models that answered
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from personalitybench.errors import ConfigurationError
from personalitybench.files import Sheet, cache_folder, content_hash, locked
from personalitybench.judging import RatingRequest, Verdict, verdict_from_json
from personalitybench.judging.agreement.table import ASPECTS, Aspect, Column, ComparedAnswer, RatingTable, Verdicts
from personalitybench.judging.base import MAY_PASS
from personalitybench.judging.rating_lines import judge_models, read_ratings
from personalitybench.runs.answer_sources import AnswerSource, Judge, sample_answers
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.rating import cost_so_far, judged_ids, rate_missing, without_verdict
from personalitybench.runs.store import judge_name
from personalitybench.tasks import judge_fingerprint, rating_requests


class Comparison:
    """Answers and the judges that are compared on them.

    Args:
        source: The answers.
        judges: Ids of profiles or profile files; names of frozen ratings where the source has them. Where it has and
            none is named, all of those.
        people: Columns of human ratings.
        repeats: How often judges are asked the same.
        sample: As many answers of each method and target; None for all.
        progress: Where progress is shown.

    Attributes:
        answers: The answers that are compared.
        asked: The judges that are not frozen.

    Raises:
        ConfigurationError: A judge is unknown or there twice.
    """

    def __init__(
        self,
        source: AnswerSource,
        judges: Sequence[str],
        people: Sequence[Column],
        progress: RunProgress,
        *,
        repeats: int = 1,
        sample: int | None = None,
    ) -> None:
        self.source = source
        self.progress = progress
        self.people = people
        self.repeats = repeats
        self.answers = list(source.answers) if sample is None else sample_answers(source.answers, sample)
        self.about = source.about if sample is None else f"{source.about}, {sample} answers of each method and target"
        self._frozen = {column.judge: column for column in source.frozen.columns} if source.frozen else {}
        self.judges = list(judges) or list(self._frozen)
        self.asked = [judge for judge in self.judges if judge not in self._frozen]
        names = [judge if judge in self._frozen else judge_fingerprint(judge)["id"] for judge in self.judges]
        names += [column.judge for column in people]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigurationError(
                f"judge {twice[0]!r} is there twice: name it once, or give another version of it a profile with an id "
                "of its own"
            )
        if not names:
            raise ConfigurationError(
                "there is nobody to compare: name judges, such as 'offline', or files with --human"
            )
        ids = sorted(answer.id for answer in source.answers)
        self._folder = cache_folder("judges", "comparisons") / content_hash(ids)[:16]

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        """What a judge would be asked: the ratings that are nowhere yet."""
        fingerprint = judge_fingerprint(judge)
        known = self.source.known(fingerprint)
        for repeat in range(self.repeats):
            rows = self._to_ask({} if repeat else known)
            for row in without_verdict(rows, self._sheet(fingerprint, repeat), MAY_PASS):
                yield from rating_requests([row], [row["answer"]], repeat)

    def rate(self) -> RatingTable:
        """Ask what is missing and put the ratings of all together.

        Raises:
            PersonalityBenchError: A judge cannot go on; what it rated is kept.
        """
        wanted = {answer.id for answer in self.answers}
        columns = [self._frozen[judge] if judge in self._frozen else self._column(judge) for judge in self.judges]
        narrowed = [_of(wanted, column) for column in (*columns, *self.people)]
        return RatingTable(self.about, self.answers, narrowed)

    def _column(self, judge: str) -> Column:
        fingerprint = judge_fingerprint(judge)
        known = self.source.known(fingerprint)
        repeats = []
        with locked(self._folder / judge_name(fingerprint), f"having {judge} rate these answers"):
            for repeat in range(self.repeats):
                sheet = self._sheet(fingerprint, repeat)
                self._ask(judge, self._to_ask({} if repeat else known), sheet, repeat)
                found: dict[tuple[str, Aspect], Verdict] = {
                    (identity, aspect): verdict_from_json(row[aspect])
                    for (identity, _), row in read_ratings(sheet)
                    for aspect in ASPECTS
                }
                repeats.append(found | known if repeat == 0 else found)
        return Column(fingerprint["id"], fingerprint, repeats)

    def _ask(self, judge: str, rows: Sequence[dict[str, Any]], sheet: Sheet, repeat: int) -> None:
        done = len(judged_ids(rows, sheet, MAY_PASS))
        if sheet.complete and done == len(rows):
            return
        sheet.reopen()
        label = f"{Path(judge).stem} once more ({repeat})" if repeat else Path(judge).stem
        note = cost_so_far(judge)
        with self.progress.stage("compare", label, total=len(rows), done=done, unit="answers", note=note) as stage:
            rate_missing(judge, rows, sheet, stage, repeat=repeat, again=MAY_PASS)
        if rows:
            sheet.finish(models=judge_models(sheet))

    def _to_ask(self, known: Verdicts) -> list[dict[str, Any]]:
        """The answers whose verdicts are not all known from where they lie."""
        return [_row(answer) for answer in self.answers if any((answer.id, aspect) not in known for aspect in ASPECTS)]

    def _sheet(self, judge: Judge, repeat: int) -> Sheet:
        name = judge_name(judge)
        return Sheet(self._folder / (f"{name}-repeat{repeat}.jsonl" if repeat else f"{name}.jsonl"))


def _row(answer: ComparedAnswer) -> dict[str, Any]:
    return {"id": answer.id, "trait": answer.trait, "question": answer.question, "answer": answer.answer}


def _of(wanted: set[str], column: Column) -> Column:
    """A column without the answers that are not compared."""
    repeats = [{key: verdict for key, verdict in repeat.items() if key[0] in wanted} for repeat in column.repeats]
    return Column(column.judge, column.identity, repeats)
