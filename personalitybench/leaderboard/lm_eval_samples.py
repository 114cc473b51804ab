"""Lines of lm-eval's ``samples_*.jsonl``: refused where they are cut off, repeated, or not as many as were asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from personalitybench.errors import DataError
from personalitybench.judging import verdict_from_json
from personalitybench.outside_files import UnreadableError, is_broken, numbered_lines, open_regular, parse_json
from personalitybench.traits import TRAIT_NAMES

_REMEDY = "copy it again from where lm_eval ran, or run lm_eval again"


def read_samples(path: Path, filter_name: str | None, expected: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the samples of one filter with their line numbers.

    A last line without a newline counts if it is whole.

    Args:
        path: The file.
        filter_name: Name of the filter; None: that of the first sample.
        expected: Number of samples of each filter as the results state it; None where they do not.

    Raises:
        DataError: A line is cut off or no sample, a question has two samples, or there are more or fewer samples than
            expected.
    """
    lines_by_id: dict[str, int] = {}
    try:
        with open_regular(path) as stream:
            for number, line in numbered_lines(stream):
                sample = _parse(path, number, line)
                try:
                    filter_name = sample["filter"] if filter_name is None else filter_name
                    if sample["filter"] != filter_name:
                        continue
                    identity = sample["doc"]["id"]
                except (KeyError, TypeError) as error:
                    raise not_a_sample(path, number, error) from error
                if not isinstance(identity, str) or is_broken(identity):
                    raise not_a_sample(path, number, TypeError(f"id is no text: {identity!r:.80}"))
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
    if expected is not None and len(lines_by_id) != expected:
        raise DataError(f"{path} holds {len(lines_by_id)} answers, but its results state {expected}: {_REMEDY}")


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
