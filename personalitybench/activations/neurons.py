"""Which neurons belong to a trait: after the statistics of both poles, before an intervention is made of the sets.

Plain numpy: selection takes arrays ``[layers, neurons]`` and gives a :class:`NeuronSet` for each pole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from personalitybench.errors import ConfigurationError, DataError, StorageError
from personalitybench.files import canonical_json, read_json, write_atomically, write_json
from personalitybench.outside_files import open_regular
from personalitybench.traits import Pole

NEURONS_FILE = "neurons.safetensors"
MANIFEST_FILE = "manifest.json"
_FORMAT: Literal["personalitybench-neurons/1"] = "personalitybench-neurons/1"
_COLUMNS: dict[str, np.dtype[Any]] = {
    "layer": np.dtype("<i4"),
    "index": np.dtype("<i4"),
    "delta": np.dtype("<f4"),
    "probability": np.dtype("<f4"),
    "a95": np.dtype("<f4"),
}
_ERROR = "error"


class SelectionSettings(BaseModel):
    """How neurons are chosen. The defaults are the paper's text; each field is a place where its code differs.

    δ is rounded to float32 before it is compared or sorted, as the released files hold it. So a difference of
    exactly 10 percentage points equals the threshold 0.1, whatever the last bits of the subtraction say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: float = Field(
        0.1, ge=0, lt=1, description="Difference δ of the activation probabilities of the two poles. Both: 0.1."
    )
    inclusive: bool = Field(
        default=False, description="Whether δ equal to the threshold is enough. Paper: no (> 10 %); code: yes (>= 0.1)."
    )
    at_least: int = Field(
        0, ge=0, description="The strongest neurons that are kept even below the threshold. Paper: 0; code: 2,000."
    )
    at_most: int | None = Field(
        None, ge=1, description="The strongest neurons that are kept at all. Paper: no limit; code: 300,000."
    )
    a95_from: Literal["original", "own-pole"] = Field(
        "original",
        description="Whose 95th percentile a95 is. Paper: 'the neuron's original activation', read here as the model "
        "without a persona; code: the persona-prompted run of the target's own pole.",
    )
    arithmetic: Literal["float64", "float32"] = Field(
        "float64",
        description="In which precision the probabilities are subtracted. Paper: silent; code: float32 (the released "
        "neuron files show its rounding).",
    )

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least ({self.at_least}) must not be over at_most ({self.at_most})")
        return self

    @classmethod
    def paper(cls) -> SelectionSettings:
        """As the paper's text says (§3.2, §3.3)."""
        return cls()

    @classmethod
    def released_code(cls) -> SelectionSettings:
        """As the released ``process_neuron.py`` does."""
        return cls(inclusive=True, at_least=2000, at_most=300_000, a95_from="own-pole", arithmetic="float32")


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """The neurons of one target, strongest first.

    Rows may be given in any order: they are brought into the one order that a set has, δ descending, then layer,
    then index. Arrays are copied and read-only. Two sets are equal when all their numbers are.

    Attributes:
        shape: Layers of the model and neurons of a layer.
        layer: int32 [n], from 0.
        index: int32 [n], from 0: place in the layer.
        delta: float32 [n], how much more often the neuron is active than under the opposite pole; 0 < δ <= 1.
        probability: float32 [n], how often it is active under its own pole, 0 to 1.
        a95: float32 [n], 95th percentile of its activation, >= 0; 0 where it is active in under 5 % of tokens.
        error: float32 [n], standard error of delta, >= 0, where it is known. It tells how sure the selection is, not
            what was selected, so it is no part of equality and content hash.

    Raises:
        DataError: A neuron outside the shape or given twice, a number outside its range or not finite,
            or columns of unequal length.
    """

    shape: tuple[int, int]
    layer: NDArray[np.int32]
    index: NDArray[np.int32]
    delta: NDArray[np.float32]
    probability: NDArray[np.float32]
    a95: NDArray[np.float32]
    error: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        layers, neurons = _shape(self.shape)
        object.__setattr__(self, "shape", (layers, neurons))
        columns = {name: _column(name, getattr(self, name)) for name in self._columns}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"neuron set: columns must be of one length, not {lengths}")
        _check_range(columns["layer"], "layer", 0, layers - 1)
        _check_range(columns["index"], "index", 0, neurons - 1)
        _check_range(columns["delta"], "delta", float(np.nextafter(np.float32(0), np.float32(1))), 1)
        _check_range(columns["probability"], "probability", 0, 1)
        for name in {"a95", _ERROR} & columns.keys():
            _check_range(columns[name], name, 0, float(np.finfo(np.float32).max))
        order = np.lexsort((columns["index"], columns["layer"], -columns["delta"]))
        for name, column in columns.items():
            ordered = column[order]
            if name == "a95":
                ordered += np.float32(0)  # -0.0 becomes 0.0, so that equal sets hash equally
            ordered.flags.writeable = False
            object.__setattr__(self, name, ordered)
        identities, count = np.unique(self.identities, return_counts=True)
        if len(identities) != len(self):
            layer, index = divmod(int(identities[np.argmax(count > 1)]), neurons)
            raise DataError(f"neuron set: neuron {index} of layer {layer} is given twice: a set holds it once")

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the columns that this set has."""
        return (*_COLUMNS, *([] if self.error is None else [_ERROR]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.shape == other.shape and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _COLUMNS
        )

    def __hash__(self) -> int:
        return hash(self.content_hash)

    @property
    def identities(self) -> NDArray[np.int64]:
        """Number of each neuron in the whole model, int64 [n]: layer × neurons of a layer + index."""
        return self.layer.astype(np.int64) * self.shape[1] + self.index

    @property
    def content_hash(self) -> str:
        """SHA-256 over shape and all numbers, 64 hex digits: equal sets have equal hashes on every machine."""
        digest = hashlib.sha256(canonical_json({"format": _FORMAT, "shape": self.shape, "count": len(self)}).encode())
        for name, dtype in _COLUMNS.items():
            digest.update(getattr(self, name).astype(dtype).tobytes())
        return digest.hexdigest()

    def counts_by_layer(self) -> NDArray[np.int64]:
        """How many neurons each layer has, int64 [layers]."""
        return np.bincount(self.layer, minlength=self.shape[0])

    def strongest(self, count: int) -> NeuronSet:
        """The ``count`` neurons with the greatest δ, or all where there are fewer.

        Raises:
            ConfigurationError: The count is negative.
        """
        if count < 0:
            raise ConfigurationError(f"strongest: the count must be 0 or more, not {count}")
        return NeuronSet(self.shape, *(getattr(self, name)[:count] for name in self._columns))

    def with_error(self, error: ArrayLike) -> NeuronSet:
        """The same set with the standard errors of its δ.

        Args:
            error: Of every neuron of the model, [layers, neurons].

        Raises:
            DataError: It has another shape, or holds a negative or infinite value at one of the neurons.
        """
        of_model = np.asarray(error)
        if of_model.shape != self.shape:
            raise DataError(f"errors of δ are of shape {of_model.shape}, the neuron set of {self.shape}")
        return replace(self, error=of_model[self.layer, self.index].astype(np.float32))

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write safetensors and, last, a JSON manifest: its existence means that the set is complete.

        Args:
            folder: Where to; an older set there is replaced.
            about: Anything in JSON that says where the set comes from: model, revision, target, settings, data.

        Raises:
            StorageError: The folder is not writable.
        """
        from safetensors.numpy import save  # noqa: PLC0415 (not in the core installation)

        data = save({name: np.ascontiguousarray(getattr(self, name)) for name in self._columns})
        manifest = NeuronManifest(
            format=_FORMAT,
            shape=self.shape,
            count=len(self),
            content=self.content_hash,
            sha256=hashlib.sha256(data).hexdigest(),
            about=dict(about or {}),
        )
        write_atomically(folder / NEURONS_FILE, data)
        write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> NeuronSet:
        """Read what :meth:`save` wrote.

        Raises:
            StorageError: The set is missing, incomplete or damaged.
        """
        from safetensors import SafetensorError  # noqa: PLC0415 (not in the core installation)
        from safetensors.numpy import load  # noqa: PLC0415

        manifest = NeuronManifest.read(folder)
        path = folder / NEURONS_FILE
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}; select the neurons again") from error
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise StorageError(f"{path} is not the file that {MANIFEST_FILE} describes: select the neurons again")
        try:
            tensors = load(data)
            columns = {name: tensors[name] for name in _COLUMNS}
            neurons = cls(manifest.shape, **columns, error=tensors.get(_ERROR))
        except (SafetensorError, KeyError, DataError) as error:
            raise StorageError(f"{path} is damaged ({error}): select the neurons again") from error
        if (len(neurons), neurons.content_hash) != (manifest.count, manifest.content):
            raise StorageError(f"{path} holds other neurons than {MANIFEST_FILE} says: select the neurons again")
        return neurons


class NeuronManifest(BaseModel):
    """What stands beside a saved neuron set.

    Attributes:
        format: Name and version of the format.
        shape: Layers of the model and neurons of a layer.
        count: Neurons in the set.
        content: :attr:`NeuronSet.content_hash`.
        sha256: Hash of the safetensors file.
        about: Where the set comes from, as its maker said.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["personalitybench-neurons/1"]
    shape: tuple[int, int]
    count: int
    content: str
    sha256: str
    about: dict[str, Any] = {}

    @classmethod
    def read(cls, folder: Path) -> NeuronManifest:
        """Read the manifest of a saved set.

        Raises:
            StorageError: It is missing or is not such a manifest.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise StorageError(f"{folder} holds no finished neuron set ({MANIFEST_FILE} is missing): select again")
        value = read_json(path)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise StorageError(f"{path} describes no neuron set ({place}: {first['msg']}): select again") from error


def select_neurons(
    probability_high: ArrayLike,
    probability_low: ArrayLike,
    a95_high: ArrayLike,
    a95_low: ArrayLike,
    settings: SelectionSettings,
    *,
    a95_original: ArrayLike | None = None,
) -> dict[Pole, NeuronSet]:
    """Find the neurons of both poles of a trait (paper §3.2; ``process_neuron.py``).

    Deterministic: equal δ is ordered by layer, then index, so limits cut at the same neuron everywhere. A neuron
    whose δ is not above zero is never chosen, not even for ``at_least``; the released code would take it, into both
    poles at once, which can only happen where fewer than 2,000 neurons lean to a pole.

    Args:
        probability_high: How often each neuron is active under the high pole, [layers, neurons], 0 to 1.
        probability_low: The same under the low pole.
        a95_high: 95th percentile of each activation under the high pole, [layers, neurons]. A value that is not
            positive, down to minus infinity (the neuron is active in under 5 % of tokens, the released code's lowest
            bin edge), is stored as 0: steering adds nothing, where the released code would make NaN.
        a95_low: The same under the low pole.
        settings: How to choose.
        a95_original: The same for the model without a persona; for ``settings.a95_from == "original"``.

    Raises:
        DataError: Unequal or wrong shapes, NaN, a probability outside 0 to 1, an infinite a95.
        ConfigurationError: The settings ask for an a95 that was not given.
    """
    high = _probabilities("probability_high", probability_high)
    low = _probabilities("probability_low", probability_low)
    _same_shape("probability_low", low, high)
    percentiles = {
        Pole.HIGH: _percentiles("a95_high", a95_high, high),
        Pole.LOW: _percentiles("a95_low", a95_low, high),
    }
    if settings.a95_from == "original":
        if a95_original is None:
            raise ConfigurationError(
                "selection with a95_from='original' needs a95_original, the 95th percentiles of the model without a "
                "persona: score unprompted answers as well, or set a95_from to 'own-pole'"
            )
        percentiles = dict.fromkeys(Pole, _percentiles("a95_original", a95_original, high))
    if settings.arithmetic == "float32":
        difference = high.astype(np.float32) - low.astype(np.float32)
    else:
        difference = (high - low).astype(np.float32)
    layers, neurons = high.shape
    found: dict[Pole, NeuronSet] = {}
    for pole, own, delta in ((Pole.HIGH, high, difference), (Pole.LOW, low, -difference)):
        chosen = _choose(delta.ravel(), settings)
        found[pole] = NeuronSet(
            (layers, neurons),
            layer=(chosen // neurons).astype(np.int32),
            index=(chosen % neurons).astype(np.int32),
            delta=delta.ravel()[chosen],
            probability=own.ravel()[chosen].astype(np.float32),
            a95=np.maximum(percentiles[pole].ravel()[chosen], 0),
        )
    return found


def shared_counts(sets: Sequence[NeuronSet]) -> NDArray[np.int64]:
    """How many neurons two sets share, int64 [sets, sets]; the diagonal is the size of each.

    Raises:
        DataError: The sets belong to models of different shapes.
    """
    for number, neurons in enumerate(sets):
        if neurons.shape != sets[0].shape:
            raise DataError(
                f"overlap: set {number} is of a model with {_by(neurons.shape)} neurons, set 0 of one with "
                f"{_by(sets[0].shape)}: compare sets of one model"
            )
    shared = np.zeros((len(sets), len(sets)), np.int64)
    for row, one in enumerate(sets):
        for column, other in enumerate(sets[: row + 1]):
            both = np.intersect1d(one.identities, other.identities, assume_unique=True)
            shared[row, column] = shared[column, row] = len(both)
    return shared


def overlap(sets: Sequence[NeuronSet]) -> NDArray[np.float64]:
    """How much sets share, float64 [sets, sets]: neurons in both, divided by the size of the smaller set.

    A set without neurons shares nothing: its entries, its own among them, are 0.

    Raises:
        DataError: The sets belong to models of different shapes.
    """
    shared = shared_counts(sets)
    sizes = shared.diagonal()
    return np.asarray(shared / np.maximum(np.minimum.outer(sizes, sizes), 1), np.float64)


def _choose(delta: NDArray[np.float32], settings: SelectionSettings) -> NDArray[np.intp]:
    """Give the places of the chosen neurons, strongest first, equal ones in order of place."""
    threshold = np.float32(settings.threshold)
    passing = (delta >= threshold if settings.inclusive else delta > threshold) & (delta > 0)
    count = int(np.count_nonzero(passing))
    forced = count < settings.at_least
    candidates = np.flatnonzero(delta > 0 if forced else passing)
    ordered = candidates[np.argsort(-delta[candidates], kind="stable")]
    if forced:
        ordered = ordered[: settings.at_least]
    return ordered[: settings.at_most]


def _probabilities(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = _numbers(name, value, np.float64)
    wrong = ~((array >= 0) & (array <= 1))  # true for NaN as well
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name}: an array [layers, neurons] is needed, not one of shape {array.shape}")
    if wrong.any():
        raise _wrong_value(name, array, wrong, "a probability from 0 to 1 (counts are divided by tokens first)")
    return array


def _percentiles(name: str, value: ArrayLike, like: NDArray[np.float64]) -> NDArray[np.float32]:
    array = _numbers(name, value, np.float32)
    _same_shape(name, array, like)
    wrong = np.isnan(array) | np.isposinf(array)
    if wrong.any():
        raise _wrong_value(name, array, wrong, "an activation, or minus infinity where there is none above zero")
    return array


def _numbers(name: str, value: ArrayLike, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: numbers are needed, not {array.dtype}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite and is refused as such
        return array.astype(dtype, copy=False)


def _same_shape(name: str, array: NDArray[Any], like: NDArray[Any]) -> None:
    if array.shape != like.shape:
        raise DataError(f"{name} is of shape {array.shape}, probability_high of {like.shape}: give one model's arrays")


def _wrong_value(name: str, array: NDArray[Any], wrong: NDArray[np.bool_], needed: str) -> DataError:
    layer, index = (int(place) for place in np.argwhere(wrong)[0])
    place = f"layer {layer}, neuron {index} ({int(wrong.sum())} such values)"
    return DataError(f"{name}: {array[layer, index]} at {place} is not {needed}")


def _shape(value: tuple[int, int]) -> tuple[int, int]:
    try:
        layers, neurons = (int(size) for size in value)
    except (TypeError, ValueError) as error:
        raise DataError(f"neuron set: the shape must be (layers, neurons), not {value!r}") from error
    if layers < 1 or neurons < 1:
        raise DataError(f"neuron set: layers and neurons must be 1 or more, not {_by((layers, neurons))}")
    return layers, neurons


def _column(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    dtype = _COLUMNS.get(name, np.dtype("<f4")).newbyteorder("=")
    if array.ndim != 1 or (array.size and array.dtype.kind not in ("iu" if dtype.kind == "i" else "fiu")):
        raise DataError(f"neuron set: {name} must be a list of {dtype} numbers, not {array.dtype} {array.shape}")
    if dtype.kind == "i" and array.size:
        _check_range(array, name, 0, int(np.iinfo(np.int32).max))  # before a cast could wrap around
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _check_range(column: NDArray[Any], name: str, lowest: float, highest: float) -> None:
    wrong = ~((column >= lowest) & (column <= highest))  # true for NaN as well
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"neuron set: {name} {column[row]} in row {row} is outside {lowest:g} to {highest:g}")


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"
