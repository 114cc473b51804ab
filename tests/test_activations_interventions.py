"""Interventions: how they are made, the rule for several at once, the artifact and its faults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personalitybench.activations.interventions import (
    MANIFEST_FILE,
    TENSORS_FILE,
    Intervention,
    Operation,
    combine,
    sigmoid_weight,
)
from personalitybench.activations.neurons import NeuronSet
from personalitybench.errors import ConfigurationError, ModelError, StorageError
from personalitybench.files import content_hash

LAYERS, NEURONS = 3, 48
SHAPE = (LAYERS, NEURONS)
Edit = tuple[int, int, Operation, float]


def make(edits: Sequence[Edit], shape: tuple[int, int] = SHAPE) -> Intervention:
    layer, index, operation, value = zip(*edits, strict=True) if edits else ((), (), (), ())
    return Intervention(
        shape=shape,
        layer=np.array(layer, np.int32),
        index=np.array(index, np.int32),
        operation=np.array(operation, np.uint8),
        value=np.array(value, np.float32),
    )


def neuron_set(neurons: Sequence[tuple[int, int, float, float]], shape: tuple[int, int] = SHAPE) -> NeuronSet:
    layer, index, delta, a95 = zip(*neurons, strict=True) if neurons else ((), (), (), ())
    return NeuronSet(
        shape=shape,
        layer=np.array(layer, np.int32),
        index=np.array(index, np.int32),
        delta=np.array(delta, np.float32),
        probability=np.full(len(neurons), 0.5, np.float32),
        a95=np.array(a95, np.float32),
    )


def entries(intervention: Intervention) -> list[Edit]:
    columns = (intervention.layer, intervention.index, intervention.operation, intervention.value)
    return [(int(a), int(b), Operation(int(c)), round(float(d), 6)) for a, b, c, d in zip(*columns, strict=True)]


# Data


def test_the_papers_weight() -> None:
    found = sigmoid_weight(np.array([0.10, 0.15, 0.2, 0.3, 0.5, -0.2]))
    assert found == pytest.approx([0.378, 0.5, 0.622, 0.818, 0.971, 0.622], abs=5e-4)


def test_from_neurons_clamps_the_opposite_and_adds_to_its_own() -> None:
    own = neuron_set([(1, 7, 0.3, 0.4), (0, 5, 0.15, 2.0)])
    opposite = neuron_set([(1, 2, 0.9, 3.0), (2, 47, 0.2, 0.1)])
    found = Intervention.from_neurons(own, opposite)
    expected = [
        (0, 5, Operation.ADD, 1.0),
        (1, 2, Operation.CLAMP_MAX, 0.0),
        (1, 7, Operation.ADD, round(float(0.4 / (1 + np.exp(-1.5))), 6)),
        (2, 47, Operation.CLAMP_MAX, 0.0),
    ]
    assert [edit[:3] for edit in entries(found)] == [edit[:3] for edit in expected]
    assert found.value == pytest.approx([edit[3] for edit in expected], rel=1e-6)
    only = Intervention.from_neurons(own, opposite, only_layers_of_own=True)
    assert [edit[:2] for edit in entries(only)] == [(0, 5), (1, 2), (1, 7)]
    flat = Intervention.from_neurons(own, opposite, weight=np.ones_like)
    assert flat.tables()[1][1, 7] == np.float32(0.4)
    with pytest.raises(ConfigurationError, match="3 layers x 48 neurons, the opposite pole's of 2 layers x 48 neurons"):
        Intervention.from_neurons(own, neuron_set([], (2, NEURONS)))


def test_tables_change_only_what_is_edited() -> None:
    clamp, add = make(
        [(0, 1, Operation.CLAMP_MAX, 0.0), (0, 1, Operation.ADD, 2.5), (2, 3, Operation.ADD, -1)]
    ).tables()
    assert clamp.shape == add.shape == SHAPE
    assert clamp.dtype == add.dtype == np.float32
    assert clamp[0, 1] == 0.0
    assert np.isinf(clamp).sum() == clamp.size - 1
    assert (add[0, 1], add[2, 3]) == (2.5, -1.0)
    assert np.count_nonzero(add) == 2


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ((3, 0, Operation.ADD, 1.0), "neuron 0 of layer 3, outside of its shape of 3 layers x 48 neurons"),
        ((0, 48, Operation.ADD, 1.0), "neuron 48 of layer 0, outside"),
        ((0, -1, Operation.ADD, 1.0), "neuron -1 of layer 0, outside"),
        ((0, 4, Operation.ADD, float("nan")), "value nan at neuron 4 of layer 0"),
        ((0, 4, Operation.ADD, float("-inf")), "value -inf at neuron 4 of layer 0"),
        ((0, 4, 2, 1.0), "unknown operation 2"),
        ((1, 1, Operation.ADD, 1.0), "two entries for neuron 1 of layer 1 with operation add"),
    ],
)
def test_impossible_entries_are_refused(edit: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        make([(1, 1, Operation.ADD, 2.0), edit])
    assert "\n" not in str(caught.value)


def test_arrays_of_other_kinds_are_refused() -> None:
    good = make([(0, 0, Operation.ADD, 1.0)])
    with pytest.raises(ConfigurationError, match="int32, int32, uint8, float32"):
        dataclasses.replace(good, value=np.ones(1, np.float64))
    with pytest.raises(ConfigurationError, match="one length"):
        dataclasses.replace(good, value=np.ones(2, np.float32))
    with pytest.raises(ConfigurationError, match=r"unknown site 'residual'"):
        dataclasses.replace(good, site="residual")


def test_identity_is_that_of_the_edits() -> None:
    edits: list[Edit] = [(0, 1, Operation.ADD, 1.0), (2, 3, Operation.CLAMP_MAX, 0.0)]
    same = make(edits[::-1])
    assert make(edits).sha256 == same.sha256
    assert make([*edits[:1], (2, 3, Operation.CLAMP_MAX, 0.5)]).sha256 != same.sha256
    assert make(edits, (LAYERS, NEURONS + 1)).sha256 != same.sha256
    with pytest.raises(ValueError, match="read-only"):
        same.value[0] = 3


# Combination


def test_combining_states_who_wins() -> None:
    clamp, add = Operation.CLAMP_MAX, Operation.ADD
    one = make(
        [(0, 0, clamp, 0.0), (0, 1, clamp, 0.0), (0, 2, add, 1.0), (0, 4, clamp, 0.5), (0, 5, clamp, 0), (0, 5, add, 1)]
    )
    two = make([(0, 1, add, 3.0), (0, 2, add, 10.0), (0, 3, clamp, 0.0), (0, 4, clamp, -0.5)])
    expected = [
        (0, 0, clamp, 0.0),  # in one part only
        (0, 1, add, 6.0),  # the other part adds, so the clamp goes
        (0, 2, add, 20.5),  # sums, each with its own strength
        (0, 3, clamp, 0.0),
        (0, 4, clamp, -0.5),  # the lower ceiling
        (0, 5, clamp, 0.0),  # a part that adds does not lift its own clamp
        (0, 5, add, 0.5),
    ]
    assert entries(combine([(one, 0.5), (two, 2.0)])) == expected
    assert entries(combine([(two, 2.0), (one, 0.5)])) == expected


def test_the_rule_does_not_depend_on_the_strength() -> None:
    clamped, added = make([(0, 1, Operation.CLAMP_MAX, 0.0)]), make([(0, 1, Operation.ADD, 3.0)])
    assert entries(combine([(clamped, 1.0), (added, 0.0)])) == [(0, 1, Operation.ADD, 0.0)]


def test_combining_one_part_scales_it() -> None:
    part = make([(0, 1, Operation.CLAMP_MAX, 0.0), (0, 1, Operation.ADD, 3.0), (2, 9, Operation.ADD, 0.25)])
    clamp, add = part.tables()
    found_clamp, found_add = combine([(part, 1.4)]).tables()
    assert np.array_equal(found_clamp, clamp)
    assert found_add == pytest.approx(1.4 * add.astype(np.float64), rel=1e-6)


def test_combining_refuses_two_models_and_nonsense() -> None:
    one = make([(0, 1, Operation.ADD, 3.0)])
    with pytest.raises(ConfigurationError, match="3 layers x 48 neurons, one for 4 layers x 16 neurons"):
        combine([(one, 1.0), (make([], (4, 16)), 1.0)])
    with pytest.raises(ConfigurationError, match="strength nan"):
        combine([(one, float("nan"))])
    with pytest.raises(ConfigurationError, match="at least one"):
        combine([])


# Artifact


def saved(folder: Path) -> Intervention:
    intervention = make([(0, 1, Operation.CLAMP_MAX, 0.0), (2, 47, Operation.ADD, 0.3), (1, 8, Operation.ADD, 1.5)])
    intervention.save(folder, about={"target": "neuroticism:high", "model": {"name": "tiny"}})
    return intervention


def forge(folder: Path, **arrays: Any) -> None:
    """Write arrays into an artifact with a hash that is right."""
    from safetensors.numpy import load, save

    data = save({**load((folder / TENSORS_FILE).read_bytes()), **arrays})
    (folder / TENSORS_FILE).write_bytes(data)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["sha256"]
    manifest["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "sha256": content_hash(manifest)}))


def test_an_artifact_is_read_as_it_was_written(tmp_path: Path) -> None:
    intervention = saved(tmp_path / "new" / "folder")
    found = Intervention.load(tmp_path / "new" / "folder", SHAPE)
    assert entries(found) == entries(intervention)
    assert found.shape == SHAPE
    assert found.sha256 == intervention.sha256
    assert (
        json.loads((tmp_path / "new" / "folder" / MANIFEST_FILE).read_text())["about"]["target"] == "neuroticism:high"
    )
    empty = make([])
    empty.save(tmp_path)
    assert len(Intervention.load(tmp_path)) == 0


def test_saving_is_repeatable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    for file in (TENSORS_FILE, MANIFEST_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_artifact_is_refused(tmp_path: Path, left: int) -> None:
    saved(tmp_path)
    path = tmp_path / TENSORS_FILE
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(StorageError, match=r"intervention\.safetensors is truncated or was altered"):
        Intervention.load(tmp_path)


def test_a_missing_unfinished_or_altered_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere is missing"):
        Intervention.load(tmp_path / "nowhere")
    saved(tmp_path)
    manifest = (tmp_path / MANIFEST_FILE).read_text()
    (tmp_path / MANIFEST_FILE).write_text(manifest.replace('"neurons": 48', '"neurons": 96'))
    with pytest.raises(StorageError, match=r"intervention\.json is truncated or was altered"):
        Intervention.load(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(manifest.replace('"tiny"', "NaN"))
    with pytest.raises(StorageError, match="is not JSON"):
        Intervention.load(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(manifest[:50])
    with pytest.raises(StorageError, match="is not JSON"):
        Intervention.load(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    with pytest.raises(StorageError, match="is unfinished"):
        Intervention.load(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(manifest)
    (tmp_path / TENSORS_FILE).unlink()
    with pytest.raises(StorageError, match="No such file"):
        Intervention.load(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"value": np.array([0, np.nan, 1], np.float32)}, "value nan at neuron 8 of layer 1"),
        ({"index": np.array([1, 48, 2], np.int32)}, "neuron 48 of layer 1, outside of its shape"),
        ({"index": np.array([1, 2], np.int32)}, "of one length"),
        ({"operation": np.array([0, 9, 1], np.uint8)}, "unknown operation 9"),
    ],
)
def test_impossible_values_in_a_well_hashed_file_are_refused(tmp_path: Path, arrays: Any, said: str) -> None:
    saved(tmp_path)
    forge(tmp_path, **arrays)
    with pytest.raises(StorageError, match=said) as caught:
        Intervention.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_artifact_of_another_model_names_both_shapes(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match="of 3 layers x 48 neurons, but this model has 32 layers x 14336") as said:
        Intervention.load(tmp_path, (32, 14336))
    assert str(tmp_path) in str(said.value)


def test_a_kill_between_the_files_leaves_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr(
        "personalitybench.activations.interventions.write_json", lambda *_: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        make([]).save(tmp_path)
    with pytest.raises(StorageError, match="unfinished"):
        Intervention.load(tmp_path)
