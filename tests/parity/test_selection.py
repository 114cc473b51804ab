"""The vectorised preset gives the neurons of the released procedure, number for number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from personalitybench.activations.neurons import NeuronSet, SelectionSettings, select_neurons
from personalitybench.traits import Pole
from tests.parity import released_selection
from tests.parity.released_selection import EDGES, Row, left_edge, select_as_released


def rows(neurons: NeuronSet) -> list[Row]:
    columns = (neurons.layer, neurons.index, neurons.delta, neurons.probability, neurons.a95)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def expected(found: list[Row]) -> list[Row]:
    """The two stated differences: δ must be above zero, and an absent a95 is 0."""
    return [(*row[:4], 0.0 if row[4] == -math.inf else row[4]) for row in found if row[2] > 0]


def statistics(spread: float, tokens: int, shape: tuple[int, int] = (5, 1000)) -> tuple[np.ndarray, ...]:
    """Probabilities out of counts, and left bin edges, of two poles."""
    rng = np.random.default_rng(tokens)
    base = rng.beta(0.6, 2, shape)
    poles = [np.clip(base + rng.normal(0, spread, shape), 0, 1) for _ in Pole]
    probabilities = [np.round(pole * tokens) / tokens for pole in poles]
    edges = np.array(EDGES, dtype=np.float32)
    a95 = [edges[np.where(pole <= 0.05, 0, 1 + rng.integers(0, 300, shape))] for pole in probabilities]
    return (*probabilities, *a95)


# 20 tokens make many equal δ and many at 0.1 exactly; a small spread leaves fewer than 2,000 above the threshold.
@pytest.mark.parametrize("tokens", [10, 20, 997, 10_000_019])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05, 0.3])
def test_same_neurons_as_the_released_procedure(tmp_path: Path, spread: float, tokens: int) -> None:
    arrays = statistics(spread, tokens)
    found = select_neurons(*arrays, SelectionSettings.released_code())
    oracle = select_as_released(tmp_path, *(array.tolist() for array in arrays))
    for pole, released in zip((Pole.HIGH, Pole.LOW), oracle, strict=True):
        assert len(released) >= released_selection.FORCED
        assert rows(found[pole]) == expected(released)


def test_the_limit_cuts_at_the_same_neuron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = statistics(0.3, 50)
    monkeypatch.setattr(released_selection, "LIMIT", 777)
    monkeypatch.setattr(released_selection, "FORCED", 100)
    settings = SelectionSettings(**SelectionSettings.released_code().model_dump() | {"at_most": 777, "at_least": 100})
    found = select_neurons(*arrays, settings)
    oracle = select_as_released(tmp_path, *(array.tolist() for array in arrays))
    for pole, released in zip((Pole.HIGH, Pole.LOW), oracle, strict=True):
        assert len(found[pole]) == 777
        assert rows(found[pole]) == expected(released)


def test_left_edge() -> None:
    def edge(**bins: int) -> float:
        histogram = [0] * 301
        for name, count in bins.items():
            histogram[int(name[1:])] = count
        return left_edge(histogram)

    assert edge(b0=95, b7=5) == -math.inf  # 5 % are above zero: the share is reached in the first bin
    assert edge(b0=94, b7=6) == 0.06
    assert edge(b1=100) == 0.0
    assert edge(b300=100) == 2.99
    assert edge(b0=50, b1=45, b2=5) == 0.0
