"""The paper's neuron files, ``*_dict.json``: another way into and out of :class:`~.neurons.NeuronSet`.

A file is one target of one model: layer -> rows of ``[layer, index, delta, probability, a95]``, strongest first, the
layers in the order of their strongest neuron. Numbers are float32 written as doubles, so they come back exactly. The
files name neither their model nor its size; those that were released are of LLaMA-3-8B-Instruct.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np

from personalitybench.activations.neurons import NeuronSet
from personalitybench.errors import DataError
from personalitybench.files import write_atomically
from personalitybench.outside_files import MAX_JSON_BYTES, parse_json, read_text
from personalitybench.traits import TARGETS, Target

OFFICIAL_SHAPE = (32, 14_336)
"""Layers and neurons of LLaMA-3-8B-Instruct, the model of the released files."""

_ROW = "[layer, index, delta, probability, a95]"


def official_file_name(target: Target) -> str:
    """Name of a target's file, e.g. ``Openness_reversed_dict.json``."""
    return f"{target.file_key}_dict.json"


def target_of_file(path: Path) -> Target:
    """The target whose neurons a file holds, by its name: the content does not tell.

    Raises:
        DataError: The paper has no file of such a name; the text gives the nearest.
    """
    names = {official_file_name(target): target for target in TARGETS}
    if path.name not in names:
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0)[0]
        raise DataError(f"{path}: a neuron file is named after its target, such as {near}: give it the paper's name")
    return names[path.name]


def read_official_file(path: Path, shape: tuple[int, int]) -> NeuronSet:
    """Read a neuron file of the paper.

    Neurons of equal δ come in order of layer and index; the released files order them at random. An a95 of minus
    infinity, which the released code writes for a neuron active in under 5 % of tokens, is read as 0.

    Args:
        path: The file.
        shape: Layers and neurons of the model, :data:`OFFICIAL_SHAPE` for the released files.

    Raises:
        DataError: The file is missing, is not such a file, or does not fit the shape.
    """
    try:
        found = parse_json(read_text(path, MAX_JSON_BYTES), constants=("-Infinity", "Infinity", "NaN"), unique=True)
    except OSError as error:
        raise DataError(f"cannot read the neuron file {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"neuron file {path} is not JSON ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise DataError(f"neuron file {path} must map a layer to rows {_ROW}, not be a {type(found).__name__}")
    rows = [row for layer, listed in found.items() for row in _rows(path, layer, listed)]
    layer, index, delta, probability, a95 = zip(*rows, strict=True) if rows else ((),) * 5
    try:
        return NeuronSet(
            shape,
            layer=np.array(layer, dtype=np.int64),
            index=np.array(index, dtype=np.int64),
            delta=np.array(delta, dtype=np.float32),
            probability=np.array(probability, dtype=np.float32),
            a95=np.array([0.0 if value == -np.inf else value for value in a95], dtype=np.float32),
        )
    except (DataError, OverflowError) as error:
        raise DataError(f"neuron file {path} does not fit a model of {shape[0]} × {shape[1]}: {error}") from error


def write_official_file(path: Path, neurons: NeuronSet) -> None:
    """Write a neuron file as the released code lays it out.

    Raises:
        StorageError: The file cannot be written.
    """
    layers: dict[str, list[list[float]]] = {}
    columns = (neurons.layer, neurons.index, neurons.delta, neurons.probability, neurons.a95)
    for layer, *values in zip(*(column.tolist() for column in columns), strict=True):
        layers.setdefault(str(layer), []).append([layer, *values])
    write_atomically(path, json.dumps(layers, indent=4, allow_nan=False))


def _rows(path: Path, layer: str, listed: Any) -> list[list[Any]]:
    """Check the rows of a layer."""
    where = f"neuron file {path}, layer {layer!r:.80}"
    if not isinstance(listed, list):
        raise DataError(f"{where}: a list of rows {_ROW} is needed")
    for number, row in enumerate(listed):
        if not isinstance(row, list) or [type(value) for value in row[:2]] != [int, int] or len(row) != 5:
            raise DataError(f"{where}, row {number}: {_ROW} is needed, not {row!r:.80}")
        if any(type(value) not in (int, float) for value in row[2:]):
            raise DataError(f"{where}, row {number}: delta, probability, a95 are numbers")
        if str(row[0]) != layer:
            raise DataError(f"{where}, row {number}: the row names layer {row[0]!r:.80}")
    return listed
