"""The paper's own neuron files: names, layout, damage, and the released one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from personalitybench.activations.neurons import NeuronSet
from personalitybench.activations.official_files import (
    OFFICIAL_SHAPE,
    official_file_name,
    read_official_file,
    write_official_file,
)
from personalitybench.errors import DataError
from personalitybench.traits import TARGETS, Pole, Target
from tests.conftest import SHARED
from tests.made_up import make_set, random_set


def test_file_names_are_the_papers() -> None:
    assert official_file_name(Target("openness", Pole.HIGH)) == "Openness_dict.json"
    assert official_file_name(Target("openness", Pole.LOW)) == "Openness_reversed_dict.json"
    assert len({official_file_name(target) for target in TARGETS}) == 10


@pytest.mark.parametrize("neurons", [make_set(), random_set(2), make_set().strongest(0)])
def test_official_layout_round_trip(tmp_path: Path, neurons: NeuronSet) -> None:
    path = tmp_path / "Openness_dict.json"
    write_official_file(path, neurons)
    assert read_official_file(path, neurons.shape) == neurons
    found = json.loads(path.read_text())
    assert list(found) == list(dict.fromkeys(map(str, neurons.layer.tolist())))  # by their strongest neuron
    assert sum(map(len, found.values())) == len(neurons)


def test_official_layout_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_official_file(path, make_set(delta=[0.25, 0.5, 0.125], probability=[0.5, 0.75, 0.25]))
    expected = {"0": [[0, 7, 0.5, 0.75, 1.5]], "2": [[2, 5, 0.25, 0.5, 0.25]], "1": [[1, 0, 0.125, 0.25, 0.0]]}
    assert path.read_text() == json.dumps(expected, indent=4)


def test_minus_infinity_in_a_file_is_an_absent_a95(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"0": [[0, 1, 0.04, 0.04, -Infinity]]}')
    assert read_official_file(path, (1, 2)).a95.tolist() == [0.0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not JSON"),
        ("[]", "must map a layer"),
        ('{"0": 3}', "layer '0': a list of rows"),
        ('{"0": [[0, 1, 0.2, 0.3]]}', "row 0: .* is needed"),
        ('{"0": [[0, 1, 0.2, 0.3, 0.4], [0, 1.5, 0.2, 0.3, 0.4]]}', "row 1"),
        ('{"0": [[0, true, 0.2, 0.3, 0.4]]}', "row 0"),
        ('{"0": [[0, 1, "0.2", 0.3, 0.4]]}', "are numbers"),
        ('{"1": [[0, 1, 0.2, 0.3, 0.4]]}', "the row names layer 0"),
        ('{"0": [[0, 2, 0.2, 0.3, 0.4]]}', "does not fit a model of 1 × 2: .*index 2"),
        ('{"1": [[1, 1, 0.2, 0.3, 0.4]]}', "layer 1"),
        ('{"0": [[0, 99999999999999999999, 0.2, 0.3, 0.4]]}', "does not fit"),
        ('{"0": [[0, 1, 0.2, 0.3, 0.4], [0, 1, 0.2, 0.3, 0.4]]}', "given twice"),
        ('{"0": [[0, 1, NaN, 0.3, 0.4]]}', "delta nan"),
        ('{"0": [[0, 1, 0.2, 0.3, Infinity]]}', "a95 inf"),
        ('{"0": [[0, 1, -0.2, 0.3, 0.4]]}', "delta -0.2"),
    ],
)
def test_a_wrong_official_file_is_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "Openness_dict.json"
    path.write_text(content)
    with pytest.raises(DataError, match=text) as caught:
        read_official_file(path, (1, 2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_official_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_official_file(tmp_path / "none.json", OFFICIAL_SHAPE)


def test_the_released_file(tmp_path: Path) -> None:
    target = Target("conscientiousness", Pole.HIGH)
    path = SHARED / "neurons" / official_file_name(target)
    if not path.is_file():
        pytest.skip(f"the released neuron file is not at {path}: it has no licence and is not in the repository")
    neurons = read_official_file(path, OFFICIAL_SHAPE)
    assert len(neurons) == 10_278
    assert np.all(neurons.counts_by_layer() > 0)
    assert neurons.delta.min() == pytest.approx(0.1000014, abs=1e-7)
    copy = tmp_path / path.name
    write_official_file(copy, neurons)
    ours, theirs = json.loads(copy.read_text()), json.loads(path.read_text())
    assert list(ours) == list(theirs)
    for layer, rows in theirs.items():  # only neurons of equal δ may have changed places
        assert [row[2] for row in ours[layer]] == [row[2] for row in rows]
        assert sorted(ours[layer]) == sorted(rows)
    assert read_official_file(copy, OFFICIAL_SHAPE) == neurons
    neurons.save(tmp_path / "set")
    assert NeuronSet.load(tmp_path / "set") == neurons
    with pytest.raises(DataError, match="does not fit a model of 24 × 14336"):
        read_official_file(path, (24, 14_336))
