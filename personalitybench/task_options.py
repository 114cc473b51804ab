"""Options of the lm-eval tasks, read from lm-eval's ``--metadata``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from personalitybench.argument_policy import refuse_secrets
from personalitybench.errors import ConfigurationError
from personalitybench.questions import Half
from personalitybench.strengths import ChosenOn, Strength
from personalitybench.validation import validate

ANSWER_CACHE = (
    "lm-eval's cache of answers does not know the model, so it would return answers of another one: remove "
    "--use_cache; 'personalitybench run' resumes without it"
)


class TaskOptions(BaseModel):
    """Keys of ``--metadata`` that belong to this project.

    Attributes:
        method: Induction method.
        settings: Settings of the method.
        strength: Scale of the method's effect, for methods that have one: a number, or a mapping of targets or traits
            to numbers.
        chosen_on: ``dev`` for a strength chosen on the dev half; requires ``half: test``.
        seed: Seed of the method's random draws.
        judge: Judge that rates the answers, or several, or None to leave them unrated.
        source: ``official`` (downloaded) or ``sample`` (bundled).
        data_dir: Local folder with the official layout.
        half: ``dev``, ``test`` or ``all`` questions.
        prompts: ``project`` or ``official`` wording.
        max_tokens: New tokens of an answer; by default the protocol's (400, for identification 500).
        repetition_penalty: By default the protocol's (1.15, for identification 1.1).
        artifact: Folder of a fitted artifact, for methods that need one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "none"
    settings: dict[str, Any] = Field(default_factory=dict)
    strength: Strength | None = None
    chosen_on: ChosenOn | None = None
    seed: int = 0
    judge: str | list[str] | None = "offline"
    source: str = "sample"
    data_dir: str | None = None
    half: Half = "all"
    prompts: str = "project"
    max_tokens: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    artifact: str | None = None

    @model_validator(mode="after")
    def _held_out(self) -> TaskOptions:
        if self.chosen_on and self.strength is None:
            raise ValueError("'chosen_on' says where a strength was chosen: add the 'strength', or leave it out")
        if self.chosen_on and self.half != "test":
            raise ValueError(
                f"a strength that was chosen on the dev half is reported on the test half: "
                f"set 'half' to 'test', not {self.half!r}"
            )
        return self

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> TaskOptions:
        """Pick our keys out of lm-eval's metadata, which also holds the model arguments.

        Raises:
            ConfigurationError: A value is wrong, a key looks like a misspelt one of ours, or an argument of the model
                is a secret: lm-eval writes all of them to its results.
        """
        try:
            refuse_secrets(dict(metadata))
        except ValueError as error:
            raise ConfigurationError(f"--model_args: {error}") from None
        known = {key: metadata[key] for key in cls.model_fields if key in metadata}
        for key in metadata.keys() - known.keys():
            near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=0.8)
            if near and near[0] not in known:
                raise ConfigurationError(f"--metadata: unknown key {key!r}: did you mean {near[0]!r}?")
        return validate(cls, known, "--metadata")

    @property
    def generation(self) -> dict[str, Any]:
        """What was set of an answer's generation, by lm-eval's names."""
        given = {"max_gen_toks": self.max_tokens, "repetition_penalty": self.repetition_penalty}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def judge_ids(self) -> list[str]:
        """The judges as a list."""
        return [self.judge] if isinstance(self.judge, str) else list(self.judge or [])


_PROMPT_SETTINGS = {"description": "", "gen_prefix": None, "target_delimiter": " ", "fewshot_delimiter": "\n\n"}
"""Settings of a task file that lm-eval writes into prompts, with lm-eval's defaults."""

_OWN_SETTINGS = (
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "test_split", "process_docs"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "doc_to_image", "doc_to_audio", "use_prompt"),
    *("process_results", "metric_list", "filter_list", "output_type", "repeats", "fewshot_config"),
)


def refuse_own_settings(config: Mapping[str, Any]) -> None:
    """Refuse what a task file that includes one of ours may not change: questions, prompts' form and measures.

    Raises:
        ConfigurationError: It sets one of these.
    """
    for name in _OWN_SETTINGS:
        if config.get(name) is not None and (name, config[name]) != ("repeats", 1):
            raise ConfigurationError(
                f"task {config.get('task')}: {name!r} is defined by the tasks of PersonalityBench: remove it from the "
                f"file; {', '.join(_PROMPT_SETTINGS)} and generation_kwargs can be set there, and count as settings"
            )


def changed_settings(config: Any, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Find what lm-eval's options, or a task file that includes one of ours, changed beyond the protocol.

    Args:
        config: lm-eval's configuration of the task.
        generation: Its settings of generation.

    Returns:
        Sampling, ends of answers, a description, the beginning of an answer, by their names.
    """
    usual = {"until": [], "do_sample": False}
    in_protocol = {"max_gen_toks", "temperature", "repetition_penalty"}
    found = {name: value for name, value in generation.items() if name not in in_protocol}
    prompt = {name: getattr(config, name, default) for name, default in _PROMPT_SETTINGS.items()}
    return {
        **{name: value for name, value in found.items() if name not in usual or value != usual[name]},
        **{name: value for name, value in prompt.items() if value != _PROMPT_SETTINGS[name]},
    }
