"""What fits leave, kept in the user's cache: a suite and the command ``fit`` find each other's.

::

    <cache>/fits/<method>-<hash>/
        fit.json          identity: all that the fit depends on
        sessions.jsonl    seconds of every session that ended other than by a kill
        versions.jsonl    versions of each session, where they differ from those of the session before
        work/             what the method keeps for itself, to go on after a kill
        artifact/         what the fit leaves
        fitted.json       hash of the artifact; written last: the fit is complete. Its time is that of the last use
    <cache>/identifications/<hash>/    answers and statistics that fits share

The hash is that of the identity. A fit depends on the model, how it is loaded and by which engine, the method's
settings that matter to it, data, wording and seed; not on targets or strengths.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.costs import FitCost
from personalitybench.dry import is_dry
from personalitybench.errors import StorageError
from personalitybench.files import JsonLines, cache_folder, content_hash, locked, read_json, write_json
from personalitybench.methods import Artifact, FitContext, InductionMethod, create_method
from personalitybench.methods.fitting import PROVENANCE, fit_identity
from personalitybench.version_log import other_versions, record_session, session_versions
from personalitybench.versions import package_versions, untried_versions

logger = logging.getLogger(__name__)

FIT = "fit.json"
FITTED = "fitted.json"


def fit_label(identity: Mapping[str, Any]) -> str:
    """Method and hash, as the folder of a fit with this identity is named."""
    return f"{identity['method']['name'].replace('/', '_')}-{content_hash(identity)[:12]}"


@dataclass(frozen=True)
class Fit:
    """A fit that was made or can be made.

    Attributes:
        name: Registered name of the method.
        method: The method, with its settings, data, wording and seed.
        model: ``name`` and ``revision`` of the model's weights.
        backend: lm-eval model type that the model will answer under.
        model_args: Its arguments, besides the model's name.
    """

    name: str
    method: InductionMethod
    model: Mapping[str, str]
    backend: str
    model_args: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """All that the fit depends on."""
        method = {"name": self.name, "version": self.method.version, "settings": self.method.settings.for_fit()}
        about = fit_identity(
            model=self.model, backend=self.backend, model_args=self.model_args, drawn=self.method.context
        )
        return {"method": method, **about}

    @property
    def label(self) -> str:
        """Method and hash, as files and folders are named."""
        return fit_label(self.identity)

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        return cache_folder("fits") / self.label

    @property
    def _again(self) -> str:
        return f"run 'personalitybench artifacts prune {self.label}', then fit again"

    def note(self, folder: Path, artifact: Artifact) -> None:
        """Note in a run's folder which artifact the run uses, once.

        Raises:
            StorageError: The run has used another.
        """
        noted = self.noted(folder)
        if noted is None:
            write_json(folder / f"{self.label}.json", {"artifact": artifact.sha256, "fit": self.identity})
        elif noted != artifact.sha256:
            raise StorageError(
                f"{folder / self.label}.json says that this run used another artifact than {artifact.folder}, which "
                "was fitted again since: name another folder with --output, or delete this file to use the new one"
            )

    def noted(self, folder: Path) -> str | None:
        """Hash of the artifact that a run uses, or None where none was noted."""
        path = folder / f"{self.label}.json"
        return str(read_json(path)["artifact"]) if path.is_file() else None

    def artifact(self) -> Artifact | None:
        """What the fit left, or None if it was not made, or fits nothing.

        Raises:
            StorageError: It was altered since, or is not whole.
        """
        folder = self.folder
        complete = folder / FITTED
        if not complete.is_file():
            return None
        if not (folder / "artifact").is_dir():
            raise StorageError(f"{folder / 'artifact'} is missing although the fit was complete: {self._again}")
        found = Artifact.open(folder / "artifact")
        if found.sha256 != read_json(complete).get("sha256"):
            raise StorageError(
                f"the artifact in {folder} was truncated or altered since it was fitted (content hash): {self._again}"
            )
        if not is_dry():  # who only looks has not used it
            with suppress(OSError):  # a cache that may only be read cannot keep when it was used
                os.utime(complete)
        return found

    def make(
        self, location: str, *, device: str | None = None, report: Callable[[str, int, int], None] = lambda *_: None
    ) -> Artifact | None:
        """Fit, unless it was done; an interrupted fit goes on where it stopped.

        Args:
            location: Local path or hub name of the model.
            device: Torch device, or None for the default.
            report: Told (what, done, total) as the work goes on.

        Returns:
            The artifact; None if the method fits nothing.

        Raises:
            PersonalityBenchError: Another process makes this fit, or it cannot be made; what was done is kept.
        """
        folder, drawn = self.folder, self.method.context
        with locked(folder, f"fitting {self.name} for {self.model['name']}"):
            found = self.artifact()
            if found is not None:
                return found
            if not (folder / FIT).is_file():
                write_json(folder / FIT, self.identity)
            if changed := record_session(folder):
                logger.warning("fit %s: resumed under %s; its provenance has both", self.name, changed)

            def fit_part(name: str, settings: Mapping[str, Any]) -> Artifact | None:
                part = Fit(name, create_method(name, settings, drawn), self.model, self.backend, self.model_args)
                return part.make(location, device=device, report=report)

            with self._timed():
                made = self.method.fit(
                    FitContext(
                        model=location,
                        model_name=self.model["name"],
                        model_revision=self.model["revision"],
                        source=drawn.source,
                        wording=drawn.wording,
                        folder=folder / "artifact",
                        seed=drawn.seed,
                        backend=self.backend,
                        model_args=self.model_args,
                        device=device,
                        shared=cache_folder(),
                        report=report,
                        fit_part=fit_part,
                    )
                )
            if made is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self._record_cost(made)
                write_json(folder / FITTED, {"sha256": made.sha256})
                tidy = getattr(self.method, "tidy_fit", None)  # optional: most work is small, or looked at later
                if tidy is not None:
                    tidy(folder / "work")
            return made

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Keep how long a session took, also where it was interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = round(time.monotonic() - started, 3)
            JsonLines(self.folder / "sessions.jsonl").append([{"seconds": spent}])

    def _other_versions(self, made: Artifact) -> dict[str, Any]:
        """Versions of the sessions that ran under others than the provenance says."""
        found = other_versions(made.provenance.get("versions", package_versions()), session_versions(self.folder))
        return {"other_versions": found} if found else {}

    def _record_cost(self, made: Artifact) -> None:
        """Complete what the method wrote of its cost: size, and, where it said nothing, seconds and versions."""
        cost = made.cost or FitCost()
        spent = sum(session.get("seconds", 0.0) for session in JsonLines(self.folder / "sessions.jsonl").read())
        seconds = round(spent, 2) if cost.seconds is None else cost.seconds
        whole = cost.model_copy(update={"seconds": seconds, "bytes": made.size})
        untried = untried_versions()
        versions = {"versions": package_versions()} | ({"untried_versions": untried} if untried else {})
        about = {**versions, **made.provenance, **self._other_versions(made), "cost": whole.model_dump(mode="json")}
        write_json(made.folder / PROVENANCE, about)
