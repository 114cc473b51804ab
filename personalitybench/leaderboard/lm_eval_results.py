"""lm-eval's own result files (``results_*.json`` and ``samples_*.jsonl``, lm-eval 0.4.13) as cells of a board.

Judged answers are read from the samples, never the aggregated figures, so everything is recomputed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.argument_policy import redact
from personalitybench.costs import FitCost
from personalitybench.errors import DataError
from personalitybench.files import read_json
from personalitybench.judging import verdict_from_json
from personalitybench.leaderboard.build import Cell, JudgedAnswer
from personalitybench.leaderboard.lm_eval_samples import not_a_sample, read_samples
from personalitybench.leaderboard.schema import Provenance
from personalitybench.model_identity import model_record
from personalitybench.outside_files import parse_json
from personalitybench.traits import Target

_DATE = re.compile(r"_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)$")
"""The date at the end of the name of a results file; the names of its samples end with it, too."""

# Arguments that say where the weights lie and on what they run, not what they compute.
_PLACE_ARGUMENTS = {"pretrained", "model", "revision", "device", "base_url", "tokenizer"}


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
        count: Number of answers that the results state; None where they do not.
    """

    samples: Path
    target: Target
    settings: Mapping[str, Any]
    judges: Mapping[str, Mapping[str, str]]
    model: Mapping[str, str]
    provenance: Provenance
    count: int | None = None

    def answers(self) -> Iterator[dict[str, str]]:
        """Stream the answers, each once: ``id``, ``trait`` and ``question`` of what was asked, and ``answer``.

        Raises:
            DataError: The samples are cut off, repeated, or not as many as the results state.
        """
        # Without a judge there is one filter, whatever its name.
        for number, sample in read_samples(self.samples, next(iter(self.judges), None), self.count):
            try:
                row = {key: sample["doc"][key] for key in ("id", "trait", "question")}
                row["answer"] = sample["resps"][0][0] or ""
            except (KeyError, IndexError, TypeError) as error:
                raise not_a_sample(self.samples, number, error) from error
            yield row

    def verdicts(self, judge: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream what a judge said when lm_eval ran: the question's id, and ``trait`` and ``fluency`` as plain JSON.

        Raises:
            DataError: As for :meth:`answers`, or a verdict is missing.
        """
        names = [name for name, fingerprint in self.judges.items() if fingerprint == judge]
        if not names:
            return
        for number, sample in read_samples(self.samples, names[0], self.count):
            try:
                verdicts = parse_json(sample["filtered_resps"][0])
                for aspect in ("trait", "fluency"):
                    verdict_from_json(verdicts[aspect])
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise not_a_sample(self.samples, number, error) from error
            yield sample["doc"]["id"], verdicts

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
) -> Provenance:
    """How a row came to be; the same for a run and an import. ``fit`` is a :class:`FitCost` as plain data."""
    kept = {key: str(value) for key, value in sorted(redact(args).items()) if key not in _PLACE_ARGUMENTS}
    return Provenance(
        backend=backend,
        backend_args=kept,
        batch_size=str(batch_size),
        versions=dict(sorted(versions.items())),
        untried_versions=list(untried),
        fit=None if fit is None else FitCost.model_validate(fit),
    )


def _read_results(path: Path) -> Iterator[TaskResults]:
    results = read_json(path, finite=False)
    try:
        configs, run = results["configs"], results["config"]
        records = {task: (config.get("metadata") or {}).get("personalitybench") for task, config in configs.items()}
    except (AttributeError, KeyError, TypeError) as error:
        if not path.name.startswith("results_") and not isinstance(error, AttributeError):
            return  # another program's file with a date in its name
        raise DataError(f"{path} is not a results file of lm-eval ({error!r}): name another") from error
    ours = {
        task: record
        for task, record in records.items()
        if record is not None and record["identity"]["data"]["split"] == "evaluate"
    }
    found = _DATE.search(path.stem)
    date = found["date"] if found else path.stem.removeprefix("results_")
    samples = {task: path.parent / f"samples_{task}_{date}.jsonl" for task in ours}
    if missing := [str(each) for each in samples.values() if not each.is_file()]:
        raise DataError(f"{missing[0]} is missing: run lm_eval with --log_samples, a board is made from the answers")
    if not ours:
        return
    args = _model_arguments(path, results, run)
    adapter_commits = {key: run[f"{key}_sha"] for key in ("peft", "delta") if run.get(f"{key}_sha")}
    model = model_record(run["model"], args, run.get("model_sha"), adapter_commits)
    counts = results.get("n-samples") or {}
    for task, record in ours.items():
        yield TaskResults(
            samples=samples[task],
            target=Target.parse(record["target"]),
            settings=record["identity"],
            judges=record["judges"],
            model=model,
            provenance=provenance(
                run["model"],
                args,
                run["batch_size"],
                record["versions"],
                record.get("fit"),
                untried=record.get("untried_versions", []),
            ),
            count=(counts.get(task) or {}).get("effective"),
        )


def _model_arguments(path: Path, results: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model that lm-eval loaded, with its name as ``pretrained`` or ``model``.

    lm-eval's Python API takes them as a mapping or as text.

    Raises:
        DataError: The results do not name the model: it was given as an object.
    """
    from lm_eval.utils import simple_parse_args_string  # noqa: PLC0415 (slow import)

    given = run["model_args"]
    args: dict[str, Any] = dict(given) if isinstance(given, Mapping) else simple_parse_args_string(given or "")
    if args.get("pretrained") or args.get("model"):
        return args
    if (args.get("path") or args.get("engine")) and results.get("model_name"):
        return {**args, "model": results["model_name"]}
    if results.get("model_source") == "CUSTOM" or run["model"] != "dummy":
        raise DataError(
            f"{path} does not name the model that answered (model {run['model']!r}, no 'pretrained' or 'model' among "
            "its arguments): give simple_evaluate the model type as text, and model_args"
        )
    return args
