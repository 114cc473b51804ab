"""The released selection, step by step: text lines, a sort, a cut. An oracle, written from a description of it.

Own code after facts about ``process_neuron.py`` (which has no licence and was not copied). For each pole: one text
line a neuron, sorted by δ descending; the first 2,000 lines regardless, then all with δ >= 0.1, at most 300,000 lines;
a95 is the left edge of the histogram bin in which the cumulative share reaches 0.95. Arithmetic is float32 throughout,
as the released tensors are. Only the standard library, so that nothing is shared with what it checks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

FORCED = 2000
THRESHOLD = 0.1
LIMIT = 300_000
EDGES = (-math.inf, *(step / 100 for step in range(300)))
"""Left edges of the 301 bins (-inf, 0], (0, .01], ... (2.99, inf)."""

Matrix = Sequence[Sequence[float]]
Row = tuple[int, int, float, float, float]


def single(value: float) -> float:
    """Round to float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


def left_edge(histogram: Sequence[int], share: float = 0.95) -> float:
    """Left edge of the bin where the cumulative count reaches the share."""
    total = sum(histogram)
    reached = 0
    for edge, count in zip(EDGES, histogram, strict=True):
        reached += count
        if reached / total >= share:
            return edge
    raise ValueError("an empty histogram")


def write_lines(path: Path, own: Matrix, other: Matrix, a95: Matrix) -> None:
    """Write a pole's neurons, all of them, strongest first; ties in order of layer and index."""
    rows: list[Row] = []
    for layer, (own_layer, other_layer, a95_layer) in enumerate(zip(own, other, a95, strict=True)):
        for index, (mine, theirs, high) in enumerate(zip(own_layer, other_layer, a95_layer, strict=True)):
            probability = single(mine)
            rows.append((layer, index, single(probability - single(theirs)), probability, single(high)))
    rows.sort(key=lambda row: -row[2])
    with path.open("w") as stream:
        for row in rows:
            stream.write(" ".join(map(repr, row)) + "\n")


def choose_lines(path: Path) -> dict[str, list[Row]]:
    """Read a pole's lines and keep what the released code keeps, by layer."""
    chosen: dict[str, list[Row]] = {}
    with path.open() as stream:
        for number, line in enumerate(stream):
            if number >= LIMIT:
                break
            layer, index, delta, probability, a95 = line.split()
            if number >= FORCED and float(delta) < THRESHOLD:
                break
            row = (int(layer), int(index), float(delta), float(probability), float(a95))
            chosen.setdefault(layer, []).append(row)
    return chosen


def select_as_released(folder: Path, high: Matrix, low: Matrix, a95_high: Matrix, a95_low: Matrix) -> list[list[Row]]:
    """Select both poles; gives the rows of the high and of the low pole, strongest first, ties by layer and index."""
    found = []
    for name, own, other, a95 in (("high", high, low, a95_high), ("low", low, high, a95_low)):
        path = folder / f"{name}.txt"
        write_lines(path, own, other, a95)
        rows = [row for rows in choose_lines(path).values() for row in rows]
        found.append(sorted(rows, key=lambda row: (-row[2], row[0], row[1])))
    return found
