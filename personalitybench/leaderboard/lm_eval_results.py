"""lm-eval's own result files (``results_*.json`` and ``samples_*.jsonl``, lm-eval 0.4.13) as cells of a board.

Judged answers are read from the samples, never the aggregated figures, so everything is recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.costs import FitCost
from personalitybench.errors import DataError
from personalitybench.files import JsonLines, read_json
from personalitybench.judging import verdict_from_json
from personalitybench.leaderboard.build import Cell, JudgedAnswer
from personalitybench.leaderboard.schema import Provenance
from personalitybench.model_identity import model_record
from personalitybench.traits import Target

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
    """

    samples: Path
    target: Target
    settings: Mapping[str, Any]
    judges: Mapping[str, Mapping[str, str]]
    model: Mapping[str, str]
    provenance: Provenance

    def answers(self) -> Iterator[dict[str, str]]:
        """Stream the answers, each once: ``id``, ``trait`` and ``question`` of what was asked, and ``answer``."""
        name = next(iter(self.judges), None)
        for number, sample in enumerate(JsonLines(self.samples).read(), 1):
            try:
                name = sample["filter"] if name is None else name  # unjudged: there is one filter, whatever its name
                if sample["filter"] != name:
                    continue
                row = {key: sample["doc"][key] for key in ("id", "trait", "question")}
                row["answer"] = sample["resps"][0][0] or ""
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(f"{self.samples}:{number} is not a sample of lm-eval 0.4.13 ({error!r})") from error
            yield row

    def verdicts(self, judge: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream what a judge said when lm_eval ran: the question's id, and ``trait`` and ``fluency`` as plain JSON."""
        names = [name for name, fingerprint in self.judges.items() if fingerprint == judge]
        if not names:
            return
        for sample in JsonLines(self.samples).read():
            if sample["filter"] == names[0]:
                yield sample["doc"]["id"], json.loads(sample["filtered_resps"][0])

    def cell(self, judge: Mapping[str, str], verdicts: Iterable[tuple[str, Mapping[str, Any]]]) -> Cell:
        """Make the cell of a judge.

        Args:
            judge: Its fingerprint.
            verdicts: As :meth:`verdicts` gives them.
        """
        by_id = dict(verdicts)
        judged = [
            JudgedAnswer(
                question_id=row["id"],
                question=row["question"],
                answer=row["answer"],
                trait=verdict_from_json(by_id[row["id"]]["trait"]),
                fluency=verdict_from_json(by_id[row["id"]]["fluency"]),
            )
            for row in self.answers()
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
    """Whether a folder holds results of lm-eval (searched downwards), or is a file of them."""
    return folder.is_file() or next(folder.rglob("results_*.json"), None) is not None


def read_tasks(folder: Path) -> Iterator[TaskResults]:
    """Find the evaluation tasks of this project in a folder of lm-eval results (searched downwards).

    Raises:
        DataError: As :func:`read_cells`.
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist: name a folder that lm_eval was given as --output_path")
    results = sorted(folder.rglob("results_*.json")) if folder.is_dir() else [folder]
    if not results:
        raise DataError(f"{folder} has no results_*.json: give lm_eval an --output_path and name that folder here")
    for path in results:
        yield from _read_results(path)


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
    kept = {key: str(value) for key, value in sorted(args.items()) if key not in _PLACE_ARGUMENTS}
    return Provenance(
        backend=backend,
        backend_args=kept,
        batch_size=str(batch_size),
        versions=dict(sorted(versions.items())),
        untried_versions=list(untried),
        fit=None if fit is None else FitCost.model_validate(fit),
    )


def _read_results(path: Path) -> Iterator[TaskResults]:
    results = read_json(path)
    try:
        configs, run = results["configs"], results["config"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a results file of lm-eval: it has no {error}") from error
    date = path.stem.removeprefix("results_")
    records = {task: (config.get("metadata") or {}).get("personalitybench") for task, config in configs.items()}
    ours = {
        task: record
        for task, record in records.items()
        if record is not None and record["identity"]["data"]["split"] == "evaluate"
    }
    samples = {task: path.parent / f"samples_{task}_{date}.jsonl" for task in ours}
    if missing := [str(each) for each in samples.values() if not each.is_file()]:
        raise DataError(f"{missing[0]} is missing: run lm_eval with --log_samples, a board is made from the answers")
    if not ours:
        return
    args = run["model_args"] if isinstance(run["model_args"], dict) else {}
    model = model_record(run["model"], args, run.get("model_sha"))
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
        )
