"""How often each neuron was active in a target's answers, and how strongly: what neurons are selected from.

Comes after the answers and before :mod:`personalitybench.activations.neurons`. A neuron is one unit of the gated
activation in an MLP, before the product with the up projection (paper, eq. 1). The statistics are integers, so they
are exact, additive over parts of a run, and independent of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from personalitybench.activations.bins import Bins, rank_of_quantile
from personalitybench.activations.statistics_files import (
    Counts,
    StatisticsManifest,
    StatisticsSource,
    TokenRule,
    load_statistics,
    save_statistics,
)
from personalitybench.activations.token_rules import token_mask
from personalitybench.errors import ConfigurationError, DataError, ModelError

__all__ = [
    "Bins",
    "GateStatistics",
    "StatisticsBuilder",
    "StatisticsManifest",
    "StatisticsSource",
    "TokenRule",
    "memory_bytes",
    "token_mask",
]

LARGEST_COUNT = 2**31 - 1
"""Of an int32: no count exceeds the number of tokens, so this many tokens are safe."""

BLOCK = (256, 1024)
"""Tokens and neurons that are placed in bins at once on a CPU, few enough for its cache: up to twice as fast."""

GATHERED = 256
"""Tokens of a layer that a CPU gathers before it counts them: a decode step's few, alone, cost it twice as much each.

They wait for ``build``; memory: 235 MB in bfloat16 for Llama-3-8B.
"""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def memory_bytes(layers: int, neurons: int, shards: int, bins: Bins) -> int:
    """Memory of one target's counts: 4 bytes for each neuron and bin, and for each neuron and shard.

    Llama-3-8B (32 layers of 14,336 neurons) with 20 shards takes 481 MB with the default bins and 587 MB with those
    of the released code. Adding two needs three times that, saving twice.
    """
    return 4 * layers * neurons * (shards + bins.count)


@dataclass(frozen=True, eq=False)
class GateStatistics:
    """How often and how strongly the neurons of a model were active in the answers of one target.

    Memory: :func:`memory_bytes`, 481 MB for Llama-3-8B.

    Attributes:
        manifest: What was run and counted.
        active: Tokens in which a neuron's activation was above zero, int32 [shards, layers, neurons]; read-only.
        histogram: Positive activations by bin, int32 [layers, neurons, bins]; read-only.

    Raises:
        DataError: The counts do not have the shapes and type that the manifest says.
    """

    manifest: StatisticsManifest
    active: Counts
    histogram: Counts

    def __post_init__(self) -> None:
        manifest = self.manifest
        inner = (manifest.layers, manifest.neurons)
        wanted = {"active": (len(manifest.tokens), *inner), "histogram": (*inner, manifest.bins.count)}
        for name, shape in wanted.items():
            counts = getattr(self, name)
            if counts.shape != shape or counts.dtype != np.int32:
                raise DataError(
                    f"statistics of {manifest.target}: {name} is {counts.dtype} {list(counts.shape)}, "
                    f"the manifest says int32 {list(shape)}"
                )
            view = counts.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens counted, int64 [shards]."""
        return np.array(self.manifest.tokens, dtype=np.int64)

    def probability(self) -> npt.NDArray[np.float64]:
        """Share of the tokens in which each neuron was active (paper, eq. 2), float64 [layers, neurons].

        Raises:
            DataError: No token was counted.
        """
        active: npt.NDArray[np.int64] = self.active.sum(axis=0, dtype=np.int64)
        return active / self._all_tokens()

    def quantile(self, q: float = 0.95, *, floor: float = 0.0) -> npt.NDArray[np.float32]:
        """Quantile of each neuron's activation over all tokens, float32 [layers, neurons].

        Args:
            q: Above 0 and at most 1. The paper's a95 is 0.95.
            floor: What is given where the quantile is not positive, which happens where a neuron is active in at most
                ``1 - q`` of the tokens. Adding 0 leaves such a neuron alone; the released code has ``-inf`` there.

        See :class:`Bins` for what is read and how far it may be from the exact quantile.

        Raises:
            DataError: No token was counted.
            ConfigurationError: ``q`` is out of range.
        """
        tokens = self._all_tokens()
        positive = rank_of_quantile(q, tokens) - tokens + self.active.sum(axis=0, dtype=np.int64)
        value = np.empty(positive.shape, dtype=np.float32)
        for layer, rank in enumerate(positive):  # a layer at a time: the cumulative counts are as large as the counts
            value[layer] = self.manifest.bins.read(self.histogram[layer], rank)
        return np.where(positive > 0, value, np.float32(floor))

    def jackknife_error_of_difference(self, other: GateStatistics) -> npt.NDArray[np.float64]:
        """Standard error of ``self.probability() - other.probability()``, float64 [layers, neurons].

        Delete-one-shard jackknife (Efron & Stein, 1981): shard ``s`` is left out of both at once, because both poles
        answer the same questions, and the tokens of an answer, which are not independent, stay together.
        ``sqrt((S - 1) / S * sum_s (d_s - mean(d))^2)``; shards in which neither has a token are passed over. Made for
        shards of similar size.

        Raises:
            ConfigurationError: The two are not of the same model, revision, prompts, data, seeds, tokens or shape.
            DataError: Fewer than two shards have tokens, or without one shard nothing is left.
        """
        self._require_equal(other, "compare", ignore=frozenset({"target", "bins"}))
        tokens = (self.tokens, other.tokens)
        shards = np.flatnonzero(tokens[0] + tokens[1])
        if len(shards) < 2 or any((one.sum() - one[shards] <= 0).any() for one in tokens):
            raise DataError(
                f"statistics of {self.manifest.target} and {other.manifest.target}: an error needs tokens of both "
                "in at least two shards of questions: count more questions"
            )
        active = [one.active.sum(axis=0, dtype=np.int64) for one in (self, other)]
        whole = active[0] / tokens[0].sum() - active[1] / tokens[1].sum()
        total, squares = np.zeros_like(whole), np.zeros_like(whole)
        for shard in shards:
            high, low = (
                (counts - one.active[shard]) / (some.sum() - some[shard])
                for counts, one, some in zip(active, (self, other), tokens, strict=True)
            )
            change = high - low - whole  # centred first: the squares of small changes lose no digits
            total += change
            squares += change**2
        count = len(shards)
        spread = np.maximum(squares - total**2 / count, 0.0)
        error: npt.NDArray[np.float64] = np.sqrt(spread * (count - 1) / count)
        return error

    def __add__(self, other: object) -> GateStatistics:
        """Merge the statistics of two parts of a run, exactly; shards of the same number are added.

        The parts must hold different answers: nothing here knows whether an answer is counted twice.

        Raises:
            ConfigurationError: They are not parts of one run (the text names what differs), or are too large together.
        """
        if not isinstance(other, GateStatistics):
            return NotImplemented
        self._require_equal(other, "add")
        tokens = self.tokens + other.tokens
        _require_room(int(tokens.sum()), f"statistics of {self.manifest.target}")
        questions = [a + b for a, b in zip(self.manifest.questions, other.manifest.questions, strict=True)]
        update = {"questions": tuple(questions), "tokens": tuple(tokens.tolist())}
        manifest = self.manifest.model_copy(update=update)
        return GateStatistics(manifest, self.active + other.active, self.histogram + other.histogram)

    def save(self, folder: Path) -> str:
        """Save to a folder, whole or not at all, in place of older statistics in it.

        Returns:
            The content hash, 64 hex digits: equal statistics have equal hashes.

        Raises:
            StorageError: The disk is full or the folder is not writable; older statistics in it are kept.
        """
        return save_statistics(folder, self.manifest, self.active, self.histogram)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load from a folder.

        Raises:
            StorageError: There are none, or they are truncated, altered or impossible.
            ConfigurationError: The manifest is not one of this format.
        """
        return cls(*load_statistics(folder))

    def _all_tokens(self) -> int:
        tokens = sum(self.manifest.tokens)
        if not tokens:
            raise DataError(f"statistics of {self.manifest.target}: no token was counted: count some answers first")
        return tokens

    def _require_equal(self, other: GateStatistics, verb: str, ignore: frozenset[str] = frozenset()) -> None:
        names = (*StatisticsSource.model_fields, "layers", "neurons", "bins")
        pairs = [(name, getattr(self.manifest, name), getattr(other.manifest, name)) for name in names]
        pairs.append(("shards", len(self.manifest.tokens), len(other.manifest.tokens)))
        for name, own, others in pairs:
            if name not in ignore and own != others:
                raise ConfigurationError(
                    f"cannot {verb} statistics whose {name} differs: {own!r} and {others!r}; "
                    "both must come from the same run settings"
                )


def join_neurons(parts: Sequence[GateStatistics]) -> GateStatistics:
    """Put together what several devices counted, each a range of every layer's neurons (tensor parallelism).

    Args:
        parts: In the order of their neurons.

    Raises:
        ConfigurationError: They differ in anything but their counts.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.manifest != first.manifest:
            raise ConfigurationError("statistics of two runs cannot be joined: count on all devices at once")
    manifest = first.manifest.model_copy(update={"neurons": sum(part.manifest.neurons for part in parts)})
    active = np.concatenate([part.active for part in parts], axis=2)
    return GateStatistics(manifest, active, np.concatenate([part.histogram for part in parts], axis=1))


class StatisticsBuilder:
    """Counts activations, layer by layer, while a model reads answers.

    Args:
        layers: Decoder layers of the model.
        neurons: Neurons in each layer.
        shards: Into how many parts the questions are divided, for the jackknife; 20 is a good number.
        bins: Bins of the histogram; :meth:`Bins.default` where None.
        device: Where the counts are, best where the activations are. Memory: :func:`memory_bytes`.
    """

    def __init__(
        self, layers: int, neurons: int, shards: int, bins: Bins | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if min(layers, neurons, shards) < 1:
            raise ConfigurationError(
                f"statistics of {layers} layers, {neurons} neurons, {shards} shards: give 1 or more"
            )
        self.bins = bins or Bins.default()
        self._active: torch.Tensor | None = torch.zeros((shards, layers, neurons), dtype=torch.int32, device=device)
        self._histogram = torch.zeros((layers, neurons, self.bins.count), dtype=torch.int32, device=device)
        self._tokens = np.zeros((layers, shards), dtype=np.int64)
        self._gathered: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(layers)]

    @torch.no_grad()
    def add(self, layer: int, activations: torch.Tensor, shard: int | torch.Tensor) -> None:
        """Count the activations of some tokens in one layer.

        Args:
            layer: From 0.
            activations: float32, bfloat16 or float16 [tokens, neurons]; only tokens that count (:func:`token_mask`).
            shard: The shard of their question, from 0; or int64 [tokens], the shard of each.

        Raises:
            ConfigurationError: A shape, type, layer or shard is wrong, or int32 counts would overflow.
            ModelError: An activation is NaN or infinite. Nothing was counted.
        """
        _, layers, neurons = self._open().shape
        if not 0 <= layer < layers:
            raise ConfigurationError(f"layer {layer}: the statistics have layers 0 to {layers - 1}")
        if activations.ndim != 2 or activations.shape[1] != neurons or activations.dtype not in FLOATS:
            raise ConfigurationError(
                f"layer {layer}: activations are {activations.dtype} {list(activations.shape)}, "
                f"the statistics need float32 or bfloat16 [tokens, {neurons}]"
            )
        rows = len(activations)
        added = self._tokens_of(layer, shard, rows)
        if rows == 0:
            return
        _require_room(int(self._tokens[layer].sum()) + rows, f"layer {layer}")
        if not bool(activations.sum(dtype=torch.float32).isfinite()):  # one pass; NaN and infinity survive a sum
            raise ModelError(
                f"layer {layer}: the activations hold NaN or infinity: load the model in another precision (bfloat16 "
                "or float32) and check its weights"
            )
        parts = torch.full((rows,), shard) if isinstance(shard, int) else shard
        self._tokens[layer] += added
        gathered = self._gathered[layer]
        at_once = activations.device.type != "cpu" or sum(len(one) for _, one in gathered) + rows >= GATHERED
        gathered.append(
            (activations if at_once else activations.clone(), parts)
        )  # what waits is the caller's to change
        if at_once:
            self._count(layer)

    def _count_all(self) -> None:
        for layer in range(len(self._gathered)):
            self._count(layer)

    def _count(self, layer: int) -> None:
        """Count what was gathered of a layer."""
        gathered = self._gathered[layer]
        if not gathered:
            return
        activations = torch.cat([one for one, _ in gathered]) if len(gathered) > 1 else gathered[0][0]
        parts = torch.cat([one.to(activations.device) for _, one in gathered])
        gathered.clear()
        active = self._open()
        rows, neurons = activations.shape
        # A product of zeros and ones is exact up to 2^24 rows, and faster than adding row by row.
        of_shard = torch.nn.functional.one_hot(parts, len(active)).t().float()
        active[:, layer] += (of_shard @ (activations > 0).float()).int()
        tokens_at_once, neurons_at_once = BLOCK if activations.device.type == "cpu" else (rows, neurons)
        for first in range(0, rows, tokens_at_once):
            for start in range(0, neurons, neurons_at_once):
                block = slice(start, start + neurons_at_once)
                values = activations[first : first + tokens_at_once, block].t().float().contiguous()
                self._histogram[layer, block].scatter_add_(1, self.bins.index(values), (values > 0).int())

    @property
    def counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The counts themselves, for a kernel that adds to them: ``active`` and ``histogram`` as in the statistics."""
        self._count_all()
        return self._open(), self._histogram

    def note_tokens(self, tokens: npt.NDArray[np.int64]) -> None:
        """Say that a kernel counted tokens in every layer.

        Args:
            tokens: int64 [shards].

        Raises:
            ConfigurationError: int32 counts would overflow.
        """
        _require_room(int(self._tokens[0].sum() + tokens.sum()), "statistics")
        self._tokens += tokens

    def clear(self) -> None:
        """Begin again at zero, at the same place in memory."""
        self._open().zero_()
        self._histogram.zero_()
        for gathered in self._gathered:
            gathered.clear()
        self._tokens[:] = 0

    def build(self, source: StatisticsSource, questions: Sequence[int], *, copy: bool = False) -> GateStatistics:
        """Give the statistics. The counts are handed over, not copied: the builder is spent.

        Args:
            source: What was run.
            questions: Questions counted in each shard.
            copy: Copy the counts, so that the builder can go on.

        Raises:
            ModelError: Not every layer saw the same tokens: a hook was left out or called twice.
            ConfigurationError: ``questions`` has another number of shards, or the builder is spent.
        """
        active = self._open()
        shards, layers, neurons = active.shape
        self._count_all()
        wrong = np.flatnonzero((self._tokens != self._tokens[0]).any(axis=1))
        if len(wrong):
            counted = {layer: int(self._tokens[layer].sum()) for layer in (0, int(wrong[0]))}
            raise ModelError(
                f"layers saw different tokens ({', '.join(f'layer {k}: {v}' for k, v in counted.items())}): "
                "each must be counted once for the same tokens and shards"
            )
        if len(questions) != shards:
            raise ConfigurationError(f"questions of {len(questions)} shards, the statistics have {shards}")
        manifest = StatisticsManifest(
            **{name: getattr(source, name) for name in StatisticsSource.model_fields},
            questions=tuple(questions),
            tokens=tuple(self._tokens[0].tolist()),
            layers=layers,
            neurons=neurons,
            bins=self.bins,
        )
        histogram = self._histogram
        if copy:
            return GateStatistics(manifest, *(counts.cpu().numpy().copy() for counts in (active, histogram)))
        self._active, self._histogram = None, torch.empty(0)
        return GateStatistics(manifest, active.cpu().numpy(), histogram.cpu().numpy())

    def _open(self) -> torch.Tensor:
        if self._active is None:
            raise ConfigurationError("these statistics are built: start another builder and add the two")
        return self._active

    def _tokens_of(self, layer: int, shard: int | torch.Tensor, rows: int) -> npt.NDArray[np.int64]:
        """Tokens of each shard among some rows, int64 [shards]."""
        shards = self._tokens.shape[1]
        numbers = np.array([shard]) if isinstance(shard, int) else shard.cpu().numpy()
        if isinstance(shard, torch.Tensor) and (numbers.shape != (rows,) or shard.dtype != torch.int64):
            raise ConfigurationError(
                f"layer {layer}: shards are {shard.dtype} {list(shard.shape)}, give one number or int64 [{rows}]"
            )
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < shards:
            raise ConfigurationError(f"layer {layer}: shards {numbers.min()} to {numbers.max()}, there are {shards}")
        counted = np.bincount(numbers, minlength=shards).astype(np.int64)
        return counted * rows if isinstance(shard, int) else counted


def _require_room(tokens: int, where: str) -> None:
    if tokens > LARGEST_COUNT:
        raise ConfigurationError(
            f"{where}: {tokens:,} tokens are more than int32 counts hold ({LARGEST_COUNT:,}): "
            "count fewer questions in one set of statistics"
        )
