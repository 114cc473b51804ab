"""Where the calls of a suite lie: what decides their answers, and with it the names of their folders and fits.

Known before a model is loaded. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from personalitybench.artifacts.store import Fit
from personalitybench.errors import ModelError, StorageError
from personalitybench.files import content_hash
from personalitybench.methods import MethodContext, create_method
from personalitybench.methods.ready import ready_sha256
from personalitybench.model_identity import model_record
from personalitybench.prompts import Wording, load_wording
from personalitybench.questions import DATA_VARIABLE, QuestionSource, shared_source
from personalitybench.runs import tuning
from personalitybench.runs.calls import Call, Tuning
from personalitybench.runs.model_arguments import fit_arguments, resolve_arguments
from personalitybench.runs.store import CallFolder, RunFolder
from personalitybench.runs.suite import ModelSpec, Suite
from personalitybench.tasks import judge_fingerprint


class CallFolders:
    """The folders of a suite's calls in a run, and the fits that they need.

    Args:
        suite: The suite.
        store: The run's folder.
        source: Questions and descriptions, instead of those that the suite names.
        wording: Templates, instead of those that the suite names.
    """

    def __init__(
        self, suite: Suite, store: RunFolder, source: QuestionSource | None = None, wording: Wording | None = None
    ) -> None:
        self.suite = suite
        self.store = store
        self._given = (source, wording)
        self._arguments: dict[str, tuple[dict[str, Any], str | None]] = {}
        self._ready: dict[str, str | None] = {}

    @cached_property
    def source(self) -> QuestionSource:
        """Questions and descriptions."""
        return self._given[0] or shared_source(self.suite.questions.source, self.suite.questions.data_dir)

    @cached_property
    def wording(self) -> Wording:
        """Templates of the protocol."""
        return self._given[1] or load_wording(self.suite.protocol.prompts)

    def context(self, seed: int) -> MethodContext:
        """What a method may draw on."""
        return MethodContext(self.wording, self.source, seed)

    def fit(self, call: Call) -> Fit:
        """The fit of a call's method: one for all strengths and targets."""
        spec = call.model
        method = create_method(call.method.name, call.method.settings, self.context(call.seed))
        return Fit(call.method.name, method, self.model_record(spec), spec.backend, fit_arguments(spec))

    def folder(self, call: Call) -> CallFolder:
        """Folder of a call. The artifact that the run uses is part of its name; else the one that is there."""
        fit = self.fit(call)
        used = fit.noted(self.store.fits)
        if used is None:
            artifact = fit.artifact()
            used = self._ready_sha256(fit, call) if artifact is None else artifact.sha256
        return self.store.call(call.label, {**self.identity(call), "artifact": used})

    def _ready_sha256(self, fit: Fit, call: Call) -> str | None:
        key = content_hash([fit.label, call.method.settings, call.strength])
        if key not in self._ready:
            self._ready[key] = ready_sha256(fit.method, self.source, call.strength)
        return self._ready[key]

    def identity(self, call: Call) -> dict[str, Any]:
        """All that decides a call's answers besides the artifact."""
        return {
            "model": self.model_record(call.model),
            "model_spec": call.model.model_dump(mode="json", exclude={"name", "device", "throughput"}),
            "task": {**self.suite.task_metadata(call), "data_dir": None},
            "questions": self.source.revision,
            "wording": self.wording.sha256,
            "limit": self.suite.questions.limit,
            "targets": [str(target) for target in self.suite.parsed_targets()],
        }

    def refuse_other_questions(self) -> None:
        """Say where missing answers come from a run whose answers are all of other questions.

        Raises:
            StorageError: They are.
        """
        there = {str(folder.record["settings"]["data"]["revision"]) for folder in self.store.calls()}
        if there and self.source.revision not in there:
            raise StorageError(
                f"the answers in {self.store.folder} are of the questions {', '.join(sorted(there))}, and those of "
                f"{self.source.revision} are looked for: name the folder of their data in {DATA_VARIABLE} (for 'run' "
                "also with --data-dir)"
            )

    def choice_file(self, each: Tuning) -> Path:
        """A choice depends on the answers that it is made from, on the rule, and on who rated them."""
        answers = [self.folder(call).folder.name for call in each.calls()]
        identity = {"answers": answers, "rule": tuning.RULE, "slack": self.suite.tuning.slack}
        return self.store.choice(each.label, identity, self.tuning_judge)

    @property
    def tuning_judge(self) -> dict[str, str]:
        """Fingerprint of the judge whose ratings choose the strengths: the suite's first."""
        return judge_fingerprint(self.suite.judges[0])

    def model_record(self, spec: ModelSpec) -> dict[str, str]:
        """Name and revision of a model. Where its answers lie here already it need not be present any more.

        Raises:
            ModelError: There is no such model, and no answer of it.
        """
        try:
            return model_record(spec.backend, self.model_arguments(spec), self._resolved(spec)[1])
        except ModelError:
            if recorded := self.recorded_models(spec):
                return recorded[0]
            raise

    def recorded_models(self, spec: ModelSpec) -> list[dict[str, str]]:
        """Name and revision of a model as calls in the run's folder recorded them, each once."""
        records = [folder.record for folder in self.store.calls()]
        found: list[dict[str, str]] = []
        for record in records:
            if is_asked_for(record["asked_for"], spec) and record["model"] not in found:
                found.append(dict(record["model"]))
        return found

    def model_arguments(self, spec: ModelSpec) -> dict[str, Any]:
        """Arguments for lm-eval's model class, the model's name resolved."""
        return self._resolved(spec)[0]

    def _resolved(self, spec: ModelSpec) -> tuple[dict[str, Any], str | None]:
        key = spec.model_dump_json()
        if key not in self._arguments:
            self._arguments[key] = resolve_arguments(spec)
        return self._arguments[key]


def asked_for(spec: ModelSpec) -> dict[str, Any]:
    """A model as the suite asks for it; of its arguments a hash, for they may hold secrets."""
    asked = spec.model_dump(mode="json", include={"name", "backend", "revision", "args"})
    return {**asked, "args": content_hash(asked["args"])[:16]}


def is_asked_for(recorded: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Return True if a call's record is of the model that a suite asks for; old records have no ``args``."""
    wanted = asked_for(spec)
    return {"args": wanted["args"], **recorded} == wanted
