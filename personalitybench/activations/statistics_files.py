"""Gate statistics on disk: a manifest that tells what was counted, and the counts beside it.

Written when :mod:`personalitybench.activations.statistics` has counted, read when neurons are selected. A folder holds
``gate-<start of its SHA-256>.safetensors`` and ``manifest.json``. The manifest is written last and names the counts by
their hash, so a kill at any moment leaves what was there before or what is there now, never a mixture.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from personalitybench.activations.bins import Bins
from personalitybench.activations.identification import UNPROMPTED
from personalitybench.errors import StorageError
from personalitybench.files import content_hash, read_json, sha256_file, write_json
from personalitybench.traits import Target, trait
from personalitybench.validation import validate

Counts = npt.NDArray[np.int32]
TokenRule = Literal["answer", "released-code"]
"""Which tokens are counted; see :func:`personalitybench.activations.statistics.token_mask`."""

CountedIn = Literal["reading", "decoding"]
"""Whether tokens were counted as finished answers were read, or as they were generated."""

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
REPAIR = "restore the folder, or delete it and identify again"

Count = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StatisticsSource(BaseModel):
    """What was run: statistics may be added only where all of this is equal.

    Attributes:
        model: Hub name or path of the model.
        revision: Its commit, or a hash of its files.
        target: Whose descriptions the answers were written under, such as ``extraversion:high``; or
            ``extraversion:unprompted`` for the trait's questions, asked plainly.
        wording_sha256: Hash of the templates of the prompts.
        data_revision: Revision of the questions and descriptions.
        seeds: Every seed by what it drew, such as ``{"questions": 0, "descriptions": 0}``.
        token_rule: Which tokens were counted.
        counted_in: When. Answers that were there before an interruption were read in either case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name
    revision: Name
    target: str
    wording_sha256: Sha256
    data_revision: Name
    seeds: dict[str, int]
    token_rule: TokenRule
    counted_in: CountedIn = "reading"

    @field_validator("target")
    @classmethod
    def _known(cls, text: str) -> str:
        name, _, condition = text.partition(":")
        return f"{trait(name).name}:{UNPROMPTED}" if condition == UNPROMPTED else str(Target.parse(text))


class StatisticsManifest(StatisticsSource):
    """What was run and how much of it was counted.

    Attributes:
        questions: Questions (one answer each) in each shard.
        tokens: Tokens counted in each shard, the same in every layer.
        layers: Decoder layers.
        neurons: Neurons in each layer.
        bins: Bins of the histogram.
        format_version: Raised when older readers cannot read the files.
    """

    questions: tuple[Count, ...] = Field(min_length=1)
    tokens: tuple[Count, ...]
    layers: int = Field(gt=0)
    neurons: int = Field(gt=0)
    bins: Bins
    format_version: Literal[1] = FORMAT_VERSION

    @model_validator(mode="after")
    def _same_shards(self) -> StatisticsManifest:
        if len(self.questions) != len(self.tokens):
            raise ValueError(f"questions of {len(self.questions)} shards and tokens of {len(self.tokens)}")
        return self


class StoredManifest(StatisticsManifest):
    """The manifest as a file, with the hashes that make an altered folder known.

    Attributes:
        counts_sha256: Hash of the file that holds the counts.
        sha256: Hash of everything else in the manifest, the identity of these statistics.
    """

    counts_sha256: Sha256
    sha256: Sha256


def save_statistics(folder: Path, manifest: StatisticsManifest, active: Counts, histogram: Counts) -> str:
    """Save statistics, in place of older ones in the folder; one writer at a time.

    Args:
        folder: Created if it is missing.
        manifest: What the counts are of.
        active: int32 [shards, layers, neurons].
        histogram: int32 [layers, neurons, bins].

    Returns:
        The content hash, 64 hex digits: equal statistics have equal hashes.

    Raises:
        StorageError: The disk is full or the folder is not writable; older statistics in it are kept.
    """
    temporary = folder / ".writing.safetensors"  # one name: what a kill leaves is overwritten, not gathered
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"active": np.ascontiguousarray(active), "histogram": np.ascontiguousarray(histogram)}, temporary)
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        counts_sha256 = sha256_file(temporary)
        path = _counts_path(folder, counts_sha256)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write statistics to {folder} ({error}): older ones in it are kept; make room or name another"
        ) from error
    value = {**manifest.model_dump(mode="json"), "counts_sha256": counts_sha256}
    sha256 = content_hash(value)
    write_json(folder / MANIFEST, {**value, "sha256": sha256})
    for other in folder.iterdir():
        if re.fullmatch(r"gate-[0-9a-f]{16}\.safetensors", other.name) and other != path:
            other.unlink(missing_ok=True)
    return sha256


def load_statistics(folder: Path) -> tuple[StatisticsManifest, Counts, Counts]:
    """Load statistics, checked against their hashes and against themselves.

    Returns:
        The manifest, int32 [shards, layers, neurons] and int32 [layers, neurons, bins].

    Raises:
        StorageError: There are none, or they are truncated, altered or impossible.
        ConfigurationError: The manifest is not one of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StorageError(f"{folder} holds no finished statistics ({MANIFEST} is missing): identify first")
    value = read_json(path)
    if not isinstance(value, dict):
        raise StorageError(f"{path} is not a JSON object: {REPAIR}")
    if value.get("format_version") != FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {value.get('format_version')!r}, this program reads {FORMAT_VERSION}: "
            "use the version that wrote it, or identify again"
        )
    stored = validate(StoredManifest, value, str(path))
    given = {name: entry for name, entry in value.items() if name != "sha256"}
    if _hash_or_none(given) != stored.sha256:
        raise StorageError(f"{path} was altered (its contents do not have the hash that it states): {REPAIR}")
    counts_path = _counts_path(folder, stored.counts_sha256)
    try:
        if sha256_file(counts_path) != stored.counts_sha256:
            raise StorageError(f"{counts_path} is truncated or altered (not the hash in {MANIFEST}): {REPAIR}")
        tensors = load_file(counts_path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {counts_path} ({error}): {REPAIR}") from error
    manifest = StatisticsManifest(**{name: getattr(stored, name) for name in StatisticsManifest.model_fields})
    active, histogram = tensors.get("active"), tensors.get("histogram")
    problem = "it lacks the counts" if active is None or histogram is None else impossible(manifest, active, histogram)
    if problem or active is None or histogram is None:
        raise StorageError(f"{counts_path} holds no possible statistics ({problem}): {REPAIR}")
    return manifest, active, histogram


def impossible(manifest: StatisticsManifest, active: Counts, histogram: Counts) -> str | None:
    """Say why no run can have given these counts, or None where one can."""
    shapes = {
        "active": (active, (len(manifest.tokens), manifest.layers, manifest.neurons)),
        "histogram": (histogram, (manifest.layers, manifest.neurons, manifest.bins.count)),
    }
    for name, (counts, shape) in shapes.items():
        if counts.shape != shape or counts.dtype != np.int32:
            return f"{name} is {counts.dtype} {list(counts.shape)}, the manifest says int32 {list(shape)}"
        if counts.min() < 0:
            return f"{name} has a negative count"
    if (active.max(axis=(1, 2)) > np.array(manifest.tokens)).any():
        return "a neuron was active in more tokens than there were"
    if (histogram.sum(axis=2, dtype=np.int64) != active.sum(axis=0, dtype=np.int64)).any():
        return "the histogram holds another number of activations than the counts"
    return None


def _counts_path(folder: Path, sha256: str) -> Path:
    return folder / f"gate-{sha256[:16]}.safetensors"


def _hash_or_none(value: object) -> str | None:
    """Hash a JSON value; None for one that no hash was ever taken of, such as NaN."""
    try:
        return content_hash(value)
    except ValueError:
        return None
