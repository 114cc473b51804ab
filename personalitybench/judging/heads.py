"""Linear heads from features to ratings: the part of the offline judge that was trained, a few KB of safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personalitybench.errors import DataError
from personalitybench.judging.features import Vector


@dataclass(frozen=True)
class Head:
    """``rating = 1 + 4 / (1 + exp(-(weights . features + bias)))``.

    Attributes:
        weights: Shape [features]; standardisation and calibration are folded in.
        bias: Scalar.
    """

    weights: Vector
    bias: float

    def rating(self, features: Vector) -> float:
        """Rate, from 1 to 5."""
        logit = float(np.dot(self.weights.astype(np.float64), features.astype(np.float64))) + self.bias
        return 1.0 + 4.0 / (1.0 + float(np.exp(-np.clip(logit, -30.0, 30.0))))


def load_heads(path: Path) -> dict[str, Head]:
    """Load heads by aspect.

    Raises:
        DataError: The file is missing or damaged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415 (comes with the extra)
    from safetensors.numpy import load_file  # noqa: PLC0415

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read the judge's heads {path} ({error}): install personalitybench again") from error
    aspects = sorted(name.removesuffix(".weights") for name in tensors if name.endswith(".weights"))
    return {
        aspect: Head(tensors[f"{aspect}.weights"].astype(np.float32), float(tensors[f"{aspect}.bias"][0]))
        for aspect in aspects
    }


def save_heads(heads: dict[str, Head], path: Path) -> None:
    """Save heads as safetensors."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    tensors = {}
    for aspect, head in heads.items():
        tensors[f"{aspect}.weights"] = head.weights.astype(np.float32)
        tensors[f"{aspect}.bias"] = np.array([head.bias], dtype=np.float32)
    save_file(tensors, path)
    path.chmod(0o644)
