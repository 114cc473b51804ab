"""The record of a task in lm-eval's results: target, identity, judges, versions, device, and the model's local files.

A task writes it when the answers are made; readers of results take everything from it, and nothing from today's files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from personalitybench.costs import FitCost
from personalitybench.errors import ModelError
from personalitybench.leaderboard.schema import AnswerIdentity, JudgeId, TargetName
from personalitybench.model_identity import LocalFiles, ModelIdentity, read_local_files
from personalitybench.task_options import TaskOptions

logger = logging.getLogger(__name__)

_OF_THE_TASK = {*TaskOptions.model_fields, "version", "target", "personalitybench"}
_NAMED_BY_MODELS = ("pretrained", "peft", "delta")


class RecordedModel(BaseModel):
    """Name and revision of a local folder of weights when it answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    revision: str


class RecordedFiles(BaseModel):
    """Identities of the model's local files when it answered, by the path as the arguments have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, RecordedModel] = {}
    others: dict[str, str] = {}

    @property
    def local_files(self) -> LocalFiles:
        """The same for :func:`~personalitybench.model_identity.model_record`."""
        models = {path: ModelIdentity(model.name, model.revision) for path, model in self.models.items()}
        return LocalFiles(models, self.others)


class TaskRecord(BaseModel):
    """A task's record; keys of later versions are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    target: TargetName
    identity: AnswerIdentity
    judges: dict[str, JudgeId] = {}
    versions: dict[str, str] = {}
    untried_versions: list[str] = []
    device: str = ""
    fit: FitCost | None = None
    files: RecordedFiles | None = None


def record_files(metadata: Mapping[str, Any] | None, model: Any) -> dict[str, Any] | None:
    """Identify the local files of the model that is about to answer, as plain JSON data.

    Args:
        metadata: The task's, which holds the model's arguments where lm-eval passes them.
        model: The model, where lm-eval says which it is.

    Returns:
        :class:`RecordedFiles` as a mapping; None where the arguments are not known or a file cannot be read.
    """
    known = {key: value for key in _NAMED_BY_MODELS if isinstance(value := getattr(model, key, None), str) and value}
    arguments = getattr(model, "model_args", None)
    if isinstance(arguments, Mapping) and isinstance(name := arguments.get("model"), str):  # vLLM's
        known |= {key: value for key, value in arguments.items() if key != "model"} | {"pretrained": name}
    known |= {key: value for key, value in (metadata or {}).items() if key not in _OF_THE_TASK}
    if "pretrained" not in known and "model" not in known:
        return None
    try:
        files = read_local_files(known)
    except ModelError as error:
        logger.warning("the results will not record which weights answered: %s", error)
        return None
    models = {path: {"name": model.name, "revision": model.revision} for path, model in files.models.items()}
    return {"models": models, "others": dict(files.others)}
