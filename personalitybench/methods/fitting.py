"""What a method works with: data to draw on and, in a fit, a model and a folder; and what a fit leaves."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from personalitybench.backends.engines import loading_identity
from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError, StorageError
from personalitybench.files import cached_sha256, content_hash, read_json
from personalitybench.prompts import Wording
from personalitybench.questions import QuestionSource

PROVENANCE = "provenance.json"
"""File of an artifact that says how it came to be (cost, seconds, versions): for people, not part of its hash."""


@dataclass(frozen=True)
class Artifact:
    """What a fit leaves on disk: a folder of safetensors and JSON.

    Attributes:
        folder: The folder.
        sha256: Hash of the names and contents of its files, part of a row's identity. :data:`PROVENANCE` is left
            out, so that fits that found the same are the same.
    """

    folder: Path
    sha256: str

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """Open what a fit left.

        Raises:
            ConfigurationError: The folder holds nothing.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / PROVENANCE)
        if not files:
            raise ConfigurationError(f"artifact folder {folder} is missing or empty: fit the method first")
        return cls(folder, content_hash({str(path.relative_to(folder)): cached_sha256(path) for path in files}))

    @property
    def provenance(self) -> dict[str, Any]:
        """What :data:`PROVENANCE` says; empty where there is none, as in imported neurons."""
        path = self.folder / PROVENANCE
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found

    @property
    def cost(self) -> FitCost | None:
        """What the fit took, or None where nobody wrote it down.

        Raises:
            StorageError: The file says something else than a cost.
        """
        kept = self.provenance.get("cost")
        try:
            return None if kept is None else FitCost.model_validate(kept)
        except ValidationError as error:
            raise StorageError(f"{self.folder / PROVENANCE}: 'cost' is no cost of a fit: delete the fit") from error

    @property
    def size(self) -> int:
        """Bytes of its files, without :data:`PROVENANCE`."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path != self.folder / PROVENANCE)
        return sum(path.stat().st_size for path in files)


@dataclass(frozen=True)
class MethodContext:
    """What a method may draw on.

    Attributes:
        wording: Templates of the protocol.
        source: Questions and descriptions.
        seed: Seed of everything that the method draws.
        artifact: What :meth:`InductionMethod.fit` left for this model, if the method fits anything.
    """

    wording: Wording
    source: QuestionSource
    seed: int = 0
    artifact: Artifact | None = None

    def draw(self, key: str, count: int, *about: object) -> int:
        """Draw one of ``count`` by a hash of the seed and the key: independent of order, batch and machine."""
        text = "\0".join(map(str, (self.seed, key, *about)))
        digest = hashlib.sha256(text.encode()).digest()
        return random.Random(digest).randrange(count)  # noqa: S311 (a reproducible draw, not a secret)


def _no_parts(method: str, _settings: Mapping[str, Any]) -> Artifact | None:
    raise ConfigurationError(f"this fit was started without a store, so method {method!r} cannot be fitted in it")


@dataclass(frozen=True)
class FitContext:
    """What a fit works with.

    Attributes:
        model: Local path or hub name of the model, as transformers loads it.
        model_name: What the model is called.
        model_revision: Which weights these are.
        source: Questions to identify with, and descriptions.
        wording: Templates of the protocol.
        folder: Where the artifact goes. What a fit keeps for itself goes into :attr:`work` beside it; both may hold
            what an interrupted fit left.
        seed: Seed of everything that is drawn.
        backend: lm-eval model type that the fitted model will answer under.
        model_args: Its further arguments, such as ``dtype``.
        device: Torch device, or None for the default.
        shared: Where work is kept that other fits can use, each piece in a folder named by all that it depends on.
            None: beside the artifact, for this fit alone.
        report: Told (what, done, total) as the work goes on.
        fit_part: Fits another method, by name and settings, to the same model with the same data, wording and seed, or
            finds that it was fitted; gives its artifact, None where it fits nothing.
    """

    model: str
    model_name: str
    model_revision: str
    source: QuestionSource
    wording: Wording
    folder: Path
    seed: int = 0
    backend: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    shared: Path | None = None
    report: Callable[[str, int, int], None] = lambda *_: None
    fit_part: Callable[[str, Mapping[str, Any]], Artifact | None] = _no_parts

    @property
    def work(self) -> Path:
        """What a fit keeps for itself, to go on after a kill."""
        return self.folder.parent / "work"

    @property
    def identity(self) -> dict[str, Any]:
        """All that a fit depends on besides the method."""
        return fit_identity(
            model={"name": self.model_name, "revision": self.model_revision},
            backend=self.backend,
            model_args=self.model_args,
            drawn=MethodContext(self.wording, self.source, self.seed),
        )


def fit_identity(
    *, model: Mapping[str, str], backend: str, model_args: Mapping[str, Any], drawn: MethodContext
) -> dict[str, Any]:
    """All that a fit depends on besides the method: weights and how they are loaded, data, wording, seed.

    Args:
        model: ``name`` and ``revision`` of the weights.
        backend: lm-eval model type.
        model_args: Its arguments; those that only say where the weights lie are left out.
        drawn: Data, wording and seed.
    """
    return {
        "model": {**model, **loading_identity(backend, model_args)},
        "data": {"source": drawn.source.name, "revision": drawn.source.revision},
        "wording": {"name": drawn.wording.name, "sha256": drawn.wording.sha256},
        "seed": drawn.seed,
    }
