"""The report on agreement as data: what its JSON file holds, and the page and the tables show."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.judging.agreement.table import Aspect

Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Part):
    """A figure with its 95 % bootstrap interval over questions; None where it is undefined.

    Attributes:
        value: The figure on all answers.
        interval: Lower and upper end. None with fewer than two questions, or where more than one resample in twenty
            leaves the figure undefined.
    """

    value: float | None = None
    interval: Interval | None = None


class Agreement(_Part):
    """How far two judges agree on the answers that both rated.

    ``exact``, ``within_one``, ``kappa`` and ``alpha`` are of ratings rounded to whole numbers, half up; the others of
    the ratings as they are. Every figure is undefined for fewer than two answers.

    Attributes:
        n: Answers that both rated.
        questions: Questions of these answers.
        exact: Share with the same rating (0-1).
        within_one: Share with ratings at most one apart (0-1).
        kappa: Cohen's kappa with quadratic weights over the categories 1 to 5 (1 perfect, 0 chance). Undefined where
            both gave one and the same rating throughout.
        alpha: Krippendorff's alpha, ordinal (1 perfect, 0 chance). Undefined where there is only one rating at all.
        spearman: Rank correlation (-1 to 1). Undefined where a judge gave one rating throughout.
        bias: Mean of the second judge's rating less the first's (-4 to 4).
        difference: Mean of the absolute difference (0-4).
    """

    n: int
    questions: int
    exact: Figure
    within_one: Figure
    kappa: Figure
    alpha: Figure
    spearman: Figure
    bias: Figure
    difference: Figure


class MethodOrder(_Part):
    """How far two judges put the methods into the same order, by mean ratings of the answers that both rated.

    Attributes:
        methods: Methods that are ordered; with two of them a correlation can only be 1 or -1.
        kendall: Kendall's tau-b (-1 to 1).
        spearman: Rank correlation (-1 to 1).
        swapped: Pairs of methods that the two judges order in opposite ways: the first judge's better one first.
    """

    methods: int
    kendall: Figure
    spearman: Figure
    swapped: list[tuple[str, str]]


class Pair(_Part):
    """Two judges on one aspect.

    Attributes:
        first: Name of the judge that was named earlier.
        second: Name of the other one; the bias is its rating less the first's.
        overall: On all answers.
        counts: Answers by rounded rating, 5 x 5: a row for each rating of the first, a column for each of the second.
        by_trait: On the answers of each trait.
        by_pole: On the answers of each pole.
        by_method: On the answers of each method.
        order: How alike they order the methods.
    """

    first: str
    second: str
    overall: Agreement
    counts: list[list[int]]
    by_trait: dict[str, Agreement]
    by_pole: dict[str, Agreement]
    by_method: dict[str, Agreement]
    order: MethodOrder


class Mean(_Part):
    """Mean rating of a method: toward the target for a trait (``r`` for a high pole, ``6 - r`` for a low one)."""

    n: int
    mean: Figure


class Length(_Part):
    """Rank correlation of a judge's ratings with the number of words of the answer.

    Attributes:
        n: Answers that it rated.
        rating: With the rating as it is.
        toward: With the rating seen from the target's pole; None for fluency. Answers of no pole are left out.
    """

    n: int
    rating: Figure
    toward: Figure | None


class Retest(_Part):
    """How far a judge agrees with itself when it is asked the same again.

    Attributes:
        repeats: How often it was asked.
        n: Answers that it rated more than once.
        partly: Answers that it rated at one time and left unrated at another.
        exact: Share of pairs of askings with the same rounded rating; with more than two, all pairs count.
        within_one: Share with ratings at most one apart.
        difference: Mean of the absolute difference.
        alpha: Krippendorff's alpha (ordinal) of all askings.
    """

    repeats: int
    n: int
    partly: int
    exact: Figure
    within_one: Figure
    difference: Figure
    alpha: Figure


class JudgeFigures(_Part):
    """One judge on one aspect.

    Attributes:
        judge: Its name.
        rated: Answers that it rated.
        coverage: The share of the answers that is.
        unrated: Why it did not rate others: how many for each reason.
        not_asked: Answers that it was never asked for.
        mean: Mean of its ratings as they are.
        length: Its ratings and the length of the answers.
        retest: Its agreement with itself; None where it was asked once.
        methods: Mean by method, over all that it rated.
    """

    judge: str
    rated: int
    coverage: float
    unrated: dict[str, int]
    not_asked: int
    mean: Figure
    length: Length
    retest: Retest | None
    methods: dict[str, Mean]


class Together(_Part):
    """All judges at once.

    Attributes:
        n: Answers that at least two of them rated.
        alpha: Krippendorff's alpha (ordinal) of all judges on these answers.
    """

    n: int
    alpha: Figure


class AspectFigures(_Part):
    """Everything about one aspect."""

    aspect: Aspect
    judges: list[JudgeFigures]
    pairs: list[Pair]
    together: Together


class AgreementReport(_Part):
    """How far judges agree on the same answers.

    Attributes:
        source: Where the answers are from.
        answers: How many there are.
        questions: How many questions they answer; intervals resample these.
        methods: Methods, in the order of the answers.
        judges: Names of the judges, in the order they were named.
        identities: What the ratings of each judge depend on, by its name.
        resamples: Resamples behind each interval.
        seed: Of the resamples.
        aspects: Trait and fluency, where any judge was asked for it.
        personalitybench: Version that made the report.
    """

    source: str
    answers: int
    questions: int
    methods: list[str]
    judges: list[str]
    identities: dict[str, dict[str, str]]
    resamples: int = Field(ge=0)
    seed: int
    aspects: list[AspectFigures]
    personalitybench: str
