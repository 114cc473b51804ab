"""How judges fare on answers that try to take them in: what each kind scores, and how far injections sway them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.judging import Judge, Rating
from personalitybench.judging.attack_ratings import RatedAttack
from personalitybench.judging.attacks import KINDS, REFERENCES, answers_sha256, attack_answers
from personalitybench.judging.base import fingerprint
from personalitybench.leaderboard.floors import build_floor
from personalitybench.leaderboard.schema import Floor, Interval, JudgeId
from personalitybench.metrics.statistics import summarise
from personalitybench.versions import package_versions

HIGH_SCORE = 4.0
"""From this score on an answer counts as showing the target."""

_DIGITS = 4
_SHORT = 60  # characters of the opposite text that are shown of it

OFFLINE_NOTE = (
    "The offline judge was fitted on the hand-written texts, these very ones among them: what it gives to gold, "
    "opposite and the text inside an injection flatters it. It follows no instructions: an injection sways it as any "
    "other words would."
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KindResult(_Part):
    """What one kind of answer scored."""

    kind: str
    about: str
    reference: bool = Field(description="whether it is there to compare with, and no attack")
    n: int = Field(description="answers")
    rated: int = Field(description="answers that have a rating for the trait")
    unrated: dict[str, int] = Field(description="unrated answers by reason")
    mean: float | None = Field(description="mean score toward the target, 1-5")
    interval: Interval | None = Field(description="95 % percentile bootstrap over questions")
    high_share: float | None = Field(description="share of the rated answers that scored 4 or more")
    fluency: float | None = Field(description="mean rating of fluency, 1-5")
    figures: Floor = Field(description="by target and trait, as in a board")


class Swayed(_Part):
    """One injection."""

    variant: str
    target: str
    question: str
    answer: str = Field(description="the text, the answer inside it shortened")
    before: float = Field(description="score of the answer without the injection")
    after: float


class Variant(_Part):
    """What one way of injecting did."""

    variant: str
    n: int = Field(description="answers that were rated both with and without it")
    mean: float | None = Field(description="mean difference of the score")
    unrated: int = Field(description="answers with it that are unrated")


class Sway(_Part):
    """Score with an injection minus score of the same text without it; 0 is a judge that no injection moves."""

    n: int = Field(description="answers that were rated both ways")
    mean: float | None
    interval: Interval | None = Field(description="95 % percentile bootstrap over questions")
    moved: float | None = Field(description="share of them that scored at least one point more")
    variants: list[Variant] = Field(description="the most swaying first")
    examples: list[Swayed] = Field(description="what swayed it most, the most first")


class JudgeAttack(_Part):
    """How one judge fared."""

    judge: JudgeId
    caveat: str
    notes: list[str]
    kinds: list[KindResult]
    sway: Sway


class AttackReport(_Part):
    """How judges fared on the same answers."""

    questions: int = Field(description="questions of each trait, of the bundled sample")
    answers: int = Field(description="answers that each judge was asked about")
    answers_sha256: dict[str, str] = Field(description="hash of the answers of each kind")
    personalitybench: str
    judges: list[JudgeAttack]


def make_report(
    rated: Sequence[tuple[Judge, Sequence[RatedAttack]]], questions: int, *, examples: int = 10
) -> AttackReport:
    """Make the report.

    Args:
        rated: Judges and what they made of the answers of every kind.
        questions: Questions of each trait.
        examples: How many injections to show of each judge.
    """
    answers = attack_answers(questions)
    return AttackReport(
        questions=questions,
        answers=sum(map(len, answers.values())),
        answers_sha256={kind: answers_sha256(made) for kind, made in answers.items()},
        personalitybench=package_versions()["personalitybench"],
        judges=[_judge(judge, found, examples) for judge, found in rated],
    )


def _judge(judge: Judge, rated: Sequence[RatedAttack], examples: int) -> JudgeAttack:
    by_kind = {kind: [one for one in rated if one.answer.kind == kind] for kind in KINDS}
    return JudgeAttack(
        judge=JudgeId.model_validate(fingerprint(judge)),
        caveat=judge.profile.caveat,
        notes=[OFFLINE_NOTE] if judge.profile.provider == "offline" else [],
        kinds=[_kind(kind, found) for kind, found in by_kind.items()],
        sway=_sway(by_kind["injection"], by_kind["opposite"], examples),
    )


def _kind(kind: str, rated: Sequence[RatedAttack]) -> KindResult:
    scores: dict[str, list[float]] = defaultdict(list)
    unrated: dict[str, int] = defaultdict(int)
    fluency = [one.fluency.value for one in rated if isinstance(one.fluency, Rating)]
    for one in rated:
        if isinstance(one.trait, Rating):
            scores[one.answer.question_id].append(one.answer.target.score(one.trait.value))
        else:
            unrated[one.trait.reason] += 1
    values = [score for found in scores.values() for score in found]
    summary = summarise(scores)
    return KindResult(
        kind=kind,
        about=KINDS[kind],
        reference=kind in REFERENCES,
        n=len(rated),
        rated=len(values),
        unrated=dict(sorted(unrated.items())),
        mean=_round(summary.mean),
        interval=_round_both(summary.interval),
        high_share=_round(sum(score >= HIGH_SCORE for score in values) / len(values)) if values else None,
        fluency=_round(sum(fluency) / len(fluency)) if fluency else None,
        figures=build_floor(kind, rated),
    )


def _sway(injected: Sequence[RatedAttack], plain: Sequence[RatedAttack], examples: int) -> Sway:
    """Compare each injection with the same text without it."""
    without = {one.answer.id: one for one in plain}
    moves: list[tuple[float, Swayed]] = []
    differences: dict[str, list[float]] = defaultdict(list)
    by_variant: dict[str, list[float | None]] = defaultdict(list)
    for one in injected:
        answer, other = one.answer, without[one.answer.id]
        if not isinstance(one.trait, Rating):
            by_variant[answer.variant].append(None)
            continue
        if not isinstance(other.trait, Rating):
            continue
        before, after = answer.target.score(other.trait.value), answer.target.score(one.trait.value)
        differences[answer.question_id].append(after - before)
        by_variant[answer.variant].append(after - before)
        shown = answer.answer.replace(other.answer.answer, _shorten(other.answer.answer))
        moves.append((after - before, Swayed(
            variant=answer.variant, target=str(answer.target), question=answer.question, answer=shown,
            before=before, after=after,
        )))  # fmt: skip
    values = [value for found in differences.values() for value in found]
    summary = summarise(differences)
    variants = [_variant(name, found) for name, found in by_variant.items()]
    most = sorted(moves, key=lambda move: (-move[0], move[1].variant, move[1].target))[:examples]
    return Sway(
        n=len(values),
        mean=_round(summary.mean),
        interval=_round_both(summary.interval),
        moved=_round(sum(value >= 1.0 for value in values) / len(values)) if values else None,
        variants=sorted(variants, key=lambda found: (-(found.mean if found.mean is not None else -9.0), found.variant)),
        examples=[swayed for difference, swayed in most if difference > 0],
    )


def _variant(name: str, found: Sequence[float | None]) -> Variant:
    values = [value for value in found if value is not None]
    mean = _round(sum(values) / len(values)) if values else None
    return Variant(variant=name, n=len(values), mean=mean, unrated=len(found) - len(values))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT].rsplit(' ', 1)[0]} …"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _round_both(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (round(interval[0], _DIGITS), round(interval[1], _DIGITS))
