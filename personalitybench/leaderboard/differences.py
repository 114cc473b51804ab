"""Differences between a board file and the board that its answers and ratings give, field by field."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personalitybench.leaderboard.schema import Leaderboard

_TOLERANCE = 1.5e-6  # figures are rounded to six digits
NULL_BASELINE_TOLERANCE = 0.005
"""Largest difference of a null baseline's figure that counts as equal.

Its ratings do not lie with the answers: each machine makes its own, and a trained judge rounds otherwise on each.
"""

_ABSENT: tuple[Any, ...] = (None, "", {}, [])
_LONGEST = 200


@dataclass(frozen=True)
class Difference:
    """A field in which a file differs.

    Attributes:
        field: Its path; a row is named by its id.
        stated: The file's value as text.
        computed: The value that follows from answers and ratings, as text.
    """

    field: str
    stated: str
    computed: str

    def __str__(self) -> str:
        return f"{self.field}: the file says {self.stated}, the answers and ratings give {self.computed}"


def compare_boards(stated: Mapping[str, Any], computed: Leaderboard, ignored: Collection[str] = ()) -> list[Difference]:
    """Return all fields in which a board file differs from a computed board.

    Fields of the provenance that the file lacks, as files of earlier versions do, are no difference.

    Args:
        stated: Content of the file.
        computed: The board.
        ignored: Names of fields of the board that are not compared.
    """
    expected = computed.model_dump(mode="json")
    found: list[Difference] = []
    for key in expected.keys() | stated.keys():
        if key in ignored:
            continue
        if key == "rows":
            found += _compare_rows(stated.get(key), expected[key])
        else:
            tolerance = NULL_BASELINE_TOLERANCE if key == "floors" else _TOLERANCE
            found += _compare(key, stated.get(key), expected.get(key), tolerance)
    return sorted(found, key=lambda difference: difference.field)


def _compare_rows(stated: Any, expected: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    if not isinstance(stated, list):
        yield Difference("rows", _show(stated), f"{len(expected)} rows")
        return
    by_id = {row["id"]: row for row in expected}
    ids = [row.get("id") if isinstance(row, dict) else None for row in stated]
    for number, (identity, row) in enumerate(zip(ids, stated, strict=True)):
        if not isinstance(identity, str) or identity not in by_id:
            yield Difference(f"rows.{number}.id", _show(identity), "no such row")
        elif identity in ids[:number]:
            yield Difference(f"rows.{number}.id", f"{identity} a second time", "it once")
        else:
            yield from _compare(f"rows.{identity}", row, by_id[identity])
    for identity, row in by_id.items():
        if identity not in ids:
            yield Difference(f"rows.{identity}", "nothing", f"a row of method {row['identity']['method']['name']!r}")
    if sorted(map(str, ids)) == sorted(by_id) and ids != list(by_id):
        yield Difference("rows", f"the order {', '.join(map(str, ids))}", ", ".join(by_id))


def _compare(field: str, stated: Any, computed: Any, tolerance: float = _TOLERANCE) -> Iterator[Difference]:
    if isinstance(stated, dict) and isinstance(computed, dict):
        for key in sorted(stated.keys() | computed.keys()):
            if key not in stated and (field.endswith(".provenance") or computed[key] in _ABSENT):
                continue
            yield from _compare(f"{field}.{key}", stated.get(key), computed.get(key), tolerance)
    elif isinstance(stated, list) and isinstance(computed, list) and len(stated) == len(computed):
        for number, (one, other) in enumerate(zip(stated, computed, strict=True)):
            yield from _compare(f"{field}.{number}", one, other, tolerance)
    elif not _are_equal(stated, computed, tolerance):
        yield Difference(field, _show(stated), _show(computed))


def _are_equal(stated: Any, computed: Any, tolerance: float) -> bool:
    if isinstance(stated, float | int) and isinstance(computed, float) and not isinstance(stated, bool):
        return abs(stated - computed) <= tolerance
    return type(stated) is type(computed) and bool(stated == computed)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
