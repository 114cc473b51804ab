"""Lines of lm-eval's ``samples_*.jsonl``: refused where they are cut off, repeated, or not those of their results."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personalitybench.errors import DataError
from personalitybench.judging import verdict_from_json
from personalitybench.metrics.fluency import TEXT_MEASURES
from personalitybench.outside_files import UnreadableError, is_broken, numbered_lines, open_regular, parse_json
from personalitybench.traits import TRAIT_NAMES

_REMEDY = "copy it again from where lm_eval ran, or run lm_eval again"


@dataclass(frozen=True)
class StatedSamples:
    """What results state about the samples of a task.

    Attributes:
        count: Samples of each filter; None where the results do not state it.
        target: Target of the task; empty where it is not known.
        sha256: lm-eval's hash of all questions, prompts and targets (``task_hashes``); empty where it is not stated.
        figures: The task's ``results``: means of measures as ``measure,filter``.
    """

    count: int | None = None
    target: str = ""
    sha256: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def read_samples(
    path: Path, filter_name: str | None, stated: StatedSamples | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the samples of one filter with their line numbers.

    A last line without a newline counts if it is whole.

    Args:
        path: The file.
        filter_name: Name of the filter; None: that of the first sample.
        stated: What the results state about the samples.

    Raises:
        DataError: A line is cut off or no sample, a question has two samples, or the samples are not those that the
            results state: another number, other targets or prompts, or other answers by their text measures.
    """
    stated = stated or StatedSamples()
    lines_by_id: dict[str, int] = {}
    tally = _Tally()
    try:
        with open_regular(path) as stream:
            for number, line in numbered_lines(stream):
                sample = _parse(path, number, line)
                try:
                    tally.add(sample)
                    filter_name = sample["filter"] if filter_name is None else filter_name
                    if sample["filter"] != filter_name:
                        continue
                    identity = _identity(path, number, sample["doc"], stated.target)
                except (KeyError, TypeError, AttributeError) as error:
                    raise not_a_sample(path, number, error) from error
                if identity in lines_by_id:
                    raise DataError(
                        f"{path}:{number} repeats the sample of line {lines_by_id[identity]} (question {identity}): "
                        f"{_REMEDY}"
                    )
                lines_by_id[identity] = number
                yield number, sample
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnreadableError as error:
        raise DataError(f"{path} {error}: {_REMEDY}") from error
    if (problem := tally.difference(stated, filter_name)) is not None:
        raise DataError(f"{path} {problem}: {_REMEDY}")


def read_answer(path: Path, number: int, sample: Mapping[str, Any]) -> dict[str, str]:
    """Return ``id``, ``trait`` and ``question`` of what was asked, and ``answer``.

    Raises:
        DataError: A field is missing or no text.
    """
    try:
        row = {key: sample["doc"][key] for key in ("id", "trait", "question")}
        answer = sample["resps"][0][0]
    except (KeyError, IndexError, TypeError) as error:
        raise not_a_sample(path, number, error) from error
    row["answer"] = "" if answer is None else answer
    for key, value in row.items():
        if not isinstance(value, str):
            raise not_a_sample(path, number, TypeError(f"{key} is no text: {value!r:.80}"))
    if row["trait"] not in TRAIT_NAMES:
        raise not_a_sample(path, number, ValueError(f"unknown trait {row['trait']!r:.80}"))
    return row


def read_verdicts(path: Path, number: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``trait`` and ``fluency``, the judge's verdicts as plain JSON.

    Raises:
        DataError: One is missing or no verdict.
    """
    try:
        verdicts = parse_json(sample["filtered_resps"][0])
        for aspect in ("trait", "fluency"):
            verdict_from_json(verdicts[aspect])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise not_a_sample(path, number, error) from error
    return dict(verdicts)


def not_a_sample(path: Path, number: int, error: Exception) -> DataError:
    """Build the error for a line that lacks a field of a sample."""
    return DataError(f"{path}:{number} is not a sample of lm-eval 0.4.13 ({error!r})")


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        sample = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"), finite=False)
    except ValueError as error:
        end = "" if line.endswith(b"\n") else " (the file is cut off)"
        raise DataError(f"{path}:{number} is not JSON{end}: {error}: {_REMEDY}") from error
    if not isinstance(sample, dict):
        raise DataError(f"{path}:{number} is not a JSON object: {_REMEDY}")
    return sample


def _identity(path: Path, number: int, doc: Mapping[str, Any], target: str) -> str:
    """Return the id of the question; refuse one of another target than that of the results."""
    identity, asked = doc["id"], doc.get("target", target)
    if not isinstance(identity, str) or is_broken(identity):
        raise TypeError(f"id is no text: {identity!r:.80}")
    if target and asked != target:
        raise DataError(f"{path}:{number} is of the target {asked!r:.80}, its results are of {target}: {_REMEDY}")
    return identity


class _Tally:
    """Number, hash and text measures of the samples of a file, to be compared with what its results state."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._sha256 = hashlib.sha256()
        self._has_hashes = True
        self._measures: dict[str, list[Any]] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count a sample of any filter."""
        self._counts[sample["filter"]] += 1
        parts = [sample.get(f"{name}_hash") for name in ("doc", "prompt", "target")]
        self._has_hashes &= all(isinstance(part, str) for part in parts)
        if self._has_hashes:
            self._sha256.update("".join(map(str, parts)).encode("utf-8", "replace"))
        for name in TEXT_MEASURES:
            self._measures.setdefault(f"{name},{sample['filter']}", []).append(sample.get(name))

    def difference(self, stated: StatedSamples, filter_name: str | None) -> str | None:
        """Describe the first difference from the results; None if there is none."""
        if stated.count is not None:
            counts = [self._counts[filter_name or ""], *self._counts.values()]
            if (wrong := next((count for count in counts if count != stated.count), None)) is not None:
                return f"holds {wrong} answers, but its results state {stated.count}"
        if stated.sha256 and self._has_hashes and self._sha256.hexdigest() != stated.sha256:
            return "holds other prompts than its results state (task_hashes)"
        for name, values in self._measures.items():
            mean, expected = _mean(values), _mean([stated.figures.get(name)])
            if mean is None or expected is None or math.isclose(mean, expected, rel_tol=1e-6, abs_tol=1e-9):
                continue
            return f"holds other answers than its results state (mean {name} {mean:g} instead of {expected:g})"
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mean(values: list[Any]) -> float | None:
    """Mean of the values; None where there is none, or one is no number."""
    if not values or not all(map(_is_number, values)):
        return None
    return math.fsum(values) / len(values)
