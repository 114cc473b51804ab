"""The answers that lm-eval left in a folder: rated by any judge, without the model that wrote them.

::

    <folder>/<model>/results_<date>.json, samples_<task>_<date>.jsonl    lm-eval's
    <folder>/ratings/<judge>-<hash>/<model>/samples_<task>_<date>-<hash>.jsonl   one line an answer, its two verdicts
    <folder>/ratings/<judge>-<hash>/<model>/samples_<task>_<date>-<hash>.json    manifest

The second hash is that of the samples file, so ratings never meet answers that they were not made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from personalitybench.errors import DataError
from personalitybench.files import Sheet, locked, sha256_file
from personalitybench.judging import RatingRequest, create_judge
from personalitybench.judging.agreement.calibration import Calibration
from personalitybench.judging.base import MAY_PASS
from personalitybench.judging.rating_lines import judge_models
from personalitybench.leaderboard.build import Cell, build_board, collect, group_cells
from personalitybench.leaderboard.examples import Example, pick_examples
from personalitybench.leaderboard.floors import FLOORS_LATER, build_floors, floor_ratings
from personalitybench.leaderboard.lm_eval_results import TaskResults, log_warnings, read_tasks
from personalitybench.leaderboard.mapped import with_mapped
from personalitybench.leaderboard.schema import Floors, Leaderboard
from personalitybench.runs.floors import rate_floors
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.rating import answer_sha256, cost_so_far, current_ratings, judged_ids, rate_missing, stays
from personalitybench.runs.store import judge_name
from personalitybench.tasks import judge_fingerprint, rating_requests

_BOARD_NAME = "lm-eval"
"""What ``leaderboard from-lm-eval`` calls a board, too."""


class LmEvalFolder:
    """A folder that lm_eval was given as ``--output_path``.

    Args:
        folder: The folder, or one of its results files.
        progress: Where progress is shown.
        floors: Whether its boards have floors.
    """

    def __init__(self, folder: Path, progress: RunProgress, *, floors: bool = True) -> None:
        self.source = folder
        self.folder = folder if folder.is_dir() else folder.parent
        self.progress = progress
        self.has_floors = floors
        self._hashes: dict[Path, str] = {}
        self._floors: dict[str, Floors] = {}

    @cached_property
    def tasks(self) -> list[TaskResults]:
        """Its evaluation tasks.

        Raises:
            DataError: There are none, samples are missing, or a result is there twice.
        """
        found = list(read_tasks(self.source))
        if not found:
            raise DataError(f"{self.source}: its results are of no evaluation task of personalitybench")
        # What would be refused at the end is refused before anything is paid.
        for task in found:
            if not sum(1 for _ in task.answers()):  # all are read, so that what is cut off or repeated is refused
                raise DataError(f"{task.samples} holds no answer")
        for group in group_cells(
            Cell(task.model, task.settings, {}, task.target, (), task.provenance) for task in found
        ):
            collect(group)
        log_warnings(found)
        return found

    def lock(self) -> AbstractContextManager[None]:
        """Keep a second process from rating the same answers."""
        return locked(self.folder / "ratings", "rating answers")

    def ratings(self, task: TaskResults, judge: Mapping[str, str]) -> Sheet:
        """Sheet of a task's verdicts, as in a run's folder."""
        beneath = task.samples.parent.relative_to(self.folder)
        if task.samples not in self._hashes:
            self._hashes[task.samples] = sha256_file(task.samples)
        name = f"{task.samples.stem}-{self._hashes[task.samples][:8]}.jsonl"
        return Sheet(self.folder / "ratings" / judge_name(judge) / beneath / name)

    def verdicts(self, task: TaskResults, judge: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What a judge made of a task's answers so far: when lm_eval ran, or since then.

        Raises:
            StorageError: The ratings were altered.
        """
        yield from task.verdicts(judge)
        sheet = self.ratings(task, judge)
        if sheet.path.is_file():
            _ = sheet.complete  # it tells what was altered
            yield from ((identity, dict(row)) for identity, row in current_ratings(task.answers(), sheet).items())

    def judge(self, judges: Sequence[str]) -> None:
        """Have every answer rated that has no verdict yet, and then the floors."""
        for task in self.tasks:
            for judge in judges:
                fingerprint = judge_fingerprint(judge)
                sheet = self.ratings(task, fingerprint)
                if sheet.complete and not _has_passing(task, sheet):
                    continue
                sheet.reopen()
                done = judged_ids(task.answers(), sheet)
                hashes = {row["id"]: answer_sha256(row) for row in task.answers()}
                sheet.lines.append(
                    {
                        "id": identity,
                        "answer_sha256": hashes[identity],
                        "trait": row["trait"],
                        "fluency": row["fluency"],
                    }
                    for identity, row in task.verdicts(fingerprint)
                    if identity not in done
                )
                self._rate(task, judge, sheet)
                sheet.finish(models=judge_models(sheet))
        if self.has_floors:
            self._floors = {judge: rate_floors(judge, self.progress) for judge in judges}

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        """What a judge would be asked by :meth:`judge`: the ratings that are in no file yet, floors included."""
        fingerprint = judge_fingerprint(judge)
        for task in self.tasks:
            there = {identity for identity, row in self.verdicts(task, fingerprint) if stays(row, MAY_PASS)}
            for row in task.answers():
                if row["id"] not in there:
                    yield from rating_requests([row], [row["answer"]])
        if self.has_floors:
            yield from floor_ratings(create_judge(judge)).requests()

    def score(
        self, judges: Sequence[str], calibrations: Mapping[str, Calibration] | None = None
    ) -> dict[str, tuple[Leaderboard, list[Example]]]:
        """Aggregate into one board for each judge, with a few answers to show beside it.

        Args:
            judges: Whose.
            calibrations: By the judge's id; its board shows the mapped figures, too.

        Raises:
            StorageError: Ratings were altered.
        """
        boards = {}
        for judge in judges:
            fingerprint = judge_fingerprint(judge)
            cells = [task.cell(fingerprint, self.verdicts(task, fingerprint)) for task in self.tasks]
            made_by = create_judge(judge)
            floors = self._floors.get(judge) or build_floors(made_by, FLOORS_LATER) if self.has_floors else None
            board = build_board(_BOARD_NAME, cells, caveat=made_by.profile.caveat, floors=floors)
            board = with_mapped(board, cells, (calibrations or {}).get(made_by.profile.id))
            boards[judge] = (board, pick_examples(cells))
        return boards

    def _rate(self, task: TaskResults, judge: str, sheet: Sheet) -> None:
        label = f"{task.settings['method']['name']} {task.target} by {judge}"
        total = sum(1 for _ in task.answers())
        done = len(judged_ids(task.answers(), sheet, MAY_PASS))
        note = cost_so_far(judge)
        with self.progress.stage("judge", label, total=total, done=done, unit="answers", note=note) as stage:
            rate_missing(judge, task.answers(), sheet, stage, again=MAY_PASS)


def _has_passing(task: TaskResults, sheet: Sheet) -> bool:
    """Return True if an answer was unrated for a reason that may pass."""
    return judged_ids(task.answers(), sheet) != judged_ids(task.answers(), sheet, MAY_PASS)
