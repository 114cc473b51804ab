"""Train the offline judge and report how well it does: ``python -m personalitybench.judging.training``.

Reads ``judges/offline/answers/<trait>.jsonl`` (hand-written answers of known pole to the sample's questions) and
writes ``heads.safetensors``, ``reference.json``, ``report.json`` and ``report.md`` beside that folder. Needs the extra
``[train]``.
Every figure of the report is about answers to questions that the head did not see: eight folds, split by question.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from personalitybench.files import JsonLines, cache_folder, write_atomically, write_json
from personalitybench.judging.base import FLUENCY
from personalitybench.judging.corruptions import CORRUPTIONS
from personalitybench.judging.features import FLUENCY_FEATURES, LAYER, AnswerFeatures, shared_reader, write_reference
from personalitybench.judging.heads import Head, save_heads
from personalitybench.judging.report import to_markdown
from personalitybench.models import DEMO_MODEL, EMBEDDING_MODEL, packaged_folder
from personalitybench.resources import bundled
from personalitybench.traits import TRAIT_NAMES

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]

FOLDS = 8
TRAIT_PENALTY = 0.01  # C of the logistic regression; the same for all traits
FLUENCY_PENALTY = 1.0
_SPOILT_EVERY = 12  # one answer in so many is spoilt, in every way
_LABELS = {"high": 1.0, "neutral": 0.5, "low": 0.0}


def main() -> None:
    """Train, report, write."""
    folder = bundled("judges", "offline")
    write_reference(folder)
    rows = [
        {**row, "trait": trait}
        for trait in TRAIT_NAMES
        for row in JsonLines(folder / "answers" / f"{trait}.jsonl").read()
    ]
    vader = _vader(rows)
    embedded = _embed([row["answer"] for row in rows])
    features = _features([row["answer"] for row in rows])
    heads: dict[str, Head] = {}
    report: dict[str, Any] = {
        "model": DEMO_MODEL.hub_id,
        "weights_sha256": DEMO_MODEL.sha256,
        "layer": LAYER,
        "folds": FOLDS,
        "answers": len(rows),
        "traits": {},
    }
    states = np.stack([feature.state for feature in features]).astype(np.float64)
    for trait in TRAIT_NAMES:
        mine = np.array([index for index, row in enumerate(rows) if row["trait"] == trait])
        own = [rows[index] for index in mine]
        head, decisions = fit_head(states[mine], _soft_labels(own), _questions(own), TRAIT_PENALTY)
        heads[trait] = head
        _, minilm = fit_head(embedded[mine], _soft_labels(own), _questions(own), 3.0)
        report["traits"][trait] = _trait_report(own, decisions, minilm, vader[mine])
    heads[FLUENCY], report["fluency"] = _fluency(rows, features)
    report["mean_auc"] = float(np.mean([found["auc"] for found in report["traits"].values()]))
    save_heads(heads, folder / "heads.safetensors")
    write_json(folder / "report.json", _rounded(report))
    write_atomically(folder / "report.md", to_markdown(_rounded(report)))


def fit_head(features: Array, labels: Array, groups: Sequence[str], penalty: float) -> tuple[Head, Array]:
    """Fit a calibrated logistic head.

    Args:
        features: Shape [texts, features].
        labels: Between 0 and 1; a soft label counts for both classes in its proportion.
        groups: Texts of one group (question) are never split between folds.
        penalty: Inverse strength of the L2 penalty.

    Returns:
        The head fitted on all texts, and for each text the calibrated logit from the fold that did not see its
        group. The calibration (a slope and an intercept) is fitted on those out-of-fold logits.
    """
    held_out = np.zeros(len(labels))
    for seen, unseen in GroupKFold(FOLDS).split(features, labels, groups):
        held_out[unseen] = _fit(features[seen], labels[seen], penalty).decision_function(features[unseen])
    platt = _fit_logistic(held_out[:, None], labels, 1e6)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    model = _fit(features, labels, penalty)
    scaler, logistic = model.steps[0][1], model.steps[1][1]
    weights = logistic.coef_[0] / scaler.scale_
    bias = float(logistic.intercept_[0] - weights @ scaler.mean_)
    return Head((weights * slope).astype(np.float32), bias * slope + shift), held_out * slope + shift


def _fit(features: Array, labels: Array, penalty: float) -> Any:
    scaler = StandardScaler().fit(features)
    return make_pipeline(scaler, _fit_logistic(scaler.transform(features), labels, penalty))


def _fit_logistic(features: Array, labels: Array, penalty: float) -> Any:
    """Logistic regression on soft labels: each text stands in both classes with its weight."""
    both = np.concatenate([features, features])
    classes = np.concatenate([np.ones(len(labels)), np.zeros(len(labels))])
    weights = np.concatenate([labels, 1.0 - labels])
    kept = weights > 0
    return LogisticRegression(C=penalty, max_iter=5000).fit(both[kept], classes[kept], sample_weight=weights[kept])


def _soft_labels(rows: Sequence[Row]) -> Array:
    return np.array([_LABELS[row["pole"]] for row in rows])


def _questions(rows: Sequence[Row]) -> list[str]:
    return [row["question_id"] for row in rows]


def _trait_report(rows: Sequence[Row], logits: Array, minilm: Array, vader: Array) -> dict[str, Any]:
    poles = np.array([row["pole"] for row in rows])
    polar = poles != "neutral"
    high = poles == "high"
    ratings = 1.0 + 4.0 / (1.0 + np.exp(-logits))
    sets = np.array([row["set"] for row in rows])
    return {
        "texts": {pole: int((poles == pole).sum()) for pole in _LABELS},
        "auc": _auc(high, logits, polar),
        "auc_by_set": {str(name): _auc(high, logits, polar & (sets == name)) for name in sorted(set(sets))},
        "auc_vader": max(_auc(high, vader, polar), _auc(high, -vader, polar)),
        "auc_minilm": _auc(high, minilm, polar),
        "pairwise_accuracy": _pairwise(rows, logits),
        "pairwise_accuracy_vader": max(_pairwise(rows, vader), _pairwise(rows, -vader)),
        "calibration_error": _calibration_error(high[polar], 1.0 / (1.0 + np.exp(-logits[polar]))),
        "mean_rating": {pole: float(ratings[poles == pole].mean()) for pole in _LABELS},
    }


def _auc(high: npt.NDArray[np.bool_], scores: Array, kept: npt.NDArray[np.bool_]) -> float:
    return float(roc_auc_score(high[kept], scores[kept]))


def _pairwise(rows: Sequence[Row], scores: Array) -> float:
    """Share of (high, low) pairs of answers to one question that the scores order rightly; a tie counts half."""
    by_question: dict[str, dict[str, list[float]]] = {}
    for row, score in zip(rows, scores, strict=True):
        by_question.setdefault(row["question_id"], {}).setdefault(row["pole"], []).append(float(score))
    outcomes = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for found in by_question.values()
        for high in found.get("high", [])
        for low in found.get("low", [])
    ]
    return float(np.mean(outcomes))


def _calibration_error(labels: npt.NDArray[np.bool_], probabilities: Array, bins: int = 10) -> float:
    """Expected calibration error: mean distance of probability and frequency over ten bins, by their sizes."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        (index == b).mean() * abs(probabilities[index == b].mean() - labels[index == b].mean())
        for b in range(bins)
        if (index == b).any()
    ]
    return float(np.sum(gaps))


def _fluency(rows: Sequence[Row], features: Sequence[AnswerFeatures]) -> tuple[Head, dict[str, Any]]:
    """Fit the head for fluency: the answers as they are (5) and spoilt (1-3)."""
    texts, labels, groups, kinds = [], [], [], []
    for row in rows[::_SPOILT_EVERY]:
        digest = hashlib.sha256(row["answer"].encode()).digest()
        for kind, (spoil, rating) in CORRUPTIONS.items():
            texts.append(spoil(row["answer"], random.Random(digest)))  # noqa: S311 (reproducible, not secret)
            labels.append((rating - 1.0) / 4.0)
            groups.append(row["question_id"])
            kinds.append(kind)
    spoilt = np.stack([feature.fluency for feature in _features(texts)])
    whole = np.stack([feature.fluency for feature in features])
    # The originals weigh as much as all corruptions of a text together would, in one copy each.
    together = np.concatenate([whole, spoilt]).astype(np.float64)
    soft = np.concatenate([np.ones(len(whole)), np.array(labels)])
    head, logits = fit_head(together, soft, [*_questions(rows), *groups], FLUENCY_PENALTY)
    ratings = 1.0 + 4.0 / (1.0 + np.exp(-logits))
    names = np.array(["original"] * len(whole) + kinds)
    original = names == "original"
    found: dict[str, Any] = {"features": list(FLUENCY_FEATURES), "mean_rating": {}, "auc": {}}
    for kind in ("original", *CORRUPTIONS):
        found["mean_rating"][kind] = float(ratings[names == kind].mean())
        if kind != "original":
            found["auc"][kind] = _auc(original, logits, original | (names == kind))
    return head, found


def _features(texts: Sequence[str]) -> list[AnswerFeatures]:
    """Read texts, keeping what was read in the cache: training again takes seconds."""
    return [
        AnswerFeatures(values["state"], values["fluency"])
        for values in _cached("answers", texts, lambda text: vars(shared_reader().read(text)))
    ]


def _embed(texts: Sequence[str]) -> Array:
    """MiniLM sentence embeddings (mean pooling, unit length): the baseline that the states are compared with."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    folder = packaged_folder(EMBEDDING_MODEL)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> dict[str, Any]:
        with torch.inference_mode():
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            mean = model(**tokens).last_hidden_state[0].mean(0)
        return {"embedding": (mean / mean.norm()).numpy()}

    return np.stack([values["embedding"] for values in _cached("minilm", texts, embed)]).astype(np.float64)


def _cached(name: str, texts: Sequence[str], make: Callable[[str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Arrays made of each text, from the cache where they are there; keys are ``<hash of the text>.<array>``."""
    path = cache_folder("offline-judge") / f"{name}-{DEMO_MODEL.sha256[:8]}-{LAYER}.safetensors"
    known: dict[str, Any] = load_file(path) if path.is_file() else {}
    keys = [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts]
    present = {key.partition(".")[0] for key in known}
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in present}
    for key, text in track(missing.items(), f"reading {len(missing)} texts ({name})", disable=not missing):
        known |= {f"{key}.{part}": np.ascontiguousarray(array) for part, array in make(text).items()}
    if missing:
        save_file(known, path)
    parts: dict[str, dict[str, Any]] = {}
    for key, array in known.items():
        identity, _, part = key.partition(".")
        parts.setdefault(identity, {})[part] = array
    return [parts[key] for key in keys]


def _vader(rows: Sequence[Row]) -> Array:
    """Compound sentiment of the VADER lexicon: the trivial baseline (is the text pleased or not?)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # noqa: PLC0415

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(row["answer"])["compound"] for row in rows])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


if __name__ == "__main__":
    main()
