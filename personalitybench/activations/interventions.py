"""Interventions as data: what selected neurons become, and what a backend edits activations by.

Numpy only: the transformers reference (:mod:`~personalitybench.activations.steering`) and the vLLM plug-in read the
same artifact. An edit has no strength of its own; the strength is applied at use, so one artifact serves every one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as tensor_bytes

from personalitybench.errors import ConfigurationError, ModelError, StorageError
from personalitybench.files import content_hash, read_json, write_atomically, write_json
from personalitybench.outside_files import open_regular

if TYPE_CHECKING:
    from personalitybench.activations.neurons import NeuronSet

SITE = "mlp.gate_activation"
TENSORS_FILE = "intervention.safetensors"
MANIFEST_FILE = "intervention.json"
FORMAT = "personalitybench.intervention"
FORMAT_VERSION = 1

FloatArray = npt.NDArray[np.float64]


class Operation(IntEnum):
    """What an edit does to the gate activation x of its neuron, in this order.

    ``CLAMP_MAX``: ``min(value, x)``. ``ADD``: ``x + strength * value``.
    """

    CLAMP_MAX = 0
    ADD = 1


_COLUMNS: dict[str, npt.DTypeLike] = {"layer": np.int32, "index": np.int32, "operation": np.uint8, "value": np.float32}


def sigmoid_weight(delta: FloatArray) -> FloatArray:
    """The paper's weight of a neuron, ``f(d) = 1 / (1 + exp(-10 (|d| - 0.15)))`` (§3.3; ``d`` as a fraction)."""
    return np.asarray(1.0 / (1.0 + np.exp(-10.0 * (np.abs(delta) - 0.15))), np.float64)


@dataclass(frozen=True, eq=False)
class Intervention:
    """Edits of a model's gate activations, one entry each, kept in the order of layer, index, operation.

    Attributes:
        shape: Layers of the model, neurons of a layer.
        layer: int32 [n], from 0.
        index: int32 [n], the neuron within its layer, from 0.
        operation: uint8 [n], an :class:`Operation`.
        value: float32 [n], finite: the ceiling of a clamp, or what is added at strength 1.
        site: Where in a block the edits apply; only :data:`SITE` is known.

    Raises:
        ConfigurationError: Arrays of different lengths or kinds, an entry outside of the shape, a value that is not
            finite, an unknown operation or site, or two entries for the same neuron and operation.
    """

    shape: tuple[int, int]
    layer: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]
    operation: npt.NDArray[np.uint8]
    value: npt.NDArray[np.float32]
    site: str = SITE

    def __post_init__(self) -> None:
        if self.site != SITE:
            raise ConfigurationError(f"intervention at unknown site {self.site!r}: known is {SITE!r}")
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ConfigurationError(f"intervention of shape {self.shape}: give (layers, neurons), both at least 1")
        arrays = {name: np.asarray(getattr(self, name)) for name in _COLUMNS}
        kinds = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
        entries = {array.shape for array in arrays.values()}
        dtypes_fit = all(array.dtype == _COLUMNS[name] for name, array in arrays.items())
        if len(entries) != 1 or arrays["layer"].ndim != 1 or not dtypes_fit:
            raise ConfigurationError(
                f"intervention needs int32, int32, uint8, float32 arrays of one length, not {kinds}"
            )
        self._check_entries(**arrays)
        order = np.lexsort((arrays["operation"], arrays["index"], arrays["layer"]))
        for name, array in arrays.items():
            ordered = array[order]  # a copy: freezing it does not freeze the caller's
            if name == "value":
                ordered += np.float32(0)  # -0.0 becomes 0.0: the same edits have the same identity
            ordered.setflags(write=False)
            object.__setattr__(self, name, ordered)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        keys = self._keys()
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if repeated.size:
            place = repeated[0]
            raise ConfigurationError(
                f"intervention has two entries for neuron {self.index[place]} of layer {self.layer[place]} with "
                f"operation {Operation(int(self.operation[place])).name.lower()}: combine() sums them"
            )

    def _check_entries(
        self,
        layer: npt.NDArray[np.int32],
        index: npt.NDArray[np.int32],
        operation: npt.NDArray[np.uint8],
        value: npt.NDArray[np.float32],
    ) -> None:
        outside = np.flatnonzero((layer < 0) | (layer >= self.shape[0]) | (index < 0) | (index >= self.shape[1]))
        if outside.size:
            first = outside[0]
            raise ConfigurationError(
                f"intervention edits neuron {index[first]} of layer {layer[first]}, outside of its shape of "
                f"{describe_shape(self.shape)} ({outside.size} such entries)"
            )
        unknown = np.flatnonzero(~np.isin(operation, [int(one) for one in Operation]))
        if unknown.size:
            raise ConfigurationError(f"intervention has unknown operation {operation[unknown[0]]}: known are 0 and 1")
        bad = np.flatnonzero(~np.isfinite(value))
        if bad.size:
            first = bad[0]
            raise ConfigurationError(
                f"intervention has value {value[first]} at neuron {index[first]} of layer {layer[first]}: "
                f"values must be finite ({bad.size} are not)"
            )

    def _keys(self) -> npt.NDArray[np.int64]:
        """One number for each (layer, index, operation), ascending."""
        neuron = self.layer.astype(np.int64) * self.shape[1] + self.index
        return neuron * len(Operation) + self.operation

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def adds(self) -> bool:
        """Whether it adds anything but 0."""
        return bool(((self.operation == Operation.ADD) & (self.value != 0)).any())

    @classmethod
    def from_neurons(
        cls,
        own: NeuronSet,
        opposite: NeuronSet,
        weight: Callable[[FloatArray], FloatArray] = sigmoid_weight,
        *,
        only_layers_of_own: bool = False,
    ) -> Intervention:
        """Steer toward a target: hold the opposite pole's neurons at or below 0, raise its own (paper §3.3).

        Args:
            own: The target's neurons; each gains ``strength * a95 * weight(delta)``.
            opposite: Those of the other pole of the trait; each becomes ``min(0, x)``.
            weight: Weight of an own neuron by its delta, elementwise.
            only_layers_of_own: Clamp only in layers that hold own neurons, as the released script does.

        Raises:
            ConfigurationError: The sets are of models of different shapes, or the weight gives what is not finite.
        """
        if tuple(own.shape) != tuple(opposite.shape):
            raise ConfigurationError(
                f"neurons of two models: the target's of {describe_shape(own.shape)}, the opposite pole's of "
                f"{describe_shape(opposite.shape)}: take both from statistics of one model"
            )
        clamped = np.isin(opposite.layer, own.layer) if only_layers_of_own else np.ones(len(opposite.layer), bool)
        added = own.a95.astype(np.float64) * weight(own.delta.astype(np.float64))
        count = int(clamped.sum())
        return cls(
            shape=(own.shape[0], own.shape[1]),
            layer=np.concatenate([opposite.layer[clamped], own.layer]).astype(np.int32),
            index=np.concatenate([opposite.index[clamped], own.index]).astype(np.int32),
            operation=np.repeat(np.array([Operation.CLAMP_MAX, Operation.ADD], np.uint8), [count, len(own.layer)]),
            value=np.concatenate([np.zeros(count), added]).astype(np.float32),
        )

    @cached_property
    def sha256(self) -> str:
        """Identity of the edits: the same edits of the same shape give the same 64 hex digits, saved or not."""
        return content_hash({"format": FORMAT, "shape": self.shape, "site": self.site} | _tensor_hash(self._bytes()))

    def _bytes(self) -> bytes:
        return bytes(tensor_bytes({name: getattr(self, name) for name in _COLUMNS}))

    def tables(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Dense form: a neuron becomes ``min(x, clamp) + strength * add``.

        Returns:
            clamp: float32 [layers, neurons]; +inf where nothing is clamped.
            add: float32 [layers, neurons]; 0 where nothing is added.
        """
        clamp = np.full(self.shape, np.inf, np.float32)
        add = np.zeros(self.shape, np.float32)
        for table, operation in ((clamp, Operation.CLAMP_MAX), (add, Operation.ADD)):
            chosen = self.operation == operation
            table[self.layer[chosen], self.index[chosen]] = self.value[chosen]
        return clamp, add

    def check_model(self, layers: int, neurons: int, where: str = "intervention") -> None:
        """Refuse to edit a model of another shape.

        Args:
            layers: Layers of the model.
            neurons: Neurons of each.
            where: What the error calls the intervention, e.g. its folder.

        Raises:
            ModelError: Names both shapes.
        """
        if self.shape != (layers, neurons):
            raise ModelError(
                f"{where} was made for a model of {describe_shape(self.shape)}, but this model has "
                f"{describe_shape((layers, neurons))}: fit the method for this model"
            )

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write ``intervention.safetensors``, then ``intervention.json``, whose existence means that all is there.

        Args:
            folder: Created if it is missing; an earlier artifact in it is replaced.
            about: What else to put on record (model, target, settings): JSON data, part of the content hash.

        Raises:
            StorageError: It cannot be written.
        """
        manifest_path = folder / MANIFEST_FILE
        try:
            manifest_path.unlink(missing_ok=True)  # a kill between the files leaves none, never a wrong one
        except OSError as error:
            raise StorageError(f"cannot replace {manifest_path}: {error.strerror}") from error
        data = self._bytes()
        write_atomically(folder / TENSORS_FILE, data)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "site": self.site,
            "shape": {"layers": self.shape[0], "neurons": self.shape[1]},
            "edits": {one.name.lower(): int((self.operation == one).sum()) for one in Operation},
            "operations": {one.name.lower(): int(one) for one in Operation},
            "about": dict(about or {}),
            **_tensor_hash(data),
        }
        write_json(manifest_path, {**manifest, "sha256": content_hash(manifest)})

    @classmethod
    def load(cls, folder: Path, model_shape: tuple[int, int] | None = None) -> Intervention:
        """Read what :meth:`save` wrote.

        Args:
            folder: Folder of the artifact.
            model_shape: Layers and neurons of the model that it is for, if known.

        Raises:
            StorageError: It is missing, unfinished, truncated, altered or holds impossible values.
            ModelError: It was made for a model of another shape (names both).
        """
        manifest_path, path = folder / MANIFEST_FILE, folder / TENSORS_FILE
        if not manifest_path.is_file():
            state = "unfinished" if path.is_file() else "missing"
            raise StorageError(f"intervention artifact {folder} is {state} (no {MANIFEST_FILE}): fit the method again")
        manifest = read_json(manifest_path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise StorageError(f"{manifest_path} does not describe an intervention: fit the method again")
        if manifest.get("version") != FORMAT_VERSION:
            raise StorageError(
                f"{manifest_path} has format version {manifest.get('version')!r}, this program reads {FORMAT_VERSION}: "
                "fit the method again, or use the program that wrote it"
            )
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}; fit the method again") from error
        unhashed = {key: value for key, value in manifest.items() if key != "sha256"}
        altered = [path] if _tensor_hash(data)["tensors_sha256"] != manifest.get("tensors_sha256") else []
        altered += [manifest_path] if _hash_or_empty(unhashed) != manifest.get("sha256") else []
        if altered:
            raise StorageError(f"{altered[0]} is truncated or was altered (content hash): restore it or fit again")
        try:
            tensors = read_tensors(data)
            shape = (int(manifest["shape"]["layers"]), int(manifest["shape"]["neurons"]))
            found = cls(shape=shape, site=manifest["site"], **{name: tensors[name] for name in _COLUMNS})
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, ConfigurationError) as error:
            raise StorageError(f"{path} is damaged ({_one_line(error)}): fit the method again") from error
        if model_shape is not None:
            found.check_model(*model_shape, where=f"intervention {folder}")
        return found


def combine(parts: Sequence[tuple[Intervention, float]]) -> Intervention:
    """Join several interventions, each with its own strength, into one (two traits at once: paper Table 5).

    The paper does not say what becomes of a neuron that is in more than one part. Here:

    * added values sum, each times the strength of its part;
    * a clamp holds, whichever part it comes from, unless **another** part adds to that neuron: to add is to want it
      active. This goes by what the parts hold and not by their strengths, so it is the same at every strength;
    * of several clamps that hold, the lowest ceiling;
    * clamps come before additions, as in each part.

    The order of the parts does not matter. Use the result at strength 1: the strengths are in its values.

    Raises:
        ConfigurationError: No part, a strength that is not finite, or parts for models of different shapes.
    """
    if not parts:
        raise ConfigurationError("combine() needs at least one intervention")
    shape = parts[0][0].shape
    ceiling = np.full(shape, np.inf, np.float64)
    added = np.zeros(shape, np.float64)
    adding = np.zeros(shape, np.int32)
    for part, strength in parts:
        if part.shape != shape:
            raise ConfigurationError(
                f"interventions for two models cannot be combined: one for {describe_shape(shape)}, one for "
                f"{describe_shape(part.shape)}"
            )
        check_strength(strength)
        chosen = part.operation == Operation.ADD
        place = (part.layer[chosen], part.index[chosen])
        added[place] += strength * part.value[chosen].astype(np.float64)
        adding[place] += 1
    for part, _ in parts:
        chosen = part.operation == Operation.CLAMP_MAX
        own_addition = np.zeros(shape, np.int32)
        own_addition[part.layer[~chosen], part.index[~chosen]] = 1
        layer, index = part.layer[chosen], part.index[chosen]
        holds = adding[layer, index] == own_addition[layer, index]  # nobody else adds
        layer, index = layer[holds], index[holds]
        ceiling[layer, index] = np.minimum(ceiling[layer, index], part.value[chosen][holds])
    clamped, raised = np.nonzero(np.isfinite(ceiling)), np.nonzero(adding)
    return Intervention(
        shape=shape,
        layer=np.concatenate([clamped[0], raised[0]]).astype(np.int32),
        index=np.concatenate([clamped[1], raised[1]]).astype(np.int32),
        operation=np.repeat(
            np.array([Operation.CLAMP_MAX, Operation.ADD], np.uint8), [len(clamped[0]), len(raised[0])]
        ),
        value=np.concatenate([ceiling[clamped], added[raised]]).astype(np.float32),
    )


def check_strength(strength: float) -> None:
    """Refuse a strength that is no number.

    Raises:
        ConfigurationError: It is not finite.
    """
    if not np.isfinite(strength):
        raise ConfigurationError(f"strength {strength} of an intervention: give a finite number")


def describe_shape(shape: tuple[int, ...]) -> str:
    """A model's shape in words."""
    return f"{shape[0]} layers x {shape[1]} neurons"


def _tensor_hash(data: bytes) -> dict[str, str]:
    return {"tensors_sha256": hashlib.sha256(data).hexdigest()}


def _hash_or_empty(manifest: dict[str, Any]) -> str:
    """Content hash; empty for what this program never writes, such as NaN."""
    try:
        return content_hash(manifest)
    except ValueError:
        return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
