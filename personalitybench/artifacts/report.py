"""All that is to be said about one fit, as data: the command's tables and the page show the same.

It does not say where on this machine the fit lies, so that it can be published.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from personalitybench import __version__
from personalitybench.artifacts.kept import FitAbout, KeptFit, State
from personalitybench.artifacts.sizes import files_of
from personalitybench.artifacts.usage import fit_rows, use_metadata
from personalitybench.costs import FitCost, describe_cost
from personalitybench.errors import ConfigurationError, PersonalityBenchError
from personalitybench.methods import Artifact, InductionMethod, MethodContext, create_method, methods
from personalitybench.prompts import load_wording
from personalitybench.questions import shared_source
from personalitybench.training.curves import CURVE, Curve
from personalitybench.traits import TARGETS

FOLDER = "FOLDER"
"""Stands for the artifact's folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSize(_Part):
    """A file of the fit, by its path in the fit's folder."""

    path: str
    bytes: int


class ArtifactReport(_Part):
    """A fit.

    Attributes:
        name: Of its folder.
        state: Whether it is complete.
        notes: What is wrong with it, and what to know.
        identity: All that it depends on.
        changed: Settings that differ from the method's defaults.
        sha256: Hash of the artifact.
        bytes: Of all files.
        used: When it was last used.
        cost: What it took.
        versions: Of the packages that it was made with.
        files: All of them.
        rows: What the method tells of it.
        curves: How the training of each target went, where something was trained.
        metadata: What ``lm_eval --metadata`` is told to use it.
    """

    format: Literal["personalitybench-artifact/1"] = "personalitybench-artifact/1"
    personalitybench: str = __version__
    name: str
    state: State
    notes: list[str]
    identity: FitAbout
    changed: dict[str, Any]
    sha256: str | None
    bytes: int
    used: datetime
    cost: FitCost | None
    versions: dict[str, str]
    files: list[FileSize]
    rows: list[dict[str, str]]
    curves: list[Curve]
    metadata: dict[str, Any]


def make_report(fit: KeptFit) -> ArtifactReport:
    """Gather it. What cannot be read is said in ``notes``.

    Raises:
        ConfigurationError: Nothing says what the folder depends on, so there is nothing to report.
    """
    if fit.identity is None:
        raise ConfigurationError(
            f"{fit.folder}: {fit.problem}; 'personalitybench artifacts prune {fit.name}' removes it"
        )
    notes = [note for note in (fit.problem, fit.note, "a process works in it now" if fit.in_use else "") if note]
    rows: list[dict[str, str]] = []
    curves: list[Curve] = []
    metadata: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    if fit.state == "complete" and fit.sha256 is not None:
        artifact = Artifact(fit.folder / "artifact", fit.sha256)
        try:
            versions = artifact.provenance.get("versions", {})
            curves = read_curves(artifact.folder)
            kind = methods.get(fit.identity.method.name)
            metadata = use_metadata(fit.identity.model_dump(mode="json"), FOLDER, has_strength=kind.has_strength)
            if hasattr(kind, "describe_fit"):
                rows = fit_rows(_method(fit.identity), artifact)
        except PersonalityBenchError as error:
            notes.append(str(error))
    return ArtifactReport(
        name=fit.name,
        state=fit.state,
        notes=list(dict.fromkeys(notes)),
        identity=fit.identity,
        changed=fit.changed,
        sha256=fit.sha256,
        bytes=fit.bytes,
        used=fit.used,
        cost=fit.cost,
        versions={str(name): str(version) for name, version in versions.items()},
        files=[FileSize(path=path, bytes=size) for path, size in files_of(fit.folder)],
        rows=rows,
        curves=curves,
        metadata=metadata,
    )


def read_curves(folder: Path) -> list[Curve]:
    """The curves of an artifact, one for each target; none where nothing was trained.

    Args:
        folder: Of the artifact; each curve lies in a folder of its own in it.

    Raises:
        StorageError: A file holds no curve.
    """
    names = [str(target) for target in TARGETS]
    found = [Curve.read(path.parent) for path in folder.glob(f"*/{CURVE}")]
    return sorted(found, key=lambda one: (names.index(one.target) if one.target in names else len(names), one.target))


def held_out(curve: Curve) -> tuple[float, float, float] | None:
    """Loss on held-out answers before and after training, and their ratio; None where it was not measured twice."""
    if len(curve.held_out) < 2 or not curve.held_out[0].loss:
        return None
    before, after = curve.held_out[0].loss, curve.held_out[-1].loss
    return before, after, after / before


def curve_cells(curve: Curve) -> list[str]:
    """A curve as a row under :data:`CURVE_HEAD`."""
    found = held_out(curve)
    losses = ("–", "–", "–") if found is None else tuple(f"{value:.3f}" for value in found)
    counts = (curve.examples, curve.held_out_examples, len(curve.steps), curve.trained_tokens)
    return [curve.target, *losses, *(f"{count:,}" for count in counts)]


CURVE_HEAD = ("target", "before", "after", "ratio", "examples", "held out", "steps", "tokens")
"""Losses are of held-out answers."""


def facts(report: ArtifactReport) -> list[tuple[str, str]]:
    """What it is made of, what it took: names and values."""
    identity = report.identity
    loaded = ", ".join([identity.model.engine, *_pairs(identity.model.args)])
    return [
        ("method", f"{identity.method.name}, version {identity.method.version}"),
        ("model", f"{identity.model.name} @ {identity.model.revision}"),
        ("loaded by", loaded),
        ("questions", f"{identity.data.source} ({identity.data.revision})"),
        ("wording", f"{identity.wording.name} ({identity.wording.sha256[:12]})"),
        ("seed", str(identity.seed)),
        ("set", ", ".join(_pairs(report.changed)) or "nothing: all settings are the method's own"),
        ("artifact", report.sha256 or "–"),
        ("took", describe(report.cost)),
        ("made with", ", ".join(f"{name} {version}" for name, version in report.versions.items()) or "–"),
        ("last used", f"{report.used:%Y-%m-%d %H:%M} UTC"),
    ]


def describe(cost: FitCost | None) -> str:
    """A cost in words, or a dash where nothing was written down."""
    return (describe_cost(cost) if cost else "") or "–"


def _pairs(values: dict[str, Any]) -> Sequence[str]:
    return [f"{name}={value}" for name, value in values.items()]


def _method(identity: FitAbout) -> InductionMethod:
    """The method, to be asked about its fit: for that the bundled questions and wording will do."""
    context = MethodContext(load_wording("project"), shared_source("sample"), identity.seed)
    try:
        return create_method(identity.method.name, identity.method.settings, context)
    except PersonalityBenchError:
        raise
    except Exception as error:  # whatever a method of somebody else raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"method {identity.method.name!r} cannot be made: {reason}") from error
