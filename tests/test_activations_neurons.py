"""Neuron sets: chosen, compared, saved, damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from personalitybench.activations.neurons import (
    MANIFEST_FILE,
    NEURONS_FILE,
    NeuronManifest,
    NeuronSet,
    SelectionSettings,
    overlap,
    select_neurons,
    shared_counts,
)
from personalitybench.errors import ConfigurationError, DataError, StorageError
from personalitybench.traits import Pole
from tests.made_up import make_set, random_set

OWN_POLE = SelectionSettings(a95_from="own-pole")


def places(neurons: NeuronSet) -> list[tuple[int, int]]:
    return list(zip(neurons.layer.tolist(), neurons.index.tolist(), strict=True))


def choose(high: Any, low: Any, chosen: SelectionSettings = OWN_POLE, **more: Any) -> dict[Pole, NeuronSet]:
    """Select with an a95 of 1 under the high pole and 2 under the low."""
    high, low = np.array(high, dtype=float), np.array(low, dtype=float)
    return select_neurons(high, low, np.full(high.shape, 1.0), np.full(high.shape, 2.0), chosen, **more)


# Settings


def test_presets_are_what_is_documented() -> None:
    assert SelectionSettings.paper().model_dump() == {
        "threshold": 0.1,
        "inclusive": False,
        "at_least": 0,
        "at_most": None,
        "a95_from": "original",
        "arithmetic": "float64",
    }
    assert SelectionSettings.released_code().model_dump() == {
        "threshold": 0.1,
        "inclusive": True,
        "at_least": 2000,
        "at_most": 300_000,
        "a95_from": "own-pole",
        "arithmetic": "float32",
    }
    for name, field in SelectionSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": -0.1},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"at_least": -1},
        {"at_most": 0},
        {"at_least": 5, "at_most": 4},
        {"a95_from": "other"},
        {"treshold": 0.2},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SelectionSettings(**wrong)


# Selection


def test_both_poles_by_hand() -> None:
    found = choose([[0.9, 0.2, 0.5], [0.3, 0.05, 0.7]], [[0.4, 0.8, 0.45], [0.55, 0.0, 0.3]])
    high, low = found[Pole.HIGH], found[Pole.LOW]
    assert places(high) == [(0, 0), (1, 2)]
    assert high.delta.tolist() == pytest.approx([0.5, 0.4])
    assert high.probability.tolist() == pytest.approx([0.9, 0.7])
    assert high.a95.tolist() == [1, 1]
    assert places(low) == [(0, 1), (1, 0)]
    assert low.delta.tolist() == pytest.approx([0.6, 0.25])
    assert low.probability.tolist() == pytest.approx([0.8, 0.55])  # of its own pole
    assert low.a95.tolist() == [2, 2]
    assert high.shape == low.shape == (2, 3)
    assert [column.dtype for column in (high.layer, high.index, high.delta, high.probability, high.a95)] == [
        np.int32,
        np.int32,
        np.float32,
        np.float32,
        np.float32,
    ]


@pytest.mark.parametrize(("high", "low"), [(0.3, 0.2), (0.4, 0.3), (0.8, 0.7), (0.1, 0.0), (1.0, 0.9), (0.15, 0.05)])
def test_ten_points_are_the_threshold_whatever_the_last_bits(high: float, low: float) -> None:
    # 0.3 - 0.2 < 0.1 < 0.4 - 0.3 in double precision
    assert len(choose([[high]], [[low]])[Pole.HIGH]) == 0
    assert len(choose([[high]], [[low]], OWN_POLE.model_copy(update={"inclusive": True}))[Pole.HIGH]) == 1


def test_equal_differences_are_in_order_of_layer_and_index_and_limits_cut_there() -> None:
    high, low = np.full((3, 4), 0.75), np.full((3, 4), 0.25)
    high[1, 2] = 1.0
    expected = [(1, 2), *((i, j) for i in range(3) for j in range(4) if (i, j) != (1, 2))]
    assert places(choose(high, low)[Pole.HIGH]) == expected
    assert places(choose(high, low, SelectionSettings(a95_from="own-pole", at_most=5))[Pole.HIGH]) == expected[:5]
    strict = SelectionSettings(a95_from="own-pole", threshold=0.6, at_least=5)
    assert places(choose(high, low, strict)[Pole.HIGH]) == expected[:5]


def test_at_least_takes_none_that_leans_the_other_way() -> None:
    found = choose([[0.5, 0.5, 0.5, 0.5]], [[0.45, 0.5, 0.6, 0.49]], SelectionSettings.released_code())
    assert places(found[Pole.HIGH]) == [(0, 0), (0, 3)]
    assert places(found[Pole.LOW]) == [(0, 2)]


def test_float32_arithmetic_is_that_of_float32() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.random((4, 500)), rng.random((4, 500))
    found = choose(high, low, SelectionSettings(a95_from="own-pole", arithmetic="float32"))[Pole.HIGH]
    difference = high.astype(np.float32) - low.astype(np.float32)
    assert np.array_equal(found.delta, difference[found.layer, found.index])
    exact = choose(high, low)[Pole.HIGH]
    assert np.array_equal(exact.delta, (high - low)[exact.layer, exact.index].astype(np.float32))
    assert not np.array_equal(exact.delta, found.delta)


def test_a95_of_the_original_model() -> None:
    found = choose([[0.9, 0.1]], [[0.1, 0.9]], SelectionSettings.paper(), a95_original=[[3.0, 4.0]])
    assert (found[Pole.HIGH].a95.tolist(), found[Pole.LOW].a95.tolist()) == ([3], [4])
    with pytest.raises(ConfigurationError, match=r"needs a95_original.*own-pole"):
        choose([[0.9]], [[0.1]], SelectionSettings.paper())


@pytest.mark.parametrize("absent", [-np.inf, -0.25, -0.0, 0.0])
def test_an_absent_a95_adds_nothing_and_never_nan(absent: float) -> None:
    found = select_neurons(
        [[0.04, 0.5]], [[0.0, 0.1]], [[absent, 0.5]], [[-np.inf] * 2], SelectionSettings.released_code()
    )
    assert places(found[Pole.HIGH]) == [(0, 1), (0, 0)]
    assert found[Pole.HIGH].a95.tolist() == [0.5, 0.0]
    assert np.isfinite(0.0 * found[Pole.HIGH].a95).all()
    assert not np.signbit(found[Pole.HIGH].a95).any()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("probability_high", [[0.5, np.nan]], r"probability_high: nan at layer 0, neuron 1 \(1 such values\)"),
        ("probability_low", [[1.5, 7.0]], r"probability_low: 1.5 at layer 0, neuron 0 \(2 such values\).*counts"),
        ("probability_low", [[-0.1, 0.5]], r"probability_low: -0.1 at layer 0, neuron 0"),
        ("probability_high", [0.5, 0.5], r"probability_high: an array \[layers, neurons\] is needed.*\(2,\)"),
        ("probability_high", [[]], "probability_high: an array"),
        ("probability_low", [[0.5], [0.5]], r"probability_low is of shape \(2, 1\), probability_high of \(1, 2\)"),
        ("a95_low", [[0.5] * 3], r"a95_low is of shape \(1, 3\)"),
        ("a95_high", [[np.nan, 1.0]], "a95_high: nan at layer 0, neuron 0"),
        ("a95_low", [[1.0, np.inf]], "a95_low: inf at layer 0, neuron 1"),
        ("a95_low", [[1.0, 1e300]], "a95_low: inf"),
        ("a95_original", [[np.nan, 1.0]], "a95_original: nan"),
        ("probability_high", [["a", "b"]], "probability_high: numbers are needed"),
    ],
)
def test_wrong_arrays_are_refused(name: str, value: Any, text: str) -> None:
    given_arrays: dict[str, Any] = {
        "probability_high": [[0.5, 0.6]],
        "probability_low": [[0.5, 0.6]],
        "a95_high": [[0.5, 0.6]],
        "a95_low": [[0.5, 0.6]],
        "a95_original": [[0.5, 0.6]],
    }
    with pytest.raises(DataError, match=text):
        select_neurons(**given_arrays | {name: value}, settings=SelectionSettings.paper())


PROBABILITIES = arrays.arrays(np.float64, (2, 6), elements=st.integers(0, 20).map(lambda count: count / 20))


@settings(max_examples=150, deadline=None)
@given(
    PROBABILITIES,
    PROBABILITIES,
    st.integers(0, 19),
    st.booleans(),
    st.integers(0, 12),
    st.none() | st.integers(1, 12),
)
def test_selection_is_the_definition(
    high: Any, low: Any, threshold: int, inclusive: bool, at_least: int, at_most: int | None
) -> None:
    """Against whole numbers of tokens (20 a pole), where nothing is rounded."""
    at_least = min(at_least, at_most or at_least)
    chosen = SelectionSettings(
        threshold=threshold / 20, inclusive=inclusive, at_least=at_least, at_most=at_most, a95_from="own-pole"
    )
    found = choose(high, low, chosen)
    counts = np.rint((high - low) * 20).astype(int)
    for pole, signed in ((Pole.HIGH, counts), (Pole.LOW, -counts)):
        ranked = sorted((-signed[i, j], i, j) for i in range(2) for j in range(6) if signed[i, j] > 0)
        kept = [
            (i, j)
            for rank, (negative, i, j) in enumerate(ranked)
            if rank < at_least or -negative > threshold or (inclusive and -negative == threshold)
        ]
        assert places(found[pole]) == kept[:at_most]
    mirrored = choose(low, high, chosen)
    assert places(mirrored[Pole.LOW]) == places(found[Pole.HIGH])


# Sets


def test_rows_come_in_one_order_and_cannot_be_changed() -> None:
    neurons = make_set()
    assert neurons.delta.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert places(neurons) == [(0, 7), (1, 0), (2, 5)]
    assert neurons.a95.tolist() == [1.5, 0.0, 0.25]
    assert neurons.identities.tolist() == [7, 8, 21]
    with pytest.raises(ValueError, match="read-only"):
        neurons.delta[0] = 1
    assert len(make_set(layer=[], index=[], delta=[], probability=[], a95=[])) == 0


def test_a_set_keeps_no_hold_on_what_it_was_made_of() -> None:
    delta = np.array([0.5, 0.2, 0.1], dtype=np.float32)
    neurons = make_set(delta=delta)
    delta[0] = 0.9
    assert neurons.delta[0] == 0.5


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"layer": [2, 0, 3]}, "layer 3 in row 2 is outside 0 to 2"),
        ({"layer": [2, -1, 1]}, "layer -1 in row 1"),
        ({"index": [5, 8, 0]}, "index 8 in row 1 is outside 0 to 7"),
        ({"index": [5, 2**32, 0]}, "index 4294967296 in row 1"),
        ({"index": [5.0, 7.0, 0.0]}, "index must be a list of int32 numbers, not float64"),
        ({"delta": [0.2, 0.0, 0.3]}, "delta 0.0 in row 1"),
        ({"delta": [0.2, -0.5, 0.3]}, "delta -0.5 in row 1"),
        ({"delta": [0.2, np.nan, 0.3]}, "delta nan in row 1"),
        ({"delta": [0.2, 1.5, 0.3]}, "delta 1.5 in row 1"),
        ({"probability": [0.2, 0.1, 1.01]}, "probability .* in row 2 is outside 0 to 1"),
        ({"probability": [np.nan, 0.1, 1]}, "probability nan in row 0"),
        ({"a95": [0.2, -np.inf, 0.1]}, "a95 -inf in row 1"),
        ({"a95": [0.2, np.inf, 0.1]}, "a95 inf in row 1"),
        ({"a95": [0.2, 1e300, 0.1]}, "a95 inf in row 1"),
        ({"a95": [0.2, 0.1]}, "columns must be of one length"),
        ({"a95": [[0.2, 0.1, 0.3]]}, "a95 must be a list"),
        ({"layer": [1, 1, 1], "index": [4, 4, 0]}, "neuron 4 of layer 1 is given twice"),
        ({"shape": (0, 8)}, "1 or more, not 0 × 8"),
        ({"shape": (3,)}, r"the shape must be \(layers, neurons\)"),
    ],
)
def test_a_wrong_set_is_refused(columns: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        make_set(**columns)


def test_equality_and_hash_are_of_the_content() -> None:
    neurons = make_set()
    reordered = make_set(
        layer=[1, 2, 0], index=[0, 5, 7], delta=[0.3, 0.2, 0.5], probability=[0.3, 0.4, 0.9], a95=[-0.0, 0.25, 1.5]
    )
    assert neurons == reordered
    assert neurons.content_hash == reordered.content_hash
    assert len({neurons, reordered}) == 1
    others = [
        make_set(shape=(3, 9)),
        make_set(shape=(4, 8)),
        make_set(layer=[1, 0, 2], index=[0, 7, 5]),
        make_set(delta=[0.2, 0.5, np.nextafter(np.float32(0.3), np.float32(1))]),
        make_set(probability=[0.4, 0.9, 0.2]),
        make_set(a95=[0.25, 1.5, 1e-9]),
        neurons.strongest(2),
    ]
    assert all(other != neurons for other in others)
    assert len({neurons.content_hash, *(other.content_hash for other in others)}) == 1 + len(others)
    assert neurons != "neurons"
    # Frozen, so that a change of the format cannot go unnoticed: saved sets and results name this hash.
    assert neurons.content_hash.startswith("78569034a272b6f8")


def test_counts_strongest_and_overlap() -> None:
    neurons = make_set()
    assert neurons.counts_by_layer().tolist() == [1, 1, 1]
    assert make_set(shape=(5, 8)).counts_by_layer().tolist() == [1, 1, 1, 0, 0]
    assert places(neurons.strongest(2)) == [(0, 7), (1, 0)]
    assert neurons.strongest(99) == neurons
    assert len(neurons.strongest(0)) == 0
    with pytest.raises(ConfigurationError, match="not -1"):
        neurons.strongest(-1)
    one_shared = make_set(layer=[0, 0], index=[7, 1], delta=[0.2, 0.3], probability=[0.5, 0.5], a95=[0, 0])
    shares = overlap([neurons, one_shared, neurons.strongest(1), neurons.strongest(0)])
    assert shares.tolist() == [[1, 0.5, 1, 0], [0.5, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert shared_counts([neurons, one_shared, neurons.strongest(0)]).tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert overlap([]).shape == (0, 0)
    with pytest.raises(DataError, match="set 1 is of a model with 3 × 9 neurons, set 0 of one with 3 × 8"):
        overlap([neurons, make_set(shape=(3, 9))])


def test_errors_go_with_their_neurons_and_are_no_part_of_what_the_set_is(tmp_path: Path) -> None:
    neurons = make_set()
    of_model = np.arange(24, dtype=float).reshape(3, 8) / 100
    sure = neurons.with_error(of_model)
    assert sure.error is not None
    assert sure.error.tolist() == pytest.approx([0.07, 0.08, 0.21])  # strongest first: (0, 7), (1, 0), (2, 5)
    assert places(sure) == places(neurons)
    assert (sure, sure.content_hash) == (neurons, neurons.content_hash)
    sure.save(tmp_path)
    loaded = NeuronSet.load(tmp_path)
    assert loaded.error is not None
    assert loaded.error.tolist() == sure.error.tolist()
    strongest = loaded.strongest(2).error
    assert strongest is not None
    assert strongest.tolist() == sure.error.tolist()[:2]
    neurons.save(tmp_path)
    assert NeuronSet.load(tmp_path).error is None
    with pytest.raises(DataError, match=r"of shape \(3, 7\), the neuron set of \(3, 8\)"):
        neurons.with_error(of_model[:, :7])
    for wrong in (np.nan, -0.1, np.inf):
        with pytest.raises(DataError, match="error"):
            neurons.with_error(np.full((3, 8), wrong))
    with pytest.raises(DataError, match="of one length"):
        make_set(error=[0.1])


# Files


@pytest.mark.parametrize("neurons", [make_set(), random_set(1), make_set().strongest(0)])
def test_saved_and_loaded(tmp_path: Path, neurons: NeuronSet) -> None:
    folder = tmp_path / "new" / "set"
    neurons.save(folder, about={"target": "openness:high", "settings": OWN_POLE.model_dump()})
    assert NeuronSet.load(folder) == neurons
    manifest = NeuronManifest.read(folder)
    assert (manifest.count, manifest.content) == (len(neurons), neurons.content_hash)
    assert SelectionSettings(**manifest.about["settings"]) == OWN_POLE
    make_set().save(folder)  # over it
    assert NeuronSet.load(folder) == make_set()


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    random_set(1).save(tmp_path / "old")
    monkeypatch.setattr("personalitybench.activations.neurons.write_json", killed)
    for folder, text in ((tmp_path / "new", "no finished neuron set"), (tmp_path / "old", "is not the file")):
        with pytest.raises(KeyboardInterrupt):
            make_set().save(folder)
        assert (folder / NEURONS_FILE).is_file()
        with pytest.raises(StorageError, match=text):
            NeuronSet.load(folder)


def _edit_manifest(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _replace_tensors(folder: Path, data: bytes) -> None:
    (folder / NEURONS_FILE).write_bytes(data)
    _edit_manifest(folder, sha256=hashlib.sha256(data).hexdigest())


def _with_nan(folder: Path) -> None:
    from safetensors.numpy import load, save

    tensors = load((folder / NEURONS_FILE).read_bytes())
    _replace_tensors(folder, save(tensors | {"a95": np.full_like(tensors["a95"], np.nan)}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / NEURONS_FILE).unlink(), "cannot read .*No such file"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "no finished neuron set"),
        (lambda folder: (folder / NEURONS_FILE).write_bytes(b"\0" * 20), "is not the file that manifest.json"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{"), "not JSON"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("[]"), "describes no neuron set"),
        (lambda folder: _edit_manifest(folder, format="other/1"), "describes no neuron set .format"),
        (lambda folder: _edit_manifest(folder, count=2), "holds other neurons than"),
        (lambda folder: _edit_manifest(folder, shape=[2, 8]), "is damaged .*layer 2"),
        (lambda folder: _edit_manifest(folder, shape=[4, 8]), "holds other neurons than"),
        (lambda folder: _replace_tensors(folder, b"\0" * 20), "is damaged"),
        (_with_nan, "is damaged .*a95 nan"),
    ],
)
def test_a_damaged_set_is_refused(tmp_path: Path, damage: Any, text: str) -> None:
    make_set().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError, match=text):
        NeuronSet.load(tmp_path)
