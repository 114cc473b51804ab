"""How long a trait's neurons take to select for Llama-3-8B size: ours from saved statistics, and the released way.

Run: ``python benchmarks/select_neurons.py``. Prints seconds and their ratio. The statistics are made up (32 × 14,336
neurons, about 20,000 a pole above the threshold). Ours reads them from safetensors and selects both poles; the
released way is the parity oracle, which writes, sorts and reads 458,752 text lines a pole. The oracle is given the
arrays in memory, as plain lists, and the percentiles ready-made, so what is compared is selection alone. Both must
give the same neurons with the same numbers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from personalitybench.activations.neurons import NeuronSet, SelectionSettings, select_neurons
from personalitybench.traits import Pole
from tests.parity.released_selection import EDGES, select_as_released

SHAPE = (32, 14_336)
TOKENS = 10_000_000
NAMES = ("probability_high", "probability_low", "a95_high", "a95_low")
REPEATS = 15


def make_statistics() -> dict[str, np.ndarray]:
    """Probabilities as counts divided by tokens, and left bin edges."""
    rng = np.random.default_rng(0)
    base = rng.beta(1.5, 3, SHAPE)
    edges = np.array(EDGES, dtype=np.float32)
    arrays = {}
    for pole in ("high", "low"):
        probability = np.clip(base + rng.normal(0, 0.042, SHAPE), 0, 1)
        arrays[f"probability_{pole}"] = np.round(probability * TOKENS) / TOKENS
        arrays[f"a95_{pole}"] = edges[np.where(probability <= 0.05, 0, 1 + rng.integers(0, 200, SHAPE))]
    return arrays


def select(path: Path) -> dict[Pole, NeuronSet]:
    """Read the statistics and select."""
    arrays = load_file(path)
    return select_neurons(*(arrays[name] for name in NAMES), SelectionSettings.released_code())


def main() -> None:
    """Measure, check and print."""
    arrays = make_statistics()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "statistics.safetensors"
        save_file(arrays, path)
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            found = select(path)
            seconds.append(time.perf_counter() - started)
        ours = statistics.median(seconds)
        lists = [arrays[column].tolist() for column in NAMES]
        started = time.perf_counter()
        oracle = select_as_released(Path(name), *lists)
        released = time.perf_counter() - started
    for pole, rows in zip((Pole.HIGH, Pole.LOW), oracle, strict=True):
        neurons = found[pole]
        columns = (neurons.layer, neurons.index, neurons.delta, neurons.probability, neurons.a95)
        if list(zip(*(column.tolist() for column in columns), strict=True)) != [
            (*row[:4], max(row[4], 0.0)) for row in rows
        ]:
            raise SystemExit(f"{pole}: the neurons are not the same")
        print(f"{pole}: {len(neurons):,} neurons, the same in both")
    print(f"released way, text lines: {released:.2f} s")
    print(f"ours, from safetensors (median of {REPEATS}): {ours:.4f} s")
    print(f"ratio: {released / ours:.0f}")


if __name__ == "__main__":
    main()
