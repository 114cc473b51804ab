"""The offline judge's report as Markdown, made of the figures in ``judges/offline/report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_POLES = ("high", "neutral", "low")


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# The offline judge: what it can and cannot tell",
        "",
        "The offline judge is a small classifier for development and demonstrations. **Its numbers are not those of "
        "GPT-4o**, and its rows stand on boards of their own.",
        "",
        f"It reads an answer with {report['model']} (weights {report['weights_sha256'][:12]}), averages the hidden "
        f"states after layer {report['layer']} over the answer, and applies one linear head a trait. The heads were "
        f"fitted on {report['answers']} answers written for this project (`answers/`). All figures below are "
        f"about answers to questions that the head did not see ({report['folds']} folds, split by question). The "
        "layer and the penalty were chosen by the same folds, one value for all traits.",
        "",
        "`plain` answers show their pole clearly; in `balanced` ones the tone says nothing about the pole, so that a "
        "sentiment lexicon fails on them. The baselines are VADER's compound sentiment (its better direction) and the "
        "same kind of head on MiniLM-L6 sentence embeddings.",
        "",
        "| trait | texts high/neutral/low | AUC | plain | balanced | AUC VADER | AUC MiniLM | pairwise "
        "| pairwise VADER | calibration error | mean rating high/neutral/low |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for trait, found in report["traits"].items():
        texts = "/".join(str(found["texts"][pole]) for pole in _POLES)
        means = "/".join(f"{found['mean_rating'][pole]:.2f}" for pole in _POLES)
        lines.append(
            f"| {trait} | {texts} | **{found['auc']:.3f}** | {found['auc_by_set']['plain']:.3f} "
            f"| {found['auc_by_set']['balanced']:.3f} | {found['auc_vader']:.3f} | {found['auc_minilm']:.3f} "
            f"| {found['pairwise_accuracy']:.3f} | {found['pairwise_accuracy_vader']:.3f} "
            f"| {found['calibration_error']:.3f} | {means} |"
        )
    fluency = report["fluency"]
    lines += [
        "",
        f"Mean AUC over the traits: **{report['mean_auc']:.3f}**.",
        "",
        "Fluency is rated from the likelihood of the tokens and from repetition "
        f"({', '.join(fluency['features'])}). The same answers, spoilt in six ways:",
        "",
        "| text | mean rating | AUC against the original |",
        "|---|---|---|",
    ]
    lines += [
        f"| {kind} | {rating:.2f} | {_figure(fluency['auc'].get(kind))} |"
        for kind, rating in fluency["mean_rating"].items()
    ]
    lines += [
        "",
        "The reader is the demo model itself, so what that model wrote looks likely to it and its judged fluency "
        "stands at the ceiling; the objective measures beside it (repetition, unfinished answers) show a collapse.",
        "",
        "To train it again: `pip install 'personalitybench[train]'`, then "
        "`python -m personalitybench.judging.training`.",
    ]
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
