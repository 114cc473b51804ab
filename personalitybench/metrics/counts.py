"""Counts of documents in lm-eval's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Count(int):
    """A number of documents that stays a count in lm-eval's groups.

    Groups of lm-eval 0.4 and 0.5 know one aggregation, ``sum(value * size) / sum(size)``, and ignore the
    ``aggregation`` of their configuration. A count times a size is therefore a summand that ignores sizes: the group's
    count is the sum over its leaves. In all other arithmetic a count is an integer; lm-eval 0.5 resamples it.
    """

    def __mul__(self, _size: object) -> _Summand:  # type: ignore[override]
        return _Summand(self)

    __rmul__ = __mul__  # type: ignore[assignment]


@dataclass(frozen=True)
class _Summand:
    """A count within the weighted mean of a group."""

    total: int

    def __add__(self, other: _Summand | int) -> _Summand:
        return _Summand(self.total + (other.total if isinstance(other, _Summand) else other))

    __radd__ = __add__

    def __truediv__(self, _sizes: object) -> Count:
        return Count(self.total)


def count(items: Sequence[float]) -> Count:
    """Aggregation of ``unrated``: how many."""
    return Count(sum(items))
