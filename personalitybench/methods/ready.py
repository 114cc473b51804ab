"""Adapters and interventions that a method names without a fit of its own, such as a folder from a setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from personalitybench.files import content_hash
from personalitybench.methods.base import InductionMethod
from personalitybench.methods.fitting import Artifact
from personalitybench.methods.induction import Induction
from personalitybench.questions import Question, QuestionSource
from personalitybench.strengths import strength_for
from personalitybench.traits import TARGETS, Target


def ready_sha256(
    method: InductionMethod, source: QuestionSource, strength: float | Mapping[str, float] | None
) -> str | None:
    """Hash of the files of all folders that a method names without an artifact.

    Args:
        method: The method; its context has no artifact.
        source: Its questions; a method may name another folder for each.
        strength: The strength that it is used at.

    Returns:
        The hash, over all targets that the method serves, so that the rows of targets belong together. None where the
        method needs nothing, or needs what its fit leaves.

    Raises:
        ConfigurationError: A folder that it names is missing or empty.
    """
    if not method.needs:
        return None
    folders: dict[str, set[str]] = {}
    for target in TARGETS:
        for row in source.questions("evaluate", target.trait):
            induction = _induce(method, strength, target, Question.from_row(row))
            named = set() if induction is None else {induction.adapter, induction.intervention} - {None}
            if len(named) < len(method.needs):  # this target is not served, or only after a fit
                break
            folders.setdefault(str(target), set()).update(map(str, named))
    hashes = {
        target: sorted(Artifact.open(Path(folder)).sha256 for folder in named) for target, named in folders.items()
    }
    return content_hash({"ready": hashes}) if hashes else None


def _induce(
    method: InductionMethod, strength: float | Mapping[str, float] | None, target: Target, question: Question
) -> Induction | None:
    try:
        return method.induce(target, strength_for(strength, target), question)
    except Exception:  # noqa: BLE001 (whatever a method raises that has no artifact)
        return None
