"""How a neuron's positive activations are counted in bins, and how a quantile is read from the counts.

First on the way from activations to neurons: :mod:`personalitybench.activations.statistics` counts with these bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict

from personalitybench.errors import ConfigurationError

MANTISSA_BITS = 23
"""Stored bits of a float32's mantissa."""


@dataclass(frozen=True)
class Bins:
    """Edges of a histogram of the positive part of an activation.

    Bins are open on the left and closed on the right: the first is ``(0, edges[1]]``, the last ``(edges[-1], inf)``.
    What is not positive needs no bin: it is the tokens that the other bins do not hold. Every edge is a float32, and
    a value is placed exactly, so the same activations give the same counts on every device.

    The quantile of ``n`` values is the order statistic of rank ``ceil(q * n)``, zeros and negatives included (numpy's
    ``inverted_cdf``). A histogram tells the bin of that value without error; ``reading`` says what is reported.

    Attributes:
        spacing: ``octaves``: each doubling is cut into equal parts. ``linear``: all bins are equally wide.
        resolution: Bins in an octave (a power of two), or bins in one unit.
        start: The left edge of the second bin; 0 for ``linear``, where the grid begins with the first bin.
        stop: The left edge of the last bin, which has no right edge.
        reading: ``interpolated``: linearly within the bin, at the middle of the share that the value's rank has in
            it. ``left-edge``: the left edge of the bin.

    Raises:
        ConfigurationError: The numbers do not describe such edges.
    """

    spacing: Literal["octaves", "linear"]
    resolution: int
    start: float
    stop: float
    reading: Literal["interpolated", "left-edge"]

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.resolution < 1 or not 0.0 <= self.start < self.stop < 2.0**126:
            raise ConfigurationError(
                f"bins from {self.start} to {self.stop} with resolution {self.resolution}: "
                "give 0 <= start < stop and a resolution of at least 1"
            )
        if self.spacing == "linear":
            fits = self.start == 0.0 and math.isclose(self.stop * self.resolution, round(self.stop * self.resolution))
        else:
            powers = self.start >= 2.0**-100 and all(math.frexp(end)[0] == 0.5 for end in (self.start, self.stop))
            fits = powers and self.resolution.bit_count() == 1 and self.resolution <= 128
        if not fits:
            raise ConfigurationError(
                f"{self.spacing} bins from {self.start} to {self.stop} with resolution {self.resolution}: linear ones "
                "start at 0 and stop at a multiple of 1/resolution; octaves need powers of two, resolution up to 128"
            )

    @classmethod
    def default(cls) -> Bins:
        """Give this project's bins: 16 to an octave from 2^-10 to 32, 242 in all, read with interpolation.

        Error against the exact order statistic ``x``: below ``x / 16`` (6.25 %) for ``2^-10 < x <= 32``, because
        both lie in a bin that is at most a sixteenth of its left edge wide; below ``2^-10`` (absolute) for smaller
        ``x``; above 32 the reading is 32. With hundreds of tokens or more it is typically under 0.5 %.
        A bin is found with a shift of the float's bits: 16 bins to an octave are the top four bits of the mantissa.
        """
        return cls("octaves", resolution=16, start=2.0**-10, stop=32.0, reading="interpolated")

    @classmethod
    def paper_code(cls) -> Bins:
        """Give the bins of the paper's released code (``search_neuron.py``): 0.01 wide, capped at 2.99, left edge.

        With its bin for what is not positive the released code has 301; these are the other 300. The reading is below
        the exact order statistic by up to 0.01 for values up to 2.99, and 2.99 for all above.
        """
        return cls("linear", resolution=100, start=0.0, stop=2.99, reading="left-edge")

    @cached_property
    def edges(self) -> npt.NDArray[np.float32]:
        """Left edges, float32 [bins], ascending from 0; read-only."""
        if self.spacing == "linear":
            steps = np.arange(round(self.stop * self.resolution) + 1, dtype=np.float64)
            return _frozen(steps / self.resolution)
        octaves = round(math.log2(self.stop / self.start))
        whole, part = np.divmod(np.arange(octaves * self.resolution + 1), self.resolution)
        grid = self.start * 2.0**whole * (1.0 + part / self.resolution)
        return _frozen(np.concatenate([[0.0], grid]))

    @property
    def count(self) -> int:
        """How many bins there are."""
        return len(self.edges)

    def index(self, values: torch.Tensor) -> torch.Tensor:
        """Tell in which bin each value lies.

        Args:
            values: float32 of any shape, contiguous, without NaN.

        Returns:
            int64 of the same shape; 0 also for what is not positive, which the caller must not count.
        """
        if self.spacing == "linear":
            return torch.bucketize(values, torch.tensor(self.edges[1:], device=values.device))
        # The bits of positive floats, read as integers, have the order of the floats; those of negatives are negative.
        bits = values.view(torch.int32).clamp(min=self.lowest_bits)
        return (((bits - (self.lowest_bits + 1)) >> self.shift) + 1).clamp_(max=self.count - 1).long()

    @property
    def lowest_bits(self) -> int:
        """The bits of ``start`` as a float32; bins in octaves are found by bits, here and in kernels."""
        return int(self.edges[1:2].view(np.int32)[0])

    @property
    def shift(self) -> int:
        """Bits of the mantissa that tell values of one bin in octaves apart."""
        return MANTISSA_BITS - (self.resolution.bit_length() - 1)

    def read(self, histogram: npt.NDArray[np.int32], rank: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Read order statistics of the positive part.

        Args:
            histogram: int32 [neurons, bins].
            rank: int64 [neurons], from 1 for the smallest positive value; where it is not positive the result is 0.

        Returns:
            float32 [neurons].
        """
        below = np.cumsum(histogram, axis=1, dtype=np.int64)
        found = np.minimum((below < rank[:, None]).sum(axis=1), self.count - 1)
        left = self.edges.astype(np.float64)
        value = left[found]
        if self.reading == "interpolated":
            width = np.append(np.diff(left), 0.0)[found]
            rows = np.arange(len(rank))
            inside = histogram[rows, found].astype(np.float64)
            share = (rank - (below[rows, found] - inside) - 0.5) / np.maximum(inside, 1.0)
            value += np.clip(share, 0.0, 1.0) * width
        return np.where(rank > 0, value, 0.0).astype(np.float32)


def rank_of_quantile(q: float, values: int) -> int:
    """Rank of the ``q`` quantile among ``values`` values, from 1: ``ceil(q * values)`` with ``q`` as it is written.

    Raises:
        ConfigurationError: ``q`` is not above 0 and at most 1.
    """
    if not 0.0 < q <= 1.0:
        raise ConfigurationError(f"quantile {q}: give a number above 0 and at most 1, such as 0.95")
    return math.ceil(Fraction(str(q)) * values)


def _frozen(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    edges = values.astype(np.float32)
    edges.flags.writeable = False
    return edges
