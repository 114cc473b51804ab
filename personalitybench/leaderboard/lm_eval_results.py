"""lm-eval's own result files (``results_*.json`` and ``samples_*.jsonl``, lm-eval 0.4.13) as cells of a board.

Judged answers are read from the samples, never the aggregated figures, so everything is recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from personalitybench.errors import DataError
from personalitybench.files import JsonLines, read_json
from personalitybench.judging import verdict_from_json
from personalitybench.leaderboard.build import Cell, JudgedAnswer
from personalitybench.leaderboard.schema import Provenance
from personalitybench.models import identify_folder
from personalitybench.traits import Target

# Arguments that say where the weights lie and on what they run, not what they compute.
_PLACE_ARGUMENTS = {"pretrained", "model", "revision", "device", "base_url", "tokenizer"}


def read_cells(folder: Path) -> Iterator[Cell]:
    """Read every personalitybench task in a folder of lm-eval results (searched downwards).

    Raises:
        DataError: No results there, or the samples are missing (``--log_samples`` was not given).
    """
    if not folder.exists():
        raise DataError(f"{folder} does not exist: name a folder that lm_eval was given as --output_path")
    results = sorted(folder.rglob("results_*.json")) if folder.is_dir() else [folder]
    if not results:
        raise DataError(f"{folder} has no results_*.json: give lm_eval an --output_path and name that folder here")
    for path in results:
        yield from _read_results(path)


def model_record(backend: str, args: Mapping[str, Any], commit: str | None = None) -> dict[str, str]:
    """Name and revision of a model from lm-eval's model type and arguments; the same for a run and an import."""
    name = str(args.get("pretrained") or args.get("model") or backend)
    if "pretrained" in args and Path(name).is_dir():
        identity = identify_folder(Path(name))
        return {"name": identity.name, "revision": identity.revision}
    return {"name": name, "revision": commit or "unstated"}


def provenance(backend: str, args: Mapping[str, Any], batch_size: Any, versions: Mapping[str, str]) -> Provenance:
    """How a row came to be; the same for a run and an import."""
    kept = {key: str(value) for key, value in sorted(args.items()) if key not in _PLACE_ARGUMENTS}
    return Provenance(
        backend=backend,
        backend_args=kept,
        batch_size=str(batch_size),
        versions=dict(sorted(versions.items())),
    )


def _read_results(path: Path) -> Iterator[Cell]:
    results = read_json(path)
    try:
        configs, run = results["configs"], results["config"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a results file of lm-eval: it has no {error}") from error
    date = path.stem.removeprefix("results_")
    for task, config in configs.items():
        record = (config.get("metadata") or {}).get("personalitybench")
        if record is None or record["identity"]["data"]["split"] != "evaluate":
            continue
        samples = path.parent / f"samples_{task}_{date}.jsonl"
        if not samples.is_file():
            raise DataError(f"{samples} is missing: run lm_eval with --log_samples, a board is made from the answers")
        args = run["model_args"] if isinstance(run["model_args"], dict) else {}
        model = model_record(run["model"], args, run.get("model_sha"))
        made = provenance(run["model"], args, run["batch_size"], record["versions"])
        answers: dict[str, list[JudgedAnswer]] = {judge: [] for judge in record["judges"]}
        for sample in JsonLines(samples).read():
            if sample["filter"] in answers:
                answers[sample["filter"]].append(_read_sample(sample))
        for judge, judged in answers.items():
            target = Target.parse(record["target"])
            yield Cell(model, record["identity"], record["judges"][judge], target, judged, made)


def _read_sample(sample: Mapping[str, Any]) -> JudgedAnswer:
    verdicts = json.loads(sample["filtered_resps"][0])
    return JudgedAnswer(
        question_id=sample["doc"]["id"],
        question=sample["doc"]["question"],
        answer=sample["resps"][0][0],
        trait=verdict_from_json(verdicts["trait"]),
        fluency=verdict_from_json(verdicts["fluency"]),
    )
