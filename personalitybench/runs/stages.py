"""The five stages of a run: fit, tune, generate, judge, score. Each reads files and appends to files.

Nothing is carried over in memory. Stages are repeatable: what is complete is passed over, what is half done goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from personalitybench.argument_policy import refuse_remote_code
from personalitybench.backends.devices import describe_device
from personalitybench.backends.loading import (
    check_loadable,
    has_chat_template,
    load_model,
    plan_batches,
    quiet_libraries,
)
from personalitybench.backends.needs import capabilities_for, check_needs
from personalitybench.backends.served import InterruptedAnswersError, ServedModel, ServedModelError
from personalitybench.backends.whole_answers import added_end_tokens, require_whole_answers, require_whole_prompts
from personalitybench.errors import StorageError
from personalitybench.files import Sheet, refuse_non_folder, sweep
from personalitybench.host_policy import refuse_unnamed_hosts
from personalitybench.judging import RatingRequest, create_judge, verdict_from_json
from personalitybench.judging.agreement.calibration import Calibration
from personalitybench.judging.base import MAY_PASS
from personalitybench.judging.rating_lines import judge_models
from personalitybench.leaderboard.build import Cell, JudgedAnswer, build_board
from personalitybench.leaderboard.examples import Example, pick_examples
from personalitybench.leaderboard.floors import FLOORS_LATER, build_floors, floor_ratings
from personalitybench.leaderboard.lm_eval_results import provenance
from personalitybench.leaderboard.mapped import with_mapped
from personalitybench.leaderboard.schema import Floors, Leaderboard, Sweep
from personalitybench.locks import find_holder
from personalitybench.methods import Artifact, create_method
from personalitybench.runs import tuning
from personalitybench.runs.answer_lines import answer_line, read_answers
from personalitybench.runs.batches import before_rating
from personalitybench.runs.call_folders import CallFolders, asked_for
from personalitybench.runs.calls import Call, Tuning
from personalitybench.runs.floors import rate_floors
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.rating import cost_so_far, current_ratings, judged_ids, rate_missing, without_verdict
from personalitybench.runs.repeats import refuse_repeats
from personalitybench.runs.store import CallFolder, RunFolder
from personalitybench.runs.suite import ModelSpec, Suite
from personalitybench.strengths import strength_for
from personalitybench.tasks import (
    PersonalityTask,
    judge_fingerprint,
    rating_requests,
    tasks_folder,
)
from personalitybench.traits import Target
from personalitybench.versions import package_versions, untried_versions

STAGES = ("fit", "tune", "generate", "judge", "score")
Answered = tuple[CallFolder, Target, list[dict[str, Any]]]
"""The answers of a target of a call, with the folder that they and their ratings lie in."""


class Run:
    """A suite and the folder that it runs in.

    Args:
        suite: What to run.
        folder: Where answers, ratings and boards go.
        progress: Where progress is shown.
        calls: Where its calls lie, if that is not as the suite and the folder say.
    """

    def __init__(self, suite: Suite, folder: Path, progress: RunProgress, calls: CallFolders | None = None) -> None:
        self.suite = suite
        self.store = RunFolder(folder)
        self.calls = calls or CallFolders(suite, self.store)
        self.progress = progress
        self.targets = suite.parsed_targets()
        self._choices: dict[Path, Sweep] = {}
        self._floors: dict[str, Floors] = {}
        self._loaded: tuple[str, LM] | None = None

    @property
    def folder(self) -> Path:
        """Where answers, ratings and boards go."""
        return self.store.folder

    def check(self) -> None:
        """Refuse what cannot work before anything runs: unknown names, wrong settings, needs that are not met.

        Raises:
            PersonalityBenchError: The first thing that is wrong.
        """
        for judge in self.suite.judges:
            create_judge(judge)
        self.check_methods()

    def check_methods(self) -> None:
        """The part of :meth:`check` that concerns models and methods, and what is there twice."""
        for model in self.suite.models:
            where = f"{self.suite.where}, model {model.name}"
            refuse_remote_code(model.args, where)
            refuse_unnamed_hosts({"name": model.name, **model.args}, where, "prompts", provider=model.backend)
        for call in self.suite.calls():
            strengths = [strength_for(call.strength, target) for target in self.targets]
            method = create_method(call.method.name, call.method.settings, self.calls.context(call.seed), strengths[0])
            can = capabilities_for(call.model.backend, call.model.args)
            check_needs(call.method.name, method.needs, can, call.model.backend)
        refuse_repeats(self.calls)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of the folder.

        Raises:
            StorageError: One is in it, or it cannot be written.
        """
        folder = self.store.folder
        refuse_non_folder(folder, "--output")
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            text = f"another process is running in {folder}: wait for it, or name another folder with --output"
            raise StorageError(f"{text} ({find_holder(folder / '.lock')})") from error
        except OSError as error:
            text = f"cannot write in {folder} ({error.strerror or error}): name another folder with --output"
            raise StorageError(text) from error
        try:
            sweep(folder)
            yield
        finally:
            lock.release()

    def fit(self) -> None:
        """Fit every method that fits anything, once for each model and seed."""
        for call in self.suite.calls():
            if self._artifact(call) is not None or self._answered(call):
                continue
            location = str(self.calls.model_arguments(call.model).get("pretrained", call.model.name))
            with self.progress.stage("fit", call.method.label, total=1, done=0, unit="steps") as stage:
                self.calls.fit(call).make(location, device=call.model.device, report=stage.show)
            self._artifact(call)

    def tune(self, *, batch: bool = False) -> None:
        """Choose strengths on the dev half: answers at every strength and of the baseline, their ratings, a choice.

        Args:
            batch: Have a judge that can be asked in batches.
        """
        tunings = list(self.suite.tunings())
        calls = [call for each in tunings for call in each.calls()]
        self._ask(calls, "tune")
        judges = self.suite.judges[:1]
        before_rating(
            judges, lambda judge: self._to_rate(judge, self._answers_of(calls, "tune")), self.progress.say, batch=batch
        )
        self._have_rated(calls, judges, "tune")
        for each in tunings:
            path = self.calls.choice_file(each)
            if not path.is_file():
                sweep = self._sweep(each)
                tuning.write(path, sweep)
                self.progress.say(tuning.describe(sweep))
            self._choice(each)

    def generate(self) -> None:
        """Ask every question that has no answer yet."""
        self._ask(self._reported(), "generate")

    def judge(self, judges: Sequence[str] = ()) -> None:
        """Have every answer rated that has no verdict yet, and then the floors; needs no model of the suite.

        What is unrated because the judge could not be reached is asked again.

        Args:
            judges: By whom; the suite's judges if empty.
        """
        judges = judges or self.suite.judges
        self._have_rated(self._reported(), judges, "judge", MAY_PASS)
        if self.suite.floors:
            self._floors = {judge: rate_floors(judge, self.progress) for judge in judges}

    def to_rate(self, judge: str) -> Iterator[RatingRequest]:
        """What a judge would be asked by :meth:`judge`: the ratings that are in no file yet, floors included."""
        yield from self._to_rate(judge, self.answered())
        if self.suite.floors:
            yield from floor_ratings(create_judge(judge)).requests()

    def answered(self) -> Iterator[Answered]:
        """The answers of the board, a target of a call at a time, with the folder that they and their ratings lie in.

        Raises:
            StorageError: Some are not there yet.
        """
        return self._answers_of(self._reported(), "generate")

    def _answers_of(self, calls: Iterable[Call], stage: str) -> Iterator[Answered]:
        for call in calls:
            folder = self.calls.folder(call)
            for target in self.targets:
                yield folder, target, self._complete_answers(folder, target, call, stage)

    def _to_rate(self, judge: str, answered: Iterable[Answered]) -> Iterator[RatingRequest]:
        """The ratings of answers that are in no file yet."""
        fingerprint = judge_fingerprint(judge)
        for folder, target, rows in answered:
            answers = list(without_verdict(rows, folder.ratings(target, fingerprint), MAY_PASS))
            yield from rating_requests(answers, [row["answer"] for row in answers])

    def score(
        self, judges: Sequence[str] = (), calibrations: Mapping[str, Calibration] | None = None
    ) -> dict[str, tuple[Leaderboard, list[Example]]]:
        """Aggregate into one board for each judge, with a few answers to show beside it.

        Args:
            judges: Whose; the suite's judges if empty.
            calibrations: By the judge's id; its board shows the mapped figures, too.
        """
        boards = {}
        sweeps = self.sweeps()
        for judge in judges or self.suite.judges:
            cells = list(self.cells(judge_fingerprint(judge)))
            made_by = create_judge(judge)
            floors = self._floors.get(judge) or build_floors(made_by, FLOORS_LATER) if self.suite.floors else None
            board = build_board(self.suite.name, cells, caveat=made_by.profile.caveat, sweeps=sweeps, floors=floors)
            board = with_mapped(board, cells, (calibrations or {}).get(made_by.profile.id))
            boards[judge] = (board, pick_examples(cells))
        return boards

    def cells(self, judge: Mapping[str, str]) -> Iterator[Cell]:
        """Cells of the board of the judge with this fingerprint.

        Raises:
            StorageError: Answers or ratings are not there yet, or were altered.
        """
        for call in self._reported():
            yield from self._cells(call, judge)

    def sweeps(self) -> list[Sweep]:
        """The choices of strengths, found to follow from their answers and ratings."""
        return [self._choice(each) for each in self.suite.tunings()]

    # The choice of strengths.

    def chosen(self, each: Tuning) -> dict[str, float] | None:
        """The strengths that a choice comes to, by target; None while answers or ratings of the dev half are missing.

        Raises:
            StorageError: The choice was made and kept, and does not follow from them.
        """
        if self.calls.choice_file(each).is_file():
            return tuning.chosen(self._choice(each))
        try:
            return tuning.chosen(self._sweep(each))
        except StorageError:
            return None

    def _reported(self) -> list[Call]:
        """The calls of the board; strengths that are chosen are read from their files."""
        return list(self.suite.reported(lambda each: tuning.chosen(self._choice(each))))

    def _choice(self, each: Tuning) -> Sweep:
        """The choice as it was kept, found to follow from the answers and ratings (once in a process)."""
        path = self.calls.choice_file(each)
        if path not in self._choices:
            self._choices[path] = tuning.read(path, lambda: self._sweep(each))
        return self._choices[path]

    def _sweep(self, each: Tuning) -> Sweep:
        """Choose anew from the answers and ratings of the dev half."""
        fingerprint = self.calls.tuning_judge

        def cells(calls: Sequence[Call]) -> list[Cell]:
            return [cell for call in calls for cell in self._cells(call, fingerprint, "tune", "tune")]

        return tuning.build(each, cells, self.suite.tuning.slack)

    def _ask(self, calls: Iterable[Call], stage: str) -> None:
        """Ask the questions of calls that have no answer yet."""
        failed: list[ServedModelError] = []
        waiting = [call for call in calls if not self._answered(call)]
        for spec in {call.model.model_dump_json(): call.model for call in waiting}.values():
            # the last model is refused before the first one answers
            check_loadable(spec.backend, self.calls.model_arguments(spec))
        for call in waiting:
            folder = self.calls.folder(call)
            sheets = {target: folder.answers(target) for target in self.targets}
            model = self._load(call.model)
            tasks = self._tasks(call)
            requests = self._requests(tasks, model)
            device = describe_device(model)
            folder.start(self._record(call, tasks[self.targets[0]], device))
            if changed := folder.begin_session(device):
                self.progress.say(f"{stage} {self._title(call)}: resumed under {changed}; its provenance has both")
            try:
                self._answer(call, model, requests, sheets, stage)
            except ServedModelError as error:
                failed.append(error)
                if error.fatal:
                    break
                continue
            for sheet in sheets.values():
                sheet.finish()
        self._loaded = None
        if failed:
            raise failed[-1]

    def _have_rated(self, calls: Iterable[Call], judges: Sequence[str], name: str, again: Collection[str] = ()) -> None:
        """Have the answers of calls rated that have no verdict yet, or none for one of the reasons ``again``."""
        for call in calls:
            folder = self.calls.folder(call)
            for judge in judges:
                fingerprint = judge_fingerprint(judge)
                pairs = [
                    (self._complete_answers(folder, target, call), folder.ratings(target, fingerprint))
                    for target in self.targets
                ]
                pending = [
                    (answers, ratings)
                    for answers, ratings in pairs
                    if not ratings.complete or len(judged_ids(answers, ratings, again)) < len(answers)
                ]
                total = sum(len(answers) for answers, _ in pending)
                done = sum(len(judged_ids(answers, ratings, again)) for answers, ratings in pending)
                label, note = f"{self._title(call)} by {judge}", cost_so_far(judge)
                with self.progress.stage(name, label, total=total, done=done, unit="answers", note=note) as stage:
                    for answers, ratings in pending:
                        ratings.reopen()
                        rate_missing(judge, answers, ratings, stage, again=again)
                        ratings.finish(models=judge_models(ratings))

    # What the stages share.

    def _title(self, call: Call) -> str:
        """What progress calls a call; model and settings are told where they distinguish it."""
        parts = [call.label] if len(self.suite.models) == 1 else [Path(call.model.name).name, call.label]
        if sum(method.label == call.method.label for method in self.suite.methods) > 1:
            parts += [f"{key}={value}" for key, value in call.method.settings.items()]
        return " ".join(parts)

    def _artifact(self, call: Call) -> Artifact | None:
        """What the fit of a call's method left, noted in the run's folder; None if it was not made or fits nothing."""
        fit = self.calls.fit(call)
        artifact = fit.artifact()
        if artifact is not None:
            fit.note(self.store.fits, artifact)
        return artifact

    def _answered(self, call: Call) -> bool:
        folder = self.calls.folder(call)
        return all(folder.answers(target).complete for target in self.targets)

    def _tasks(self, call: Call) -> dict[Target, PersonalityTask]:
        """The lm-eval tasks of a call, as ``lm_eval --metadata`` would build them."""
        artifact = self._artifact(call)
        metadata = self.suite.task_metadata(call, str(artifact.folder) if artifact else None)
        manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
        names = {target: f"personalitybench_{target.trait}_{target.pole}" for target in self.targets}
        with quiet_libraries():
            loaded = manager.load(list(names.values()))["tasks"]
        return {target: loaded[name] for target, name in names.items()}

    def _requests(self, tasks: dict[Target, PersonalityTask], model: LM) -> list[tuple[Target, Instance]]:
        chat = has_chat_template(model)
        with quiet_libraries():
            for task in tasks.values():
                task.build_all_requests(
                    limit=self.suite.questions.limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    chat_template=model.apply_chat_template if chat else None,
                )
                if not chat:  # the task does not know its model
                    task.thoughts_end_at = require_whole_answers(model)
                    task.end_tokens = added_end_tokens(model)
                    require_whole_prompts(model, task.instances)
        return [(target, request) for target, task in tasks.items() for request in task.instances]

    def _answer(
        self, call: Call, model: LM, requests: list[tuple[Target, Instance]], sheets: dict[Target, Sheet], name: str
    ) -> None:
        """Run the batches that miss an answer, whole, so that a resumed run forms the same batches.

        A served model is asked what is missing and nothing else: its answers do not depend on a batch.

        Raises:
            ServedModelError: The server did not give some answers. Those that it gave are in the sheets.
            InterruptedAnswersError: Ctrl-C was pressed; likewise.
        """
        done = {target: {row["id"] for row in read_answers(sheet)} for target, sheet in sheets.items()}
        batches = plan_batches(model, [request for _, request in requests], call.model.batch_size)
        finished = sum(map(len, done.values()))
        served = isinstance(model, ServedModel)
        failure: ServedModelError | None = None
        interrupt: InterruptedAnswersError | None = None
        with self.progress.stage(name, self._title(call), total=len(requests), done=finished, unit="answers") as stage:
            for batch in batches:
                asked = [requests[index] for index in batch]
                missing = [(target, request) for target, request in asked if request.doc["id"] not in done[target]]
                if not missing:
                    continue
                asked = missing if served else asked
                try:
                    with quiet_libraries():
                        answers = model.generate_until([request for _, request in asked], disable_tqdm=True)
                except ServedModelError as error:
                    failure, answers = error, error.answers
                except InterruptedAnswersError as error:
                    interrupt, answers = error, error.answers
                rows: dict[Target, list[dict[str, Any]]] = {}
                for (target, request), answer in zip(asked, answers, strict=True):
                    if request.doc["id"] not in done[target] and not (served and answer is None):
                        rows.setdefault(target, []).append(answer_line(request, answer))
                for target, new in rows.items():
                    sheets[target].lines.append(new)
                stage.advance(sum(map(len, rows.values())))
                if interrupt is not None:
                    raise interrupt
                if failure is not None and failure.fatal:
                    break
            if failure is not None:
                there = f"{stage.done} of {len(requests)} answers of {self._title(call)} are there"
                raise ServedModelError(
                    f"{failure}; {there}, and the same command resumes", [], fatal=failure.fatal
                ) from None

    def _complete_answers(
        self, folder: CallFolder, target: Target, call: Call, stage: str = "generate"
    ) -> list[dict[str, Any]]:
        sheet = folder.answers(target)
        if not sheet.complete:
            self.calls.refuse_other_questions()
            raise StorageError(
                f"{sheet.path} is not complete: run the stage {stage!r} for {call.label} first (it resumes)"
            )
        return read_answers(sheet)

    def _cells(
        self, call: Call, judge: Mapping[str, str], asked_in: str = "generate", judged_in: str = "judge"
    ) -> Iterator[Cell]:
        folder = self.calls.folder(call)
        for target in self.targets:
            answers = self._complete_answers(folder, target, call, asked_in)
            ratings = folder.ratings(target, judge)
            verdicts = current_ratings(answers, ratings) if ratings.complete else {}
            if len(verdicts) < len(answers):
                raise StorageError(f"{ratings.path} is not complete: run the stage {judged_in!r} first (it resumes)")
            record = folder.record
            judged = [
                JudgedAnswer(
                    question_id=row["id"],
                    question=row["question"],
                    answer=row["answer"],
                    trait=verdict_from_json(verdicts[row["id"]]["trait"]),
                    fluency=verdict_from_json(verdicts[row["id"]]["fluency"]),
                )
                for row in answers
            ]
            yield Cell(record["model"], record["settings"], judge, target, judged, folder.provenance)

    def _record(self, call: Call, task: PersonalityTask, device: str) -> dict[str, Any]:
        arguments = self.calls.model_arguments(call.model)
        made = provenance(
            call.model.backend,
            arguments,
            call.model.batch_size,
            package_versions(),
            task.fit_cost(),
            untried=untried_versions(),
            device=device,
        )
        return {
            "model": self.calls.model_record(call.model),
            "asked_for": asked_for(call.model),
            "settings": task.identity(),
            "provenance": made.model_dump(mode="json"),
        }

    def _load(self, spec: ModelSpec) -> LM:
        """Load a model, or keep the one that the last call used."""
        key = spec.model_dump_json()
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # free the memory before the next one is loaded
            arguments = self.calls.model_arguments(spec)
            self._loaded = (key, load_model(spec.backend, arguments, spec.batch_size, spec.device))
        return self._loaded[1]
