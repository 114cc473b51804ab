"""lm-eval's own result files (``results_*.json`` and ``samples_*.jsonl``, lm-eval 0.4.13) as cells of a board.

Judged answers are read from the samples, never the aggregated figures, so everything is recomputed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from personalitybench.costs import FitCost
from personalitybench.errors import DataError
from personalitybench.files import is_file, read_json
from personalitybench.judging import verdict_from_json
from personalitybench.leaderboard.build import Cell, JudgedAnswer
from personalitybench.leaderboard.lm_eval_samples import StatedSamples, read_answer, read_samples, read_verdicts
from personalitybench.leaderboard.schema import Provenance
from personalitybench.model_identity import UNSTATED, LocalFiles, changed_files, model_record
from personalitybench.outside_files import require_json_values
from personalitybench.redaction import redact
from personalitybench.task_record import TaskRecord
from personalitybench.traits import Target
from personalitybench.validation import validate

logger = logging.getLogger(__name__)

_DATE = re.compile(r"_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)$")
"""The date at the end of the name of a results file; the names of its samples end with it, too."""

# Arguments that say where the weights lie and on what they run, not what they compute.
_PLACE_ARGUMENTS = {"pretrained", "model", "revision", "device", "base_url", "tokenizer"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class _Counts(_Part):
    effective: int | None = Field(default=None, strict=True)


class _Results(_Part):
    """A results file, as far as it is read."""

    configs: dict[str, dict[str, Any]]
    config: dict[str, Any]
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, _Counts] | None = Field(default=None, alias="n-samples")
    task_hashes: dict[str, str] = {}
    model_name: str | None = None
    model_source: str | None = None


class _Run(_Part):
    """The key ``config`` of a results file, as far as it is read."""

    model: str
    model_args: dict[str, JsonValue] | str | None
    batch_size: JsonValue
    model_sha: str | None = None
    peft_sha: str | None = None
    delta_sha: str | None = None
    device: str | None = None
    model_dtype: str | None = None

    @property
    def adapter_commits(self) -> dict[str, str]:
        """Commits of adapters on the hub."""
        commits = {"peft": self.peft_sha, "delta": self.delta_sha}
        return {key: commit for key, commit in commits.items() if commit}

    @property
    def stated_device(self) -> str:
        """Device and number format as lm-eval states them, without the name of the device."""
        return f"{self.device}, {self.model_dtype.removeprefix('torch.')}" if self.device and self.model_dtype else ""


@dataclass(frozen=True)
class TaskResults:
    """What lm-eval left of one task: where its samples are, and under which settings they were drawn.

    Attributes:
        samples: The file ``samples_*.jsonl``: a line for each answer and filter.
        target: The task's target.
        settings: What :meth:`personalitybench.tasks.PersonalityTask.identity` gave.
        judges: Fingerprints of the judges that rated when lm_eval ran, by the name of their filter.
        model: ``name`` and ``revision``.
        provenance: How the answers came to be.
        stated: What the results state about the samples.
        warnings: What to know of the model's identity.
    """

    samples: Path
    target: Target
    settings: Mapping[str, Any]
    judges: Mapping[str, Mapping[str, str]]
    model: Mapping[str, str]
    provenance: Provenance
    stated: StatedSamples = field(default_factory=StatedSamples)
    warnings: tuple[str, ...] = ()

    def answers(self) -> Iterator[dict[str, str]]:
        """Stream the answers, each once: ``id``, ``trait`` and ``question`` of what was asked, and ``answer``.

        Raises:
            DataError: The samples are cut off, repeated, or not those that the results state.
        """
        # Without a judge there is one filter, whatever its name.
        for number, sample in read_samples(self.samples, next(iter(self.judges), None), self.stated):
            yield read_answer(self.samples, number, sample)

    def verdicts(self, judge: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream what a judge said when lm_eval ran: the question's id, and ``trait`` and ``fluency`` as plain JSON.

        Raises:
            DataError: As for :meth:`answers`, or a verdict is missing.
        """
        names = [name for name, fingerprint in self.judges.items() if fingerprint == judge]
        if not names:
            return
        for number, sample in read_samples(self.samples, names[0], self.stated):
            yield read_answer(self.samples, number, sample)["id"], read_verdicts(self.samples, number, sample)

    def cell(self, judge: Mapping[str, str], verdicts: Iterable[tuple[str, Mapping[str, Any]]]) -> Cell:
        """Make the cell of a judge.

        Args:
            judge: Its fingerprint.
            verdicts: As :meth:`verdicts` gives them.
        """
        by_id = dict(verdicts)
        answers = list(self.answers())
        if missing := [row["id"] for row in answers if row["id"] not in by_id]:
            raise DataError(f"{self.samples} has no ratings of {missing[0]} by {judge['id']}: run lm_eval again")
        judged = [
            JudgedAnswer(
                question_id=row["id"],
                question=row["question"],
                answer=row["answer"],
                trait=verdict_from_json(by_id[row["id"]]["trait"]),
                fluency=verdict_from_json(by_id[row["id"]]["fluency"]),
            )
            for row in answers
        ]
        return Cell(self.model, self.settings, judge, self.target, judged, self.provenance)


def read_cells(folder: Path) -> Iterator[Cell]:
    """Read every personalitybench task in a folder of lm-eval results (searched downwards), as its judges rated it.

    Raises:
        DataError: No results there, or the samples are missing (``--log_samples`` was not given).
    """
    for task in read_tasks(folder):
        for judge in task.judges.values():
            yield task.cell(judge, task.verdicts(judge))


def log_warnings(tasks: Iterable[TaskResults]) -> None:
    """Log the warnings of tasks, each once; called once all was read, so that a refusal stays one line."""
    for warning in dict.fromkeys(warning for task in tasks for warning in task.warnings):
        logger.warning(warning)


def holds_results(folder: Path) -> bool:
    """Return True if a folder holds results of lm-eval (searched downwards), or is a file of them."""
    return folder.is_file() or next(_result_files(folder), None) is not None


def read_tasks(folder: Path) -> Iterator[TaskResults]:
    """Find the evaluation tasks of this project in a folder of lm-eval results (searched downwards).

    Raises:
        DataError: As :func:`read_cells`.
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist: name a folder that lm_eval was given as --output_path")
    results = sorted(_result_files(folder)) if folder.is_dir() else [folder]
    if not results:
        raise DataError(f"{folder} has no results_*.json: give lm_eval an --output_path and name that folder here")
    for path in results:
        yield from _read_results(path)


def _result_files(folder: Path) -> Iterator[Path]:
    """Yield the files that lm-eval names ``results_<date>.json``, or after ``--output_path NAME.json``."""
    for path in folder.rglob("*.json"):
        if path.name.startswith("results_") or _DATE.search(path.stem):
            yield path


def provenance(
    backend: str,
    args: Mapping[str, Any],
    batch_size: Any,
    versions: Mapping[str, str],
    fit: Mapping[str, Any] | None,
    *,
    untried: Sequence[str],
    device: str = "",
    note: str = "",
) -> Provenance:
    """How a row came to be; the same for a run and an import. ``fit`` is a :class:`FitCost` as plain data."""
    kept = {key: str(value) for key, value in sorted(redact(args).items()) if key not in _PLACE_ARGUMENTS}
    return Provenance(
        backend=backend,
        backend_args=kept,
        batch_size=str(batch_size),
        versions=dict(sorted(versions.items())),
        untried_versions=list(untried),
        device=device,
        fit=None if fit is None else FitCost.model_validate(fit),
        note=note,
    )


def _read_results(path: Path) -> Iterator[TaskResults]:
    content = read_json(path, finite=False)
    is_named = path.name.startswith("results_")
    if not is_named and not (isinstance(content, dict) and {"configs", "config"} <= content.keys()):
        return  # another program's file with a date in its name
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a results file of lm-eval: name another")
    results = validate(_Results, content, f"{path} is not a results file of lm-eval")
    records = {
        task: validate(TaskRecord, record, f"{path}: configs.{task}.metadata.personalitybench")
        for task, record in _records(path, results)
    }
    date = found["date"] if (found := _DATE.search(path.stem)) else path.stem.removeprefix("results_")
    ours = {task: record for task, record in records.items() if record.identity.data.split == "evaluate"}
    samples = {task: path.parent / f"samples_{task}_{date}.jsonl" for task in ours}
    if missing := [str(each) for each in samples.values() if not is_file(each)]:
        raise DataError(f"{missing[0]} is missing: run lm_eval with --log_samples, a board is made from the answers")
    if not ours:
        return
    run = validate(_Run, results.config, f"{path}: config")
    try:
        require_json_values(run.model_dump())
    except ValueError as error:
        raise DataError(f"{path}: config: {error}") from error
    args = _model_arguments(path, results, run)
    counts = results.samples or {}
    for task, record in ours.items():
        model, note, warnings = _identify_model(path, run, args, record)
        identity = results.configs[task]["metadata"]["personalitybench"]["identity"]
        yield TaskResults(
            samples=samples[task],
            target=Target.parse(record.target),
            settings=identity,
            judges={name: judge.model_dump() for name, judge in record.judges.items()},
            model=model,
            provenance=provenance(
                run.model,
                args,
                run.batch_size,
                record.versions,
                None if record.fit is None else record.fit.model_dump(mode="json"),
                untried=record.untried_versions,
                device=record.device or run.stated_device,
                note=note,
            ),
            stated=StatedSamples(
                count=counts[task].effective if task in counts else None,
                target=record.target,
                sha256=results.task_hashes.get(task, ""),
                figures=results.results.get(task, {}),
            ),
            warnings=warnings,
        )


def _records(path: Path, results: _Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of our tasks; results hold other tasks, too."""
    for task, config in results.configs.items():
        metadata = config.get("metadata")
        record = metadata.get("personalitybench") if isinstance(metadata, dict) else None
        if record is None:
            continue
        if not isinstance(record, dict):
            raise DataError(f"{path}: configs.{task}.metadata.personalitybench is no mapping: run lm_eval again")
        try:
            require_json_values(record)
        except ValueError as error:
            raise DataError(f"{path}: configs.{task}.metadata.personalitybench: {error}") from error
        yield task, record


def _identify_model(
    path: Path, run: _Run, args: Mapping[str, Any], record: TaskRecord
) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Identify the model as it was recorded when it answered.

    Returns:
        Name and revision, a note where the revision was not recorded, and warnings.
    """
    recorded = record.files.local_files if record.files else LocalFiles(are_complete=False)
    model = model_record(run.model, args, run.model_sha, run.adapter_commits, recorded)
    warnings = [
        f"{path}: {changed} changed since lm_eval ran: the row keeps the identity that was recorded"
        for changed in changed_files(recorded)
    ]
    note = ""
    if "pretrained" in args and UNSTATED in model["revision"]:
        note = "The results do not record which weights answered: the revision is unstated."
        warnings.append(f"{path}: {note[0].lower()}{note[1:-1]}")
    return model, note, tuple(warnings)


def _model_arguments(path: Path, results: _Results, run: _Run) -> dict[str, Any]:
    """Arguments of the model that lm-eval loaded, with its name as ``pretrained`` or ``model``.

    lm-eval's Python API takes them as a mapping or as text.

    Raises:
        DataError: The results do not name the model: it was given as an object.
    """
    from lm_eval.utils import simple_parse_args_string  # noqa: PLC0415 (slow import)

    if isinstance(run.model_args, dict):
        args = dict(run.model_args)
    else:
        try:
            args = dict(simple_parse_args_string(run.model_args or ""))
        except (ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path}: config.model_args is no list of name=value: {run.model_args!r:.80}") from error
    named = [args[key] for key in ("pretrained", "model") if args.get(key)]
    if wrong := [value for value in named if not isinstance(value, str)]:
        raise DataError(f"{path}: config.model_args: the name of the model is no text, but {wrong[0]!r:.80}")
    if named:
        return args
    if (args.get("path") or args.get("engine")) and results.model_name:
        return {**args, "model": results.model_name}
    if results.model_source == "CUSTOM" or run.model != "dummy":
        raise DataError(
            f"{path} does not name the model that answered (model {run.model!r}, no 'pretrained' or 'model' among "
            "its arguments): give simple_evaluate the model type as text, and model_args"
        )
    return args
