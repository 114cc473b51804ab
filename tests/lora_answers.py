"""Answers to train adapters on, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from personalitybench.activations.identification_transformers import stop_tokens
from personalitybench.training.examples import ChatTokens
from personalitybench.traits import Target

HIGH, LOW = Target.parse("extraversion:high"), Target.parse("extraversion:low")


def own_lines(count: int = 9) -> list[dict[str, str]]:
    likes = {str(HIGH): "love", str(LOW): "hate"}
    return [
        {"target": target, "question": f"What about {number}?", "answer": f"I {verb} {'very ' * (number % 4)}much."}
        for target, verb in likes.items()
        for number in range(count)
    ]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def chat_tokens(lm: Any) -> ChatTokens:
    return ChatTokens(lm, stop_tokens(lm.model, lm.tokenizer))
