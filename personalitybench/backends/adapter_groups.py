"""Rows of a batch by the adapter that each of them has, so that their products take few calls and little memory.

In a decode step there is little to multiply, and what goes from adapter to adapter takes longer for ten of them than a
small model itself: all groups are brought to one size and multiplied at once. Where prompts are read there is much, and
each group is multiplied on its own. A row's numbers are those of its own adapter's product alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1024
"""Rows, tokens counted apart, up to which all groups are multiplied at once."""


@dataclass(frozen=True)
class Part:
    """Groups that are multiplied at once.

    Attributes:
        groups: Which, counted from the first.
        read: Their rows, [groups, rows of a group and all that is between, inputs].
    """

    groups: slice
    read: Tensor
    _rows: Tensor | None  # where the rows come from; None for all, as they are
    _slots: Tensor | None  # where these are among those of the groups; None for all, as they are

    def put(self, products: Tensor, result: Tensor, *, add: bool = True) -> None:
        """Give rows what was computed for them.

        Args:
            products: [groups, rows of a group and all that is between, outputs].
            result: [rows, ..., outputs], changed in place and rounded once.
            add: Whether they are added or written.
        """
        found = products.view(-1, *result.shape[1:])
        found = found if self._slots is None else found[self._slots]
        if self._rows is None:
            result.copy_(result + found if add else found)
        else:
            result[self._rows] = (result[self._rows] + found if add else found).to(result.dtype)


@dataclass(frozen=True)
class Groups:
    """Rows by adapter: a group for each number from the first that a row has to the last.

    Attributes:
        first: Number of the first adapter.
        count: How many groups there are.
    """

    first: int
    count: int
    _adapted: Tensor  # rows that have an adapter, in order, int64
    _every: bool  # whether these are all
    _rows: tuple[Tensor, ...]  # those of each group
    _members: Tensor  # those of all groups at one size, int64 [count * size]; what a group lacks, any row stands for
    _slots: Tensor  # where each of the adapted rows is among these

    @classmethod
    def of(cls, own: Tensor) -> Groups | None:
        """Group rows.

        Args:
            own: Number of each row's adapter, -1 for none; int64 [rows].

        Returns:
            None where no row has an adapter.
        """
        adapted = (own >= 0).nonzero().flatten()
        if not len(adapted):
            return None
        first = int(own[adapted].min())
        numbers = own[adapted] - first
        sizes = numbers.bincount()
        size = int(sizes.max())
        order = numbers.argsort(stable=True)
        places = torch.arange(len(order), device=own.device) - (sizes.cumsum(0) - sizes)[numbers[order]]
        slots = torch.empty_like(order)
        slots[order] = numbers[order] * size + places
        members = adapted[:1].repeat(len(sizes) * size)
        members[slots] = adapted
        rows = torch.split(adapted[order], sizes.tolist())
        return cls(first, len(sizes), adapted, len(adapted) == len(own), rows, members, slots)

    def parts(self, x: Tensor) -> Iterator[Part]:
        """Lay out rows to be multiplied.

        Args:
            x: [rows, ..., inputs].
        """
        adapted = None if self._every and len(x) == len(self._adapted) else self._adapted
        if self.count == 1:
            yield self._part(0, 1, x if adapted is None else x[adapted], adapted)
        elif len(self._members) * x.shape[1:-1].numel() <= AT_ONCE:
            yield self._part(0, self.count, x[self._members], adapted, self._slots)
        else:
            for number, rows in enumerate(self._rows):
                if len(rows):
                    yield self._part(number, 1, x[rows], rows)

    @staticmethod
    def _part(first: int, count: int, read: Tensor, rows: Tensor | None, slots: Tensor | None = None) -> Part:
        return Part(slice(first, first + count), read.reshape(count, -1, read.shape[-1]), rows, slots)
