"""A suite file: models x methods x targets x strengths x seeds, as YAML with every key checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from personalitybench.errors import ConfigurationError
from personalitybench.questions import Half
from personalitybench.resources import bundled
from personalitybench.traits import TARGETS, Target
from personalitybench.validation import validate


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Part):
    """A model.

    Attributes:
        name: Local folder, hub name, or ``demo``; for an API the model's name there.
        backend: lm-eval model type.
        args: Its arguments besides the model's name, as ``--model_args``.
        revision: Hub revision.
        batch_size: Requests at a time.
        device: Torch device; the default is a GPU if there is one.
    """

    name: str
    backend: str = "hf"
    args: dict[str, Any] = {}
    revision: str | None = None
    batch_size: int = Field(default=32, ge=1)
    device: str | None = None


class MethodSpec(_Part):
    """A method with its settings; strengths only for methods that have one."""

    name: str
    settings: dict[str, Any] = {}
    strengths: list[float] = []


class QuestionsSpec(_Part):
    """Which questions are asked; ``limit`` keeps the first so many of each target."""

    source: Literal["official", "sample"] = "sample"
    data_dir: str | None = None
    half: Half = "all"
    limit: int | None = Field(default=None, ge=1)


class ProtocolSpec(_Part):
    """How they are asked; what is left out is the paper's protocol."""

    prompts: Literal["project", "official"] = "project"
    max_tokens: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0)


class Suite(_Part):
    """A whole suite."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    models: list[ModelSpec] = Field(min_length=1)
    methods: list[MethodSpec] = Field(min_length=1)
    targets: Literal["all"] | list[str] = "all"
    seeds: list[int] = Field(default=[0], min_length=1)
    judges: list[str] = Field(default=["offline"], min_length=1)
    questions: QuestionsSpec = QuestionsSpec()
    protocol: ProtocolSpec = ProtocolSpec()

    @field_validator("models", "methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A bare name stands for the thing with its defaults."""
        items = value if isinstance(value, list) else [value]
        return [{"name": item} if isinstance(item, str) else item for item in items]

    def parsed_targets(self) -> list[Target]:
        """Targets in their usual order.

        Raises:
            ConfigurationError: One does not exist.
        """
        if self.targets == "all":
            return list(TARGETS)
        named = {Target.parse(text) for text in self.targets}
        return [target for target in TARGETS if target in named]

    def with_data(self, folder: Path) -> Suite:
        """The same suite with a local copy of the official data."""
        return self.model_copy(update={"questions": self.questions.model_copy(update={"data_dir": str(folder)})})

    def calls(self) -> Iterator[Call]:
        """All settings under which the targets are asked, model by model."""
        for model in self.models:
            for method in self.methods:
                strengths: list[float | None] = [*method.strengths] or [None]
                for strength in strengths:
                    for seed in self.seeds:
                        yield Call(model, method, strength, seed)

    def task_metadata(self, call: Call, artifact: str | None = None) -> dict[str, Any]:
        """What ``lm_eval --metadata`` would be given for a call."""
        return {
            "method": call.method.name,
            "settings": call.method.settings,
            "strength": call.strength,
            "seed": call.seed,
            "judge": None,
            "source": self.questions.source,
            "data_dir": self.questions.data_dir,
            "half": self.questions.half,
            "prompts": self.protocol.prompts,
            "max_tokens": self.protocol.max_tokens,
            "repetition_penalty": self.protocol.repetition_penalty,
            "artifact": artifact,
        }


@dataclass(frozen=True)
class Call:
    """One model under one method, strength and seed: what one ``lm_eval`` call would ask."""

    model: ModelSpec
    method: MethodSpec
    strength: float | None
    seed: int

    @property
    def label(self) -> str:
        """Short name for progress and folders."""
        parts = [self.method.name.replace("/", "_")]
        if self.strength is not None:
            parts.append(f"{self.strength:g}")
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "-".join(parts)


def load_suite(path_or_name: str) -> Suite:
    """Load a suite file, or a bundled suite by its name.

    Raises:
        ConfigurationError: The file does not exist or something in it is wrong; the text names key and nearest.
    """
    path = Path(path_or_name)
    if not path.is_file():
        own = bundled("harness") / f"{path.stem}.yaml"
        if not own.is_file():
            known = ", ".join(sorted(p.stem for p in bundled("harness").glob("*.yaml")))
            raise ConfigurationError(f"suite {path_or_name} does not exist: name a YAML file, or one of ours ({known})")
        path = own
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"suite {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"suite {path} is not a mapping of keys to values")
    suite = validate(Suite, content, f"suite {path}")
    suite.parsed_targets()
    return suite
