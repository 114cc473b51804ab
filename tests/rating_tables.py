"""Tables of ratings for tests: answers of several methods, and judges made of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from personalitybench.judging.agreement.table import Column, ComparedAnswer, RatingTable, Verdicts
from personalitybench.judging.base import Rating, Unrated, Verdict

Numbers = Sequence[float | str | None]


def answers(
    number: int, methods: Sequence[str] = ("p2",), traits: Sequence[str] = ("openness",)
) -> list[ComparedAnswer]:
    """Answers of so many questions for each trait, both poles, all methods; each is longer than the one before."""
    places = [
        (question, trait, pole, method)
        for question in range(number)
        for trait in traits
        for pole in ("high", "low")
        for method in methods
    ]
    return [
        ComparedAnswer(f"{trait}-{question}", "What then?", "word " * (place + 1), trait, pole, method)
        for place, (question, trait, pole, method) in enumerate(places)
    ]


def verdict(number: float | str | None) -> Verdict | None:
    """A rating, a reason, or nothing."""
    if number is None:
        return None
    return Unrated(number) if isinstance(number, str) else Rating(float(number))


def verdicts(rated: Sequence[ComparedAnswer], trait: Numbers, fluency: Numbers = ()) -> Verdicts:
    """Verdicts on answers, in their order."""
    given = [((answer.id, "trait"), verdict(number)) for answer, number in zip(rated, trait, strict=True)]
    given += [((answer.id, "fluency"), verdict(number)) for answer, number in zip(rated, fluency, strict=False)]
    return {key: found for key, found in given if found is not None}  # type: ignore[misc]


def column(judge: str, *repeats: Verdicts) -> Column:
    """A judge."""
    return Column(judge, {"profile_sha256": "ab" * 32}, repeats)


def table(
    rated: Sequence[ComparedAnswer], source: str = "made up", /, **judges: Callable[[int, ComparedAnswer], float]
) -> RatingTable:
    """A table of judges that are functions of an answer and its place, for the trait and for fluency alike."""
    columns = []
    for name, rate in judges.items():
        numbers = [rate(place, answer) for place, answer in enumerate(rated)]
        columns.append(column(name, verdicts(rated, numbers, numbers)))
    return RatingTable(source, rated, columns)
