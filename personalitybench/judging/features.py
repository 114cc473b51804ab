"""What the offline judge sees of an answer: one pass of a small language model over the text.

The pass gives two things. The hidden states of a middle layer, averaged over the answer, carry what kind of person
speaks; the likelihood of the tokens tells how much the text reads like language. Each answer is read alone (no
batch, no padding), so its features never depend on what else is judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from personalitybench.backends.loading import quiet_libraries
from personalitybench.files import read_json, write_json
from personalitybench.judging.base import is_readable
from personalitybench.metrics.fluency import measure_text
from personalitybench.models import DEMO_MODEL, packaged_folder
from personalitybench.resources import bundled
from personalitybench.versions import drift_error, import_failure, warn_of_untried_versions

LAYER = 15  # of 30; chosen by cross-validation over questions, see judges/offline/report.md
MAX_TOKENS = 512

FLUENCY_FEATURES = ("mean_nll", "worst_nll", "repetition", "distinct_2")

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnswerFeatures:
    """What one pass over an answer gave.

    Attributes:
        state: Mean hidden state after layer :data:`LAYER` over the answer's tokens; shape [hidden size].
        fluency: The values of :data:`FLUENCY_FEATURES`: mean negative log-likelihood of a token (nats), mean of the
            worst tenth of the tokens, share of repeated word triples, share of distinct word pairs.
    """

    state: Vector
    fluency: Vector


class AnswerReader:
    """A small language model that reads answers (SmolLM2-135M-Instruct, as the demo uses it).

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        ModelError: The model cannot be fetched.
    """

    def __init__(self) -> None:
        try:
            import torch  # noqa: PLC0415 (heavy, and optional)
            from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
        except ImportError as error:
            raise import_failure(error, "the offline judge", "hf") from error
        folder = packaged_folder(DEMO_MODEL)
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with quiet_libraries():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model: Any = model.to(self._device).eval()
        self._prefix: list[int] = self._tokenizer(f"{self._tokenizer.bos_token}assistant\n")["input_ids"]

    def read(self, answer: str) -> AnswerFeatures:
        """Read an answer; what follows its first :data:`MAX_TOKENS` tokens is not read.

        Raises:
            ValueError: There is nothing to read.
        """
        if not is_readable(answer):
            raise ValueError("an answer without a word has no features")
        from personalitybench.activations.calls import describe, output_logits, run_forward  # noqa: PLC0415 (torch)

        torch, start = self._torch, len(self._prefix)
        tokens = self._tokenizer(answer.strip(), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        ids = torch.tensor([self._prefix + tokens], device=self._device)
        with torch.inference_mode():
            output = run_forward(self._model, ids, torch.ones_like(ids), output_hidden_states=True)
            try:
                state = output.hidden_states[LAYER][0, start:].float().mean(0)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise drift_error(
                    "transformers", f"gives no hidden states of layer {LAYER}: {describe(output)} ({error})"
                ) from error
            logits = output_logits(output, self._model)
            likelihood = torch.log_softmax(logits[0, start - 1 : -1].float(), dim=-1)
            losses = -likelihood.gather(1, ids[0, start:, None])[:, 0]
        worst = torch.topk(losses, max(1, len(losses) // 10)).values.mean()
        measured = measure_text(answer)
        fluency = [
            losses.mean().item(),
            worst.item(),
            measured.get("repetition", 0.0),
            measured.get("distinct_2", 1.0),
        ]
        return AnswerFeatures(state.cpu().numpy(), np.array(fluency, dtype=np.float32))


REFERENCE_TEXT = (
    "I usually make a list the evening before, and I check it twice; nobody has ever waited for me. On Sundays I call "
    "my brother, and we argue about 3 or 4 films that neither of us has seen."
)
_REFERENCE_FILE = "reference.json"
_MAX_DISTANCE = 0.03
"""Relative. Measured: 0.004 between bfloat16 and float32, 0.14 to the layer before, 0.22 to the layer after."""


def write_reference(folder: Path) -> None:
    """Record the features of :data:`REFERENCE_TEXT` beside the heads that are fitted on such features."""
    features = AnswerReader().read(REFERENCE_TEXT)
    state = [round(float(value), 4) for value in features.state]
    nll = round(float(features.fluency[0]), 4)
    write_json(folder / _REFERENCE_FILE, {"text": REFERENCE_TEXT, "layer": LAYER, "mean_nll": nll, "state": state})


def check_reader(reader: AnswerReader, folder: Path) -> None:
    """Compare a reader's features of the reference text with those recorded when the heads were fitted.

    Tokenizer, weights, layer and precision all have a part in them.

    Raises:
        DependencyDriftError: They differ by more than rounding.
        DataError: The record is missing.
    """
    recorded = read_json(folder / _REFERENCE_FILE)
    features = reader.read(recorded["text"])
    expected = np.array(recorded["state"], dtype=np.float32)
    same_shape = features.state.shape == expected.shape
    distance = float(np.linalg.norm(features.state - expected) / np.linalg.norm(expected)) if same_shape else math.inf
    nll = float(features.fluency[0])
    if not distance <= _MAX_DISTANCE or not abs(nll - recorded["mean_nll"]) <= _MAX_DISTANCE * recorded["mean_nll"]:
        raise drift_error(
            "transformers",
            f"reads the offline judge's reference text otherwise than when the judge was trained (hidden state off by "
            f"{distance:.1%}, loss {nll:.3f} instead of {recorded['mean_nll']:.3f} nats a token)",
        )


@lru_cache(maxsize=1)
def shared_reader() -> AnswerReader:
    """Return the one reader of a process, checked against the record beside the bundled heads."""
    warn_of_untried_versions()
    reader = AnswerReader()
    check_reader(reader, bundled("judges", "offline"))
    return reader
