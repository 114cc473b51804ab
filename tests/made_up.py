"""Made-up neurons, and the source of made-up statistics: what several tests begin with."""

from __future__ import annotations

from typing import Any

import numpy as np

from personalitybench.activations.neurons import NeuronSet
from personalitybench.activations.statistics_files import StatisticsSource

SOURCE = StatisticsSource(
    model="tiny",
    revision="abc",
    target="extraversion:high",
    wording_sha256="0" * 64,
    data_revision="d1",
    seeds={"questions": 0},
    token_rule="answer",  # noqa: S106 (a rule about tokens of text)
)


def make_set(shape: tuple[int, int] = (3, 8), **columns: Any) -> NeuronSet:
    """Three neurons, or what is given."""
    given_columns = {
        "layer": [2, 0, 1],
        "index": [5, 7, 0],
        "delta": [0.2, 0.5, 0.3],
        "probability": [0.4, 0.9, 0.3],
        "a95": [0.25, 1.5, 0.0],
    } | columns
    return NeuronSet(shape, **{name: np.array(value) for name, value in given_columns.items()})


def random_set(seed: int, count: int = 40, shape: tuple[int, int] = (3, 50)) -> NeuronSet:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(shape[0] * shape[1])[:count]
    delta = rng.choice(np.array([0.1, 0.25, 0.4], dtype=np.float32), count)  # many equal ones
    return NeuronSet(
        shape, chosen // shape[1], chosen % shape[1], delta, rng.random(count), rng.random(count).astype(np.float32)
    )
