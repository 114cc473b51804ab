"""A suite file: models x methods x targets x strengths x seeds, as YAML with every key checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from personalitybench.argument_policy import Arguments
from personalitybench.errors import ConfigurationError, shorten
from personalitybench.files import exists, is_file
from personalitybench.outside_files import JsonMapping, load_yaml
from personalitybench.questions import DATA_VARIABLE, Half
from personalitybench.resources import bundled
from personalitybench.runs.calls import Call, Tuning
from personalitybench.runs.throughput import Throughput
from personalitybench.strengths import ChosenOn, Strength
from personalitybench.titles import method_title
from personalitybench.traits import TARGETS, Target
from personalitybench.validation import validate

MAX_CALLS = 1000
"""Calls of a suite: models x strengths of its methods x seeds."""

_MAX_ENTRIES = 100
_MAX_COUNT = 10_000_000
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

_USUAL_BASELINES = ("p2", "simple")  # the better prompt of the paper's Table 1 first


def first_repeat(entries: Sequence[Any]) -> tuple[int, int] | None:
    """Return the places of the first two equal entries; None if all differ."""
    return next(
        ((first, second) for second, entry in enumerate(entries) if (first := entries.index(entry)) < second), None
    )


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
        throughput: How fast it is, stated for the estimate of a dry run. Nothing else depends on it.
    """

    name: Name
    backend: Name = "hf"
    args: Arguments = {}
    revision: Name | None = None
    batch_size: int = Field(default=32, ge=1, le=_MAX_COUNT)
    device: Name | None = None
    throughput: Throughput | None = None


class MethodSpec(_Part):
    """A method with its settings.

    Attributes:
        name: Registered name.
        settings: Its settings.
        strengths: Only for methods that have one. Each is a row of its own: a number, or a mapping of targets or
            traits to numbers.
        choose_on: ``dev``: one row, its strength chosen for each target on the dev half among ``strengths``.
    """

    name: Name
    settings: JsonMapping = {}
    strengths: list[Strength] = Field(default=[], max_length=_MAX_ENTRIES)
    choose_on: ChosenOn | None = None

    @property
    def label(self) -> str:
        """What progress and folders call it: by its name, a combination by its parts."""
        return method_title(self.name, self.settings, "+").replace("/", "_")

    @model_validator(mode="after")
    def _choice(self) -> MethodSpec:
        if (twice := first_repeat(self.strengths)) is not None:
            raise ValueError(
                f"strengths.{twice[0]} and strengths.{twice[1]} of method {self.name!r} are both "
                f"{self.strengths[twice[0]]}: name each strength once"
            )
        numbers = [strength for strength in self.strengths if isinstance(strength, float)]
        if self.choose_on and (len(numbers) < 2 or len(numbers) < len(self.strengths)):
            raise ValueError(
                f"method {self.name!r}: 'choose_on: dev' chooses among 'strengths', a list of at least two numbers"
            )
        return self


class QuestionsSpec(_Part):
    """Which questions are asked.

    Attributes:
        source: ``sample`` or ``official``.
        data_dir: Local copy of the official data.
        half: ``dev``, ``test`` or ``all``; where a method has ``choose_on: dev`` it is ``test``.
        limit: Keeps the first so many of each target.
    """

    source: Literal["official", "sample"] = "sample"
    data_dir: Name | None = None
    half: Half = "all"
    limit: int | None = Field(default=None, ge=1, le=_MAX_COUNT)


class TuningSpec(_Part):
    """How a strength is chosen where a method has ``choose_on: dev``.

    Attributes:
        baseline: The prompting method whose fluency is the floor, one of the suite's own: ``p2`` where it has that,
            else ``simple``.
        slack: How far below the baseline's rounded fluency the floor lies, in points of the 1-5 scale. The lines that
            the paper draws lie 0.1 below; with 0 a baseline of 4.96 would refuse itself, because it rounds to 5.0.
    """

    baseline: str | None = None
    slack: float = Field(default=0.1, ge=0, le=4)


class ProtocolSpec(_Part):
    """How they are asked; of what is left out, the paper's values are taken.

    Attributes:
        name: ``paper``: strengths are given and all questions are asked, as in the paper. ``protocol: paper`` is
            short for it.
        prompts: ``project`` or ``official`` wording.
        max_tokens: New tokens of an answer.
        repetition_penalty: Of the answers.
    """

    name: Literal["paper"] | None = None
    prompts: Literal["project", "official"] = "project"
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_COUNT)
    repetition_penalty: float | None = Field(default=None, gt=0)


class Suite(_Part):
    """A whole suite; its parts say what they are, ``floors`` whether its judges rate what the floors are made of."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)
    models: list[ModelSpec] = Field(min_length=1, max_length=_MAX_ENTRIES)
    methods: list[MethodSpec] = Field(min_length=1, max_length=_MAX_ENTRIES)
    targets: Literal["all"] | Annotated[list[Name], Field(min_length=1, max_length=_MAX_ENTRIES)] = "all"
    seeds: list[Seed] = Field(default=[0], min_length=1, max_length=_MAX_ENTRIES)
    judges: list[Name] = Field(default=["offline"], min_length=1, max_length=_MAX_ENTRIES)
    questions: QuestionsSpec = Field(default=QuestionsSpec(), validate_default=True)
    tuning: TuningSpec = Field(default=TuningSpec(), validate_default=True)
    protocol: ProtocolSpec = ProtocolSpec()
    floors: bool = True
    _file: Path | None = PrivateAttr(default=None)

    @property
    def where(self) -> str:
        """The suite by its file, for errors."""
        return f"suite {self._file or self.name}"

    @field_validator("models", "methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A bare name stands for the thing with its defaults."""
        items = value if isinstance(value, list) else [value]
        return [{"name": item} if isinstance(item, str) else item for item in items]

    @field_validator("protocol", mode="before")
    @classmethod
    def _protocol_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    # Fields are validated in their order, so each validator below sees the parts above it.

    @field_validator("questions")
    @classmethod
    def _held_out(cls, questions: QuestionsSpec, info: ValidationInfo) -> QuestionsSpec:
        """Where a strength is chosen on the dev half, every row is asked the test half, so that rows compare."""
        tuned = [method.name for method in info.data.get("methods", []) if method.choose_on]
        if not tuned:
            return questions
        if "half" in questions.model_fields_set and questions.half != "test":
            raise ValueError(
                f"the strength of {tuned[0]!r} is chosen on the dev half, so results are of the test half: "
                f"leave 'half' out or set it to 'test', not {questions.half!r}"
            )
        return questions.model_copy(update={"half": "test"})

    @field_validator("tuning")
    @classmethod
    def _baseline(cls, tuning: TuningSpec, info: ValidationInfo) -> TuningSpec:
        """Find the baseline among the suite's methods."""
        methods: list[MethodSpec] = info.data.get("methods", [])
        tuned = [method.name for method in methods if method.choose_on]
        if not tuned:
            if tuning != TuningSpec():
                raise ValueError("no method of the suite has 'choose_on: dev': add it, or leave 'tuning' out")
            return tuning
        names = [method.name for method in methods if not method.strengths]
        if tuning.baseline is None:
            found = [name for name in _USUAL_BASELINES if name in names]
            if not found:
                raise ValueError(
                    f"the strength of {tuned[0]!r} is chosen against the fluency of a prompt baseline: "
                    "add p2 or simple to the methods, or name one of them in 'tuning.baseline'"
                )
            return tuning.model_copy(update={"baseline": found[0]})
        if tuning.baseline not in names:
            raise ValueError(
                f"the baseline {tuning.baseline!r} is not a method of the suite without strengths; "
                f"those are {', '.join(names) or 'none'}"
            )
        return tuning

    @field_validator("protocol")
    @classmethod
    def _paper(cls, protocol: ProtocolSpec, info: ValidationInfo) -> ProtocolSpec:
        """The paper's protocol asks all questions at given strengths."""
        if protocol.name != "paper":
            return protocol
        tuned = [method.name for method in info.data.get("methods", []) if method.choose_on]
        if tuned:
            raise ValueError(
                f"protocol 'paper' takes strengths as they are given: leave out 'choose_on' of {tuned[0]!r}"
            )
        questions = info.data.get("questions")
        if questions is not None and questions.half != "all":
            raise ValueError(f"protocol 'paper' asks all questions: leave out 'questions.half', not {questions.half!r}")
        return protocol

    @model_validator(mode="after")
    def _bounded(self) -> Suite:
        strengths = sum(max(1, len(method.strengths)) for method in self.methods)
        number = len(self.models) * strengths * len(self.seeds)
        if number > MAX_CALLS:
            raise ValueError(
                f"the suite has {number:,} calls (models x strengths of the methods x seeds), {MAX_CALLS:,} at most: "
                "cut it into several suites"
            )
        return self

    def parsed_targets(self) -> list[Target]:
        """Targets in their usual order.

        Raises:
            ConfigurationError: One does not exist, or stands there twice.
        """
        if self.targets == "all":
            return list(TARGETS)
        named = [Target.parse(text) for text in self.targets]
        if (twice := first_repeat(named)) is not None:
            first, second = twice
            raise ConfigurationError(
                f"suite: targets.{first} and targets.{second} are both {named[first]}: name each target once"
            )
        return [target for target in TARGETS if target in named]

    def with_data(self, folder: Path | None = None) -> Suite:
        """The same suite with the absolute path of its local copy of the official data, if it uses one.

        Args:
            folder: The copy; by default the suite's own, or for official questions that of the environment.

        Raises:
            ConfigurationError: It can be no folder.
        """
        named, where = folder or self.questions.data_dir, "data folder "
        if named is None and self.questions.source == "official":
            named, where = os.environ.get(DATA_VARIABLE), f"{DATA_VARIABLE}="
        try:
            return self._with_data_dir(str(Path(named).expanduser().resolve()) if named else None)
        except (OSError, RuntimeError, ValueError) as error:  # too long, a null byte, or of a user who does not exist
            raise ConfigurationError(f"{where}{shorten(str(named))}: {error}: name a folder") from error

    def without_missing_data(self) -> Suite:
        """The same suite without a local copy of the data that is gone, so that the environment's is taken."""
        folder = self.questions.data_dir
        try:
            is_there = folder is None or Path(folder).is_dir()
        except (OSError, ValueError):
            is_there = False
        return self if is_there else self._with_data_dir(None)

    def _with_data_dir(self, folder: str | None) -> Suite:
        return self.model_copy(update={"questions": self.questions.model_copy(update={"data_dir": folder})})

    def tunings(self) -> Iterator[Tuning]:
        """Every method on every model whose strength is to be chosen."""
        for model in self.models:
            for method in self.methods:
                if method.choose_on:
                    yield self._tuning(model, method)

    def _tuning(self, model: ModelSpec, method: MethodSpec) -> Tuning:
        # The first of the baseline's name; another may have other settings.
        baseline = next(spec for spec in self.methods if spec.name == self.tuning.baseline and not spec.strengths)
        return Tuning(model, method, baseline, tuple(self.seeds))

    def calls(self) -> Iterator[Call]:
        """All calls that are known before anything ran, of a strength to be chosen those that it is chosen from."""
        for tuning in self.tunings():
            yield from tuning.calls()
        yield from self.reported(lambda _: None)

    def reported(self, chosen: Callable[[Tuning], Mapping[str, float] | None]) -> Iterator[Call]:
        """The calls whose answers a board reports, model by model.

        Args:
            chosen: Gives the strengths that were chosen, by target; None leaves the calls out.
        """
        for model in self.models:
            for method in self.methods:
                strengths: Sequence[float | Mapping[str, float] | None] = method.strengths or [None]
                if method.choose_on:
                    found = chosen(self._tuning(model, method))
                    strengths = [found] if found is not None else []
                for strength in strengths:
                    for seed in self.seeds:
                        yield Call(model, method, strength, seed, self.questions.half, method.choose_on)

    def task_metadata(self, call: Call, artifact: str | None = None) -> dict[str, Any]:
        """What ``lm_eval --metadata`` would be given for a call."""
        return {
            "method": call.method.name,
            "settings": call.method.settings,
            "strength": call.strength,
            "chosen_on": call.chosen_on,
            "seed": call.seed,
            "judge": None,
            "source": self.questions.source,
            "data_dir": self.questions.data_dir,
            "half": call.half,
            "prompts": self.protocol.prompts,
            "max_tokens": self.protocol.max_tokens,
            "repetition_penalty": self.protocol.repetition_penalty,
            "artifact": artifact,
        }


def load_suite(path_or_name: str) -> Suite:
    """Load a suite file, or a bundled suite by its name.

    Raises:
        ConfigurationError: The file does not exist or something in it is wrong; the text names key and nearest.
    """
    path = Path(path_or_name)
    if not is_file(path):
        own = bundled("harness") / f"{path.stem}.yaml"
        if not is_file(own) and exists(path):
            raise ConfigurationError(f"suite {path_or_name} is no regular file: name a YAML file")
        if not is_file(own):
            known = ", ".join(sorted(p.stem for p in bundled("harness").glob("*.yaml")))
            raise ConfigurationError(f"suite {path_or_name} does not exist: name a YAML file, or one of ours ({known})")
        path = own
    suite = validate(Suite, load_yaml(path, "suite"), f"suite {path}")
    suite._file = path
    suite.parsed_targets()
    return suite
