"""The schema of a leaderboard file. One board has one judge: rows of different judges are never sorted together.

``leaderboards/schema.json`` is this schema as JSON Schema; a test keeps the two in step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError
from personalitybench.files import content_hash
from personalitybench.outside_files import JsonMapping
from personalitybench.strengths import StrengthProtocol
from personalitybench.titles import COMBINED, method_title
from personalitybench.traits import TRAIT_NAMES, Target

SCHEMA_VERSION: Literal["1.0"] = "1.0"


def _require_any(strength: float | dict[TargetName, float]) -> float | dict[TargetName, float]:
    if strength == {}:
        raise ValueError("a strength for each target is a mapping of targets to numbers, this one is empty")
    return strength


def _part_name(part: Any) -> bool:
    name = part.get("name") if isinstance(part, dict) else part
    return isinstance(name, str) and bool(name)


def _known_target(name: str) -> str:
    try:
        return str(Target.parse(name))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


def _known_trait(name: str) -> str:
    if name not in TRAIT_NAMES:
        raise ValueError(f"unknown trait {name!r}: known are {', '.join(TRAIT_NAMES)}")
    return name


Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Share = Annotated[Number, Field(ge=0, le=1)]
Score = Annotated[Number, Field(ge=1, le=5)]
PoleSum = Annotated[Number, Field(ge=2, le=10)]
"""Sum of the mean scores of both poles."""

Whole = Annotated[int, Field(strict=True)]
Interval = tuple[Number, Number]
Count = Annotated[int, Field(ge=0, le=10**12, strict=True)]
TargetName = Annotated[str, AfterValidator(_known_target)]
TraitName = Annotated[str, AfterValidator(_known_trait)]
Strengths = Annotated[Number | dict[TargetName, Number], AfterValidator(_require_any)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelId(_Part):
    """Which weights answered."""

    name: str
    revision: str = Field(description="hub commit or hash of the weights; 'unstated' where a source does not say")


class MethodId(_Part):
    """How the personality was induced."""

    name: str
    version: str
    settings: JsonMapping = {}
    strength: Strengths | None = Field(default=None, description="for all targets, or by target")
    strength_protocol: StrengthProtocol | None = Field(
        default=None,
        description="held-out: chosen on the dev half, reported on the test half; paper: given, all questions asked; "
        "given: given, one half asked; null: the method has no strength",
    )
    artifact: str | None = Field(default=None, description="SHA-256 of what the method's fit left")

    @model_validator(mode="after")
    def _has_named_parts(self) -> MethodId:
        parts = self.settings.get("parts", [])
        if self.name == COMBINED and not (isinstance(parts, list) and all(_part_name(part) for part in parts)):
            raise ValueError("settings.parts of method 'combined' is a list of names, or of mappings with a 'name'")
        return self

    @property
    def title(self) -> str:
        """Its name; a combination is called by its parts."""
        return method_title(self.name, self.settings)


class JudgeId(_Part):
    """Who rated."""

    id: str
    profile_sha256: str
    rubric_sha256: str


class AnswerData(_Part):
    """Source of the questions."""

    source: str
    revision: str
    split: str = "evaluate"
    half: str = "all"


class DataId(AnswerData):
    """Which questions were asked."""

    questions: Count = Field(description="number of distinct questions")
    questions_sha256: str = Field(description="hash of the sorted question ids")


class ProtocolId(_Part):
    """How the questions were put and the answers drawn."""

    task_version: Whole
    prompts: str
    prompts_sha256: str
    max_tokens: Whole | None
    temperature: Number | None
    repetition_penalty: Number | None
    chat_template: bool
    left_out: list[str] = Field(default=[], description="settings that the model's interface could not take")
    other: JsonMapping = Field(default={}, description="what was changed beyond the protocol, e.g. a system turn")


class RowIdentity(_Part):
    """What makes two results comparable or not."""

    model: ModelId
    method: MethodId
    judge: JudgeId
    data: DataId
    protocol: ProtocolId
    seeds: list[Whole]


class AnswerIdentity(_Part):
    """All that decides the answers and ratings of one task besides model and judge; rows are made from it."""

    method: MethodId
    data: AnswerData
    protocol: ProtocolId
    seed: Whole


class Provenance(_Part):
    """How the row came to be; not part of its identity."""

    backend: str = Field(description="lm-eval model type")
    backend_args: JsonMapping = {}
    batch_size: str | None = None
    versions: dict[str, str] = {}
    untried_versions: list[str] = Field(
        default=[], description="libraries whose version lies outside of the range that was tried, with both"
    )
    other_versions: list[dict[str, str]] = Field(
        default=[], description="versions of further sessions or seeds that ran under others than 'versions'"
    )
    device: str = Field(default="", description="device and number format of the model; empty where it is not known")
    other_devices: list[str] = Field(default=[], description="those of further sessions or seeds, where they differ")
    fit: FitCost | None = Field(default=None, description="what the method's fit took, if it has one")
    judge_models: dict[str, Count] = Field(
        default={}, description="models that gave the ratings, as the judge's server names them, with their ratings"
    )
    note: str = ""


class TargetResult(_Part):
    """Scores of one target on the 1-5 scale, seen from the target."""

    n: Count = Field(description="answers")
    rated: Count = Field(description="answers that have a rating")
    coverage: Share = Field(description="rated / n")
    mean: Score | None
    sd: Annotated[Number, Field(ge=0, le=4)] | None = Field(
        default=None, description="sample standard deviation over answers (n-1)"
    )
    interval: tuple[Score, Score] | None = Field(default=None, description="95 % percentile bootstrap over questions")
    fluency: Score | None = Field(default=None, description="mean rating of fluency, 1-5")
    fluency_rated: Count = 0
    fluency_interval: tuple[Score, Score] | None = Field(
        default=None, description="95 % percentile bootstrap over questions"
    )
    unrated: dict[str, Count] = Field(default={}, description="unrated answers by reason")
    text: dict[str, Annotated[Number, Field(ge=0)]] = Field(
        default={}, description="means of the objective text measures"
    )


class Composite(_Part):
    """The paper's figure (section 4.1): the sum over both poles of the mean scores (2-10), and of the variances."""

    mean: PoleSum | None
    variance: Annotated[Number, Field(ge=0, le=16)] | None = None
    interval: tuple[PoleSum, PoleSum] | None = None


class Mapped(_Part):
    """Composites of ratings that were read on another judge's scale; intervals leave out what the map is unsure of."""

    traits: dict[TraitName, Composite]
    average: Composite


class MappedTo(_Part):
    """Whose scale ``mapped`` figures are on, and how far the map can be believed."""

    reference: dict[str, str] = Field(description="identity of the judge, or the people, whose scale it is")
    source: str = Field(description="answers that both rated")
    calibration_sha256: str
    n: Count = Field(description="how many answers")
    error_raw: Number = Field(description="mean absolute difference of the judge's ratings from the reference's")
    error_mapped: Number = Field(description="of mapped ratings, on questions that the map did not see")
    error_constant: Number = Field(description="of always saying the reference's mean")


class Row(_Part):
    """One result."""

    id: str = Field(description="hash of the identity")
    identity: RowIdentity
    provenance: Provenance
    targets: dict[TargetName, TargetResult] = {}
    traits: dict[TraitName, Composite]
    average: Composite = Field(description="mean of the traits' composites")
    fluency_traits: dict[TraitName, Composite] = {}
    fluency_average: Composite | None = None
    mapped: Mapped | None = Field(default=None, description="trait scores on the scale that mapped_to names")

    @staticmethod
    def make_id(identity: RowIdentity) -> str:
        """Hash an identity, 16 hex digits."""
        return content_hash(identity.model_dump(mode="json"))[:16]


class SweepPoint(_Part):
    """What one strength did to one target."""

    strength: Number
    floor_met: bool = Field(description="whether the mean fluency is not below the floor")
    result: TargetResult


class TargetSweep(_Part):
    """How the strength of one target was chosen."""

    baseline: TargetResult = Field(description="what the baseline did on the same questions")
    floor: Number = Field(description="mean fluency below which no strength is chosen")
    chosen: Number
    floor_met: bool = Field(description="whether any strength met the floor; if none did, the most fluent was taken")
    points: list[SweepPoint] = Field(description="in ascending order of strength")


class Sweep(_Part):
    """How the strengths of a method were chosen on the dev half: every figure that the choice is made from."""

    model: ModelId
    method: MethodId = Field(description="as in the rows, with the chosen strengths")
    baseline: MethodId = Field(description="the prompting method whose fluency is the floor")
    judge: JudgeId = Field(description="whose ratings the choice is made from; a suite's first judge")
    data: DataId
    protocol: ProtocolId
    seeds: list[Whole]
    rule: str
    slack: Number = Field(description="how far the floor lies below the baseline's rounded fluency")
    targets: dict[TargetName, TargetSweep]

    def made(self, row: Row) -> bool:
        """Whether a row has the strengths that were chosen here."""
        own = self.method.model_dump(exclude={"artifact"})
        return self.model == row.identity.model and own == row.identity.method.model_dump(exclude={"artifact"})


class Floor(_Part):
    """What one kind of answer that does not show the target scores; figures as in a row."""

    kind: str
    about: str
    targets: dict[TargetName, TargetResult]
    traits: dict[TraitName, Composite]
    average: Composite
    fluency_average: Composite


class Floors(_Part):
    """What the board's judge gives to answers that show no trait: a row that is not above them shows nothing."""

    questions: Count = Field(description="questions of each trait, of the bundled sample")
    answers_sha256: str = Field(description="hash of all these answers")
    missing: str = Field(default="", description="why there are none")
    rows: list[Floor] = []


class Leaderboard(_Part):
    """A board."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    name: str
    status: Literal["recomputed", "published"] = Field(
        description="recomputed: computed from answers and ratings by the command that first wrote the board, which "
        "'leaderboard verify' repeats; published: copied from a publication"
    )
    judge: JudgeId
    caveat: str = Field(default="", description="what a reader of this judge's numbers must know")
    source: str = ""
    rows: list[Row]
    sweeps: list[Sweep] = Field(default=[], description="how the strengths of the rows marked held-out were chosen")
    mapped_to: MappedTo | None = Field(default=None, description="null: no calibration was applied")
    floors: Floors | None = Field(default=None, description="null: they were not asked for, or cannot be recomputed")
