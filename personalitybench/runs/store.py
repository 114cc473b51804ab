"""What a run keeps on disk. Answers and ratings are appended; a manifest is written last: it means "complete".

::

    <run>/suite.yaml                                      what was run
    <run>/fits/<method>-<hash>.json                       which artifact a method's fit left
    <run>/choices/<method>-<hash>/<judge>-<hash>.json     strengths chosen on the dev half, with the sweep
    <run>/calls/<label>-<hash>/call.json                  identity of the settings, provenance
    <run>/calls/<label>-<hash>/versions.jsonl             versions and device of later sessions, where they differ
    <run>/calls/<label>-<hash>/<target>/answers.jsonl     one line an answer
    <run>/calls/<label>-<hash>/<target>/answers.json      manifest: count and hash
    <run>/calls/<label>-<hash>/<target>/<judge>-<hash>.jsonl   one line an answer, its two verdicts
    <run>/calls/<label>-<hash>/<target>/<judge>-<hash>.json    manifest

A folder's hash is that of its identity, so changed settings never meet old answers. Artifacts lie in the user's cache
(:mod:`personalitybench.artifacts.store`); which one it was is noted here, so that a run is judged and scored without
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from personalitybench.errors import StorageError
from personalitybench.files import Sheet, content_hash, read_json, write_json
from personalitybench.leaderboard.schema import AnswerIdentity, ModelId, Provenance
from personalitybench.traits import Target
from personalitybench.validation import validate
from personalitybench.version_log import (
    other_devices,
    other_versions,
    record_session,
    session_devices,
    session_versions,
)


class _CallRecord(BaseModel):
    """The file ``call.json``; keys of other versions are passed over."""

    model_config = ConfigDict(extra="ignore")

    model: ModelId
    asked_for: dict[str, Any]
    settings: AnswerIdentity
    provenance: Provenance


@dataclass(frozen=True)
class CallFolder:
    """The folder of one call."""

    folder: Path

    def answers(self, target: Target) -> Sheet:
        """Sheet of answers: ``id``, ``question``, ``prompt``, ``answer``."""
        return Sheet(self._target_folder(target) / "answers.jsonl")

    def ratings(self, target: Target, judge: Mapping[str, str]) -> Sheet:
        """Sheet of verdicts: the answer's ``id`` and ``answer_sha256``; ``trait`` and ``fluency``: rating or reason."""
        return Sheet(self._target_folder(target) / f"{judge_name(judge)}.jsonl")

    @property
    def record(self) -> dict[str, Any]:
        """Identity and provenance.

        Raises:
            StorageError: The call was never started.
            ConfigurationError: The file lacks a field, or has one of another type.
        """
        path = self.folder / "call.json"
        found = read_json(path)
        if not isinstance(found, dict):
            raise StorageError(f"{path} is no record of a call: restore it")
        validate(_CallRecord, found, str(path))
        return found

    def start(self, record: Mapping[str, Any]) -> None:
        """Write identity and provenance, once."""
        if not (self.folder / "call.json").is_file():
            write_json(self.folder / "call.json", dict(record))

    def begin_session(self, device: str) -> str:
        """Record versions and device of this session; returns what changed since the last one, empty if nothing did."""
        first = self.record["provenance"]
        return record_session(self.folder, first["versions"], device=device, first_device=first.get("device", ""))

    @property
    def provenance(self) -> Provenance:
        """How the answers came to be, with the versions and devices of all sessions."""
        first = Provenance.model_validate(self.record["provenance"])
        later = other_versions(first.versions, session_versions(self.folder))
        devices = other_devices(first.device, session_devices(self.folder))
        return first.model_copy(update={"other_versions": later, "other_devices": devices})

    def _target_folder(self, target: Target) -> Path:
        return self.folder / str(target).replace(":", "-")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    folder: Path

    @property
    def fits(self) -> Path:
        """Where the artifacts that are used are noted."""
        return self.folder / "fits"

    def call(self, label: str, identity: Mapping[str, Any]) -> CallFolder:
        """Folder of a call, named by its identity."""
        return CallFolder(self.folder / "calls" / f"{label}-{content_hash(dict(identity))[:12]}")

    def calls(self) -> Iterator[CallFolder]:
        """All calls that were started."""
        for path in sorted((self.folder / "calls").glob("*/call.json")):
            yield CallFolder(path.parent)

    def choice(self, label: str, identity: Mapping[str, Any], judge: Mapping[str, str]) -> Path:
        """File of a choice of strengths, named by what was chosen from and by who rated it."""
        folder = self.folder / "choices" / f"{label}-{content_hash(dict(identity))[:12]}"
        return folder / f"{judge_name(judge)}.json"


def judge_name(judge: Mapping[str, str]) -> str:
    """Name files and folders by a judge's fingerprint."""
    return f"{judge['id']}-{content_hash(dict(judge))[:8]}"
