"""Which tokens of a vLLM step are edited or counted, and how: decided on the host before every forward pass.

Decided by absolute position, never by the size of a step: an answer token is steered and counted alike in a decode
step, in a chunk of a prefill, and when it is computed again after a preemption (steered again, counted once).
Numpy only; :mod:`~personalitybench.backends.vllm.state` carries the result to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from personalitybench.backends.wishes import Wish

Ints = npt.NDArray[np.int64]

FIELDS = ("slot", "strength", "position", "seed", "keep", "shard")
"""Columns of a token's row, int32 each: ``strength`` holds the bits of a float32, ``seed`` and ``keep`` 32-bit words.

``slot`` 0 leaves a token alone, ``shard`` -1 leaves it uncounted. ``keep`` is the threshold of the hash, all ones where
everything stays.
"""

SLOT, STRENGTH, POSITION, SEED, KEEP, SHARD = range(len(FIELDS))
KEEP_ALL = 0xFFFFFFFF
_NEVER = np.iinfo(np.int64).max
_FORGET_AFTER = 65536
_WISH = np.dtype(
    [
        ("fields", np.int32, 4),  # slot, strength, seed, keep
        ("edit_from", np.int64),
        ("edited_to", np.int64),
        ("count_from", np.int64),
        ("shard", np.int64),
    ]
)


@dataclass(frozen=True)
class Step:
    """What one forward pass is to do.

    Attributes:
        tokens: How many tokens it has, padding not among them.
        packed: int32 [tokens, fields], as :data:`FIELDS` says; meaningless in an idle step.
        edited: Tokens that are edited, computed again or not.
        counted: int64 [shards], tokens counted.
    """

    tokens: int
    packed: npt.NDArray[np.int32]
    edited: int
    counted: Ints

    @property
    def idle(self) -> bool:
        """Whether nothing is edited or counted."""
        return self.edited == 0 and not self.counted.any()


class Router:
    """Remembers what each request wants and lays it out for a step.

    Args:
        max_tokens: The most tokens of a step.
        shards: Parts of the statistics; 0 where nothing can be counted.

    Attributes:
        edited_tokens: Tokens edited so far, each position of a request once.
    """

    def __init__(self, max_tokens: int, shards: int = 0) -> None:
        self._packed = np.zeros((max_tokens, len(FIELDS)), np.int32)
        self._counted = np.zeros(max(shards, 1), np.int64)
        self._wishes = np.zeros(64, _WISH)
        self._free = list(range(len(self._wishes)))
        self._rows: dict[str, int] = {}
        self._left: dict[str, tuple[int, int]] = {}  # how far requests that left were edited and counted
        self.edited_tokens = 0

    def add(self, request_id: str, wish: Wish | None, slot: int, prompt_tokens: int) -> None:
        """Take in a request; one that was preempted goes on where it was.

        Args:
            request_id: As vLLM calls it.
            wish: What it wants, if anything.
            slot: Where its intervention lies, from 1; 0 if it has none.
            prompt_tokens: Length of its prompt.
        """
        if wish is None:
            return
        first = prompt_tokens if wish.answer_from is None else wish.answer_from
        edited_to, counted_to = self._left.pop(request_id, (0, 0))
        keep = min(int(wish.keep * (KEEP_ALL + 1)), KEEP_ALL)
        words = np.array([np.float32(wish.strength).view(np.uint32), wish.seed & KEEP_ALL, keep], np.uint32)
        if not self._free:
            self._free = list(range(len(self._wishes), 2 * len(self._wishes)))
            self._wishes = np.concatenate([self._wishes, np.zeros_like(self._wishes)])
        row = self._rows[request_id] = self._free.pop()
        wanted = self._wishes[row]
        wanted["fields"] = [slot, *words.view(np.int32)]
        wanted["edit_from"] = first - int(wish.first_token) if slot else _NEVER
        wanted["edited_to"] = edited_to
        wanted["count_from"] = max(first, counted_to) if wish.shard is not None else _NEVER
        wanted["shard"] = -1 if wish.shard is None else wish.shard

    def remove(self, request_id: str) -> None:
        """Let go of a request that has finished or was preempted."""
        row = self._rows.pop(request_id, None)
        if row is None:
            return
        self._free.append(row)
        count_from = int(self._wishes[row]["count_from"])
        self._left[request_id] = (int(self._wishes[row]["edited_to"]), 0 if count_from == _NEVER else count_from)
        if len(self._left) > _FORGET_AFTER:
            self._left.pop(next(iter(self._left)))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def request_ids(self) -> list[str]:
        """Requests that want anything and have not left."""
        return list(self._rows)

    @property
    def slots_in_use(self) -> set[int]:
        """Slots of the requests that are here."""
        return {int(self._wishes[row]["fields"][0]) for row in self._rows.values()} - {0}

    def step(self, request_ids: Sequence[str], starts: npt.ArrayLike, computed: npt.ArrayLike) -> Step:
        """Lay out a step.

        Args:
            request_ids: Requests of the step, in the order of their tokens.
            starts: int [requests + 1], where each request's tokens begin, and the number of all tokens.
            computed: int [requests], how many tokens of each request were computed before.

        Returns:
            The step; its ``packed`` is valid until the next call.
        """
        begins = np.asarray(starts, np.int64)
        total = int(begins[len(request_ids)])
        places = [place for place, name in enumerate(request_ids) if name in self._rows]
        if not places:
            return Step(total, self._packed[:total], 0, np.zeros_like(self._counted))
        rows = np.array([self._rows[request_ids[place]] for place in places])
        begin = begins[places]
        length = begins[np.add(places, 1)] - begin
        first = np.asarray(computed, np.int64)[places]
        end = first + length
        wanted = self._wishes[rows]

        request = np.repeat(np.arange(len(rows)), length)
        offset = np.arange(len(request)) - np.repeat(np.cumsum(length) - length, length)
        position = first[request] + offset
        edits = position >= wanted["edit_from"][request]
        counts = position >= wanted["count_from"][request]
        packed = self._packed[:total]
        packed[:, SLOT] = 0
        packed[:, SHARD] = -1
        place = begin[request] + offset
        fields = wanted["fields"][request]
        packed[place, SLOT] = np.where(edits, fields[:, 0], 0)
        packed[place, STRENGTH] = fields[:, 1]
        packed[place, POSITION] = position
        packed[place, SEED] = fields[:, 2]
        packed[place, KEEP] = fields[:, 3]
        packed[place, SHARD] = np.where(counts, wanted["shard"][request], -1)
        counted = np.bincount(wanted["shard"][request][counts], minlength=len(self._counted))

        fresh = np.maximum(end - np.maximum(np.maximum(wanted["edit_from"], wanted["edited_to"]), first), 0)
        self.edited_tokens += int(fresh[wanted["edit_from"] != _NEVER].sum())
        self._wishes["edited_to"][rows] = np.maximum(wanted["edited_to"], end)
        counting = wanted["shard"] >= 0
        self._wishes["count_from"][rows[counting]] = np.maximum(wanted["count_from"], end)[counting]
        return Step(total, packed, int(edits.sum()), counted)
