"""What the report says in words and figures, the same on a terminal, in Markdown and on the page."""

from __future__ import annotations

from personalitybench.judging.agreement.schema import (
    Agreement,
    AgreementReport,
    AspectFigures,
    Figure,
    JudgeFigures,
    Pair,
)

DASH = "–"

MEASURES: dict[str, tuple[str, str]] = {
    "exact": ("exact", "share of answers with the same rating, rounded to a whole number (half up)"),
    "within_one": ("within one", "share with rounded ratings at most one apart"),
    "kappa": ("weighted κ", "Cohen's kappa of rounded ratings, quadratic weights: 1 is perfect, 0 is chance"),
    "alpha": ("α", "Krippendorff's alpha of rounded ratings, ordinal: 1 is perfect, 0 is chance"),
    "spearman": ("Spearman ρ", "rank correlation of the ratings as they are: −1 to 1"),
    "bias": ("bias", "mean of the second judge's rating less the first's, in points of the scale from 1 to 5"),
    "difference": ("|difference|", "mean of the absolute difference, in points"),
}
"""For each measure of two judges its short name and what it is."""

HEADINGS = {"trait": "Ratings for the trait", "fluency": "Ratings of fluency"}

UNDEFINED = (
    "A dash: undefined (a judge that gave one rating throughout, fewer than two answers) or, for an interval, fewer "
    "than two questions."
)


def title(report: AgreementReport) -> str:
    """What was compared, in one line."""
    return (
        f"{report.source}: {_many(report.answers, 'answer')} to {_many(report.questions, 'question')}, "
        f"{_many(len(report.methods), 'method')}, {_many(len(report.judges), 'judge')}"
    )


def about_intervals(report: AgreementReport, where: str = "Brackets") -> str:
    """Where the intervals stand, and how they were made."""
    if not report.resamples:
        return "No intervals were made."
    return (
        f"{where}: 95 % bootstrap intervals that draw whole questions ({report.resamples:,} resamples, "
        f"seed {report.seed})."
    )


def pair_name(pair: Pair) -> str:
    """The two judges; the bias is the second's less the first's."""
    return f"{pair.first} / {pair.second}"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def bracket(figure: Figure, digits: int = 2) -> str:
    """The interval as ``[0.61, 0.74]``; nothing where there is none."""
    if figure.interval is None:
        return ""
    return "[{}, {}]".format(*(number(end, digits) for end in figure.interval))


def with_interval(figure: Figure | None, digits: int = 2) -> str:
    """``0.68 [0.61, 0.74]``."""
    if figure is None:
        return DASH
    return f"{number(figure.value, digits)} {bracket(figure, digits)}".strip()


def unrated(judge: JudgeFigures) -> str:
    """Why answers have no rating, each reason with its number."""
    reasons = [f"{reason.replace('_', ' ')} {count:,}" for reason, count in judge.unrated.items()]
    if judge.not_asked:
        reasons.append(f"not asked {judge.not_asked:,}")
    return ", ".join(reasons) or DASH


def together(aspect: AspectFigures) -> str | None:
    """Alpha of all judges that rated anything, where they are more than the two of a pair."""
    rated = sum(judge.rated > 0 for judge in aspect.judges)
    if rated < 3:
        return None
    return (
        f"All {rated} judges together: α {with_interval(aspect.together.alpha)} on "
        f"{_many(aspect.together.n, 'answer')} that at least two of them rated."
    )


def swaps(pair: Pair) -> str:
    """Methods that the two judges order in opposite ways."""
    found = [f"{better} > {worse}" for better, worse in pair.order.swapped]
    return ", ".join(found) or ("none" if pair.order.methods > 1 else DASH)


def compared(aspect: AspectFigures) -> list[Pair]:
    """Pairs of judges that have rated answers in common."""
    return [pair for pair in aspect.pairs if pair.overall.n]


def groups(pair: Pair) -> dict[str, dict[str, Agreement]]:
    """Groups by what they are made by; those that would only say the same again are left out."""
    found = {"trait": pair.by_trait, "pole": pair.by_pole, "method": pair.by_method}
    return {by: parts for by, parts in found.items() if len(parts) > 1}


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
